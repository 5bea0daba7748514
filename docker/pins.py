"""The environment of an image: pyproject.toml's dependencies as requirements.lock has them, with one build of torch.

python pins.py list BUILD pyproject.toml requirements.lock   prints requirements; BUILD is cpu, or cu130 for CUDA 13.0
python pins.py check BUILD requirements.txt                  exits with 1 and says why, if it is another environment
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

CPU = "cpu"
_NAME = re.compile(r"[\w.-]+")
_CUDA_ONLY = re.compile(r"(nvidia|cuda|triton)(-|$)|pytorch-triton")


def requirements(pyproject: str, lock: str, build: str) -> list[str]:
    """The locked dependencies; for CPUs torch's names its build, so that PyPI's, which is CUDA's, cannot come.

    Raises ValueError for a dependency without a lock.
    """
    names = [_normal(_NAME.match(line)[0]) for line in tomllib.loads(pyproject)["project"]["dependencies"]]
    locked = {_normal(line.partition("==")[0]): line for line in lock.splitlines() if "==" in line and line[0] != "#"}
    if missing := [name for name in names if name not in locked]:
        raise ValueError(f"requirements.lock has no {', '.join(missing)}.")
    pins = [locked[name] for name in names]
    return [f"{pin}+{CPU}" if build == CPU and pin.startswith("torch==") else pin for pin in pins]


def faults(pins: Iterable[str], installed: Mapping[str, str], build: str, cuda: str | None) -> list[str]:
    """What is wrong with an environment: versions by normal name, and the CUDA version that torch was built for."""
    found = []
    for pin in pins:
        name, version = pin.split("==")
        there = installed.get(_normal(name), "nothing")
        if version not in (there, there.partition("+")[0]):  # a pin without a build takes any, as in pip
            found.append(f"{pin} is pinned, {there} is installed")
    if build == CPU:
        found += [f"{name} is of CUDA, in an image for CPUs" for name in sorted(installed) if _CUDA_ONLY.match(name)]
    wanted = None if build == CPU else f"{build[2:-1]}.{build[-1]}"
    if cuda != wanted:
        found.append(f"torch is built for CUDA {cuda}, not {wanted}")
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check(pins: list[str], build: str) -> list[str]:
    import bitsandbytes  # noqa: F401  # it looks for its CUDA libraries as it is imported
    import torch

    installed = {_normal(found.metadata["Name"]): found.version for found in distributions()}
    return faults(pins, installed, build, torch.version.cuda)


def main(command: str, build: str, *paths: str) -> int:
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    if command == "list":
        print("\n".join(requirements(*texts, build)))
        return 0
    found = _check(texts[0].split(), build)
    print("\n".join(found) or f"the pins, and torch for {build}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""The environment of an image: the pins of pyproject.toml with one build of torch, listed for pip and checked after it.

python pins.py list BUILD pyproject.toml       prints requirements; BUILD is cpu, or cu130 for CUDA 13.0
python pins.py check BUILD requirements.txt    exits with 1 and says why, if the environment is another one
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

CPU = "cpu"
_CUDA_ONLY = re.compile(r"(nvidia|cuda|triton)(-|$)|pytorch-triton")


def requirements(pyproject: str, build: str) -> list[str]:
    """The project's dependencies; for CPUs torch's names its build, so that PyPI's, which is CUDA's, cannot come."""
    pins: list[str] = tomllib.loads(pyproject)["project"]["dependencies"]
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


def main(command: str, build: str, path: str) -> int:
    text = Path(path).read_text(encoding="utf-8")
    if command == "list":
        print("\n".join(requirements(text, build)))
        return 0
    found = _check(text.split(), build)
    print("\n".join(found) or f"the pins, and torch for {build}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

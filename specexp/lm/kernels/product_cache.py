"""What products take on this machine, in a file: measured once for each environment and shape of a weight.

A file is of one environment: GPU, capability, PyTorch, Triton, CUDA and the kernels' source. Another one has another
file. One that cannot be read, or is of another environment than its name says, is written anew; one line says so.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = "SPECEXP_CACHE"  # the variable that names the folder
FORMAT = 1
SOURCES = ("product_kernel.py", "launch.py")  # whose change makes kernels others
# By shape and dtype of a weight, number of rows, and name of a product: seconds; None where it does not run.
Measured = dict[str, dict[int, dict[str, float | None]]]


def cache_folder(variables: Mapping[str, str] = os.environ) -> Path:
    """The folder in SPECEXP_CACHE; without it `specexp` in the user's cache folder. Raises OSError without a home."""
    if given := variables.get(FOLDER):
        return Path(given)
    base = variables.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # a relative one is ignored, as its specification says
        return Path(base, "specexp")
    try:
        return Path.home() / ".cache" / "specexp"
    except RuntimeError as error:
        raise OSError(f"there is no home folder: {error}") from None


def environment_of(device: torch.device) -> dict[str, str]:
    """What timings on a CUDA device depend on."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    sources = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "gpu": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}", "torch": torch.__version__,
        "triton": triton, "cuda": str(torch.version.cuda), "kernels": sha256(sources).hexdigest()[:16],
    }  # fmt: skip


class ProductCache:
    """The timings of one environment, in a folder; without one, nothing is kept. What is wrong with the file is in
    `notes`, and is not raised."""

    def __init__(self, folder: Path | None, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        key = sha256(json.dumps(self._environment, sort_keys=True).encode()).hexdigest()[:16]
        self.path = None if folder is None else folder / f"products-{key}.json"
        self.notes: list[str] = []

    def read(self) -> Measured:
        """What is in the file; nothing if it is not there, or is not this environment's."""
        if self.path is None:
            return {}
        try:
            return _parsed(json.loads(self.path.read_text(encoding="utf-8")), self._environment)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.notes.append(f"'{self.path}' is not used ({_reason(error)}): how fast products are is measured again")
            return {}

    def add(self, measured: Measured) -> None:
        """Write these to the file, with those that it has of other shapes. Another process may have added some."""
        if self.path is None:
            return
        notes = list(self.notes)  # what is wrong with the file has been said when it was read
        whole = {**self.read(), **measured}
        self.notes = notes
        text = json.dumps({"format": FORMAT, "environment": self._environment, "products": whole}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=self.path.stem, suffix=".partial", dir=self.path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(partial, self.path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(partial)
                raise
        except OSError as error:
            self.notes.append(
                f"'{self.path}' cannot be written ({_reason(error)}): how fast products are is measured at each start;"
                f" {FOLDER} names another folder"
            )


def _parsed(content: Any, environment: dict[str, str]) -> Measured:
    """The timings of a file's content. Raises ValueError."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("it has another format")
    if content.get("environment") != environment:
        raise ValueError("it is of another environment")
    result: Measured = {}
    try:
        for shape, by_rows in content["products"].items():
            result[shape] = {int(rows): dict(timings) for rows, timings in by_rows.items()}
    except (KeyError, AttributeError, TypeError, ValueError):
        raise ValueError("it has another format") from None
    seconds = [each for by_rows in result.values() for timings in by_rows.values() for each in timings.values()]
    # A bool is an int to Python.
    if not all(each is None or (type(each) in (int, float) and 0 < each < math.inf) for each in seconds):
        raise ValueError("it has a time that is none")
    return result


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it is no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)

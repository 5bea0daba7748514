"""The last resort: an unexpected exception is a bug. It is reported in one line, with its traceback in a file."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from specexp.addresses import mask

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h: an internal error
SHOW = "SPECEXP_TRACEBACK"  # if set, the traceback goes to standard error, too
_PACKAGES = ("specexp", "torch", "transformers", "mlflow", "datasets")


def report(error: BaseException) -> str:
    """One line about an exception; its traceback goes to a file in the folder for temporary files."""
    trace = mask("".join(traceback.format_exception(error)))
    if os.environ.get(SHOW):
        print(trace, end="", file=sys.stderr)
    first = (mask(str(error)).strip().splitlines() or [""])[0]
    what = f"{type(error).__name__}: {first:.200}" if first else type(error).__name__
    try:
        where = f"The traceback is in '{_write(trace)}'"
    except OSError as why:
        where = f"Its traceback could not be written ({why.strerror or why}); set {SHOW}=1 to see it"
    return f"this is a bug in specexp: {what.rstrip('.')}. {where}; please report it."


def _write(trace: str) -> Path:
    """Write a new file, whole or not at all."""
    handle, partial = tempfile.mkstemp(prefix="specexp-bug-", suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}, {platform.platform()}, Python {platform.python_version()}\n")
        file.write(f"{', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}\n\n{trace}")
    path = Path(partial).with_suffix(".txt")
    os.replace(partial, path)
    return path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

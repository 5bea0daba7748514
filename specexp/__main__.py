"""`python -m specexp NAME ...` is what the console script `specexp` is, in a checkout that is not installed, too."""

from __future__ import annotations

import importlib
from pathlib import Path

import specexp


def main() -> None:
    here = Path(__file__).resolve().parent
    if not (here / "entrypoints").is_dir():  # in a checkout the commands lie beside this package, in a wheel inside it
        specexp.__path__.append(str(here.parent))
    importlib.import_module("specexp.entrypoints.__main__").cli()


if __name__ == "__main__":
    main()

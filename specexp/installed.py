"""Whether a package is there, without importing it: extras are heavy, and most commands need none."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec


def is_installed(module: str) -> bool:
    """Whether `module`, a package or a part of one, can be imported.

    A folder of that name without an __init__.py is none: one named "ray" or "triton" beside what a user runs is data.
    """
    try:
        spec: ModuleSpec | None = find_spec(module)
    except ModuleNotFoundError:  # the package that `module` is a part of is not there
        return False
    return spec is not None and spec.has_location

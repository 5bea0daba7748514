"""Prints pip's constraints that hold all that the tests use at the lower end of its range in pyproject.toml."""

from __future__ import annotations

import tomllib
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def constraints(pyproject: str) -> list[str]:
    """`name==version` for every `name>=version,<...`. Raises ValueError for a requirement of another form."""
    project = tomllib.loads(pyproject)["project"]
    found = []
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "screenshots"}
    for requirement in [*project["dependencies"], *chain.from_iterable(extras.values())]:
        name, least, rest = requirement.partition(">=")
        version, upper, _ = rest.partition(",<")
        if not (least and upper):
            raise ValueError(f"'{requirement}' is no range of the form name>=version,<version.")
        found.append(f"{name}=={version}")
    return found


if __name__ == "__main__":
    print("\n".join(constraints(PYPROJECT.read_text(encoding="utf-8"))))

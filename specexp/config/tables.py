"""The tables of settings in the documents, made from the tables in the code.

`python -m specexp.config.tables docs/settings.md docs/methods.md` writes each table between its markers in these pages;
without pages it prints all tables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from specexp.config.command_options import COMMAND_OPTIONS
from specexp.config.models import MODEL_SETTINGS
from specexp.config.schema import OPTIONS, SETTINGS, TREE_SHAPE
from specexp.config.setting import COMMANDS_WITH_SETTINGS, Option, Setting, quoted
from specexp.method_specs import BUILT_IN

_HEAD = ("setting", "value", "default", "what it does")
_BLOCK = re.compile(r"(<!-- table of (\w+)[^>]*-->\n\n).*?(\n\n<!-- end of table -->)", re.DOTALL)


def options() -> str:
    """Return the table of the command-line options that are not settings."""
    rows = [(*_cells(name, option), _commands(option)) for name, option in OPTIONS.items()]
    return _table(("option", *_HEAD[1:], "commands"), rows)


def own() -> str:
    """Return the table of the options that single commands take."""
    rows = [
        (*_cells(name, option), f"`{command}`")
        for command, options in sorted(COMMAND_OPTIONS.items())
        for name, option in options.items()
    ]
    return _table(("option", *_HEAD[1:], "command"), rows)


def settings() -> str:
    """Return the table of the settings that commands take."""
    taken = {name: setting for name, setting in SETTINGS.items() if setting.commands}
    rows = [(*_cells(name, setting), _commands(setting), _methods(name)) for name, setting in taken.items()]
    return _table((*_HEAD, "commands", "methods"), rows)


def in_files() -> str:
    """Return the table of the settings that only files take, except those of trees."""
    return _of_files(name for name in SETTINGS if name not in TREE_SHAPE)


def tree() -> str:
    """Return the table of the settings of a tree that only files take."""
    return _of_files(TREE_SHAPE)


def model() -> str:
    """Return the table of a model's settings."""
    return _table(_HEAD, [_cells(name, setting) for name, setting in MODEL_SETTINGS.items()])


TABLES: Mapping[str, Callable[[], str]] = {
    "options": options,
    "own": own,
    "settings": settings,
    "in_files": in_files,
    "tree": tree,
    "model": model,
}


def names_in(page: str) -> list[str]:
    """Return the names of the tables that this page has markers for."""
    return [result[2] for result in _BLOCK.finditer(page)]


def filled(page: str) -> str:
    """Return the text of a page with every table regenerated."""
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", page)


def _of_files(names: Iterable[str]) -> str:
    taken = [name for name in names if not SETTINGS[name].commands]
    return _table((*_HEAD, "methods"), [(*_cells(name, SETTINGS[name]), _methods(name)) for name in taken])


def _cells(name: str, entry: Setting | Option) -> tuple[str, ...]:
    default = f"`{entry.default}`" if entry.default else entry.otherwise
    said = entry.help.partition(" Default: ")[0]  # which has its own column
    return f"`{name}`", entry.value, default, f"{said} {entry.more}".rstrip()


def _commands(entry: Setting | Option) -> str:
    left_out = [command for command in COMMANDS_WITH_SETTINGS if command not in entry.commands]
    if len(left_out) < len(entry.commands):
        return f"all but {quoted(left_out)}" if left_out else "all"
    return quoted(entry.commands)


def _methods(setting: str) -> str:
    return quoted(spec.name for spec in BUILT_IN if setting in spec.settings) or "all"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _main(pages: list[str]) -> None:
    for page in map(Path, pages):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    if not pages:
        print("\n\n".join(table() for table in TABLES.values()))


if __name__ == "__main__":
    _main(sys.argv[1:])

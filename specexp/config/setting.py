"""The entries of the tables of settings: settings, and options that settings files cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from specexp.errors import ConfigError

# The commands that take settings. `main` takes those of `evaluate`, `log_decoder` those of `generate`.
COMMANDS_WITH_SETTINGS = (
    "evaluate", "benchmark", "advise", "certify", "collect_labels", "train_drafter", "generate",
)  # fmt: skip
_RULE = "it must be "
_CHOICES = "Known: "


def but(*left_out: str) -> tuple[str, ...]:
    """Return all commands except these."""
    return tuple(command for command in COMMANDS_WITH_SETTINGS if command not in left_out)


def quoted(names: Iterable[str]) -> str:
    """Return names in backquotes, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    `help` is a sentence, and `of_one` replaces it in commands that take one value. `default` is text, or "" if the
    default differs between commands or experiments: `otherwise` then describes it. `more` follows `help` in the
    documents. `commands` take it as an option; a setting without any is given in files only.
    """

    parse: Callable[[Any], Any]
    help: str
    default: str = ""
    otherwise: str = ""
    more: str = ""
    of_one: str = ""
    commands: tuple[str, ...] = COMMANDS_WITH_SETTINGS

    @property
    def value(self) -> str:
        """The rule for its values, in the words of `parse`: None is never valid, so the error states the rule."""
        try:
            self.parse(None)
        except (ValueError, ConfigError) as error:
            rule = str(error).rstrip(".")
            _, choices, names = rule.rpartition(_CHOICES)
            return ", ".join(f"`{name}`" for name in names.split(", ")) if choices else rule.removeprefix(_RULE)
        return ""


@dataclass(frozen=True, slots=True)
class Option:
    """A command-line option that presets and settings files cannot hold. `value` is the rule for its values.

    The other fields are those of a setting.
    """

    help: str
    value: str
    default: str = ""
    otherwise: str = ""
    more: str = ""
    commands: tuple[str, ...] = COMMANDS_WITH_SETTINGS

"""Presets that ship with the package, and settings files, as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specexp import reading
from specexp.errors import ConfigError

PRESETS = Path(__file__).resolve().parents[1] / "presets"
KINDS = ("experiments", "models", "methods", "templates")


def preset_text(kind: str, name: str) -> str:
    """A preset as it stands in its file, header and all."""
    return (PRESETS / kind / f"{name}.yaml").read_text(encoding="utf-8")


def preset_names(kind: str) -> list[str]:
    """Names of the presets of a kind."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.yaml"))


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError names the file and the place."""
    found = reading.parse_yaml(
        reading.decode(reading.read_bytes(path, "config file", ConfigError), str(path), ConfigError),
        str(path),
        ConfigError,
    )
    if found is None:
        raise ConfigError(f"{path}: is empty; give it settings, or leave it out.")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must be a mapping of settings to values, got {type(found).__name__}.")
    return found


def expanded(names: Sequence[str]) -> list[str]:
    """Names of methods, those of a preset that stands for several in its place."""
    found: list[str] = []
    for name in names:
        found += group_of(name) or [name]
    return found


def group_of(name: str) -> list[str]:
    """The methods that a preset of several stands for; none for any other name."""
    if name not in preset_names("methods"):
        return []
    return list(load_yaml(PRESETS / "methods" / f"{name}.yaml").get("methods", []))

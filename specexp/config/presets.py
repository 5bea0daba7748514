"""Reads the presets that ship with the package, and settings files, without resolving them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specexp import reading
from specexp.errors import ConfigError
from specexp.method_specs import MethodSpec, installed

PRESETS = Path(__file__).resolve().parents[1] / "presets"
KINDS = ("experiments", "models", "methods", "templates")


def preset_text(kind: str, name: str) -> str:
    """A preset's file, header included; for a method of an installed package, the same text built from its settings."""
    path = PRESETS / kind / f"{name}.yaml"
    if kind == "methods" and not path.exists():
        method = _of_packages()[name]
        settings = "".join(f"{key}: {json.dumps(value)}\n" for key, value in method_preset(name).items())
        return f"# {method.summary}\n{settings}"
    return path.read_text(encoding="utf-8")


def preset_names(kind: str) -> list[str]:
    """Names of the presets of a kind, those of installed packages' methods included."""
    shipped = {path.stem for path in (PRESETS / kind).glob("*.yaml")}
    return sorted(shipped | (_of_packages().keys() if kind == "methods" else set()))


def method_preset(name: str) -> dict[str, Any]:
    """The settings of a method preset, `method` among them; or `methods`, for a preset of several methods."""
    if method := _of_packages().get(name):
        return {"method": method.name, **method.presets[name]}
    return load_yaml(PRESETS / "methods" / f"{name}.yaml")


def _of_packages() -> dict[str, MethodSpec]:
    """The method of each preset that an installed package provides."""
    return {name: method.spec for method in installed().values() for name in method.spec.presets}


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError names the file and the place."""
    result = reading.parse_yaml(
        reading.decode(reading.read_bytes(path, "config file", ConfigError), str(path), ConfigError),
        str(path),
        ConfigError,
    )
    if result is None:
        raise ConfigError(f"{path}: is empty; give it settings, or leave it out.")
    if not isinstance(result, dict):
        raise ConfigError(f"{path}: must be a mapping of settings to values, got {type(result).__name__}.")
    return result


def expanded(names: Sequence[str]) -> list[str]:
    """Names of methods, in which a preset of several is replaced by its methods."""
    result: list[str] = []
    for name in names:
        result += group_of(name) or [name]
    return result


def group_of(name: str) -> list[str]:
    """The methods of a preset of several; an empty list for any other name."""
    if name not in preset_names("methods"):
        return []
    return list(method_preset(name).get("methods", []))

"""The arguments of one engine: a command, the settings of drafts as data, and what differs from the recommendation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EngineArguments:
    """`settings` are what the engine's parser is given about drafts, `request` the fields of a request's sampling.

    `command` is a shell command, or Python for transformers. With a `refusal` there are none of the three.
    """

    engine: str
    checked: str  # the version that the arguments were compared with
    page: str  # where that version documents them
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    refusal: str = ""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "differences": list(self.differences)}


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command-line options; True is an option without a value."""
    result: list[str] = []
    for name, value in settings.items():
        result += [name] if value is True else [name, f"{value:g}" if isinstance(value, float) else str(value)]
    return result

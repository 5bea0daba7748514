"""What a judge looks at: hidden states of the last layer after its norm, of target and draft, at one of two places.

A drafted token d stands at position t. `token` features are the rows after d was fed, at t itself; `previous` ones
those after the token before it, at t - 1, which exist anyway when the draft proposes and the target verifies. `both`
is the draft's row followed by the target's (AutoJudge 2504.20039, section 3.2).

VERSION changes whenever features of the same name would come out otherwise; a judge of another version is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp.decoding.protocol import RequiredHidden
from specexp.errors import ConfigError, unknown

Array = Any
VERSION = 1
PARTS = ("draft_token", "draft_previous", "target_token", "target_previous")  # what a label set keeps


@dataclass(frozen=True, slots=True)
class Mode:
    """Which rows, in their order."""

    name: str
    parts: tuple[str, ...]

    @property
    def needs(self) -> RequiredHidden:
        """What decoding must ask the models for."""
        return RequiredHidden(
            target="target_token" in self.parts or "target_previous" in self.parts,
            draft="draft_token" in self.parts or "draft_previous" in self.parts,
            own="draft_token" in self.parts,
        )

    def size(self, hidden: Mapping[str, int]) -> int:
        """Number of features, from the hidden sizes by role."""
        return sum(hidden[part.split("_")[0]] for part in self.parts)


MODES = {
    mode.name: mode
    for mode in (
        Mode("both", ("draft_token", "target_token")),
        Mode("target", ("target_token",)),
        Mode("draft", ("draft_token",)),
        Mode("both_previous", ("draft_previous", "target_previous")),
        Mode("target_previous", ("target_previous",)),
        Mode("draft_previous", ("draft_previous",)),
    )
}


def mode(name: str) -> Mode:
    """The feature mode of this name. Raises ConfigError."""
    if name not in MODES:
        raise ConfigError(unknown("feature mode", name, MODES))
    return MODES[name]

"""The inputs of a judge: last-layer hidden states after the final norm, of target and draft, at one of two positions.

For a drafted token d at position t, `token` features are the hidden states at t, after d was fed. `previous` features
are those at t - 1, after the token before d; they exist anyway when the draft proposes and the target verifies. `both`
is the draft's hidden state followed by the target's (AutoJudge 2504.20039, section 3.2).

`decoding/lossy_rules.py` reads them when decoding, `judge/mining.py` when mining.

VERSION must be raised whenever features of the same name would have other values; a judge of another version is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp.decoding.protocol import Needs
from specexp.errors import ConfigError, unknown

Array = Any
VERSION = 1
PARTS = ("draft_token", "draft_previous", "target_token", "target_previous")  # stored in a label set


@dataclass(frozen=True, slots=True)
class Mode:
    """Selects the hidden states that are concatenated into the features, in their order."""

    name: str
    parts: tuple[str, ...]

    @property
    def needs(self) -> Needs:
        """Return which hidden states decoding must request from the models."""
        return Needs(
            target="target_token" in self.parts or "target_previous" in self.parts,
            draft="draft_token" in self.parts or "draft_previous" in self.parts,
            feed_last_token="draft_token" in self.parts,
        )

    def size(self, hidden: Mapping[str, int]) -> int:
        """Return the number of features, given the hidden size of each role."""
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
    """Return the feature mode of this name. Raises ConfigError if it is unknown."""
    if name not in MODES:
        raise ConfigError(unknown("feature mode", name, MODES))
    return MODES[name]

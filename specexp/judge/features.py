"""The inputs of a judge: last-layer hidden states after the final norm, of target and draft, at one of two positions,
and four scalars of the distributions that the drafted token was tested with.

For a drafted token d at position t, `token` features are the hidden states at t, after d was fed. `previous` features
are those at t - 1, after the token before d; they exist anyway when the draft proposes and the target verifies. `both`
is the draft's hidden state followed by the target's (AutoJudge 2504.20039, section 3.2).

The scalars are H(p) in nats, the margin max p - p(d), p(d) and q(d), of the distributions that d was tested with: in
labels and at temperature 0 those at temperature 1, otherwise those that are sampled from. A mode with `_scalars` has
those of its own models.

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
SCALARS = ("draft_q", "target_entropy", "target_margin", "target_p")
# Stored in a label set; one of version 0.1 has no scalars.
PARTS = ("draft_token", "draft_previous", "target_token", "target_previous", *SCALARS)


@dataclass(frozen=True, slots=True)
class Mode:
    """Selects the parts that are concatenated into the features, in their order."""

    name: str
    parts: tuple[str, ...]

    @property
    def needs(self) -> Needs:
        """Return what decoding must request from the models."""
        return Needs(
            target="target_token" in self.parts or "target_previous" in self.parts,
            draft="draft_token" in self.parts or "draft_previous" in self.parts,
            feed_last_token="draft_token" in self.parts,
            draft_q="draft_q" in self.parts,
        )

    @property
    def reads_draft(self) -> bool:
        """True if a part is the draft's, which a tree's draft does not compute for every node."""
        return any(part.startswith("draft_") for part in self.parts)

    def size(self, hidden: Mapping[str, int]) -> int:
        """Return the number of features, given the hidden size of each role."""
        return sum(1 if part in SCALARS else hidden[part.split("_")[0]] for part in self.parts)


_HIDDEN = (
    Mode("both", ("draft_token", "target_token")),
    Mode("target", ("target_token",)),
    Mode("draft", ("draft_token",)),
    Mode("both_previous", ("draft_previous", "target_previous")),
    Mode("target_previous", ("target_previous",)),
    Mode("draft_previous", ("draft_previous",)),
)


def _with_scalars(plain: Mode) -> Mode:
    roles = {part.split("_")[0] for part in plain.parts}
    return Mode(f"{plain.name}_scalars", (*plain.parts, *(part for part in SCALARS if part.split("_")[0] in roles)))


MODES = {mode.name: mode for mode in (*_HIDDEN, *map(_with_scalars, _HIDDEN), Mode("scalars", SCALARS))}


def mode(name: str) -> Mode:
    """Return the feature mode of this name. Raises ConfigError if it is unknown."""
    if name not in MODES:
        raise ConfigError(unknown("feature mode", name, MODES))
    return MODES[name]

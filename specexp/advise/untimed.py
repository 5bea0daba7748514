"""What advise measures of each prompt without a clock: plain decoding's output, where drafts agree with it, and what
lossy chains accept. It is the same wherever it is measured: in this process, or on workers (`workers`).

A kind of measurement is the beginning of its keys in the journal, which end with the prompt's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from specexp.advise.candidates import PLAIN, Candidate
from specexp.advise.traces import agreement, watched_output
from specexp.decoding.chain import Chain
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import SpecexpContender, once
from specexp.storage.journal import Key

DRAFT, WATCHED = "draft", "watched"
OUTPUTS: Key = ("plain",)


def candidates_of(prepared: Prepared) -> list[Candidate]:
    return [Candidate(setting) for setting in prepared.settings if setting.config.label != PLAIN]


def kinds_of(candidates: Sequence[Candidate]) -> list[Key]:
    """The kinds of measurements: outputs first, which the others need."""
    drafts: list[Key] = [(DRAFT, key) if key else (DRAFT,) for key in draft_temperatures(candidates)]
    return [OUTPUTS, *drafts, *((WATCHED, key) for key in _longest(candidates))]


def draft_key(kind: Key) -> str:
    """The key of the traces of a kind of drafts."""
    return str(kind[1]) if len(kind) > 1 else ""


def draft_temperatures(candidates: Sequence[Candidate]) -> dict[str, float | None]:
    """The temperatures of drafts that score tokens, by the key of their traces; the target's own is always one."""
    scoring = [c for c in candidates if c.drafts and not c.writes_text]
    chains = [c for c in scoring if c.predicted]
    result: dict[str, float | None] = {"": None} if scoring else {}
    return result | {c.accepts_like: c.setting.config.draft_temperature for c in chains}


def _longest(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """The longest of the lossy chains that accept alike, by the key of their traces."""
    return {c.accepts_like: c for c in sorted(candidates, key=lambda c: c.size) if not c.lossless}


@dataclass(slots=True)
class Untimed:
    """Measures prompts; `plain` decodes them plainly."""

    prepared: Prepared
    plain: SpecexpContender
    candidates: list[Candidate] = field(init=False)

    def __post_init__(self) -> None:
        self.candidates = candidates_of(self.prepared)

    @property
    def kinds(self) -> list[Key]:
        return kinds_of(self.candidates)

    def name_of(self, kind: Key) -> str:
        """What the progress bar says."""
        if kind == OUTPUTS:
            return PLAIN
        return DRAFT if kind[0] == DRAFT else _longest(self.candidates)[str(kind[1])].kind

    def measure(self, kind: Key, index: int, output: Sequence[int]) -> Any:
        """One measurement, as JSON. `output` is plain decoding's, which the kind OUTPUTS does not need."""
        if kind == OUTPUTS:
            return once(self.plain, index, 0).token_ids
        if kind[0] == DRAFT:
            key = draft_key(kind)
            temperature = draft_temperatures(self.candidates)[key]
            alike = [c for c in self.candidates if c.predicted and c.accepts_like == key]
            longest = max((c.draft.gamma for c in alike), default=1)
            return asdict(agreement(self.prepared, index, output, temperature, longest))
        longest_chain = _longest(self.candidates)[str(kind[1])]
        decoder = longest_chain.setting.decoder
        assert isinstance(decoder, Chain), f"{longest_chain.label} is no chain"
        trace, text = watched_output(self.prepared, index, decoder)
        return asdict(replace(trace, certainty=agreement(self.prepared, index, text).certainty))

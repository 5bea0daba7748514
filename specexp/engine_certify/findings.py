"""What a served engine does wrong, named by what it is, and what follows from what.

Checks may see several signs of one cause: an engine that ignores the temperature is not greedy at temperature 0. Only
causes are findings; what follows from them stays in the sentences of its checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, SKIPPED, Check

TEMPERATURE_IGNORED = "temperature ignored"
GREEDY_ABOVE = "greedy above a temperature"
TOP_P_FIRST = "top-p before temperature"
DEFAULTS = "sampling defaults of its own"
TOP_P_IGNORED, TOP_K_IGNORED, MIN_P_IGNORED = "top-p ignored", "top-k ignored", "min-p ignored"
BIASED = "biased"
NOT_PLAIN = "not plain decoding"
TOKENS_REPLACED = "tokens replaced"
NOT_DETERMINISTIC = "not deterministic"
CHANGED_BY_LOAD = "changed by load"
SEED_IGNORED = "seed ignored"
COUNTS_FALSE = "counts false"
EOS_SWALLOWED, ENDED_EARLY = "EOS swallowed", "ended early"
STOP_LEAKED, STOP_IGNORED = "stop string leaked", "stop string ignored"
LIMIT_EXCEEDED = "max_tokens exceeded"
BIAS_IGNORED = "logit_bias ignored"

# What a cause brings with it, and what is therefore no finding of its own.
_GREEDY = frozenset({NOT_PLAIN, TOKENS_REPLACED, NOT_DETERMINISTIC, CHANGED_BY_LOAD, EOS_SWALLOWED, ENDED_EARLY,
                     STOP_IGNORED, BIAS_IGNORED})  # fmt: skip
FOLLOWS: Mapping[str, frozenset[str]] = {
    TEMPERATURE_IGNORED: _GREEDY | {BIASED, TOP_P_FIRST},
    TOKENS_REPLACED: frozenset({NOT_DETERMINISTIC, CHANGED_BY_LOAD, SEED_IGNORED, BIASED, EOS_SWALLOWED, ENDED_EARLY,
                                STOP_IGNORED, BIAS_IGNORED, NOT_PLAIN}),
    GREEDY_ABOVE: frozenset({BIASED, TOP_K_IGNORED, TOP_P_IGNORED, MIN_P_IGNORED}),
    DEFAULTS: frozenset({BIASED}),
    NOT_DETERMINISTIC: frozenset({CHANGED_BY_LOAD}),
    EOS_SWALLOWED: frozenset({NOT_PLAIN}),
    ENDED_EARLY: frozenset({NOT_PLAIN}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, under its name, in a sentence; `plain_too` if the plain endpoint does it as well."""

    name: str
    sentence: str
    plain_too: bool = False


def causes(found: Iterable[Finding]) -> list[Finding]:
    """Each finding once, without those that follow from another one."""
    known: dict[str, Finding] = {}
    for each in found:
        if each.name not in known or (each.plain_too and not known[each.name].plain_too):
            known[each.name] = each
    following = frozenset().union(*(FOLLOWS.get(name, frozenset()) for name in known))
    return [each for name, each in known.items() if name not in following]


_ORDER = (FAILED, INCONCLUSIVE, REPORTED, PASSED, SKIPPED)  # the worst first


def made(
    name: str, verdict: str, sentence: str, findings: Sequence[Finding] = (),
    numbers: Mapping[str, float | int] | None = None, **details: Any,
) -> Check:  # fmt: skip
    return Check(
        name, verdict, sentence, numbers or {}, {"findings": [asdict(each) for each in findings], **details}
    )  # fmt: skip


def worst(verdicts: Sequence[str]) -> str:
    """The verdict of several parts."""
    return min(verdicts, key=_ORDER.index)


def findings_of(check: Check) -> list[Finding]:
    return [Finding(**each) for each in check.details["findings"]]

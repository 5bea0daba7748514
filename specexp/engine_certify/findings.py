"""What a served engine does wrong, named by what it is, and what follows from what.

Checks may see several signs of one cause: an engine that ignores the temperature is not greedy at temperature 0. Only
causes are findings; what follows from them stays in the sentences of its checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, SKIPPED, Check
from specexp.engine_certify.next_tokens import Warping

OFF = Warping()  # as a request is that says nothing
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
FAILS_UNDER_LOAD = "fails under load"
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
# What servers do where a request is silent, if they do not let it say that it wants nothing.
SILENT: Mapping[str, Mapping[str, Any]] = {
    "llama.cpp": {"top_k": 40, "top_p": 0.95, "min_p": 0.05}, "transformers": {"top_k": 50},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, under its name, in a sentence; `plain_too` if the plain endpoint does it as well.

    If several explanations of it could not be told apart, `fitting` has the names of all.
    """

    name: str
    sentence: str
    plain_too: bool = False
    fitting: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All that it may be."""
        return frozenset(self.fitting or (self.name,))


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an engine may do instead of what it is asked for: its name as a finding, a sentence, and how outputs are
    sampled where a request wants this."""

    name: str
    sentence: str
    sampled: Callable[[Warping], Warping]


def explanations_of(warping: Warping) -> list[Explanation]:
    """What an engine may do whose outputs do not follow this."""
    temperature, top_k, top_p, min_p = warping.temperature, warping.top_k, warping.top_p, warping.min_p
    result: list[Explanation] = []

    def add(name: str, sentence: str, **changed: Any) -> None:
        result.append(Explanation(name, sentence, lambda asked: replace(asked, **changed)))

    if temperature != 1:
        sentence = f"the temperature is ignored: outputs at {temperature:g} are those at 1."
        add(TEMPERATURE_IGNORED, sentence, temperature=1.0)
    if top_p < 1:
        add(TOP_P_IGNORED, f"top-p is ignored: outputs at {top_p:g} are those without it.", top_p=1.0)
    if top_p < 1 and temperature != 1:
        sentence = f"top-p is applied before the temperature: outputs at {warping} have the tokens of that order."
        add(TOP_P_FIRST, sentence, top_p_first=True)
    if top_k:
        add(TOP_K_IGNORED, f"top-k is ignored: outputs at {top_k} are those without it.", top_k=0)
    if min_p:
        add(MIN_P_IGNORED, f"min-p is ignored: outputs at {min_p:g} are those without it.", min_p=0.0)
    result += [each for server in SILENT if (each := _default(server, warping)) is not None]
    result.append(
        Explanation(
            GREEDY_ABOVE,
            f"it is greedy above a temperature: all outputs at {temperature:g} are the greedy one.",
            # Below the temperature at which it was seen it may sample.
            lambda asked: replace(asked, temperature=0.0) if asked.temperature >= temperature else asked,
        )
    )
    return result


def _default(server: str, warping: Warping) -> Explanation | None:
    """That an engine does what this server does where a request is silent; None if this one says everything."""

    def silent(asked: Warping) -> dict[str, Any]:
        return {name: value for name, value in SILENT[server].items() if getattr(asked, name) == getattr(OFF, name)}

    if not silent(warping):
        return None
    words = " and ".join(f"{name.replace('_', '-')} {value:g}" for name, value in silent(warping).items())
    sentence = f"it samples with {words} where the request sets none, as {server} does."
    return Explanation(DEFAULTS, sentence, lambda asked: replace(asked, **silent(asked)))


def of_explanations(fitting: Sequence[Explanation]) -> Finding:
    """The finding of the explanations that fit, of which there is one or more."""
    names = tuple(dict.fromkeys(each.name for each in fitting))
    sentence = " Or ".join(each.sentence for each in fitting)
    if len(names) == 1:
        return Finding(names[0], sentence)
    return Finding(" or ".join(names), f"one of these, which outputs do not tell apart: {sentence}", fitting=names)


def causes(found: Iterable[Finding]) -> list[Finding]:
    """Each finding once, without those that follow from another one, or that may be another one."""
    known: dict[str, Finding] = {}
    for each in found:
        if each.name not in known or (each.plain_too and not known[each.name].plain_too):
            known[each.name] = each
    # What is not told for sure brings with it what all its explanations do.
    follows = [frozenset.intersection(*(FOLLOWS.get(name, frozenset()) for name in each.names))
               for each in known.values()]  # fmt: skip
    told = {name for name, each in known.items() if not each.fitting}
    following = frozenset().union(*follows)
    return [each for each in known.values()
            if not each.names & following and not (each.fitting and each.names & told)]  # fmt: skip


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
    return [Finding(**{**each, "fitting": tuple(each["fitting"])}) for each in check.details["findings"]]

"""Tokens of a greedy output that are not the likeliest: near ties, which rounding explains, or bugs.

The distance of the two tokens is that of the weights' logits where they are at hand, else of the server's own
log-probabilities. Rounding may move logits by the noise of the engine's dtype. Where the server gives no
log-probabilities it cannot be told. Of a server that gives text alone, texts decide if outputs are equal: one text may
be several tokens' in several ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specexp.certify.checks import count
from specexp.certify.chi_square import Prefix
from specexp.engine_certify import next_tokens
from specexp.engine_certify.engine_subject import EngineSubject
from specexp.engine_certify.next_tokens import NextTokens
from specexp.engine_certify.served_output import ServedOutput
from specexp.lm.model import Model

NEAR_TIE, BUG, UNTOLD = "near tie", "bug", "cannot be told"


@dataclass(frozen=True, slots=True)
class GreedyDivergence:
    """A token where another one was expected; None if that output has ended, or if texts alone are compared.

    `position` counts tokens, of texts characters; `gap` is the distance of the two, in logits.
    """

    prompt_id: str
    position: int
    token: int | None
    expected: int | None
    kind: str
    gap: float | None = None
    of_end: bool = False  # that an EOS was expected
    ended: bool = False  # that an EOS came, where none was expected

    def told(self, subject: EngineSubject) -> str:
        """The divergence as readable text."""
        if self.token is None or self.expected is None:
            return f"prompt '{self.prompt_id}', character {self.position}"
        gap = "" if self.gap is None else f", {self.gap:.2g} logits apart"
        words = f"{_word(subject, self.token)} where {_word(subject, self.expected)} was expected"
        return f"prompt '{self.prompt_id}', token {self.position}: {words}{gap}"


def _word(subject: EngineSubject, token: int) -> str:
    return "the end" if token in subject.ends else repr(subject.decode([token]))


def first(subject: EngineSubject, prompt: int, output: Any, expected: Any) -> GreedyDivergence | None:
    """Where an output first differs from the expected one; None if it is equal. Both are tokens, or else texts."""
    name = subject.names()[prompt]
    if output == expected:
        return None
    shorter = min(len(output), len(expected))
    at = next((i for i in range(shorter) if output[i] != expected[i]), shorter)
    if isinstance(output, str) or isinstance(expected, str):
        return GreedyDivergence(name, at, None, None, UNTOLD)
    if at == shorter:  # of two outputs one is longer, and no EOS says why
        return GreedyDivergence(name, at, None, None, BUG)
    return of_tokens(subject, prompt, output[:at], output[at], expected[at])


def between(
    subject: EngineSubject, prompt: int, output: ServedOutput, expected: ServedOutput
) -> GreedyDivergence | None:
    """Where two outputs first differ; None if they are equal, in tokens or, where a text was split, in text."""
    if not (output.split or expected.split):
        return first(subject, prompt, output.compared, expected.compared)
    if output.text == expected.text:
        return None
    result = first(subject, prompt, output.compared, expected.compared)
    if result is not None and result.token is not None and result.expected is not None:
        one, other = (subject.decode([token]) for token in (result.token, result.expected))
        if one.startswith(other) or other.startswith(one):  # the texts may differ further on only
            return replace(result, kind=UNTOLD)
    return result


def of_tokens(subject: EngineSubject, prompt: int, before: Prefix, token: int, expected: int) -> GreedyDivergence:
    """A token and the expected one after the same tokens."""
    name, gap, noise = subject.names()[prompt], None, 0.0
    if subject.rows_are_known:
        row = subject.rows(prompt)(tuple(before)).logprobs
        one, other = (float(row[each]) if each < len(row) else -np.inf for each in (token, expected))
        if np.isfinite(one) and np.isfinite(other):
            gap, noise = abs(one - other), noise_of_row(subject, row)
        elif np.isfinite(one) or np.isfinite(other):  # one of them is not even among the likeliest
            gap = float(max(one, other) - row[np.isfinite(row)].min())
    kind = UNTOLD if gap is None else NEAR_TIE if gap <= noise else BUG
    return GreedyDivergence(
        name, len(before), token, expected, kind, gap, expected in subject.ends, token in subject.ends
    )  # fmt: skip


def noise_of_row(subject: EngineSubject, row: np.ndarray[Any, Any]) -> float:
    """How far apart rounding may put two logits of this row; log-probabilities are smaller than logits."""
    return subject.noise(float(np.abs(row[np.isfinite(row)]).max()))


def rows_along(subject: EngineSubject, target: Model, prompt: int, output: Sequence[int]) -> list[NextTokens]:
    """What follows each token of an output by the weights, from one forward over the whole text."""
    return [next_tokens.of_logits(row, subject.ends) for row in _logits(subject, target, prompt, output)]


def _logits(subject: EngineSubject, target: Model, prompt: int, output: Sequence[int]) -> np.ndarray[Any, Any]:
    """logits[N, V] in float64, from which each token of output[N] should come."""
    ids = subject.ids
    assert ids is not None, "the prompts have no ids"
    logits, _ = target.session().feed(target.ids([*ids[prompt], *output[:-1]]), len(output))
    return np.asarray(logits.tolist(), dtype=np.float64)


def forced(subject: EngineSubject, target: Model, prompt: int, output: Sequence[int]) -> list[GreedyDivergence]:
    """Every token of an output that is not the likeliest by the weights after the tokens before it: one forward."""
    ends, name = set(subject.ends), subject.names()[prompt]
    result = []
    for at, (row, token) in enumerate(zip(_logits(subject, target, prompt, output), output, strict=True)):
        best = int(row.argmax())
        if token == best or {token, best} <= ends:
            continue
        gap = float(row[best] - row[token])
        near = gap <= subject.noise(float(np.abs(row[np.isfinite(row)]).max()))
        result.append(
            GreedyDivergence(name, at, token, best, NEAR_TIE if near else BUG, gap, best in ends, token in ends)
        )
    return result


def forced_text(subject: EngineSubject, target: Model, prompt: int, output: ServedOutput) -> list[GreedyDivergence]:
    """Where the text of an output is not that of greedy decoding by the weights, token by token.

    Tokens that rounding may put first count as near ties where the text goes on with one of them.
    """
    ids, ends, name = subject.ids, set(subject.ends), subject.names()[prompt]
    assert ids is not None, "the prompts have no ids"
    result: list[GreedyDivergence] = []
    session, fed, emitted = target.session(), list(ids[prompt]), list[int]()
    # Some servers count an EOS among an output's tokens.
    while output.num_tokens is None or len(emitted) < output.num_tokens + output.ended:
        logits, _ = session.feed(target.ids(fed), 1)
        row = np.asarray(logits[0].tolist(), dtype=np.float64)
        best, noise = int(row.argmax()), noise_of_row(subject, row)
        close = [int(each) for each in np.argsort(-row, kind="stable") if row[best] - row[each] <= noise]
        said = subject.prepared.pair.text.decode(emitted)
        done = said == output.text
        if done and output.num_tokens is None and not output.ended:
            break
        fitting = [
            each for each in close
            if (done and output.ended if each in ends else _continues(subject, emitted, each, output.text))
        ]  # fmt: skip
        if not fitting:
            result.append(GreedyDivergence(name, len(said), None, None, BUG, of_end=best in ends))
            break
        token = fitting[0]
        if token != best:
            gap = float(row[best] - row[token])
            result.append(GreedyDivergence(name, len(emitted), token, best, NEAR_TIE, gap, best in ends, token in ends))
        if token in ends:
            break
        emitted.append(token)
        fed = [token]
    return result


def _continues(subject: EngineSubject, emitted: Sequence[int], token: int, text: str) -> bool:
    """True if a text begins with these tokens and this one; of a character in several tokens, with what is whole."""
    return text.startswith(subject.prepared.pair.text.decode([*emitted, token]).rstrip("\ufffd"))


def summed(divergences: Sequence[GreedyDivergence], subject: EngineSubject) -> str:
    """How many there are of each kind, and the first one that matters, as a sentence; "" if there are none."""
    words = []
    for kind, said in (
        (BUG, "{} not rounding"), (UNTOLD, "of {} it cannot be told whether rounding explains it"),
        (NEAR_TIE, "{} at a near tie"),
    ):  # fmt: skip
        each = [one for one in divergences if one.kind == kind]
        if each:
            words.append(f"{said.format(count(len(each), 'divergence'))} (first {each[0].told(subject)})")
    return f" {'; '.join(words)}." if words else ""

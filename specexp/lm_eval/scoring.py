"""Log-likelihoods of continuations, by a model of the pair: each context is fed once, for all of its continuations.

    log p(y | x) = sum over t of log softmax(logits after x y[:t])[y[t]]

Rows of several contexts share a forward, as the engine's score requests do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from specexp.decoding.protocol import Role
from specexp.engine import Engine
from specexp.engine.request import RequestCoroutine, ScoreRequest
from specexp.errors import PromptError

ROWS = 256  # of logits at a time

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-probability of a continuation, in nats, and whether greedy decoding would give it."""

    log_probability: float
    is_greedy: bool


def likelihoods(engine: Engine, role: Role, asked: Sequence[tuple[Ids, Ids]]) -> Iterator[tuple[int, Likelihood]]:
    """Yield (index in `asked`, result) of each (context, continuation), contexts of the most tokens first.

    The engine keeps what a row holds between the requests for one context (`reuse`).
    """
    contexts: dict[Ids, dict[Ids, list[int]]] = {}
    for index, (context, continuation) in enumerate(asked):
        contexts.setdefault(context, {}).setdefault(continuation, []).append(index)
    groups = sorted(contexts.items(), key=lambda group: -len(group[0]) - max(map(len, group[1])))
    work = (_scored(role, context, list(continuations)) for context, continuations in groups)
    for number, results in engine.run_all(work):
        for continuation, result in results.items():
            for index in groups[number][1][continuation]:
                yield index, result


def _scored(role: Role, context: Ids, continuations: Sequence[Ids]) -> RequestCoroutine[Mapping[Ids, Likelihood]]:
    """The coroutine of one context. Continuations that differ in their last token alone share their forwards."""
    alike: dict[Ids, list[Ids]] = {}
    for continuation in continuations:
        alike.setdefault(continuation[:-1], []).append(continuation)
    results: dict[Ids, Likelihood] = {}
    for fed, members in alike.items():
        sums, greedy = dict.fromkeys(members, 0.0), dict.fromkeys(members, True)
        for start in range(0, len(fed) + 1, ROWS):
            tokens = fed[start : start + ROWS - 1]
            logits, _ = yield ScoreRequest(role, [*context, *fed[:start]], list(tokens))
            for member in members:
                total, same = _read(logits, member[start : start + len(tokens) + 1])
                sums[member] += total
                greedy[member] &= same
        results |= {member: Likelihood(sums[member], greedy[member]) for member in members}
    return results


def _read(logits: Any, tokens: Ids) -> tuple[float, bool]:
    """The log-probability of tokens[R] by logits[R, V], and whether each is its row's first largest."""
    xp = array_namespace(logits)
    ids = xp.asarray(tokens, device=device(logits))
    logits = xp.astype(logits, xp.float32)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    normal = xp.log(xp.sum(xp.exp(shifted), axis=-1))
    chosen = xp.take_along_axis(shifted, ids[:, None], axis=-1)[:, 0]
    return float(xp.sum(chosen - normal)), bool(xp.all(xp.argmax(logits, axis=-1) == ids))


def within(context: Sequence[int], continuation: Sequence[int], longest: int) -> tuple[Ids, Ids]:
    """Cut a context from the left, so that it fits `longest` positions with all of the continuation but its last token.

    Raises PromptError if the continuation has no token, or alone does not fit.
    """
    if not continuation:
        raise PromptError("a continuation has no tokens of its own; its text must not be empty.")
    if len(continuation) > longest:
        raise PromptError(
            f"a continuation has {len(continuation)} tokens, but the model's context is {longest}; shorten it."
        )
    return tuple(context[-(longest + 1 - len(continuation)) :]), tuple(continuation)

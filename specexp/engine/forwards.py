"""Answers `Score` and `ScoreRequest`: one forward for all rows that ask the same model.

Shapes: N tokens of an ask, R rows of its answer, V vocabulary, H hidden size, W best tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from array_api_compat import array_namespace

from specexp.decoding.protocol import Role, Score, Scored
from specexp.decoding.rules import best, without
from specexp.engine.device_trees import score_tree
from specexp.engine.host_transfer import HostTransfer
from specexp.engine.request import PendingScore, ScoreRequest
from specexp.engine.request_state import LogitPeaks, RequestState
from specexp.lm.model import Array, Model

Wanted = tuple[Array | Sequence[int] | None, Sequence[int] | None, bool]  # tokens, parents, hidden


def feed_requests(
    model: Model, role: Role, states: Sequence[RequestState], wanted: Sequence[Wanted]
) -> list[tuple[Array, Array | None]]:
    """Logits[R, V] and hidden[R, H] of what each request asks, from one forward, which is counted."""
    feeds = []
    for state, (tokens, parents, hidden) in zip(states, wanted, strict=True):
        given = model.ids(tokens) if isinstance(tokens, list | tuple) else tokens
        feeds.append(state.contexts[role].plan(given, parents, hidden))
        state.fed(role, feeds[-1].tokens.shape[0])
    return model.feed(feeds)


def score(model: Model, asked: Sequence[tuple[RequestState, Score]], transfer: HostTransfer) -> list[Scored]:
    """Answer asks of one model. The best tokens of all of them are read to the host together."""
    role = asked[0][1].model
    states = [state for state, _ in asked]
    first_slots = [state.contexts[role].num_slots for state in states]
    metadata = [_on_device(model, ask.row_metadata) for _, ask in asked]
    (state, ask), tree = asked[0], asked[0][1].tree
    if tree is not None:  # of a request that is decoded alone
        fed, metadata = [score_tree(state, ask, tree)], [tree.table]
    else:
        fed = feed_requests(model, role, states, [(ask.tokens, ask.parents, ask.hidden) for _, ask in asked])
    result = [(_allowed(state, role, logits), more) for state, (logits, more) in zip(states, fed, strict=True)]
    ranked = [best(logits, ask.top) if ask.top else None for (logits, _), (_, ask) in zip(result, asked, strict=True)]
    flat = []
    for pair in ranked:
        if pair is not None:
            flat += [array_namespace(part).reshape(part, (-1,)) for part in pair]
    values = iter(transfer.read(flat) if flat else ())
    answers = []
    for state, (logits, hidden_states), pair, slot, more in zip(
        states, result, ranked, first_slots, metadata, strict=True
    ):
        if pair is None:
            _watch(state, role, logits)
            answers.append(Scored(logits, hidden_states, slot, row_metadata=more))
            continue
        width, scores, tokens = pair[1].shape[1], next(values), next(values)
        starts = range(0, len(scores), width)
        logprob = [scores[i : i + width] for i in starts]
        ids = [[int(token) for token in tokens[i : i + width]] for i in starts]
        if bad := [row[0] for row in logprob if not math.isfinite(row[0])]:
            raise state.not_finite(role, bad[0])
        answers.append(Scored(None, hidden_states, slot, logprob, ids, more))
    return answers


def score_pending(models: Mapping[Role, Model], pending: Sequence[PendingScore]) -> None:
    """Answer the score requests to the model that most of them ask, except those much longer than the shortest."""
    asked: list[tuple[PendingScore, ScoreRequest]] = [(each, each.ask) for each in pending if each.ask is not None]
    roles = [ask.role for _, ask in asked]
    role = max(roles, key=roles.count)
    least = min(len(ask.tokens) for _, ask in asked if ask.role == role)
    asked = [(each, ask) for each, ask in asked if ask.role == role and len(ask.tokens) <= 2 * least + 1]
    model, feeds = models[role], []
    for each, ask in asked:
        each.context.announce(ask.tokens, ask.drafted)
        feeds.append(each.context.plan(model.ids(ask.tokens) if ask.tokens else None, None, ask.hidden))
    for (each, ask), result in zip(asked, model.feed(feeds), strict=True):
        each.context.commit(list(ask.tokens), range(len(ask.tokens)))
        each.send(result)


def _on_device(model: Model, rows: Sequence[Sequence[int]]) -> Array | None:
    """Host integers as an array on the model's device; None if there are none."""
    if not rows:
        return None
    flat = model.ids([value for row in rows for value in row])
    return array_namespace(flat).reshape(flat, (len(rows), -1))


def _allowed(state: RequestState, role: Role, logits: Array) -> Array:
    """logits[R, V] without the ids that may not be emitted there yet."""
    first = len(state.ids) - state.num_prompt
    if not state.end.banned(first):
        return logits
    depths = state.contexts[role].depths(logits.shape[0])
    return without(logits, [state.end.banned(first + depth) for depth in depths])


def _watch(state: RequestState, role: Role, logits: Array) -> None:
    """Have the largest of each row of logits[R, V] read together with the round, to avoid an extra host read."""
    first = state.contexts[role].num_slots + 1 - logits.shape[0]
    state.peaks.append(LogitPeaks(role, array_namespace(logits).max(logits, axis=-1), first))

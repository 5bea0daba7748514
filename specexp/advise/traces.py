"""Where target and draft agree along an output, as `prediction.py` needs it: traces read off real models.

For a lossless chain, teacher-forced passes over plain decoding's outputs show this: one of the draft, and where tokens
are sampled one of the target. Looked-up drafts need no model: the search is repeated along the output. What a lossy
rule accepts is recorded while it decodes without bonus tokens: then every token was drafted, and none depends on the
draft length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device, to_device

from specexp.advise.prediction import LookupTrace, Trace
from specexp.decoding.chain import Chain
from specexp.decoding.protocol import Array, Role, Round, Steps
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine
from specexp.engine.ngram_lookup import Ngrams
from specexp.evaluation.preparation import Prepared

PIECE = 64  # positions examined together: rows of logits are as wide as the vocabulary


@dataclass(frozen=True, slots=True)
class Agreement:
    """A trace; sum_x min(p, q) at each of its positions that the draft can reach; and the draft's probability of the
    token that it would draft there: its first choice at temperature 1 where decoding is greedy, the output's token in q
    where tokens are sampled."""

    trace: Trace
    overlap: list[float]
    certainty: list[float]


def agreement(prepared: Prepared, index: int, output: Sequence[int]) -> Agreement:
    """Score plain decoding's `output` after a prompt with the draft, and with the target unless decoding is greedy."""
    models, ids = prepared.pair.models, prepared.prompts[index]
    experiment = prepared.experiment
    warp = experiment.warp
    draft_limit = models["draft"].context - len(ids) + 1
    seen = list(output[: max(0, draft_limit)])
    accepted: list[float] = []
    overlap: list[float] = []
    certainty: list[float] = []
    engine = Engine(models, reuse=True)
    for start in range(0, len(seen), PIECE):
        piece = seen[start : start + PIECE]
        behind = [*ids, *seen[:start]]
        if warp.greedy:
            logits = _rows(engine, "draft", behind, piece)
            first = warp.first(logits)
            result = [float(token == choice) for token, choice in zip(piece, first.tolist(), strict=True)]
            accepted += result
            overlap += result
            certainty += _chosen(Warp(1.0)(logits), first)
        else:
            p, q = (warp(_rows(engine, role, behind, piece)) for role in ("target", "draft"))
            q, tokens = to_device(q, device(p)), models["target"].ids(piece)
            for probability, both in _shared(p, q, tokens):
                accepted.append(probability)
                overlap.append(both)
            certainty += _chosen(q, tokens)
    accepted += [0.0] * (len(output) - len(seen))  # beyond the draft's context nothing is drafted
    limit = engine.output_limit(ids, experiment.max_new_tokens)
    return Agreement(Trace(accepted, limit, draft_limit), overlap, certainty + [0.0] * (len(output) - len(seen)))


def looked_up(prepared: Prepared, index: int, output: Sequence[int], ngram: int, gamma: int) -> LookupTrace:
    """What drafts of at most `gamma` tokens would have found along `output`, by the search that decoding uses."""
    ids = prepared.prompts[index]
    search, agreed = Ngrams(ngram), []
    for place in range(len(output)):
        drafted = search.continuation([*ids, *output[:place]], gamma)
        pairs = zip(drafted, output[place:], strict=False)
        same = next((i for i, (drafted_id, output_id) in enumerate(pairs) if drafted_id != output_id), None)
        agreed.append(None if not drafted else min(gamma, len(output) - place) if same is None else same)
    return LookupTrace(agreed, Engine(prepared.pair.models).output_limit(ids, prepared.experiment.max_new_tokens))


def _rows(engine: Engine, role: Role, behind: Sequence[int], tokens: Sequence[int]) -> Array:
    """logits[N, V] from which each of tokens[N] would be drawn."""
    return engine.score(role, behind, tokens[:-1])[0]


def _chosen(rows: Array, tokens: Array) -> list[float]:
    """rows[N, V] at tokens[N]."""
    result: list[float] = array_namespace(rows).take_along_axis(rows, tokens[:, None], axis=-1)[:, 0].tolist()
    return result


def _shared(p: Array, q: Array, tokens: Array) -> Iterator[tuple[float, float]]:
    """min(1, q(x) / p(x)) of each of tokens[N], and sum_x min(p, q), from p[N, V] and q[N, V]."""
    xp = array_namespace(p)
    targets, drafts = _chosen(p, tokens), _chosen(q, tokens)
    both = xp.sum(xp.minimum(p, q), axis=-1).tolist()
    for one, other, shared in zip(targets, drafts, both, strict=True):
        # A token was drawn from p, so that p(x) > 0; another forward may round the smallest one to 0.
        yield (min(1.0, other / one) if one else 1.0), shared


def watched(prepared: Prepared, index: int, decoder: Chain) -> Trace:
    """Decode a prompt with this chain without bonus tokens; record for each token whether it was an accepted draft."""
    return watched_output(prepared, index, decoder)[0]


def watched_output(prepared: Prepared, index: int, decoder: Chain) -> tuple[Trace, list[int]]:
    """The trace of `watched`, and the output."""
    experiment, ids = prepared.experiment, prepared.prompts[index]
    watching = Watching(replace(decoder, bonus=False))
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids)
    name = prepared.examples[index].prompt_id
    rng = rng_for(experiment.temperature, experiment.seed, name)
    out = engine.generate(watching, ids, experiment.max_new_tokens, rng, name=name)
    limit = engine.output_limit(ids, experiment.max_new_tokens)
    draft_limit = prepared.pair.models["draft"].context - len(ids) + 1
    return Trace(watching.accepted[: len(out.token_ids)], limit, draft_limit), out.token_ids


class Watching:
    """A decoder that records its rounds: `accepted` has 1 for an accepted draft, 0 for another token."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.accepted: list[float] = []

    @property
    def models(self) -> tuple[Role, ...]:
        return self._decoder.models

    def steps(self, rng: Any, remaining_tokens: int) -> Steps:
        steps = self._decoder.steps(rng, remaining_tokens)
        answer: Any = None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                return
            if isinstance(ask, Round):
                num, num_accepted = int(ask.num_tokens), int(ask.counts["num_accepted"])
                self.accepted += [1.0] * num_accepted + [0.0] * (num - num_accepted)
            answer = yield ask

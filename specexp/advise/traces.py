"""Where target and draft agree along an output, as `prediction.py` needs it: traces read off real models.

For a lossless chain, teacher-forced passes over plain decoding's outputs show this: one of the draft, and where tokens
are sampled one of the target. A draft that reads the target's states drafts a chain from each place of them, on its own
outputs: it has no states of tokens that it drafted. Looked-up drafts need no model: the search is repeated along the
output. What a lossy rule accepts is recorded while it decodes without bonus tokens: then every token was drafted, and
none depends on the draft length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from array_api_compat import array_namespace, device, to_device

from specexp.advise.rounds import LookupTrace, Trace
from specexp.decoding.chain import Chain, InTurn, Lookup, Proposer, Suffix
from specexp.decoding.protocol import Array, Role, Round, Steps
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine
from specexp.engine.ngram_lookup import Ngrams
from specexp.engine.suffix_automaton import SuffixIndex, SuffixLengths
from specexp.evaluation.preparation import Prepared
from specexp.lm.model import StateReader
from specexp.lm.translated import Translated

PIECE = 64  # positions examined together: rows of logits are as wide as the vocabulary


@dataclass(frozen=True, slots=True)
class Agreement:
    """A trace; sum_x min(p, q) at each of its positions that the draft can reach, as a chain's first token; and the
    draft's probability of the token that it would draft there: its first choice at temperature 1 where decoding is
    greedy, the output's token in q where tokens are sampled."""

    trace: Trace
    overlap: list[float]
    certainty: list[float]


def agreement(
    prepared: Prepared, index: int, output: Sequence[int], draft_temperature: float | None = None, longest: int = 1
) -> Agreement:
    """Score plain decoding's `output` after a prompt with the draft, and with the target unless decoding is greedy.

    A draft that reads the target's states is scored in the chains of `longest` tokens that it would draft from every
    place of the output, of which it knows the states before that place alone: `Trace.after`.

    A draft that reads text in its own tokens is scored token by token, on the committed text: drafted tokens that are
    not read again in other pieces may get other probabilities.
    """
    models, ids = prepared.pair.models, prepared.prompts[index]
    experiment = prepared.experiment
    draft_limit = models["draft"].context - len(ids) + 1
    compare = _Compare(Engine(models, reuse=True), experiment.warp, draft_temperature, models["target"].ids)
    seen = list(output[: max(0, draft_limit)])
    values = _Compared()
    size = 1 if isinstance(models["draft"], Translated) else PIECE
    for start in range(0, len(seen), size):
        piece = seen[start : start + size]
        behind = [*ids, *seen[:start]]
        values.extend(compare(score_rows(compare.engine, "draft", behind, piece), compare.target(behind, piece), piece))
    # Beyond the draft's context nothing is drafted.
    trace = values.trace(len(output), compare.engine.output_limit(ids, experiment.max_new_tokens), draft_limit)
    if isinstance(models["draft"].session(), StateReader):
        deeper = [
            each.trace(len(output), trace.limit, draft_limit, certain=True)
            for each in _deeper(compare, ids, seen, longest)
        ]
        trace = replace(trace, deeper=deeper, rereads=True)
    return Agreement(trace, values.overlap, values.certainty + [0.0] * (len(output) - len(seen)))


@dataclass(slots=True)
class _Compared:
    """Of tokens that a draft may draft, in order: what `Trace` has of each; sum_x min(p, q)."""

    accepted: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    certainty: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)

    def extend(self, other: _Compared, first: int = 0, stop: int | None = None) -> None:
        """Append some of another's tokens."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name)[first:stop])

    def trace(self, length: int, limit: int, draft_limit: int, certain: bool = False) -> Trace:
        """Of an output of this length, at whose end are tokens that are not drafted."""

        def padded(values: list[float]) -> Sequence[float]:
            return [*values, *[0.0] * (length - len(values))] if values else ()

        accepted = self.accepted + [0.0] * (length - len(self.accepted))
        certainty = padded(self.certainty) if certain else ()
        return Trace(accepted, limit, draft_limit, certainty, padded(self.ratio), padded(self.rejected))


@dataclass(frozen=True, slots=True)
class _Compare:
    """Compares what a draft at this temperature would draft with a target under `warp`."""

    engine: Engine
    warp: Warp
    draft_temperature: float | None
    to_ids: Callable[[Sequence[int]], Array]

    def target(self, behind: Sequence[int], tokens: Sequence[int]) -> Array | None:
        """p[N, V] from which each of tokens[N] would be drawn; None where decoding is greedy."""
        return None if self.warp.greedy else self.warp(score_rows(self.engine, "target", behind, tokens))

    def __call__(self, logits: Array, p: Array | None, tokens: Sequence[int]) -> _Compared:
        """The draft's logits[N, V], and p[N, V] unless decoding is greedy, at the output's tokens[N]."""
        if p is None:
            first = self.warp.first(logits)
            accepted = [float(token == choice) for token, choice in zip(tokens, first.tolist(), strict=True)]
            return _Compared(accepted, list(accepted), at_tokens(Warp(1.0)(logits), first))
        result, draft_warp = _Compared(), self.warp.of_draft(self.draft_temperature)
        q, ids = to_device(draft_warp(logits), device(p)), self.to_ids(tokens)
        for each, both, elsewhere in _shared(p, q, ids):
            result.ratio.append(each)
            result.accepted.append(min(1.0, each))
            result.overlap.append(both)
            result.rejected.append(elsewhere)
        result.certainty = at_tokens(q, ids)
        if draft_warp.greedy:  # the probability at temperature 1 decides where its drafts end, as if decoding were
            result.rejected = result.certainty = at_tokens(Warp(1.0)(logits), draft_warp.first(logits))
        return result


def _deeper(compare: _Compare, ids: Sequence[int], seen: Sequence[int], longest: int) -> list[_Compared]:
    """What `seen` shows after a prompt of tokens before which a chain drafted 1, 2, ... tokens, for each number of
    them up to `longest` - 1: of chains that begin at each of its places."""
    nothing = _Compared([0.0], [0.0], [0.0], *([[], []] if compare.warp.greedy else [[0.0], [0.0]]))
    result = [_Compared() for _ in range(min(longest, len(seen)) - 1)]
    for drafted, each in enumerate(result, 1):
        for _ in range(drafted):  # tokens that no chain reaches after so many
            each.extend(nothing)
    if not result:
        return result
    for begin in range(0, len(seen), PIECE):
        p = compare.target([*ids, *seen[:begin]], seen[begin : begin + PIECE + longest])
        for start in range(begin, min(begin + PIECE, len(seen) - 1)):
            tokens = seen[start : start + longest]
            logits, _ = compare.engine.score("draft", [*ids, *seen[:start]], tokens[:-1], drafted=True)
            at = start - begin
            found = compare(logits[1:], None if p is None else p[at + 1 : at + len(tokens)], tokens[1:])
            for i, each in enumerate(result[: len(tokens) - 1]):
                each.extend(found, i, i + 1)
    return result


def read_trace(values: Mapping[str, Any], certainty: Sequence[float] = ()) -> Trace:
    """A trace from JSON."""
    deeper = [Trace(**each) for each in values.get("deeper", ())]
    return Trace(**{**values, "deeper": deeper, "certainty": certainty or values["certainty"]})


def looked_up(
    prepared: Prepared, index: int, output: Sequence[int], ngram: int, gamma: int, min_match: int = 1
) -> LookupTrace:
    """What drafts of at most `gamma` tokens would have found along `output`, by the search that decoding uses."""
    ids = prepared.prompts[index]
    search, agreed = Ngrams(ngram), []
    for place in range(len(output)):
        drafted = search.continuation([*ids, *output[:place]], gamma, min_match)
        pairs = zip(drafted, output[place:], strict=False)
        same = next((i for i, (drafted_id, output_id) in enumerate(pairs) if drafted_id != output_id), None)
        agreed.append(None if not drafted else min(gamma, len(output) - place) if same is None else same)
    return LookupTrace(agreed, Engine(prepared.pair.models).output_limit(ids, prepared.experiment.max_new_tokens))


def recalled(
    prepared: Prepared, index: int, output: Sequence[int], chains: Mapping[str, Decoder]
) -> dict[str, LookupTrace]:
    """What the proposers of each of these chains that need no draft model find along `output`: the first in turn that
    finds anything, by the searches that decoding uses."""
    ids = prepared.prompts[index]
    limit = Engine(prepared.pair.models).output_limit(ids, prepared.experiment.max_new_tokens)
    return find_along(ids, output, limit, chains)


def find_along(
    ids: Sequence[int], output: Sequence[int], limit: int, chains: Mapping[str, Decoder]
) -> dict[str, LookupTrace]:
    """The same after a prompt of these ids, where `limit` tokens could be emitted."""
    suffixes = SuffixIndex()
    ngrams: dict[int, Ngrams] = {}
    found: dict[str, list[tuple[int, int | None]]] = {name: [] for name in chains}

    def proposal(proposer: Proposer, text: Sequence[int], left: int) -> Sequence[int]:
        if isinstance(proposer, Suffix):
            limits = proposer.limits
            most = min(proposer.gamma, left)
            lengths = SuffixLengths(most, limits.factor, limits.min_probability, proposer.min_match)
            return suffixes.continuation(text, lengths)
        assert isinstance(proposer, Lookup), "the others need a draft model"
        search = ngrams.setdefault(proposer.max_ngram, Ngrams(proposer.max_ngram))
        return search.continuation(text, min(proposer.gamma, left), proposer.min_match)

    for place in range(len(output)):
        text, rest = [*ids, *output[:place]], output[place:]
        for name, chain in chains.items():
            assert isinstance(chain, Chain), f"{name} is no chain"
            left = max(0, limit - place - chain.bonus)
            proposers = chain.proposer.proposers.values() if isinstance(chain.proposer, InTurn) else [chain.proposer]
            turns = (proposal(each, text, left) for each in proposers if not each.models)
            drafted = next((tokens for tokens in turns if tokens), ())
            same = next((i for i, pair in enumerate(zip(drafted, rest, strict=False)) if pair[0] != pair[1]), None)
            agreed = min(len(drafted), len(rest)) if same is None else same
            found[name].append((len(drafted), agreed if drafted else None))
    return {
        name: LookupTrace([agreed for _, agreed in rounds], limit, [number for number, _ in rounds])
        for name, rounds in found.items()
    }


def score_rows(engine: Engine, role: Role, behind: Sequence[int], tokens: Sequence[int]) -> Array:
    """logits[N, V] from which each of tokens[N] would be drawn."""
    return engine.score(role, behind, tokens[:-1])[0]


def at_tokens(rows: Array, tokens: Array) -> list[float]:
    """rows[N, V] at tokens[N]."""
    result: list[float] = array_namespace(rows).take_along_axis(rows, tokens[:, None], axis=-1)[:, 0].tolist()
    return result


def _shared(p: Array, q: Array, tokens: Array) -> Iterator[tuple[float, float, float]]:
    """From p[N, V] and q[N, V]: q(x) / p(x) of each of tokens[N], sum_x min(p, q), and the mean q(x) of tokens that are
    drafted and rejected."""
    xp = array_namespace(p)
    targets, drafts = at_tokens(p, tokens), at_tokens(q, tokens)
    both = xp.sum(xp.minimum(p, q), axis=-1).tolist()
    more = xp.clip(q - p, 0, None)
    mass, weighted = (xp.sum(each, axis=-1).tolist() for each in (more, more * q))
    for one, other, shared, left, sure in zip(targets, drafts, both, mass, weighted, strict=True):
        # A token was drawn from p, so that p(x) > 0; another forward may round the smallest one to 0.
        yield (other / one if one else 1.0), shared, (sure / left if left else 0.0)


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

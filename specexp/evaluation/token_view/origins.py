"""Notes the origin of each token of an output: a decoder that decodes as before and observes every round.

It wraps the decoder's interfaces (its generator, its judge, its rng) and copies every array to the host, so that timed
work must not run through it. What it notes does not depend on the models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specexp.decoding.chain import Chain
from specexp.decoding.lossy_rules import Judged
from specexp.decoding.protocol import Array, Draft, Recall, Role, Round, Score, Steps
from specexp.decoding.rng import Rng
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder

ACCEPTED, JUDGED, LOOKED_UP, SUFFIX, TREE = "accepted", "judged", "looked_up", "suffix", "tree"
CORRECTED, BONUS, TARGET, DRAFT = "corrected", "bonus", "target", "draft"
# In the order of a legend: drafted tokens first, then those that a model emitted by itself.
ORIGINS = {
    ACCEPTED: "drafted, accepted by the lossless rule",
    JUDGED: "drafted, accepted against the lossless rule, by the judge or another rule",
    LOOKED_UP: "looked up in the text so far, accepted by the lossless rule",
    SUFFIX: "what followed most often in the text so far, accepted by the lossless rule",
    TREE: "node of the draft's tree that the target's own draw matched",
    CORRECTED: "the target's, in place of a draft that was rejected",
    BONUS: "the target's, after a fully accepted draft",
    TARGET: "the target's, where nothing was drafted",
    DRAFT: "the draft model's, unchecked",
}


@dataclass(frozen=True, slots=True)
class Emitted:
    """A committed token: its round (from 1), and its place in that round (from 1).

    `score` is the judge's score; `rank` its rank among its siblings by the draft (from 0), in a tree. `rejected` is the
    drafted token that it replaces; in a tree, the draft's favourite there.
    """

    token: int
    origin: str
    round: int
    place: int
    score: float | None = None
    rank: int | None = None
    rejected: int | None = None
    rejected_score: float | None = None


@dataclass(slots=True)
class _Seen:
    """What was observed in a round, on the host."""

    drafted: list[int] = field(default_factory=list)
    by: str = ACCEPTED  # the origin of a draft that the lossless rule accepts
    parents: Sequence[int] = ()  # of a tree's nodes, whose tokens are in `drafted`
    passed: list[bool] | None = None  # by the lossless rule, if it drew random numbers
    scores: list[float] | None = None


class TracedDecoder:
    """Decodes one prompt, once; `tokens` holds all committed tokens, also those that the engine then cut off."""

    def __init__(self, decoder: Decoder) -> None:
        self.tokens: list[Emitted] = []
        self._seen = _Seen()
        self._num_rounds = 0
        if isinstance(decoder, Chain | SpecExec) and isinstance(decoder.rule, Judged):
            watched: Any = replace(decoder.rule, score=self._scored(decoder.rule))
            decoder = replace(decoder, rule=watched)
        self._decoder = decoder

    @property
    def models(self) -> tuple[Role, ...]:
        return self._decoder.models

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        steps = self._decoder.steps(_Overheard(rng, self._seen), remaining_tokens)
        answer: Any = None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                return
            if isinstance(ask, Score) and ask.model == "target" and ask.parents is not None:
                self._seen.drafted, self._seen.parents = _host(ask.tokens), ask.parents
            if isinstance(ask, Score) and ask.tree is not None:
                num, (tokens, parents) = _host(ask.tree.counts[0]), _host(ask.tree.table[:2])
                self._seen.drafted = tokens[1 : num + 1]
                self._seen.parents = [parent - 1 for parent in parents[1 : num + 1]]
            if isinstance(ask, Round):
                self._note(ask)
            answer = yield ask
            if isinstance(ask, Draft | Recall):
                self._seen.drafted, self._seen.by = _host(answer.tokens), ACCEPTED
                if isinstance(ask, Recall):
                    self._seen.by = SUFFIX if ask.suffix is not None else LOOKED_UP

    def _scored(self, rule: Judged) -> Any:
        def score(features: Array) -> Array:
            result = rule.score(features)
            self._seen.scores = _host(result)
            return result

        return score

    def _note(self, ask: Round) -> None:
        self._num_rounds += 1
        counts = {name: _host(value) for name, value in ask.counts.items()}
        tokens: list[int] = _host(ask.tokens)[: _host(ask.num_tokens)]
        if "num_drafted" in counts:
            result = self._chain(tokens, counts)
        elif "num_nodes" in counts:
            result = self._tree(tokens, counts)
        else:
            alone = DRAFT if self.models[0] == "draft" else TARGET
            result = [Emitted(token, alone, self._num_rounds, place) for place, token in enumerate(tokens, 1)]
        self.tokens += result
        seen = self._seen  # cleared in place, because the rng writes to this object
        seen.drafted, seen.by, seen.parents, seen.passed, seen.scores = [], ACCEPTED, (), None, None

    def _chain(self, tokens: Sequence[int], counts: Mapping[str, Any]) -> list[Emitted]:
        seen, accepted = self._seen, counts["num_accepted"]
        # At temperature 0 nothing is drawn; the overlap of two one-hot rows is 1 if they agree and 0 if not.
        passed = [bool(same) for same in counts["overlap"]] if seen.passed is None else seen.passed
        scores: Sequence[float | None] = seen.scores or [None] * len(seen.drafted)
        result = []
        for i, token in enumerate(tokens[:accepted]):
            origin = seen.by if passed[i] else JUDGED
            result.append(Emitted(token, origin, self._num_rounds, i + 1, scores[i]))
        for token in tokens[accepted:]:  # one, or none
            origin, rejected = (BONUS if seen.drafted else TARGET), None
            if accepted < len(seen.drafted):
                origin, rejected = CORRECTED, accepted
            result.append(self._own(token, origin, accepted + 1, rejected))
            if rejected is not None:
                result[-1] = replace(result[-1], rejected_score=scores[rejected])
        return result

    def _tree(self, tokens: Sequence[int], counts: Mapping[str, Any]) -> list[Emitted]:
        accepted, ranks = counts["num_accepted"], counts["ranks"]
        judged, scores = counts.get("judged", [0] * accepted), self._seen.scores
        result = [
            Emitted(
                token, JUDGED if judged[i] else TREE, self._num_rounds, i + 1,
                None if scores is None else scores[counts["path"][i] + 1], ranks[i],
            )
            for i, token in enumerate(tokens[:accepted])
        ]  # fmt: skip
        last = counts["path"][accepted - 1] if accepted else -1
        others = [node for node, parent in enumerate(self._seen.parents) if parent == last]
        origin = CORRECTED if others else BONUS if self._seen.drafted else TARGET
        left = self._own(tokens[accepted], origin, accepted + 1, others[0] if others else None)
        if others and scores is not None:
            left = replace(left, rejected_score=scores[others[0] + 1])
        return [*result, left]

    def _own(self, token: int, origin: str, place: int, rejected: int | None) -> Emitted:
        """Return a token that the target emitted itself."""
        instead = None if rejected is None else self._seen.drafted[rejected]
        return Emitted(token, origin, self._num_rounds, place, rejected=instead)


def tally(tokens: Sequence[Emitted]) -> dict[str, int]:
    """Return the number of tokens per origin, without origins that have none."""
    result = Counter(token.origin for token in tokens)
    return {origin: result[origin] for origin in ORIGINS if result[origin]}


@dataclass(frozen=True, slots=True)
class _Overheard:
    """Passes every random draw on, and notes which drafted tokens the lossless rule accepts."""

    rng: Rng
    seen: _Seen

    def pick(self, weights: Array, position: int, purpose: int) -> Array:
        return self.rng.pick(weights, position, purpose)

    def sample_next(self, weights: Array, position: int, num_accepted: Array, num_drafted: int) -> Array:
        return self.rng.sample_next(weights, position, num_accepted, num_drafted)

    def accept_prefix(self, prob: Array, accepted_anyway: Array | None, position: int) -> tuple[Array, Array]:
        num_accepted, passed = self.rng.accept_prefix(prob, accepted_anyway, position)
        self.seen.passed = _host(passed)
        return num_accepted, passed

    def accept_longest(self, prob: Array, position: int) -> Array:
        self.seen.passed = [True] * prob.shape[0]
        return self.rng.accept_longest(prob, position)

    def target_draws(self, weights: Array, position: int) -> Array:
        self.seen.passed = [True] * (weights.shape[0] - 1)
        return self.rng.target_draws(weights, position)

    def of_round(self, start: Array | int) -> Rng:
        return _Overheard(self.rng.of_round(start), self.seen)


def _host(value: Any) -> Any:
    """Return an array as a number or a list; values that are on the host already are returned as they are."""
    return value if isinstance(value, int | float | list | tuple) else value.tolist()

"""Lossy acceptance rules: AutoJudge (2504.20039), for chains and trees, and the Top-K rule it is compared with.

Both accept what the lossless rule accepts, and more. At one end of their setting they equal the lossless rule:
threshold 0, or K = 1 at temperature 0. At the other end, a threshold above 1 or K = |V|, they accept every drafted
token. A token that only they accept is counted as judged. `untrained_rules.py` has the other rules without a judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from array_api_compat import array_namespace, device, to_device

from specexp.decoding.protocol import Array, Drafted, Needs, Role, Scored
from specexp.decoding.rules import UNIT_TEMPERATURE, Warp
from specexp.decoding.untrained_rules import at_drafted, at_nodes, entropy

# From features[N, F], whose parts specexp/judge/features.py names, to the probabilities[N] of important mismatches.
JudgeFunction = Callable[[Array], Array]


def target_scalars(logits: Array, tokens: Array, warp: Warp) -> dict[str, Array]:
    """The scalars[N, 1] of the target that a judge may read, from logits[N, V] where tokens[N] may stand: H(p), the
    margin max p - p(x), and p(x)."""
    xp = array_namespace(logits)
    p = warp.softened(logits if logits.dtype == xp.float64 else xp.astype(logits, xp.float32))
    chances = _chances(p, tokens)
    columns = {
        "target_entropy": entropy(p), "target_margin": xp.max(p, axis=-1) - chances, "target_p": chances,
    }  # fmt: skip
    return {part: column[:, None] for part, column in columns.items()}


def draft_scalars(q: Array, tokens: Array) -> dict[str, Array]:
    """The same of the draft: q(x)[N, 1], from q[N, V]."""
    return {"draft_q": _chances(q, tokens)[:, None]}


def _chances(p: Array, tokens: Array) -> Array:
    return array_namespace(p).take_along_axis(p, tokens[:, None], axis=-1)[:, 0]


@dataclass(frozen=True, slots=True)
class Judged:
    """Accepts a drafted token whose mismatch the judge finds important with a probability below `threshold`.

    It never accepts a drafted EOS this way: ending early loses the answer, whatever the judge says of the token. `warp`
    is for parts that are scalars of p.
    """

    score: JudgeFunction
    parts: tuple[str, ...]
    threshold: float
    eos_ids: tuple[int, ...]
    needs: Needs
    warp: Warp = UNIT_TEMPERATURE

    @property
    def recordable(self) -> bool:
        return getattr(self.score, "recordable", False) or self.threshold <= 0

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        num_drafted = drafted.tokens.shape[0]
        if not num_drafted or self.threshold <= 0:
            return None
        rows: dict[str, Array] = {}
        if self._reads_scalars("target"):
            assert scored.logits is not None
            rows = target_scalars(scored.logits[:num_drafted], drafted.tokens, self.warp)
        if self._reads_scalars("draft"):
            assert drafted.q is not None, "the draft's distributions that the rule needs were not requested"
            rows |= draft_scalars(drafted.q, drafted.tokens)
        for part in self.parts:
            if part in rows:
                continue
            role, place = part.split("_")
            hidden = scored.hidden if role == "target" else drafted.hidden
            assert hidden is not None, "the hidden rows that the rule needs were not requested"
            first = 1 if place == "token" else 0
            rows[part] = hidden[first : first + num_drafted]
        return self._unimportant([rows[part] for part in self.parts], drafted.tokens)

    def accept_nodes(self, tokens: Array, parents: Array, scored: Scored) -> Array | None:
        """The same for a tree's nodes (`TreeRule`), from what the target computes alone."""
        if self.threshold <= 0:
            return None
        xp, hidden, rows = array_namespace(tokens), scored.hidden, {}
        above = xp.clip(parents, 0, None)
        if self.needs.target:
            assert hidden is not None, "the hidden rows that the rule needs were not requested"
            rows = {"target_token": hidden, "target_previous": xp.take(hidden, above, axis=0)}
        if self._reads_scalars("target"):
            logits = xp.take(scored.logits, above, axis=0)
            rows |= target_scalars(logits, xp.clip(tokens, 0, None), self.warp)
        return self._unimportant([rows[part] for part in self.parts], tokens)

    def _reads_scalars(self, role: Role) -> bool:
        return any(part.startswith(f"{role}_") and not part.endswith(("_token", "_previous")) for part in self.parts)

    def _unimportant(self, parts: list[Array], tokens: Array) -> Array:
        """[N] of bools, from hidden rows[N, H] of each part, at the tokens[N] or before them."""
        xp, where = array_namespace(tokens), device(tokens)
        rows = [to_device(array_namespace(part).astype(part, xp.float32), where) for part in parts]
        result = self.score(xp.concat(rows, axis=-1)) < self.threshold
        for eos in self.eos_ids:
            result = result & (tokens != eos)
        return result


@dataclass(frozen=True, slots=True)
class TopK:
    """Accepts a drafted token among the target's `k` most likely ones; of equal ones the lower id ranks first.

    With a `margin` (relaxed acceptance of TensorRT-LLM), only if its probability is above the best one's less the
    margin, too; with margin 0 it accepts nothing more than the lossless rule. The probabilities are not renormalised
    over the k tokens: those that are sampled from, at temperature 0 those at temperature 1.
    """

    k: int
    margin: float | None = None
    warp: Warp = UNIT_TEMPERATURE

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def recordable(self) -> bool:
        return True

    @property
    def is_off(self) -> bool:
        return self.margin is not None and self.margin <= 0

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Array | None:
        if not drafted.tokens.shape[0] or self.is_off:
            return None
        return self._among_best(at_drafted(drafted, scored), drafted.tokens)

    def accept_nodes(self, tokens: Array, parents: Array, scored: Scored) -> Array | None:
        """The same for a tree's nodes (`TreeRule`)."""
        return None if self.is_off else self._among_best(*at_nodes(tokens, parents, scored))

    def _among_best(self, rows: Array, tokens: Array) -> Array:
        """[N] of bools for tokens[N] by the target's logits `rows`[N, V] where each stands."""
        xp, where = array_namespace(rows), tokens[:, None]
        drafted_logits = xp.take_along_axis(rows, where, axis=-1)
        ids = xp.arange(rows.shape[-1], device=device(rows))[None, :]
        ahead = (rows > drafted_logits) | ((rows == drafted_logits) & (ids < where))
        among_best = xp.sum(xp.astype(ahead, xp.int64), axis=-1) < self.k
        if self.margin is None:
            return among_best
        p = self.warp.softened(rows)
        below = xp.max(p, axis=-1) - xp.take_along_axis(p, where, axis=-1)[:, 0]
        return among_best & (below < self.margin)

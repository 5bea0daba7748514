"""Two methods in a package of their own: a lossy acceptance rule, and a lossless proposer.

After `pip install ./docs/examples/near_best`, specexp knows both by name.
"""

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Drafted, Needs, Recall, Scored
from specexp.method_specs import CHAIN, Method, MethodSpec, never


@dataclass(frozen=True)
class NearBest:
    """Also accepts a drafted token whose logit is within `margin` of the target's largest."""

    margin: float = 1.0
    needs = Needs()  # the rule reads no hidden states

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> Any:
        num = drafted.tokens.shape[0]
        if not num:
            return None
        logits = scored.logits[:num]  # row i is the target's, before drafted token i
        xp = array_namespace(logits)
        mine = xp.take_along_axis(logits, drafted.tokens[:, None], axis=-1)[:, 0]
        return mine >= xp.max(logits, axis=-1) - self.margin


@dataclass(frozen=True)
class LookupThenDraft:
    """Proposes what followed the last two tokens where they occurred before, and the draft's chain otherwise."""

    gamma: int
    models = ("draft",)

    def propose(self, warp: Any, reserve: int, needs: Needs) -> Any:
        found = yield Recall(None, self.gamma, reserve, max_ngram=2)
        return found if found.tokens.shape[0] else (yield from DraftModel(self.gamma).propose(warp, reserve, needs))


NEAR_BEST = Method(
    MethodSpec("near_best", "Accepts drafted tokens that are near the target's best.", "chain", settings=CHAIN,
               lossless=never, presets={"near_best": {"gamma": 4}}),
    lambda settings, context: Chain(
        DraftModel(settings.gamma, settings.min_draft_probability), NearBest(), context.warp, settings.bonus
    ),
)  # fmt: skip
LOOKUP_THEN_DRAFT = Method(
    MethodSpec("lookup_then_draft", "Prompt lookup, and the draft's chain where it finds nothing.", "chain",
               settings=("gamma", "bonus"), may_end_early=True, presets={"lookup_then_draft": {"gamma": 4}}),
    lambda settings, context: Chain(LookupThenDraft(settings.gamma), Lossless(), context.warp, settings.bonus),
)  # fmt: skip

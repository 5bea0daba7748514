"""Token trees that the draft grows and the target scores on one device: nothing of them is read before the round.

How many nodes were fed is known when the round is read; until then, `RequestState.unsized` has what came before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from array_api_compat import device

from specexp.decoding.protocol import GrownTree, GrowTree, Role, Score
from specexp.engine.request_state import LogitPeaks, RequestState
from specexp.lm.model import Array, Model


class DeviceTrees:
    """Grows trees for requests, of which `alone` says that they are decoded one at a time and with caches."""

    def __init__(self, models: Mapping[Role, Model], alone: bool) -> None:
        self._models, self._alone = models, alone

    @cached_property
    def _one_device(self) -> bool:
        return len({str(device(model.ids([]))) for model in self._models.values()}) == 1

    def grow(self, state: RequestState, ask: GrowTree, depth: int) -> GrownTree | int:
        """The tree, of at most `depth` levels; or `depth`, where the decoder has to grow it by asks of its own."""
        draft, target = state.contexts["draft"], state.contexts["target"]
        # The ids that are banned differ by position; those of a first token include all others.
        if not depth or not self._alone or state.end.banned(len(state.ids) - state.num_prompt):
            return depth
        if not (draft.takes_tree(ask) and target.takes_tree(ask) and self._one_device):
            return depth
        tree, state.unsized["draft"] = draft.grow(ask, depth)
        state.peaks.append(LogitPeaks("draft", tree.peak, drafts=True))
        return tree


def score_tree(state: RequestState, ask: Score, tree: GrownTree) -> tuple[Array, Array | None]:
    """Logits[K + 1, V] and hidden[K + 1, H] of the root and of a tree's places, by the target."""
    result, state.unsized["target"] = state.contexts["target"].feed_tree(tree, ask.hidden)
    return result

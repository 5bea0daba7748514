"""A draft whose tokenizer is not the target's: which ways to use it fit the methods, and which one drafts better."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.draft_faults import vocabulary_faults
from specexp.engine import Engine
from specexp.errors import ModelError, first_line
from specexp.lm.model import Model
from specexp.lm.runtime import AUTO_VOCABULARY, INTERSECTION, SAME, TEXT
from specexp.lm.text_drafts import TextModel
from specexp.lm.translated import IntersectedModel
from specexp.method_specs import MethodSettings
from specexp.pair.translation import TokenizerTranslation, Vocabulary

# What the trial continues: an instruction, and a text that repeats some of its words.
TRIAL = "Explain in a few sentences why the sky is blue in the daytime, and red in the evening."
TRIAL_TOKENS, TRIAL_GAMMA = 32, 4


@dataclass(frozen=True, slots=True)
class OtherTokenizer:
    """A target's and a draft's tokenizer that differ, and the ways in which the methods can use such a draft."""

    translation: TokenizerTranslation
    num_own_ids: int
    ways: tuple[str, ...]

    @property
    def num_common(self) -> int:
        return sum(token >= 0 for token in self.translation.common)

    def model(self, draft: Any, way: str) -> IntersectedModel | TextModel:
        """The loaded draft as a model of the target's tokens."""
        made = TextModel if way == TEXT else IntersectedModel
        return made(draft, self.translation, len(self.translation.common))

    def choose(self, target: Model, draft: Any, prompt: Sequence[int], eos_ids: Collection[int]) -> tuple[str, str]:
        """The way to use the draft, and a note for the user; where there are two, the one with more tokens a call after
        `prompt`, a short text."""
        said = f"the draft has another tokenizer: {self.num_common} of {len(self.translation.common)} tokens are common"
        room = min(target.context - len(prompt), draft.context - len(self.translation.own(prompt)))
        if len(self.ways) == 1 or room < TRIAL_TOKENS + TRIAL_GAMMA:
            return self.ways[0], f"{said}; vocabulary {self.ways[0]} is used."
        lengths: dict[str, float] = {}
        for way in self.ways:
            models: Mapping[Role, Model] = {"target": target, "draft": self.model(draft, way)}
            decoder = Chain(DraftModel(TRIAL_GAMMA), Lossless(), Warp())
            out = Engine(models, tuple(eos_ids)).generate(decoder, prompt, TRIAL_TOKENS, CertainRng())
            lengths[way] = len(out.token_ids) / max(1, out.num_rounds)
        best = max(self.ways, key=lengths.__getitem__)
        found = " and ".join(f"{way} {length:.2f}" for way, length in lengths.items())
        return best, f"{said}; tokens a call in a short trial: {found}; vocabulary {best} is used."


def differ(target: Any, draft: Any, wanted: str) -> bool:
    """True if a draft with this tokenizer is to be used otherwise than with the target's tokens."""
    return wanted != SAME and (wanted != AUTO_VOCABULARY or target.get_vocab() != draft.get_vocab())


def vocabulary_of(tokenizer: Any, eos_ids: Collection[int]) -> Vocabulary:
    """A tokenizer's tokens and their bytes. Raises ModelError for one that does not say them."""
    try:
        # A copy: the original also encodes prompts, in a server in another thread.
        return Vocabulary(copy.deepcopy(tokenizer), eos_ids)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the tokens of a {type(tokenizer).__name__} cannot be compared with another tokenizer's:"
            f" {first_line(error)} Choose a draft of the target's own family."
        ) from error


def compare(
    target: Vocabulary, draft: Vocabulary, wanted: str, methods: Sequence[MethodSettings], suppressed: Collection[int]
) -> OtherTokenizer:
    """How the methods use a draft with another vocabulary. Raises ModelError if it is of no use to one."""
    translation = TokenizerTranslation(target, draft, suppressed)
    ways = (INTERSECTION, TEXT) if wanted == AUTO_VOCABULARY else (wanted,)
    faults = {way: vocabulary_faults(methods, way) for way in ways}
    if not any(token >= 0 for token in translation.common):
        faults.setdefault(INTERSECTION, []).append("no token is common to the target and the draft.")
    fitting = tuple(way for way in ways if not faults[way])
    if not fitting:
        raise ModelError(f"target and draft do not share a tokenizer: {faults[ways[0]][0]}")
    num_common = sum(token >= 0 for token in translation.common)
    if INTERSECTION in fitting and num_common == target.num_tokens == draft.num_tokens:
        fitting = (INTERSECTION,)  # the same tokens under other ids: nothing of q is lost, so no trial is needed
    return OtherTokenizer(translation, draft.size, fitting)

"""What an engine can do of what is recommended, and sentences about what it cannot.

A refusal means that no arguments are given: the engine would do something else than was measured. A difference leaves
the output's distribution as it is, and changes how many drafted tokens are accepted or how many are drafted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from specexp.config.models import STORED
from specexp.engine_settings.recommendation import LAYERS, LOOKUP, MODEL, PLAIN, SUFFIX, Recommendation
from specexp.lm.runtime import DFLASH, EAGLE3, INTERSECTION, MTP, SAME

HEADS_AND_MODEL = frozenset({MODEL, EAGLE3, MTP, DFLASH})
NAMES = {
    MODEL: "a draft model", LAYERS: "layers of the target", EAGLE3: "an EAGLE-3 head", MTP: "the target's MTP layers",
    DFLASH: "a DFlash draft", LOOKUP: "prompt lookup", SUFFIX: "suffix decoding",
}  # fmt: skip
RULES = {
    "autojudge": "a trained judge", "autojudge_tree": "a trained judge", "topk": "Top-K", "topk_tree": "Top-K",
    "typical": "typical acceptance", "typical_tree": "typical acceptance", "entropy": "an entropy gate",
    "entropy_tree": "an entropy gate", "fly": "FLy", "fuzzy": "fuzzy acceptance",
}  # fmt: skip
# Methods whose drafts and whose lossless verification engines have, too; rules at their lossless ends are like these.
OURS = frozenset({"baseline", "speculative", "lookup", "suffix", "chained", "specexec", *RULES})


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine has arguments for. The sets name kinds of drafts (`Recommendation.drafter`)."""

    engine: str
    drafters: frozenset[str]
    vocabularies: frozenset[str] = frozenset({SAME})
    trees: frozenset[str] = frozenset()  # drafts of which it makes trees
    adapts: frozenset[str] = frozenset()  # drafts whose length it adapts
    stops_early: frozenset[str] = frozenset()  # drafts that it ends after an unlikely token
    fixed_lengths: frozenset[str] = frozenset()  # drafts whose length it takes from the checkpoint
    matches_at_least: frozenset[str] = frozenset()  # proposers with a least number of matching tokens
    block: bool = False  # block verification
    before_draft: frozenset[str] = frozenset()  # proposers that may have a turn before the draft
    rules: Mapping[str, str] = field(default_factory=dict)  # what it has in place of a lossy method, as a sentence


def refusal(recommended: Recommendation, abilities: Abilities) -> str:
    """Why the engine cannot do what is recommended, in one sentence; empty if it can."""
    engine, method, drafter = abilities.engine, recommended.method, recommended.drafter
    if recommended.toy:
        return f"{engine} cannot load the toy pair, which has no weights."
    if not recommended.lossless:
        rule = RULES.get(method.method, f"method '{method.method}'")
        instead = abilities.rules.get(method.method, "another rule would lose other answers than were counted.")
        return f"{engine} does not accept tokens by {rule}; {instead}"
    if drafter == PLAIN:
        return ""
    if method.method not in OURS:
        return f"{engine} has no method like '{method.method}'."
    if drafter not in abilities.drafters:
        return f"{engine} does not draft with {NAMES.get(drafter, drafter)}."
    if method.tree is not None and drafter not in abilities.trees:
        return f"{engine} drafts no trees with {NAMES[drafter]}; advise with tree_budget none compares chains alone."
    if recommended.vocabulary not in abilities.vocabularies:
        how = "over the common tokens" if recommended.vocabulary == INTERSECTION else "as text"
        return f"{engine} takes no draft with another tokenizer {how}; name a draft with the target's tokenizer."
    if method.auto_gamma and not recommended.gamma and drafter not in abilities.adapts:
        return f"{engine} does not adapt the length of drafts (gamma auto); certify a fixed gamma to get its arguments."
    return ""


def differences(recommended: Recommendation, abilities: Abilities) -> Iterator[str]:
    """What the engine does otherwise with the arguments that are given, a sentence each."""
    engine, method, drafter = abilities.engine, recommended.method, recommended.drafter
    if drafter == PLAIN:
        return
    if method.auto_gamma and drafter not in abilities.adapts:
        yield (
            f"It does not adapt the length of drafts (gamma auto): they have {recommended.gamma} tokens, the fixed"
            " length that was predicted to be best."
        )
    if drafter in abilities.fixed_lengths:
        yield f"How many tokens a round drafts comes from the checkpoint; {recommended.gamma} were recommended."
    if method.min_draft_probability and drafter not in abilities.stops_early:
        yield f"It does not end a draft after a token less likely than {method.min_draft_probability:g}."
    if method.rule == "block" and not abilities.block and recommended.temperature:
        yield "It verifies token by token, not the draft as a block: as many tokens are accepted, or fewer."
    if method.draft_temperature and recommended.draft is not None:
        yield f"It draws no drafts at a temperature of their own ({method.draft_temperature:g})."
    if not method.bonus:
        yield "It adds the bonus token after a draft that is accepted whole."
    left_out = [name for name in recommended.others if name not in abilities.before_draft]
    searching = ({drafter, *recommended.others} - {*left_out}) & {LOOKUP, SUFFIX}
    if method.min_match > 1 and searching - abilities.matches_at_least:
        yield f"It drafts after shorter matches than {method.min_match} tokens, too."
    if left_out:
        yield f"It lets no proposers take turns: left out of its drafts are {_listed(left_out)}."
    if recommended.draft is not None and recommended.draft.eagle3.startswith(STORED):
        head = recommended.draft.eagle3
        yield f"It reads no head from the tracking store: download {head} and name the folder instead."
    for model in filter(None, (recommended.target, recommended.draft)):
        if model.quantization != "none":
            yield f"{model.model} was loaded in {model.quantization}; {engine} has quantizations of its own."
            break


def _listed(names: list[str]) -> str:
    return " and ".join(NAMES[name] for name in names)

"""Which drafts a method does not take: a line for each fault, from settings alone."""

from __future__ import annotations

from collections.abc import Iterable

from specexp.lm.runtime import CHAIN_HEADS, DFLASH, INTERSECTION, TEXT, ModelConfig
from specexp.method_specs import MethodSettings, models_of, spec


def vocabulary_faults(methods: Iterable[MethodSettings], vocabulary: str) -> list[str]:
    """Why these settings do not go with a draft whose tokens become the target's in this way, a line for each."""
    result = []
    for method in methods:
        if "draft" not in models_of(method):
            continue
        known = spec(method.method).vocabularies
        if vocabulary not in known:
            result.append(
                f"method '{method.method}' does not take a draft with vocabulary {vocabulary}, but"
                f" {' or '.join(known)}; leave the method out, or name another draft."
            )
        elif vocabulary == TEXT:
            result += [
                f"{name} of '{method.label}' is {value}, but a draft with vocabulary text is not sampled, and its"
                " tokens are compared with the target's own; leave it out."
                for name, value, usual in (
                    ("rule", method.rule, "token"),
                    ("draft_temperature", method.draft_temperature, None),
                    ("min_draft_probability", method.min_draft_probability, 0),
                    ("gamma", "auto" if method.auto_gamma else "", ""),
                )
                if value != usual
            ]
    return result


def head_faults(methods: Iterable[MethodSettings], draft: ModelConfig) -> list[str]:
    """Why these methods do not go with a head on the target's hidden states as the draft, a line for each."""
    result = []
    for method in methods:
        if "draft" not in models_of(method):
            continue
        if not spec(method.method).takes_heads:
            result.append(
                f"method '{method.method}' needs a draft that is a model by itself, but {draft.shown} is a head, which"
                " drafts from the target's hidden states; leave the method out, or name another draft."
            )
        elif draft.head in CHAIN_HEADS and spec(method.method).grows_tree:
            result.append(
                f"method '{method.method}' grows trees, but draft {draft.shown} drafts chains; leave the method out, or"
                " name another draft."
            )
        elif draft.head == DFLASH and method.auto_gamma:
            result.append(
                f"gamma of '{method.label}' is auto, but draft {draft.shown} drafts its whole block in one forward:"
                " a shorter chain saves none; set gamma to a number."
            )
    return result


def draft_faults(methods: Iterable[MethodSettings], draft: ModelConfig) -> list[str]:
    """Why these methods do not go with this draft, as far as its settings tell, a line for each."""
    if draft.head:
        return head_faults(methods, draft)
    return vocabulary_faults(methods, draft.vocabulary) if draft.vocabulary in (INTERSECTION, TEXT) else []

"""Assigns prompts to splits: to train a judge, to stop its training, to calibrate it and to test it.

A prompt's split depends on its id alone, so mining it again puts it into the same split. There is one exception: if a
split lacks one kind of mismatch, which training needs, prompts are moved to it from splits that keep both kinds. As
few as needed are moved, and the same labels always give the same result.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specexp.judge.labels import Label

# Shares of 20. The judge's weights, the time to stop and C, the threshold, and the report each use their own prompts.
SPLITS = {"train": 11, "validation": 2, "calibration": 3, "test": 4}
BOTH = frozenset((True, False))  # kinds of mismatches: important, unimportant
Kinds = frozenset[bool]


def split_of(prompt_id: str) -> str:
    """Return the split that a prompt belongs to."""
    bucket = _digest(prompt_id)[0] % sum(SPLITS.values())
    for name, share in SPLITS.items():
        if bucket < share:
            return name
        bucket -= share
    raise AssertionError("shares cover every bucket")


def filled(labels: Sequence[Label]) -> list[Label]:
    """Return the labels with prompts moved so that every split has both kinds; unchanged if they do or cannot."""
    kinds = kinds_of(labels)
    if num_fillable(kinds) < len(SPLITS):
        return list(labels)
    splits = {label.prompt_id: label.split for label in labels}
    for name in SPLITS:
        _fill(name, splits, kinds)
    return [replace(label, split=splits[label.prompt_id]) for label in labels]


def kinds_of(labels: Sequence[Label]) -> dict[str, Kinds]:
    """Return the kinds of decided mismatches that each prompt has."""
    result: dict[str, set[bool]] = {label.prompt_id: set() for label in labels}
    for label in labels:
        if label.important is not None:
            result[label.prompt_id].add(label.important)
    return {prompt: frozenset(each) for prompt, each in result.items()}


def num_fillable(kinds: Mapping[str, Kinds]) -> int:
    """Return how many splits can have both kinds: each needs a prompt with both, or two with one kind each."""
    counts = Counter(kinds.values())
    return counts[BOTH] + min(counts[frozenset((True,))], counts[frozenset((False,))])


def more_prompts(fillable: int, num_prompts: int) -> int:
    """Return about how many more prompts, mined like the first ones, would fill every split; if no split can be filled,
    as many as there are."""
    needed = math.ceil(num_prompts * len(SPLITS) / fillable) if fillable else 2 * num_prompts
    return max(needed, num_prompts + 1) - num_prompts


def _fill(name: str, splits: dict[str, str], kinds: Mapping[str, Kinds]) -> None:
    """Move prompts to one split until it has both kinds, from splits that keep their kinds."""
    while lacking := BOTH - _kinds_in(name, splits, kinds):
        candidates = [
            prompt
            for prompt in splits
            if splits[prompt] != name and kinds[prompt] & lacking and _is_spare(prompt, splits, kinds)
        ]
        if not candidates:
            return
        # Prefer prompts with just the lacking kinds: a prompt with both kinds may have to fill another split alone.
        splits[min(candidates, key=lambda p: (kinds[p] & lacking != lacking, kinds[p] != lacking, _digest(p)))] = name


def _kinds_in(name: str, splits: Mapping[str, str], kinds: Mapping[str, Kinds]) -> Kinds:
    return frozenset(kind for prompt, split in splits.items() if split == name for kind in kinds[prompt])


def _is_spare(prompt: str, splits: Mapping[str, str], kinds: Mapping[str, Kinds]) -> bool:
    """True if other prompts of the prompt's split have its kinds, too."""
    others = {each: split for each, split in splits.items() if each != prompt}
    return kinds[prompt] <= _kinds_in(splits[prompt], others, kinds)


def _digest(prompt_id: str) -> bytes:
    return hashlib.sha256(f"label {prompt_id}".encode()).digest()


def lacking(labels: Sequence[Label]) -> Iterator[str]:
    """Yield the splits without both kinds, and what they have."""
    for name in SPLITS:
        important = [label.important for label in labels if label.split == name and label.important is not None]
        if len(set(important)) < len(BOTH):
            yield f"split {name} has {len(important)} mismatches, {sum(important)} of them important"

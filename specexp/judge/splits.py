"""Which prompts a judge learns from, and which it is stopped, calibrated and examined on.

A prompt's split depends on its id alone, so that whoever mines it again finds it there. Only where a split would lack
one kind of mismatch, without which there is no training, is it given prompts of others that keep both: as few as
needed, and the same ones for the same labels.
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

# Shares of 20: the judge's weights, when to stop and which C, the threshold, and the report each see their own prompts.
SPLITS = {"train": 11, "validation": 2, "calibration": 3, "test": 4}
BOTH = frozenset((True, False))  # kinds of mismatches: important, unimportant
Kinds = frozenset[bool]


def split_of(prompt_id: str) -> str:
    """The one split that owns a prompt."""
    bucket = _digest(prompt_id)[0] % sum(SPLITS.values())
    for name, share in SPLITS.items():
        if bucket < share:
            return name
        bucket -= share
    raise AssertionError("shares cover every bucket")


def filled(labels: Sequence[Label]) -> list[Label]:
    """The labels, with prompts moved so that every split has both kinds; as they are where they have or cannot."""
    kinds = kinds_of(labels)
    if num_fillable(kinds) < len(SPLITS):
        return list(labels)
    splits = {label.prompt_id: label.split for label in labels}
    for name in SPLITS:
        _fill(name, splits, kinds)
    return [replace(label, split=splits[label.prompt_id]) for label in labels]


def kinds_of(labels: Sequence[Label]) -> dict[str, Kinds]:
    """The kinds of decided mismatches that each prompt has."""
    found: dict[str, set[bool]] = {label.prompt_id: set() for label in labels}
    for label in labels:
        if label.important is not None:
            found[label.prompt_id].add(label.important)
    return {prompt: frozenset(each) for prompt, each in found.items()}


def num_fillable(kinds: Mapping[str, Kinds]) -> int:
    """How many splits can have both kinds: each takes a prompt with both, or two with one kind each."""
    counts = Counter(kinds.values())
    return counts[BOTH] + min(counts[frozenset((True,))], counts[frozenset((False,))])


def more_prompts(fillable: int, num_prompts: int) -> int:
    """How many prompts more, mined like the first ones, would about fill every split; at least as many again where
    nothing was found."""
    needed = math.ceil(num_prompts * len(SPLITS) / fillable) if fillable else 2 * num_prompts
    return max(needed, num_prompts + 1) - num_prompts


def _fill(name: str, splits: dict[str, str], kinds: Mapping[str, Kinds]) -> None:
    """Give one split what it lacks, from splits that lose no kind by it."""
    while lacking := BOTH - _kinds_in(name, splits, kinds):
        candidates = [
            prompt
            for prompt in splits
            if splits[prompt] != name and kinds[prompt] & lacking and _is_spare(prompt, splits, kinds)
        ]
        if not candidates:
            return
        # What is lacking and no more comes first: a prompt with both kinds may have to fill a split alone.
        splits[min(candidates, key=lambda p: (kinds[p] & lacking != lacking, kinds[p] != lacking, _digest(p)))] = name


def _kinds_in(name: str, splits: Mapping[str, str], kinds: Mapping[str, Kinds]) -> Kinds:
    return frozenset(kind for prompt, split in splits.items() if split == name for kind in kinds[prompt])


def _is_spare(prompt: str, splits: Mapping[str, str], kinds: Mapping[str, Kinds]) -> bool:
    """Whether a prompt's split has its kinds from other prompts, too."""
    others = {each: split for each, split in splits.items() if each != prompt}
    return kinds[prompt] <= _kinds_in(splits[prompt], others, kinds)


def _digest(prompt_id: str) -> bytes:
    return hashlib.sha256(f"label {prompt_id}".encode()).digest()


def lacking(labels: Sequence[Label]) -> Iterator[str]:
    """The splits without both kinds, and what they have."""
    for name in SPLITS:
        mine = [label.important for label in labels if label.split == name and label.important is not None]
        if len(set(mine)) < len(BOTH):
            yield f"split {name} has {len(mine)} mismatches, {sum(mine)} of them important"

"""Describes how the outputs of settings that must emit plain decoding's tokens compare: in a cell, or a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from specexp.evaluation.divergence import NEAR_TIE, NOT_LOSSLESS, ROUNDING, UNEXPLAINED, Divergence
from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.evaluation.report.formatting import Number, Sentence, of, percent


def mark(entry: Entry) -> str:
    """Describe a setting's output for its table row."""
    if entry.config.method == "baseline":
        return "plain decoding"
    if entry.served:
        return "served"
    result = entry.divergence
    if result is None:
        return "lossless" if entry.lossless else "lossy"
    equal = f"equal on {result.num_equal} of {result.num_outputs}"
    reasons = [f"{n} {words}" for why, words in ((NEAR_TIE, "at near ties"), (ROUNDING, "within rounding"))
               if (n := result.num(why))]  # fmt: skip
    return (f"{NOT_LOSSLESS}: " if result.refuted else "") + ", ".join([equal, *reasons])


def marks(comparison: Comparison) -> dict[str, str]:
    """Return the mark of each entry, by label."""
    return {entry.label: mark(entry) for entry in comparison.entries}


def refuted(entries: Sequence[Entry]) -> list[str | Number]:
    """Return `Not lossless here: ...` with the first output that shows it; empty if no setting is refuted."""
    wrong = [
        (entry, entry.divergence) for entry in entries if entry.divergence is not None and entry.divergence.refuted
    ]
    if not wrong:
        return []
    words: list[str | Number] = ["Not lossless here: "]
    for place, (entry, result) in enumerate(wrong):
        words += ["; " if place else "", f"{entry.label} (", *_count(entry, result), ")"]
    label = wrong[0][0].config.preset
    return [*words, f". `python -m specexp certify --method {label}` examines it. "]


def _count(entry: Entry, divergence: Divergence) -> list[str | Number]:
    first, num = divergence.first, divergence.num(UNEXPLAINED)
    unexplained = Number("quality/unexplained", entry.label, num, str(num))
    gap = "one of them has ended" if first["token"] is None or first["reference"] is None else "cut by top-k or top-p"
    if first["gap"] is not None:
        gap = f"logits {first['gap']:.2g} apart"
    words = "outputs differ" if num > 1 else "output differs"
    return [unexplained, f" of {divergence.num_outputs} {words} from plain decoding's where no near tie explains it,"
            f" first prompt '{first['prompt_id']}' at token {first['position']}, {gap}"]  # fmt: skip


def equality(comparison: Comparison, entry: Entry) -> Sentence:
    """Say how many outputs are plain decoding's, and what explains the others; empty if all are."""
    result = entry.divergence
    if result is None:
        share = of(entry, "quality/equal_to_baseline", percent)
        if comparison.experiment.temperature > 0 or share.value == 1 or not entry.lossless:
            return []
        return [
            "Yet only ", share, f" of {entry.label}'s outputs equal plain decoding's, token for token: near ties of the"
            " arithmetic, or a bug. `python -m specexp certify` shows which.",
        ]  # fmt: skip
    differ = len(result.differences)
    if not differ or result.refuted:
        return []
    ties, rounded = result.num(NEAR_TIE), result.num(ROUNDING)
    dtype = comparison.arithmetic
    words: list[str | Number] = [
        f"Of {entry.label}'s {result.num_outputs} outputs {result.num_equal} equal plain decoding's",
        f"; of the other {differ} ",
        Number("quality/near_ties", entry.label, ties, f"{ties} ({ties / differ:.0%})"),
        f" first differ{'s' if ties == 1 else ''} at near ties of {dtype}",
    ]
    if rounded:
        words += [", ", Number("quality/within_rounding", entry.label, rounded, str(rounded)),
                  f" by a gap that {dtype} may round away"]  # fmt: skip
    gaps = [each["gap"] for each in result.differences if each["gap"] is not None]
    widest = f" (logits at most {max(gaps):.2g} apart)" if gaps else ""
    return [*words, f"{widest}: rounding, not the method."]

"""Passes and refusals of a judge in their context, from responses that are decoded again: a label set holds no texts.

Which mismatches are shown depends on their prompt and position alone, not on what the judge says of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specexp.engine import RequestCoroutine
from specexp.judge.collection import PreparedMining
from specexp.judge.labels import Label
from specexp.rule_calibration.replay import LabelReplay

CASES = 20  # of each
BEFORE, AFTER = 300, 160  # characters of text that are shown


@dataclass(frozen=True, slots=True)
class CaseContext:
    """The text around a mismatch: of prompt and response before it, and of the target's response after it."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Case:
    """A mismatch, the judge's probability that it is important, whether it passes, and its context."""

    label: Label
    p: float
    passes: bool
    context: CaseContext

    @property
    def wrong(self) -> bool:
        """True if an important mismatch passes, or an unimportant one is refused."""
        return self.passes == bool(self.label.important)


def selected(labels: Sequence[Label], passes: np.ndarray) -> list[int]:
    """The numbers of the mismatches to show: up to 20 that pass, then up to 20 that are refused."""
    order = sorted(range(len(labels)), key=lambda i: _digest(labels[i]))
    return [i for wanted in (True, False) for i in [i for i in order if bool(passes[i]) == wanted][:CASES]]


def cases(
    mining: PreparedMining,
    every: Sequence[Label],
    shown: Sequence[Label],
    p: Sequence[float],
    passes: Sequence[bool],
    on_prompt: Callable[[], object],
) -> list[Case]:
    """The cases of the labels that are shown. `every` has all labels of their prompts, also the undecided ones.

    Raises JudgeError if a response is another than when it was mined.
    """  # fmt: skip
    text = mining.pair.text

    def visit(prompt: Sequence[int], response: Sequence[int], label: Label) -> RequestCoroutine[CaseContext]:
        at = label.position
        before = text.decode([*prompt, *response[:at]])[-BEFORE:]
        yield from ()  # a coroutine that asks nothing
        return CaseContext(before, text.decode(list(response[at + 1 :]))[:AFTER])

    prompts = {label.prompt_id for label in shown}
    of_prompts = [label for label in every if label.prompt_id in prompts]
    replay = LabelReplay(mining, visit, ("test",))
    found = {_place(label): context for label, context in replay.run(mining.examples, of_prompts, on_prompt)}
    return [
        Case(label, float(chance), bool(ok), found[_place(label)])
        for label, chance, ok in zip(shown, p, passes, strict=True)
    ]


def _place(label: Label) -> tuple[str, int]:
    return label.prompt_id, label.position


def _digest(label: Label) -> bytes:
    return hashlib.sha256(f"case {label.prompt_id} {label.position}".encode()).digest()

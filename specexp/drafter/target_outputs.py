"""The target's own outputs on training prompts: what a head is trained and evaluated on.

Every second prompt is decoded greedily and the others are sampled at temperature 1. Each output is a line of
`outputs.jsonl`, written as soon as it is there: a run that is killed loses only the outputs it was working on, and the
draws depend on the prompt alone, so that a resumed run has the outputs of an uninterrupted one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Request
from specexp.errors import TaskError
from specexp.pair.loading import Pair
from specexp.storage.journal import Journal
from specexp.tasks.example import Example

FILE = "outputs.jsonl"
HELD_OUT_EVERY = 16  # pairs of prompts, of which one is for the evaluation
FEWEST = 2 * HELD_OUT_EVERY  # prompts, so that both kinds of output are in both parts


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """A prompt and the target's output for it, as ids; `sampled` at temperature 1, or greedy."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    sampled: bool

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.tokens]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decoded: examples, with at most `max_new_tokens` tokens each, `batch` together."""

    examples: Sequence[Example]
    max_new_tokens: int
    batch: int
    seed: int


def is_sampled(index: int) -> bool:
    return index % 2 == 1


def is_held_out(index: int) -> bool:
    """Whether the output of this prompt is for the evaluation: neighbours, so that both kinds are."""
    return index // 2 % HELD_OUT_EVERY == 0


def collect(
    pair: Pair, plan: Plan, folder: Path, facts: Mapping[str, Any], done: Callable[[int], object] = lambda num: None
) -> list[TargetOutput]:
    """Decode the prompts that have no output yet; all outputs in the order of the prompts. `done(1)` counts them.

    Raises OutputError if the folder was begun with other `facts`.
    """
    texts = [pair.text.encode(example.messages()) for example in plan.examples]
    with Journal.open(folder / FILE, facts) as journal:
        missing = [index for index in range(len(texts)) if ("output", index) not in journal]
        done(len(texts) - len(missing))
        engine = Engine({"target": pair.models["target"]}, pair.eos_ids, max_batch_size=plan.batch)
        for place, out in engine.generate_all(_request(plan, texts[index], index) for index in missing):
            tokens = list(out.token_ids)
            journal.unit(("output", missing[place]), lambda: tokens)  # noqa: B023 - called at once
            done(1)
        found = [journal.unit(("output", index), list) for index in range(len(texts))]
    return [
        TargetOutput(prompt, tokens, is_sampled(index))
        for index, (prompt, tokens) in enumerate(zip(texts, found, strict=True))
    ]


def _request(plan: Plan, prompt: Sequence[int], index: int) -> Request:
    temperature = 1.0 if is_sampled(index) else 0.0
    name = plan.examples[index].prompt_id
    return Request(
        Baseline(Warp(temperature)), prompt, plan.max_new_tokens, rng_for(temperature, plan.seed, name), None, name
    )


def split(outputs: Sequence[TargetOutput]) -> tuple[list[TargetOutput], list[TargetOutput]]:
    """The outputs that a head is trained on, and those that it is evaluated on; too short ones are left out."""
    parts: tuple[list[TargetOutput], list[TargetOutput]] = ([], [])
    for index, out in enumerate(outputs):
        if len(out.tokens) > 1 and len(out.ids) > 2:
            parts[is_held_out(index)].append(out)
    if not parts[0] or not parts[1]:
        raise TaskError(
            f"of the target's outputs on {len(outputs)} prompts, {len(parts[0])} have tokens to train on and"
            f" {len(parts[1])} to evaluate on; raise limit or max_new_tokens."
        )
    return parts


def draft_ids(outputs: Sequence[TargetOutput], num: int, vocab_size: int) -> list[int]:
    """The target's ids that a head scores: all if there are at most `num`, else the most frequent ones of the outputs.

    Ids that do not occur fill them up, the lowest first.
    """
    if vocab_size <= num:
        return list(range(vocab_size))
    counts = Counter(token for out in outputs for token in out.tokens if token < vocab_size)
    return sorted(sorted(range(vocab_size), key=lambda i: (-counts[i], i))[:num])

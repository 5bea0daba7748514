"""Greedy outputs and Algorithm 1 with a budget for the thought that a prompt begins, token by token: the reference.

It shares no code with the engine's budget or with mining; `reference_miner.py` is the same without a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers import reference_miner
from helpers.reference_miner import Ids, Reference


@dataclass(frozen=True)
class Budget:
    """`size` tokens for a thought that the token `end` or `forced` end, and `answer` tokens after it."""

    size: int
    answer: int
    end: int
    forced: tuple[int, ...]

    def thought_of(self, output: Ids) -> tuple[bool, range, Ids]:
        """Whether the thought is over, where its forced tokens are, and those it still lacks."""
        if self.end in output[: self.size]:
            return True, range(0), []
        if len(output) < self.size:
            return False, range(0), []
        lacking = list(self.forced)
        for size in range(len(self.forced) - 1, 0, -1):
            if output[self.size - size : self.size] == list(self.forced[:size]):
                lacking = list(self.forced[size:])
                break
        there = output[self.size : self.size + len(lacking)]
        return True, range(self.size, self.size + len(there)), lacking[len(there) :]

    def answer_of(self, output: Ids) -> Ids:
        """What follows the end of the thought."""
        over, forced, lacking = self.thought_of(output)
        assert over
        assert not lacking
        return output[forced.stop if forced else output.index(self.end) + 1 :]


def respond(pair: Any, prompt: Ids, output: Ids, budget: Budget) -> tuple[Ids, int]:
    """The target's greedy output that begins as `output`, by a fresh forward for every token, and how many."""
    model, calls = pair.models["target"], 0
    while not (output and output[-1] in pair.eos_ids):
        over, _, lacking = budget.thought_of(output)
        output = [*output, *lacking]
        if over and len(budget.answer_of(output)) >= budget.answer:
            break
        logits, _ = model.session().feed(model.ids([*prompt, *output]), rows=1)
        output, calls = [*output, int(logits[-1].argmax())], calls + 1
    return output, calls


def mine(pair: Any, task: Any, example: Any, budget: Budget, read: Callable[[Ids], str | None]) -> Reference:
    """Algorithm 1; forced tokens are nobody's choice. `read` reads the answer of an output."""
    prompt = pair.text.encode(example.messages())
    y, _ = respond(pair, prompt, [], budget)
    answer = read(y)
    if y[-1] not in pair.eos_ids or answer is None:
        return Reference("unfinished" if y[-1] not in pair.eos_ids else "no_answer", response=y)
    result, t = Reference("mined"), 0
    while t < len(y):
        d = reference_miner.draft_choices(pair, prompt, y)[t]
        if d != y[t] and t not in budget.thought_of(y)[1]:
            swapped, calls = respond(pair, prompt, [*y[:t], d], budget)
            result.num_calls += calls
            label = reference_miner.label_of(pair, task, example, y, swapped, t, answer, read)
            result.labels.append(label)
            y = swapped if label["important"] is False else y
        t += 1
    result.response = y
    return result

"""Where a model that thinks first ends its thoughts: an answer is read from what follows.

The markers are those that the tokenizer has as tokens or that its chat template writes. An output whose thought has not
ended has no answer. With a budget, the engine ends a thought that is longer (`specexp.engine.thought`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from specexp.engine import ThinkingBudget
from specexp.errors import ModelError
from specexp.pair import chat_template
from specexp.pair.tokenization import Text, TokenizerText
from specexp.tasks.example import Example

# Begin and end of thoughts: Qwen, DeepSeek and most others; gpt-oss; Mistral; Gemma; Seed; Cohere; Kimi.
MARKERS = (
    ("<think>", "</think>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
# What ends a thought that has used its budget, where it is more than the end: Qwen3's documentation; gpt-oss's form.
FORCED = {"</think>": "\n</think>\n\n", MARKERS[1][1]: "<|end|><|start|>assistant<|channel|>final<|message|>"}


@dataclass(frozen=True, slots=True)
class Thinking:
    """The markers of a thought.

    `start_ids` and `end_ids` are theirs if they have tokens of their own, which no text around them changes; where they
    are (), the markers are searched for in the text.
    """

    start: str
    end: str
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()

    def answer_text(self, decoder: Text, prompt: Sequence[int], ids: Sequence[int], text: str) -> str | None:
        """Return the part of an output's `text` that follows its last thought; None if a thought has not ended.

        `ids` are the output's, and `text` is their text or a beginning of it. Without a thought, it is the whole text.
        """
        if not self.end_ids:
            _, ended, rest = text.rpartition(self.end)
        else:
            place = _last(ids, self.end_ids)
            thought = decoder.decode(ids[: place + len(self.end_ids)]) if place >= 0 else ""
            ended, ids = ("yes" if place >= 0 else ""), ids[place + len(self.end_ids) :] if place >= 0 else ids
            rest = text[len(thought) :] if text.startswith(thought) else decoder.decode(ids)
        by_ids = bool(self.end_ids and self.start_ids)
        begun = _last(ids, self.start_ids) >= 0 if by_ids else self.start in rest
        return None if begun or (not ended and self._is_open(decoder, prompt)) else rest

    def budget(self, text: TokenizerText, num_tokens: int) -> ThinkingBudget:
        """A budget of `num_tokens` for thoughts with these markers. Raises ModelError without end ids."""
        if not self.end_ids:
            raise ModelError(
                f"thinking_budget is {num_tokens}, but the tokenizer has no token for {self.end}, by which alone an end"
                " of thinking is known for certain; leave it out."
            )
        forced = tuple(chat_template.ids_of(text.tokenizer, FORCED.get(self.end, self.end)))
        return ThinkingBudget(num_tokens, self.start_ids, self.end_ids, forced, partial(self._is_open, text))

    def _is_open(self, decoder: Text, prompt: Sequence[int]) -> bool:
        """True if the prompt ends with the beginning of a thought, as templates of some models write it."""
        if not (self.start_ids and self.end_ids):
            return decoder.decode(prompt).rstrip().endswith(self.start)
        place = _last(prompt, self.start_ids)
        rest = prompt[place + len(self.start_ids) :]
        return place >= 0 and _last(rest, self.end_ids) < 0 and not decoder.decode(rest).strip()


def thinking_of(text: Text) -> Thinking | None:
    """Return the markers of a tokenizer; None if it has none, or is the toy's."""
    if not isinstance(text, TokenizerText):
        return None
    added = text.tokenizer.get_added_vocab()
    template = chat_template.template_of(text.tokenizer) if text.chat else ""
    for start, end in MARKERS:
        if end in added or end in template:
            own = set(added.values())
            start_ids, end_ids = (tuple(chat_template.ids_of(text.tokenizer, marker)) for marker in (start, end))
            return Thinking(
                start,
                end,
                start_ids if start_ids[0] in own else (),
                end_ids if {end_ids[0], end_ids[-1]} <= own else (),
            )
    return None


def budget_of(text: Text, num_tokens: int) -> ThinkingBudget | None:
    """Return the budget for thoughts; None if `num_tokens` is 0. Raises ModelError if the tokenizer marks none."""
    if not num_tokens:
        return None
    thinking = thinking_of(text)
    if thinking is None or not isinstance(text, TokenizerText):
        raise ModelError(
            f"thinking_budget is {num_tokens}, but neither the tokenizer nor its chat template has markers of a thought"
            " that are known; leave it out."
        )
    return thinking.budget(text, num_tokens)


def _last(ids: Sequence[int], part: Sequence[int]) -> int:
    """Return where `part` occurs last in `ids`, or -1."""
    size = len(part)
    return next((i for i in range(len(ids) - size, -1, -1) if tuple(ids[i : i + size]) == tuple(part)), -1)


def thinking_notes(thinking: Thinking | None, examples: Sequence[Example]) -> list[str]:
    """Return a note for the user, where there are answers to read from a model that may think."""
    if thinking is None or all(example.answer is None for example in examples):
        return []
    return [
        f"answers are read from what follows the end of thinking, {thinking.end}; an output that ends in a thought has"
        " none."
    ]


def thinking_changed(folder: object, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return what is wrong if a folder was begun with answers read from another part of the outputs, else None."""
    was, reads = (inputs.get("thinking_end") for inputs in (before, now))
    if was == reads:
        return None
    words = [f"what follows {end}" if end else "whole outputs" for end in (was, reads)]
    return f"'{folder}' was begun with answers read from {words[0]}, now from {words[1]}; name another output folder."

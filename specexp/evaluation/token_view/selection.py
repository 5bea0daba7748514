"""Selects the prompts that are shown token by token: those that the user names, or the most informative ones.

This affects the view only: it is not a setting of the run, and not part of its hash.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from specexp.errors import ConfigError
from specexp.method_specs import spec
from specexp.sequences.lazy import lazily
from specexp.storage.records import Record
from specexp.tasks.example import Example, place_of, prompt_id_of

DEFAULT = "3"
NOT_SHOWN = "note: there is no token view with a thinking_budget: tokens that end a thought come from no model."


@dataclass(frozen=True, slots=True)
class ShownPrompts:
    """`number` prompts that the run selects, or those whose ids `text` names, separated by commas.

    An id that is itself a number is given with a comma after it.
    """

    text: str
    number: int | None

    @classmethod
    def parse(cls, text: str) -> ShownPrompts:
        """Parse a whole number, or ids; "" is the default. Raises ConfigError for a number below 0."""
        text = text.strip() or DEFAULT
        try:
            number = int(text)
        except ValueError:
            return cls(text, None)
        if number < 0:
            raise ConfigError(f"show is '{text}'; it must be a number >= 0, or prompt ids separated by commas.")
        return cls(text, number)

    def check(self, examples: Sequence[Example]) -> None:
        """Raise ConfigError, with every fault, unless all named prompts are among these."""
        if self.number is not None:
            return
        known, names = lazily(prompt_id_of, examples), self._names(examples)
        faults = [] if names else [f"show is '{self.text}', which names no prompt; give ids separated by commas."]
        for name in names:
            if not _is_among(examples, name):
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f", did you mean '{close[0]}'?" if close else "."
                faults.append(
                    f"show names prompt '{name}', which is not among this run's {len(known)}"
                    f" ('{known[0]}' to '{known[-1]}'){hint}"
                )
        if faults:
            raise ConfigError(faults)

    def choose(self, examples: Sequence[Example], records: Sequence[Record]) -> list[int]:
        """Return indices into `examples`, in the order of showing.

        For a number, in the task's order: informative prompts are taken first, then the first of the others.
        """
        if self.number is None:
            return [place_of(examples, name) for name in self._names(examples)]
        result, number = informative_prompts(records), min(self.number, len(examples))
        told = (place for place, example in enumerate(examples) if example.prompt_id in result)
        first = list(islice(told, number if result else 0))
        others = (place for place in range(len(examples)) if examples[place].prompt_id not in result)
        return sorted([*first, *islice(others, number - len(first))])

    def _names(self, examples: Sequence[Example]) -> list[str]:
        if _is_among(examples, self.text):
            return [self.text]  # an id may contain commas
        return list(dict.fromkeys(name.strip() for name in self.text.split(",") if name.strip()))


def _is_among(examples: Sequence[Example], prompt_id: str) -> bool:
    try:
        place_of(examples, prompt_id)
    except KeyError:
        return False
    return True


def informative_prompts(records: Sequence[Record]) -> set[str]:
    """Return ids of the prompts on which, in the first repeat, a drafted token was accepted against the lossless rule,
    or a method with a target emitted other tokens than plain decoding after the same prompt."""
    first = [record for record in records if record["repeat"] == 0]
    plain = {(r["prompt_id"], r["turn"]): r["token_ids"] for r in first if r["method"] == "baseline"}
    return {
        r["prompt_id"]
        for r in first
        if r["num_judged"]
        or (
            spec(r["method"]).verifies
            and r["paired"]
            and r["token_ids"] != plain.get((r["prompt_id"], r["turn"]), r["token_ids"])
        )
    }

"""What a request of the harness says of an output: settings of sampling, its length, and the strings that end it.

An output ends where the harness's `hf` model ends it, which looks for each string in the text of the last tokens, two
more than the string itself takes, and never in the prompt. So the text before the first string is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specexp.errors import ConfigError, unknown

SAMPLING = ("temperature", "top_k", "top_p", "min_new_tokens", "seed")
TAKEN = ("until", "max_gen_toks", "do_sample", *SAMPLING)
# Settings of transformers' generate() at which they do nothing.
NEUTRAL: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}
MORE_TOKENS = 2


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """The settings of one output, by their names here; `until` holds what ends it, the EOS with it."""

    settings: Mapping[str, Any]
    until: tuple[str, ...]
    max_gen_toks: int


def output_settings(normal: Mapping[str, Any], until: Sequence[str]) -> OutputSettings:
    """Read the harness's normalized settings of an output. Raises ConfigError with every fault."""
    faults = []
    for key, value in normal.items():
        if key not in TAKEN and NEUTRAL.get(key, value) != value:
            faults.append(f"generation setting {key} is {value!r}; specexp decodes with {NEUTRAL[key]} only.")
        elif key not in TAKEN and key not in NEUTRAL:
            faults.append(unknown("generation setting", key, (*TAKEN, *NEUTRAL)))
    temperature = float(normal.get("temperature") or 0.0)
    if normal["do_sample"] and not temperature:
        faults.append("do_sample is true, but temperature is 0, at which nothing is drawn; set temperature.")
    if faults:
        raise ConfigError(faults)
    settings = {key: normal[key] for key in SAMPLING if key in normal}
    settings["temperature"] = temperature if normal["do_sample"] else 0.0
    return OutputSettings(settings, tuple(until), int(normal["max_gen_toks"]))


@dataclass(frozen=True, slots=True)
class HarnessStop:
    """A rule of ends by the harness's strings, as its `hf` model finds them."""

    strings: tuple[str, ...]
    tokenizer: Any

    def begin(self, prompt_ids: Sequence[int]) -> LookBack:
        windows: dict[int, list[str]] = {}
        for string in self.strings:
            size = len(self.tokenizer.encode(string, add_special_tokens=False)) + MORE_TOKENS
            windows.setdefault(size, []).append(string)
        return LookBack(windows, self.tokenizer)


@dataclass(slots=True)
class LookBack:
    """Looks for strings in the text of the last tokens of an output; `windows` has the strings by how many."""

    windows: Mapping[int, Sequence[str]]
    tokenizer: Any
    last: list[int] = field(default_factory=list)

    def add(self, token: int) -> bool:
        self.last = [*self.last, token][-max(self.windows, default=1) :]
        for size, strings in self.windows.items():
            text = self.tokenizer.decode(self.last[-size:])
            if any(string in text for string in strings):
                return True
        return False

"""What each task says of its prompts and its runs, where neither a settings file nor a flag does.

An experiment preset's own lengths are for its own task: under another task these take their place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """`completions`: prompts are texts to go on with, which no chat template is put around unless it is asked for."""

    limit: int
    max_new_tokens: int
    completions: bool = False


DEFAULTS = {
    "arith": TaskDefaults(20, 160, completions=True),
    "gsm8k": TaskDefaults(100, 512),
    "mtbench": TaskDefaults(80, 512),
    "prompts": TaskDefaults(100, 256),
    "spec_bench": TaskDefaults(104, 512),  # eight of each of its 13 categories
    "toy": TaskDefaults(20, 64, completions=True),
}

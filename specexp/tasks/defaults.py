"""Each task's defaults for its prompts and runs, used if neither a settings file nor a flag sets them.

The lengths in an experiment preset are for its own task: with another task, these replace them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """`completions` is True if prompts are texts to continue, to which no chat template is applied by default."""

    limit: int
    max_new_tokens: int
    completions: bool = False


DEFAULTS = {
    "arith": TaskDefaults(20, 160, completions=True),
    "gsm8k": TaskDefaults(100, 512),
    "long_prompts": TaskDefaults(20, 128),
    "math": TaskDefaults(100, 1024),
    "mmlu_pro": TaskDefaults(140, 1024),  # ten of each of its 14 categories
    "mtbench": TaskDefaults(80, 512),
    "prompts": TaskDefaults(100, 256),
    "spec_bench": TaskDefaults(104, 512),  # eight of each of its 13 categories
    "speed_bench": TaskDefaults(110, 512),  # ten of each of its 11 categories
    "toy": TaskDefaults(20, 64, completions=True),
}

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
    "mtbench": TaskDefaults(80, 512),
    "prompts": TaskDefaults(100, 256),
    "spec_bench": TaskDefaults(104, 512),  # eight of each of its 13 categories
    "toy": TaskDefaults(20, 64, completions=True),
}
# Tasks of lm-evaluation-harness are named `lm_eval:NAME`; 256 is how long it lets outputs be.
HARNESS = "lm_eval:"
OF_HARNESS = TaskDefaults(100, 256, completions=True)


def is_known(task: object) -> bool:
    """True if a task of this name exists, or may exist in the harness."""
    return isinstance(task, str) and (task in DEFAULTS or (task.startswith(HARNESS) and task != HARNESS))


def defaults_of(task: str) -> TaskDefaults:
    return OF_HARNESS if task.startswith(HARNESS) else DEFAULTS[task]

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


NO_EXECUTION, SANDBOX = "none", "sandbox"  # whether programs run
PROGRAMS = ("arith_code", "humaneval", "livecodebench", "mbpp")  # tasks whose answers are programs

DEFAULTS = {
    "arith": TaskDefaults(20, 160, completions=True),
    "arith_code": TaskDefaults(20, 96, completions=True),
    "gsm8k": TaskDefaults(100, 512),
    "long_prompts": TaskDefaults(20, 128),
    "math": TaskDefaults(100, 1024),
    "mmlu_pro": TaskDefaults(140, 1024),  # ten of each of its 14 categories
    "humaneval": TaskDefaults(164, 512),
    "livecodebench": TaskDefaults(100, 1024),
    "mbpp": TaskDefaults(100, 512),
    "mtbench": TaskDefaults(80, 512),
    "prompts": TaskDefaults(100, 256),
    "spec_bench": TaskDefaults(104, 512),  # eight of each of its 13 categories
    "speed_bench": TaskDefaults(110, 512),  # ten of each of its 11 categories
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


def execution_fault(task: str, execute: str, needed: bool) -> str | None:
    """Return what is wrong with a setting `execute`, or None: a model's programs run only by the user's word, and only
    where there are any. `needed` is True if answers are read, for which programs must run."""
    if execute == SANDBOX and task not in PROGRAMS:
        return f"execute is {SANDBOX}, but task '{task}' runs no programs; leave it out."
    if needed and task in PROGRAMS and execute != SANDBOX:
        return (
            f"task '{task}' runs programs that a model wrote; set execute to {SANDBOX} to allow it, or choose another"
            " task."
        )
    return None

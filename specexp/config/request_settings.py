"""Settings of what precedes a prompt, and of where its output ends before its limit; and what is wrong with them.

Those of ends are for outputs that are shown or recorded: commands that time, examine or mine outputs refuse them.
`specexp.engine.ending` applies them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from specexp.config.experiment import LATER_OF_EXPERIMENT, Experiment
from specexp.config.parsers import data_settings, flag, text, whole
from specexp.config.setting import Setting
from specexp.errors import ConfigError
from specexp.lm.runtime import ModelConfig
from specexp.reading import check_text
from specexp.tasks.defaults import HARNESS
from specexp.tasks.gsm8k import SHOTS
from specexp.tasks.source import DataConfig

OUTPUTS = ("evaluate", "generate")  # commands whose outputs are shown or recorded
PROMPTED = ("evaluate", "certify", "collect_labels", "train_drafter")  # commands that may say what precedes a prompt
MOST_STOPS, LONGEST_STOP = 64, 1000  # characters
LONGEST_SYSTEM = 100_000  # characters
MOST_SHOTS = 1000
SPLIT = "split="  # another split of the task's own rows
NO_ROWS = "none"
GENERATED = "arith"  # makes solved examples itself
_STOPS = (
    f'it must be a text that is not empty, or a list of at most {MOST_STOPS} such as ["one", "two"], each of at most'
    f" {LONGEST_STOP} characters, and given once."
)


def stops(value: Any) -> tuple[str, ...]:
    """Stop strings: one, a list, or a list as JSON, since flags are text."""
    if isinstance(value, str) and value.startswith('["'):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(_STOPS) from None
    result = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not result or len(result) > MOST_STOPS or len(set(map(str, result))) < len(result):
        raise ValueError(_STOPS)
    for each in result:
        if not isinstance(each, str) or not 0 < len(each) <= LONGEST_STOP:
            raise ValueError(_STOPS)
        check_text(each, "it", ConfigError)
    return result


def system_prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_SYSTEM:
        raise ValueError(f"it must be a text that is not empty, of at most {LONGEST_SYSTEM:,} characters.")
    check_text(value, "it", ConfigError)
    return value


def rows_of_shots(value: Any) -> DataConfig | None:
    """As `data`, or a split of the task's own rows, whose source is then empty; None for `none`."""
    if value == NO_ROWS:
        return None
    if isinstance(value, str) and value.startswith(SPLIT):
        return DataConfig("", split=text(value.removeprefix(SPLIT)))
    return data_settings(value)


PRECEDING: dict[str, Setting] = {
    "system": Setting(
        system_prompt, "Set the system prompt, which comes first in every conversation.",
        otherwise="the chat template's own, if it has one", commands=(*PROMPTED, "generate"),
        more="[System prompts](#system-prompts-and-conversations) has the details.",
    ),
    "shots": Setting(
        whole(0, f">= 0 and at most {MOST_SHOTS}", MOST_SHOTS), "Set how many solved examples precede a problem.", "0",
        more=f"`gsm8k` has {SHOTS[-1]} of its own, and `{GENERATED}` makes them; other tasks take `shots_data`.",
        commands=PROMPTED,
    ),
    "shots_data": Setting(
        rows_of_shots, f"Give the rows of solved examples: a file, a folder, an address, a hub id, or {SPLIT}NAME.",
        otherwise="the task's own examples", commands=PROMPTED,
        more=f"The first `shots` rows are shown, and are not asked. `{SPLIT}train` is another split of the task's rows."
        " [Solved examples](#solved-examples) says what rows hold.",
    ),
}  # fmt: skip
ENDINGS: dict[str, Setting] = {
    "min_new_tokens": Setting(
        whole(0, ">= 0 (0 = off)"), "Emit no EOS before this many tokens; 0 is off.", "0",
        more="[Ends](methods.md#where-an-output-ends) has the details.", commands=OUTPUTS,
    ),
    "ignore_eos": Setting(
        flag, "Continue after an EOS, up to the limit: true or false.", "false", commands=OUTPUTS,
    ),
    "stop": Setting(
        stops, "End outputs with the token that completes this text; the text shown ends before it.",
        otherwise="none", more='Several are a list, on the command line as JSON: `["\\n\\n", "Q:"]`.', commands=OUTPUTS,
    ),
}  # fmt: skip


THINKING: dict[str, Setting] = {
    "thinking_budget": Setting(
        whole(0, ">= 0 (0 = off)"),
        "End a thought after this many tokens, and answer then; 0 is off.",
        "0",
        more="`max_new_tokens` are then those of the answer alone. [Thinking](methods.md#a-budget-for-thinking) has the"
        " details.",
        commands=("evaluate", "generate", "collect_labels"),
    ),
}


def faults(values: Mapping[str, Any]) -> list[str]:
    """What does not go together in settings of ends, a line for each."""
    result = []
    least, most = values.get("min_new_tokens", 0), values.get("max_new_tokens")
    if most is not None and least > most:
        result.append(f"min_new_tokens is {least}, but max_new_tokens is {most}; lower the first or raise the second.")
    draft, budget = values.get("draft"), values.get("thinking_budget", 0)
    if budget and isinstance(draft, ModelConfig) and draft.head:
        result.append(
            f"thinking_budget is {budget}, but {draft.shown} is a head, which reads the target's hidden states, and"
            " tokens that end a thought have none; leave it out, or name another draft."
        )
    if least and values.get("ignore_eos"):
        result.append(f"min_new_tokens is {least}, but with ignore_eos no EOS ends an output; leave one of them out.")
    return result


def take_shots(task: str, values: dict[str, Any]) -> list[str]:
    """Complete the settings of solved examples by the task's rows; returns what is wrong with them."""
    shots, rows, data = values.get("shots", 0), values.get("shots_data"), values.get("data")
    if task.startswith(HARNESS):  # has solved examples of its own, and a number of them
        return [] if rows is None else [f"shots_data is given, but task '{task}' has its own; leave it out."]
    if rows is None:
        if task == "gsm8k" and shots not in SHOTS:
            return [
                f"shots is {shots}, but gsm8k has {SHOTS[-1]} solved examples of its own; set it to {SHOTS[-1]}, or set"
                f" shots_data, as to {SPLIT}train."
            ]
        if shots and task not in ("gsm8k", GENERATED):
            return [
                f"shots is {shots}, but task '{task}' has no solved examples of its own; leave it out, or set"
                " shots_data to rows that are solved."
            ]
        return []
    if not shots:
        return ["shots_data is given, but shots is 0; set shots to how many of its rows are shown, or leave it out."]
    if not rows.source and task != GENERATED:
        if data is None:
            return [f"shots_data is {SPLIT}{rows.split}, but task '{task}' has no rows of its own; name a file."]
        values["shots_data"] = replace(data, split=rows.split)
    return []


def refused(experiment: Experiment, why: str, names: Iterable[str] = (*ENDINGS, *THINKING)) -> list[str]:
    """A line for each setting of ends that is given to a command that takes none; `why` completes the sentence."""
    task = experiment.task
    ended = [f"task is {task}, whose outputs end at strings of its own, but {why}; choose another task."]
    return [
        *(ended if task.startswith(HARNESS) else []),
        *(
            f"{name} is {getattr(experiment, name)!r:.60}, but {why}; leave it out."
            for name in names
            if getattr(experiment, name) != LATER_OF_EXPERIMENT[name]
        ),
    ]

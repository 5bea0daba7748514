"""Settings of where an output ends before its limit, and what is wrong with them. `specexp.engine.ending` applies them.

They are for outputs that are shown or recorded: commands that time, examine or mine outputs refuse them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from specexp.config.experiment import LATER_OF_EXPERIMENT, Experiment
from specexp.config.parsers import flag, whole
from specexp.config.setting import Setting
from specexp.errors import ConfigError
from specexp.reading import check_text

OUTPUTS = ("evaluate", "generate")  # commands whose outputs are shown or recorded
MOST_STOPS, LONGEST_STOP = 64, 1000  # characters
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


def faults(values: Mapping[str, Any]) -> list[str]:
    """What does not go together in settings, a line for each."""
    result = []
    least, most = values.get("min_new_tokens", 0), values.get("max_new_tokens")
    if most is not None and least > most:
        result.append(f"min_new_tokens is {least}, but max_new_tokens is {most}; lower the first or raise the second.")
    if least and values.get("ignore_eos"):
        result.append(f"min_new_tokens is {least}, but with ignore_eos no EOS ends an output; leave one of them out.")
    return result


def refused(experiment: Experiment, why: str) -> list[str]:
    """A line for each of these settings that is given to a command that takes none; `why` completes the sentence."""
    return [
        f"{name} is {getattr(experiment, name)!r:.60}, but {why}; leave it out."
        for name in ENDINGS
        if getattr(experiment, name) != LATER_OF_EXPERIMENT[name]
    ]

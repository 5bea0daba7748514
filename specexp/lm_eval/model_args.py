"""The harness's `--model_args` as an experiment of one method: any setting by name, and what the harness sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp.config import Experiment, single
from specexp.config.experiment import ROLES
from specexp.config.models import MODEL_SETTINGS, ON_TARGET, model_settings
from specexp.config.schema import SETTINGS
from specexp.errors import ConfigError, shown, unknown

EXPERIMENT, METHOD = "arith_quick", "speculative"  # by default; the first one's pair is the embedded one
MAX_GEN_TOKS = 256  # the harness's own default, where neither a task nor the user says how long outputs may be
AUTO_BATCH = 8
# Settings of either model that may be given once for both.
OF_BOTH = ("device", "dtype", "trust_remote_code")
# Settings that the harness has in another place, and where.
ELSEWHERE = {
    "methods": "method",
    "batch": "--batch_size",
    **dict.fromkeys(("temperature", "top_k", "top_p", "stop", "ignore_eos", "min_new_tokens"), "--gen_kwargs"),
    **dict.fromkeys(("task", "data"), "--tasks"),
    "chat_template": "--apply_chat_template",
    "system": "--system_instruction",
    **dict.fromkeys(("shots", "shots_data"), "--num_fewshot"),
    "limit": "--limit",
}
UNUSED = ("history", "answer_rule", "answer_pattern", "repeats")


@dataclass(frozen=True, slots=True)
class HarnessArgs:
    """What `--model_args` said. `settings` are those of the experiment as they were given."""

    experiment: Experiment
    settings: Mapping[str, Any]
    batch_size: int  # prompts decoded together
    max_gen_toks: int  # of tasks that name no length


def model_args(given: Mapping[str, Any]) -> HarnessArgs:
    """Resolve the arguments of the model. Raises ConfigError with every fault."""
    left = {key: value for key, value in given.items() if value not in (None, "")}
    batch_size, most = left.pop("batch_size", 1), left.pop("max_batch_size", None)
    experiment, method = str(left.pop("experiment", EXPERIMENT)), str(left.pop("method", METHOD))
    faults = []
    both = {key: left.pop(key) for key in OF_BOTH if key in left}
    models: dict[str, dict[str, Any]] = {role: dict(both) for role in ROLES}
    for key in list(left):
        role, _, part = key.partition(".")
        if role in ROLES and part:
            value = left.pop(key)
            if part not in MODEL_SETTINGS:
                faults.append(f"{key}: {unknown('setting', part, MODEL_SETTINGS)}")
            else:
                models[role][part] = value
        elif key in ELSEWHERE:
            faults.append(f"{key} is given in model_args, but the harness sets it; use {ELSEWHERE[key]}.")
        elif key in UNUSED:
            faults.append(f"{key} is given, but nothing uses it here; leave it out.")
        elif key not in (*SETTINGS, "config"):
            faults.append(unknown("setting", key, (*SETTINGS, *OF_BOTH, "config", "experiment", "method")))
    for role in ROLES:
        if role in left:
            try:
                own = model_settings(left[role])
            except (ValueError, ConfigError) as error:
                faults.append(f"{role} is {shown(left[role])}; {error}")
                continue
            on_target = bool(own.keys() & set(ON_TARGET))  # such a draft has the target's device and dtype
            models[role] = own if on_target else {**models[role], **own}
        if models[role]:
            left[role] = models[role]
    size = _batch_size(batch_size, most, faults)
    if faults:
        raise ConfigError(faults)
    resolved = single.resolve(experiment, method, left)
    length = resolved.max_new_tokens if "max_new_tokens" in left else MAX_GEN_TOKS
    return HarnessArgs(resolved, left, size, length)


def _batch_size(given: object, most: object, faults: list[str]) -> int:
    """How many prompts are decoded together; with `auto`, the harness's maximum, or a few."""
    if isinstance(given, str) and given.split(":")[0] == "auto":
        given = AUTO_BATCH if most is None else most
    try:
        return int(SETTINGS["batch"].parse(given))
    except (ValueError, ConfigError) as error:
        faults.append(f"batch_size is {shown(given)}; {error}")
        return 1

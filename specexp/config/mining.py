"""An experiment as a source of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specexp.config import request_settings
from specexp.config.experiment import (
    LATER_OF_EXPERIMENT,
    Experiment,
    settings_hash,
)
from specexp.config.parsers import (
    TASK_SOURCES,
    WITH_TRAINING_ROWS,
    whole,
)
from specexp.config.resolver import resolve
from specexp.errors import ConfigError, shown, unknown
from specexp.tasks.defaults import PROGRAMS

# Tasks whose answers a judge can be mined on.
CHECKABLE = ("arith", "gsm8k", "long_prompts", "math", "mmlu_pro", "prompts", *PROGRAMS)
ONE_SPLIT = ("humaneval", "livecodebench", "math", "mmlu_pro")  # of these, whose own rows are all for evaluations
MINED_PROMPTS = 600  # unless a file or a flag sets it
MINED_TOGETHER = 16  # likewise
FEATURE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class MiningConfig:
    """The settings of mining: an experiment's pair and task, without its first `skip` prompts.

    `dtype` is the storage dtype of features. `batch`, the number of prompts mined together, does not change the labels
    and is not part of the hash.
    """

    experiment: Experiment
    dtype: str = "float32"
    skip: int = 0
    batch: int = 1

    def as_dict(self) -> dict[str, Any]:
        experiment = self.experiment
        kept = (
            "name", "task", "pair", "target", "draft", "toy", "data", "shots", "answer_rule", "answer_pattern", "limit",
            "max_new_tokens", "comparator", "min_similarity", "prompt_tokens", "execute",
        )  # fmt: skip
        later = ("system", "shots_data", "thinking_budget", "numerics")  # where they are given
        given = {k: v for k, v in experiment.as_dict().items() if v and v != LATER_OF_EXPERIMENT.get(k)}
        result = {k: v for k, v in experiment.as_dict().items() if k in kept or (k in given and k in later)}
        return {**result, "dtype": self.dtype, "skip": self.skip}

    @property
    def hash(self) -> str:
        return settings_hash(self.as_dict())


def resolve_mining(name: str, flags: Mapping[str, Any]) -> MiningConfig:
    """An experiment as a source of labels: prompts that no evaluation uses, and answers that can be read.

    Raises ConfigError with every fault.
    """
    given = {key: value for key, value in flags.items() if value not in (None, "")}
    dtype = given.pop("dtype", FEATURE_DTYPES[0])
    faults = [] if dtype in FEATURE_DTYPES else [unknown("dtype", dtype, FEATURE_DTYPES)]
    skip = given.pop("skip", "0")
    try:
        skip = whole(0, ">= 0")(skip)
    except ValueError as error:
        faults.append(f"skip is {shown(skip)}; {error}")
    try:
        experiment = resolve(name, given, {"limit": MINED_PROMPTS, "batch": MINED_TOGETHER}, executes=True)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if experiment.task not in CHECKABLE:
        faults.append(f"task '{experiment.task}' has no answers to check; mine one of {', '.join(CHECKABLE)}.")
    if experiment.draft.head:
        faults.append(
            f"labels are mined with a draft that is a model by itself, but {experiment.draft.shown} is a head, which"
            " reads the target's hidden states; name another draft."
        )
    faults += request_settings.refused(
        experiment, "labels are mined on outputs that end by themselves", request_settings.ENDINGS
    )
    source, data = TASK_SOURCES.get(experiment.task), experiment.data
    is_own = source is not None and data is not None and data.source == source.source and data.split in ("", "test")
    if is_own and experiment.task in ONE_SPLIT and not skip:
        faults.append(
            f"the rows of task '{experiment.task}' are those of evaluations; set skip to as many as they use, or give"
            " other rows as data."
        )
    if faults:
        raise ConfigError(faults)
    if is_own and source and data and experiment.task in WITH_TRAINING_ROWS:
        experiment = replace(experiment, data=replace(data, subset=source.subset, split="train"))
    kept = replace(experiment, methods=(), seed=0, temperature=0.0, top_k=0, top_p=1.0, batch=1)
    return MiningConfig(kept, dtype, skip, experiment.batch)

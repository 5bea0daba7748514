"""An experiment as a source of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specexp.config.experiment import (
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

CHECKABLE = ("arith", "gsm8k", "prompts", *PROGRAMS)  # tasks whose answers a judge can be mined on
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
            "name", "task", "pair", "target", "draft", "toy", "data", "shots", "answer_rule", "answer_pattern",
            "execute", "limit", "max_new_tokens",
        )  # fmt: skip
        result = {key: value for key, value in experiment.as_dict().items() if key in kept}
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
    if faults:
        raise ConfigError(faults)
    source = TASK_SOURCES[experiment.task]
    data = experiment.data
    own = source is not None and data is not None and data.source == source.source and data.split in ("", "test")
    if own and source and data and experiment.task in WITH_TRAINING_ROWS:
        experiment = replace(experiment, data=replace(data, subset=source.subset, split="train"))
    kept = replace(experiment, methods=(), seed=0, temperature=0.0, top_k=0, top_p=1.0, batch=1)
    return MiningConfig(kept, dtype, skip, experiment.batch)

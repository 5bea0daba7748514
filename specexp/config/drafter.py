"""The settings of training a drafter: an experiment's target and task, and the head's sizes and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from specexp.config import request_settings
from specexp.config.experiment import LATER_OF_EXPERIMENT, Experiment, settings_hash
from specexp.config.parsers import MOST_TOGETHER, TASK_SOURCES, whole
from specexp.config.resolver import resolve
from specexp.errors import ConfigError, shown

TRAINABLE = ("arith", "gsm8k", "prompts")  # tasks that have prompts apart from those of an evaluation
DRAFTER_PROMPTS = 4000  # unless a file or a flag sets it
OUTPUTS_TOGETHER = 64  # likewise
LONGEST_CHAIN = 16  # of the training-time test
NUM_LAYERS_READ = 3
FEWEST_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """The settings of a drafter's training. `batch`, the number of prompts decoded together, is not hashed.

    `layers` () and the sizes 0 are what `specexp.drafter` chooses for the target.
    """

    experiment: Experiment
    layers: tuple[int, ...] = ()
    hidden_size: int = 0
    intermediate_size: int = 0
    most_ids: int = 32_000
    depth: int = 7
    passes: int = 3
    train_batch: int = 16
    skip: int = 0
    batch: int = 1

    def as_dict(self) -> dict[str, Any]:
        kept = (
            "name", "task", "pair", "target", "draft", "toy", "data", "shots", "limit", "max_new_tokens", "seed",
        )  # fmt: skip
        later = ("system", "shots_data", "numerics")  # where they are given
        given = {k: v for k, v in self.experiment.as_dict().items() if v and v != LATER_OF_EXPERIMENT.get(k)}
        result = {k: v for k, v in self.experiment.as_dict().items() if k in kept or (k in given and k in later)}
        own = {name: getattr(self, name) for name in OWN}
        return {**result, **own, "layers": list(self.layers)}

    @property
    def hash(self) -> str:
        return settings_hash(self.as_dict())


OWN: dict[str, Callable[[Any], int]] = {
    "hidden_size": whole(0, ">= 0 (0 = the target's)"),
    "intermediate_size": whole(0, ">= 0 (0 = chosen by hidden_size)"),
    "most_ids": whole(1, ">= 1"),
    "depth": whole(1, f">= 1 and at most {LONGEST_CHAIN}", LONGEST_CHAIN),
    "passes": whole(1, ">= 1"),
    "train_batch": whole(1, ">= 1", MOST_TOGETHER),
    "skip": whole(0, ">= 0"),
}


def resolve_drafter(name: str, flags: Mapping[str, Any]) -> DrafterConfig:
    """An experiment's target and task, with training prompts that its evaluation does not use.

    Raises ConfigError with every fault.
    """
    given = {key: value for key, value in flags.items() if value not in (None, "")}
    faults: list[str] = []
    own: dict[str, Any] = {}
    for key, parse in OWN.items():
        if key in given:
            try:
                own[key] = parse(given.pop(key))
            except ValueError as error:
                faults.append(f"{key} is {shown(flags[key])}; {error}")
    if "layers" in given:
        try:
            own["layers"] = _layers(given.pop("layers"))
        except ValueError as error:
            faults.append(f"layers is {shown(flags['layers'])}; {error}")
    try:
        experiment = resolve(name, given, {"limit": DRAFTER_PROMPTS, "batch": OUTPUTS_TOGETHER})
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if experiment.toy is not None:
        faults.append("pair 'toy' has no hidden states; a drafter needs a target with weights, such as pair arith's.")
    elif experiment.target.tensor_parallel > 1:
        faults.append(
            f"tensor_parallel is {experiment.target.tensor_parallel}, but a drafter is trained on layers of one"
            " process; leave tensor_parallel out."
        )
    elif experiment.task not in TRAINABLE:
        faults.append(
            f"task '{experiment.task}' has no training prompts; train on one of {', '.join(TRAINABLE)}, where prompts"
            " takes a file of yours (data=...)."
        )
    if experiment.limit < FEWEST_PROMPTS:
        faults.append(f"limit is {experiment.limit}; a drafter needs at least {FEWEST_PROMPTS} prompts: raise it.")
    faults += request_settings.refused(experiment, "a drafter learns from outputs that end by themselves")
    if faults:
        raise ConfigError(faults)
    source, data = TASK_SOURCES[experiment.task], experiment.data
    if source and data and data.source == source.source and data.split in ("", "test") and source.split == "test":
        experiment = replace(experiment, data=replace(data, subset=source.subset, split="train"))
    kept = replace(experiment, methods=(), temperature=0.0, top_k=0, top_p=1.0, batch=1)
    return DrafterConfig(kept, **own, batch=experiment.batch)


def _layers(value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in str(value).split(",")]
    if len(parts) != NUM_LAYERS_READ or not all(part.isdigit() for part in parts):
        raise ValueError(f"it must be {NUM_LAYERS_READ} layers of the target, counted from 0, such as 1,4,7.")
    return tuple(int(part) for part in parts)

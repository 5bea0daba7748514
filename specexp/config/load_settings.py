"""Settings of a benchmark of served engines under load, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specexp.config.experiment import LATER_OF_EXPERIMENT, Experiment
from specexp.config.parsers import real, reals, several, whole
from specexp.config.setting import Setting
from specexp.engines.served_methods import SERVED

COMMAND = ("benchmark",)
MOST_CLIENTS = 1024
MOST_RATE = 10_000.0  # requests per second
MOST_REQUESTS = 100_000
MOST_SECONDS = 86_400.0
# Defaults of `benchmark` with engines, where the experiment's settings differ.
DEFAULTS_OF_EXPERIMENT: Mapping[str, Any] = {"repeats": 3, "limit": 64}
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
_BOUND = f"> 0 and at most {MOST_SECONDS:g}"

LOAD: dict[str, Setting] = {
    "concurrency": Setting(
        several("concurrency", MOST_CLIENTS), "Set how many clients ask an engine at once, several by commas.",
        otherwise="1,2,4,8,16,32,64, unless `request_rate` is given", commands=COMMAND,
        more="Each sends its next request when its answer has ended. [Load](served_engines.md#load) has the details.",
    ),
    "request_rate": Setting(
        reals(lambda x: 0 < x <= MOST_RATE, f"> 0 and at most {MOST_RATE:g}"),
        "Set how many requests a second arrive at an engine, as a Poisson process, several by commas.",
        otherwise="none", commands=COMMAND,
    ),
    "num_requests": Setting(
        whole(1, f">= 1 and at most {MOST_REQUESTS}", MOST_REQUESTS),
        "Set how many requests are counted for each engine, level of load and repeat.", "32", commands=COMMAND,
        more="Of `concurrency` it is at least two for each client, and a multiple of the clients.",
    ),
    "warmup_requests": Setting(
        whole(0, f">= 0 and at most {MOST_REQUESTS}", MOST_REQUESTS),
        "Set how many requests precede those that are counted.", "1", commands=COMMAND,
        more="Of `concurrency` it is at least one for each client.",
    ),
    "level_seconds": Setting(
        real(lambda x: 0 < x <= MOST_SECONDS, _BOUND),
        "Set how many seconds each of these measurements takes at most, and its warm-up as many.", "60",
        commands=COMMAND,
    ),
    "ttft_bound": Setting(
        real(lambda x: 0 < x < math.inf, "> 0"),
        "Set the time to first token, in ms, above which a request is not part of the goodput.", otherwise="none",
        commands=COMMAND,
    ),
    "tpot_bound": Setting(
        real(lambda x: 0 < x < math.inf, "> 0"),
        "Set the time per token after the first, in ms, above which a request is not part of the goodput.",
        otherwise="none", commands=COMMAND,
    ),
}  # fmt: skip


def given(values: Mapping[str, Any]) -> list[str]:
    """Return the settings of load that have another value than their default."""
    return [name for name in LOAD if values.get(name, LATER_OF_EXPERIMENT[name]) != LATER_OF_EXPERIMENT[name]]


def load_faults(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting of load that is given without an engine."""
    if values.get("engine"):
        return []
    return [f"{name} is given, but it is for served engines; leave it out, or set engine." for name in given(values)]


def refused(experiment: Experiment) -> list[str]:
    """Return a line for each setting of load that is given to a command that puts no load on engines."""
    values = {name: getattr(experiment, name) for name in LOAD}
    return [f"{name} is given, but only benchmark puts engines under load; leave it out." for name in given(values)]


def completed(experiment: Experiment) -> Experiment:
    """Return the experiment with the default levels if it has none."""
    if experiment.concurrency or experiment.request_rate:
        return experiment
    return replace(experiment, concurrency=CLIENTS)


def faults_of(experiment: Experiment) -> list[str]:
    """Return what a benchmark of engines cannot do."""
    ours = [method.label for method in experiment.methods if not method.method.startswith(SERVED)]
    return [
        f"methods have {label}, but a benchmark with engine puts load on engines alone; leave it out." for label in ours
    ]

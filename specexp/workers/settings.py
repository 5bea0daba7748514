"""How many workers a command uses, and where: the options `workers`, `ray`, `gpus_per_worker`, `cpus_per_worker`.

They change no output and no label, so they are not part of any configuration: a folder may be resumed with others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specexp.config import Experiment
from specexp.config.command_options import WORKERS
from specexp.config.parsers import real, whole
from specexp.engines.served_methods import SERVED
from specexp.errors import ConfigError, shown
from specexp.installed import is_installed

AUTO, LOCAL = "auto", "local"
MOST_WORKERS = 10_000
_ADDRESS = re.compile(r"(ray://)?[^\s/@:]+:\d{1,5}")
_WHERE = "it must be auto, local, ray://HOST:PORT (10001 is Ray's own) or HOST:PORT, of a cluster from inside it."


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """So many processes, each with so many GPUs and CPUs, on this cluster."""

    number: int
    ray: str = AUTO
    gpus: float = 0.0
    cpus: float = 1.0

    @property
    def threads(self) -> int:
        """Threads of each worker's computations."""
        return max(1, int(self.cpus))


def where(value: str) -> str:
    if value not in (AUTO, LOCAL) and not _ADDRESS.fullmatch(value):
        raise ValueError(_WHERE)
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "workers": whole(0, f">= 0 and at most {MOST_WORKERS} (0 = this process)", MOST_WORKERS),
    "ray": where,
    "gpus_per_worker": real(lambda x: 0 <= x <= 64 and (x < 1 or x == int(x)), ">= 0, whole if it is more than 1"),
    "cpus_per_worker": real(lambda x: 0 < x <= 1024 and (x < 1 or x == int(x)), "> 0, whole if it is more than 1"),
}
assert _PARSERS.keys() == WORKERS.keys()


def taken_from(flags: dict[str, str]) -> dict[str, str]:
    """Take the options of workers out of a command's flags."""
    return {name: flags.pop(name) for name in WORKERS if name in flags}


def parse(options: Mapping[str, str]) -> WorkerSettings | None:
    """Return the settings that these options give, "" being unset; None without workers. Raises ConfigError."""
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name, parser in _PARSERS.items():
        given = options.get(name) or ""
        if given:
            try:
                values[name] = parser(given)
            except ValueError as error:
                faults.append(f"{name} is {shown(given)}; {error}")
    others = [name for name in values if name != "workers"]
    if not faults and others and not values.get("workers"):
        faults = [f"{name} is {values[name]}, but workers is not; leave it out, or set workers." for name in others]
    if faults:
        raise ConfigError(faults)
    if not values.get("workers"):
        return None
    if not is_installed("ray"):
        raise ConfigError("workers are processes of Ray, which is not installed; pip install 'specexp[ray]'.")
    fields = {"workers": "number", "ray": "ray", "gpus_per_worker": "gpus", "cpus_per_worker": "cpus"}
    return WorkerSettings(**{fields[name]: value for name, value in values.items()})


def refuse_engines(options: Mapping[str, str]) -> None:
    """Raise ConfigError if any of these options is given: what a command does with served engines has no workers."""
    faults = [
        f"{name} is {options[name]}, but a served engine has workers of its own; leave it out."
        for name in WORKERS
        if options.get(name)
    ]
    if faults:
        raise ConfigError(faults)


def check_experiment(experiment: Experiment) -> None:
    """Raise ConfigError for methods whose outputs several workers cannot make."""
    faults = [
        f"method '{method.method}' is a served engine, which has workers of its own; leave it or workers out."
        for method in experiment.methods
        if method.method.startswith(SERVED)
    ]
    faults += [
        f"suffix_memory of {method.label} is run: its outputs follow those of all earlier prompts, which workers do not"
        " wait for; set it to prompt, or leave workers out."
        for method in experiment.methods
        if method.suffix_memory == "run" and method.suffix_factor
    ]
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))

"""What a certificate examines: one method of an experiment, and how many samples. Imports no model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specexp import config
from specexp.config import Experiment, MethodConfig, request_settings
from specexp.errors import ConfigError

SAMPLES = 1000  # at each place, unless given
FEWEST_SAMPLES = 100
PLAIN = "baseline"


@dataclass(frozen=True, slots=True)
class CertificateConfig:
    """An experiment with plain decoding and the method that is examined; the two may be the same."""

    experiment: Experiment
    samples: int

    @property
    def method(self) -> MethodConfig:
        return self.experiment.methods[-1]

    def as_dict(self) -> dict[str, Any]:
        return {**self.experiment.as_dict(), "samples": self.samples}

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this configuration."""
        return config.settings_hash(self.as_dict())


def resolve(experiment: str, method: str, samples: str, flags: Mapping[str, Any]) -> CertificateConfig:
    """One method of an experiment, together with plain decoding. Raises ConfigError that lists every fault."""
    wrong = _faults(method)
    faults = [*wrong]
    number = SAMPLES
    if samples:
        number = int(samples) if samples.isdigit() else 0
        if number < FEWEST_SAMPLES:
            faults.append(f"samples is {samples!r}; it must be a whole number >= {FEWEST_SAMPLES}.")
    # Plain decoding is always included: it is the reference, and tasks of several turns need it.
    names = method if method == PLAIN or faults else f"{PLAIN},{method}"
    try:
        resolved = config.resolve(experiment, {**flags, "methods": names})
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    labels = [result.label for result in resolved.methods if result.method != PLAIN or method == PLAIN]
    if len(labels) > 1 and not wrong:
        faults.append(
            f"method '{method}' makes {len(labels)} settings here ({', '.join(labels)}); a certificate covers one: give"
            " one value of gamma, tree_budget, threshold, accept_k, rule and the like."
        )
    if any(result.suffix_memory == "run" for result in resolved.methods):
        faults.append("suffix_memory is run, but a certificate decodes each prompt by itself; leave it out.")
    faults += request_settings.refused(resolved, "a certificate is for the target's own distribution")
    if samples and resolved.temperature == 0:
        faults.append(f"samples is {samples}, but temperature is 0: nothing is sampled; leave it out.")
    if faults:
        raise ConfigError(faults)
    return CertificateConfig(replace(resolved, repeats=1), number)


def _faults(method: str) -> list[str]:
    if not method:
        return ["method is not given; name the preset to examine, such as speculative."]
    if "," in method:
        return [f"method is {method!r}; a certificate covers one method: name one preset."]
    several = config.group_of(method)
    return (
        [f"method '{method}' stands for {len(several)} methods; name one of {', '.join(several)}."] if several else []
    )

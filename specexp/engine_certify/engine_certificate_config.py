"""What the certificate of a served engine examines: the engine, what it is compared with, and which bias it must find.

    certify --engine URL --engine-model NAME [--against URL]      two addresses
    certify --config mine.yaml --engine spec [--against plain]    two methods of the file's setting `engine`

Imports no model library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specexp import config, reading
from specexp.certify.certificate_config import FEWEST_SAMPLES
from specexp.config import Experiment, load_settings, request_settings
from specexp.config.presets import load_yaml
from specexp.engines.served_methods import SERVED, ServedMethod, parse_served
from specexp.errors import ConfigError, shown, unknown
from specexp.evaluation.equality import EPS

BIAS = 0.15  # total variation that must be found, unless given
LEAST_BIAS = 0.01
DTYPE = "bfloat16"  # what engines compute in, unless given
DTYPES = tuple(name for name in EPS if name != "float8_e5m2")
EXAMINED, AGAINST = "served", "against"  # names of engines that are given by their addresses
TEMPERATURE = 1.0  # of samples, unless given
_WEIGHTS = ("pair", "target", "toy")  # settings that say which weights are at hand


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of `certify` for an engine, as text; "" is unset."""

    engine: str
    engine_model: str = ""
    against: str = ""
    weights: str = ""
    samples: str = ""
    bias: str = ""
    engine_dtype: str = ""

    @property
    def by_address(self) -> bool:
        return "://" in self.engine

    def given_without_engine(self) -> list[str]:
        """Faults of options that are for an engine, where none is named."""
        names = ("engine_model", "against", "weights", "bias", "engine_dtype")
        return [
            f"{name} is given, but engine is not; name the engine to examine, or leave it out."
            for name in names
            if getattr(self, name)
        ]


@dataclass(frozen=True, slots=True)
class EngineCertificateConfig:
    """An experiment whose methods are the engine, the one it is compared with, and plain decoding of the weights.

    `samples` is 0 for as many as the bias needs.
    """

    experiment: Experiment
    engine: ServedMethod
    against: ServedMethod | None
    weights: bool
    samples: int
    bias: float
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.experiment.as_dict(), "examined": self.engine.name,
            "against": "" if self.against is None else self.against.name, "weights": self.weights,
            "samples": self.samples, "bias": self.bias, "engine_dtype": self.dtype,
        }  # fmt: skip

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this configuration."""
        return config.settings_hash(self.as_dict())


def resolve(experiment: str, options: EngineOptions, flags: Mapping[str, Any]) -> EngineCertificateConfig:
    """Read everything that the settings tell. Raises ConfigError that lists every fault."""
    faults: list[str] = []
    given = {name: value for name, value in flags.items() if value not in (None, "")}
    file = _file(given, faults)
    engine = _by_address(options, file, faults) if options.by_address else _by_name(options, file, faults)
    weights = _switch(options.weights, any(name in given or name in file for name in _WEIGHTS), faults)
    samples = _whole(options.samples, faults)
    bias, dtype = _bias(options.bias, faults), options.engine_dtype or DTYPE
    if dtype not in DTYPES:
        faults.append(unknown("engine_dtype", dtype, DTYPES))
    if not options.against and not weights and not faults:
        faults.append(
            "against is not given, and no weights are named: there is nothing to compare the engine with; give the"
            " plain endpoint as against, or name its weights by pair or target."
        )
    if "methods" in file:
        faults.append("methods is given, but a certificate examines the engine that engine names; leave it out.")
    if faults:
        raise ConfigError(faults)
    names = [each.method for each in parse_served(engine)]
    methods = ",".join([*(["baseline"] if weights else []), *names])
    layers = {**given, "methods": methods, **({"engine": engine} if options.by_address else {})}
    resolved = config.resolve(experiment, layers, {"temperature": TEMPERATURE})
    faults += request_settings.refused(resolved, "a certificate is for the target's own distribution")
    faults += load_settings.refused(resolved)
    if samples and resolved.temperature == 0:
        faults.append(f"samples is {samples}, but temperature is 0: nothing is sampled; leave it out.")
    if options.bias and resolved.temperature == 0:
        faults.append(f"bias is {bias:g}, but temperature is 0: nothing is sampled; leave it out.")
    if faults:
        raise ConfigError(faults)
    engines = {each.name: each for each in resolved.engine}
    examined, against = options.engine.removeprefix(SERVED), options.against.removeprefix(SERVED)
    if options.by_address:
        examined, against = EXAMINED, AGAINST
    return EngineCertificateConfig(
        replace(resolved, repeats=1), engines[examined], engines.get(against) if options.against else None, weights,
        samples, bias, dtype,
    )  # fmt: skip


def _file(given: Mapping[str, Any], faults: list[str]) -> Mapping[str, Any]:
    """The user's settings file; empty if there is none, or none that can be read, which `config.resolve` says."""
    if "config" not in given:
        return {}
    try:
        return load_yaml(reading.path_of(str(given["config"]), "config file", ConfigError))
    except ConfigError as error:
        faults += error.faults
        return {}


def _by_address(options: EngineOptions, file: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """The setting `engine` of one or two addresses."""
    if "engine" in file:
        faults.append(
            "engine is an address, but the file has the setting engine, too; name one of its methods, or leave it out"
            " of the file."
        )
    if not options.engine_model:
        faults.append("engine_model is not given; name the model as the server does.")
    usable = "://" in options.against
    if options.against and not usable:
        faults.append(f"against is {shown(options.against)}, but engine is an address; give an address, too.")
    methods = {EXAMINED: {"url": options.engine}}
    if usable:
        methods[AGAINST] = {"url": options.against}
    engine = {"model": options.engine_model or "m", "methods": methods}
    try:
        parse_served(engine)
    except ConfigError as error:
        faults += [f"engine: {fault}" for fault in error.faults]
    return engine


def _by_name(options: EngineOptions, file: Mapping[str, Any], faults: list[str]) -> Any:
    """The file's setting `engine`, whose methods the options name."""
    engine = file.get("engine")
    if engine is None:
        if not faults:
            faults.append(
                f"engine is {shown(options.engine)}; give an address such as http://localhost:8000/v1, or a file by"
                " config whose setting engine has a method of this name."
            )
        return {}
    if options.engine_model:
        faults.append("engine_model is given, but the file's setting engine has the model; leave it out.")
    try:
        names = [each.name for each in parse_served(engine)]
    except ConfigError as error:
        faults += [f"engine: {fault}" for fault in error.faults]
        return engine
    for option, name in (("engine", options.engine), ("against", options.against)):
        if name and name.removeprefix(SERVED) not in names:
            faults.append(f"{option}: {unknown('method of the file', name, names)}")
    if options.against and options.against.removeprefix(SERVED) == options.engine.removeprefix(SERVED):
        faults.append(f"against is {options.against}, which is the engine itself; name another one.")
    return engine


def _switch(given: str, default: bool, faults: list[str]) -> bool:
    if given.lower() not in ("", "true", "false"):
        faults.append(f"weights is {shown(given)}; it must be true or false.")
    return default if not given else given.lower() == "true"


def _whole(given: str, faults: list[str]) -> int:
    number = int(given) if given.isdigit() else 0
    if given and number < FEWEST_SAMPLES:
        faults.append(f"samples is {given!r}; it must be a whole number >= {FEWEST_SAMPLES}.")
    return number


def _bias(given: str, faults: list[str]) -> float:
    if not given:
        return BIAS
    try:
        result = float(given)
    except ValueError:
        result = 0.0
    if not LEAST_BIAS <= result <= 0.5:
        faults.append(f"bias is {given!r}; it must be a total variation from {LEAST_BIAS:g} to 0.5.")
        return BIAS
    return result

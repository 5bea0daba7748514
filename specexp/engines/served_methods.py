"""The engines that an experiment compares: `methods: [engine:plain, engine:spec]` name entries of the setting `engine`.

    engine:
      url: http://localhost:8000/v1           what all share
      model: m
      methods:
        plain: {request: {speculative.n_max: 0}}    one server, with a switch by request (llama.cpp has this one)
        spec: {url: http://localhost:8001/v1}       or a server of its own

Without `methods`, the one engine is `engine:served`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from specexp.engines.body import Sampling, Wanted
from specexp.engines.endpoint import Endpoint, parse_endpoint
from specexp.errors import ConfigError, shown

SERVED = "engine:"
ONLY = "served"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# What `request` may not set: settings of their own decide it, or the client.
_FIXED = frozenset(
    {"model", "prompt", "messages", "stream", "n", "best_of", "echo"}
    | Sampling(1, 0.5, 1, 0.5, 0.5, 0, ("x",), 1, True, {0: 1.0}).fields().keys()
    | Wanted(True, 1, True, True, True, True).fields("completions").keys()
    | Wanted(True, 1, True, True, True, True).fields("chat").keys()
)


@dataclass(frozen=True, slots=True)
class ServedMethod:
    """One engine under its name; `request` is added to the body of every request, as sorted pairs of name and JSON."""

    name: str
    endpoint: Endpoint
    request: tuple[tuple[str, str], ...] = ()

    @property
    def method(self) -> str:
        return SERVED + self.name

    @property
    def switch(self) -> Mapping[str, Any]:
        """The fields that `request` adds."""
        return MappingProxyType({name: json.loads(value) for name, value in self.request})


def parse_served(given: object) -> tuple[ServedMethod, ...]:
    """Read the setting `engine`. Raises ConfigError with every fault, and without the secrets that it may hold."""
    if not isinstance(given, Mapping):
        raise ConfigError("it must be a mapping with url and model.")
    shared = {key: value for key, value in given.items() if key not in ("methods", "request")}
    methods = given.get("methods")
    if methods is None:
        methods = {ONLY: {}}
    if not isinstance(methods, Mapping) or not methods:
        raise ConfigError("methods must be a mapping from names to what differs.")
    faults: list[str] = []
    result = []
    for name, own in methods.items():
        where = f"{SERVED}{shown(str(name))[1:-1]}: " if "methods" in given else ""
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            faults.append(f"{where}a name has letters, digits and any of _.- only.")
            continue
        if own is not None and not isinstance(own, Mapping):
            faults.append(f"{where}what differs must be a mapping.")
            continue
        parts = {**shared, **(own or {})}
        try:
            request = _request({**_mapping(given.get("request")), **_mapping(parts.pop("request", None))})
            result.append(ServedMethod(name, parse_endpoint(parts), request))
        except ConfigError as error:
            faults += [where + fault for fault in error.faults]
    alike = [one.name for i, one in enumerate(result) if (one.endpoint, one.request) in _pairs(result[:i])]
    faults += [f"{SERVED}{name} is the same as one before it; give it a url or a request of its own." for name in alike]
    if faults:
        raise ConfigError(dict.fromkeys(faults))
    return tuple(result)


def _mapping(given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError("request must be a mapping of fields that are added to each request.")
    return given


def _request(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if taken := sorted(str(name) for name in given if name in _FIXED):
        raise ConfigError(f"request has {', '.join(taken)}, which settings of their own decide; leave it out.")
    try:
        return tuple(
            sorted((str(name), json.dumps(value, sort_keys=True, allow_nan=False)) for name, value in given.items())
        )
    except (TypeError, ValueError):
        raise ConfigError("request has a value that is no JSON; give texts, numbers, lists and mappings.") from None


def _pairs(methods: list[ServedMethod]) -> list[tuple[Endpoint, tuple[tuple[str, str], ...]]]:
    return [(each.endpoint, each.request) for each in methods]

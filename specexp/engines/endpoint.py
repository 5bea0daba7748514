"""Where a served engine is and how it is spoken to; plain data, without the key, which only the environment holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from specexp.errors import ConfigError, EngineError, shown, unknown

Api = Literal["completions", "chat"]
APIS: tuple[Api, ...] = get_args(Api)
TIMEOUT = 600.0  # seconds without a byte from the server; a prompt may wait in its queue
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model of one server. `url` ends in /v1; `tokenizer` is "" where texts alone are compared."""

    url: str
    model: str
    api: Api = "completions"
    key_env: str = ""  # the environment variable that holds the key; "" sends none
    tokenizer: str = ""
    timeout: float = TIMEOUT

    @property
    def root(self) -> str:
        """The server's address without /v1, where vLLM and SGLang have their /metrics."""
        return self.url.removesuffix("/v1")

    @property
    def completions(self) -> str:
        """The address that completions are asked of."""
        return self.url + ("/chat/completions" if self.api == "chat" else "/completions")

    def key(self) -> str:
        """Return the key, "" if none is wanted. Raises EngineError if the variable is unset."""
        if not self.key_env:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise EngineError(
                f"engine {self.url}: the environment variable {self.key_env} is not set; export the key in it, or leave"
                " key_env out."
            )
        if not (key.isascii() and key.isprintable()):
            raise EngineError(
                f"engine {self.url}: the key in {self.key_env} has characters that no HTTP header may have; set it to"
                " printable ASCII."
            )
        return key


def parse_endpoint(given: object) -> Endpoint:
    """Read the setting `engine`: a mapping of the fields of `Endpoint`. Raises ConfigError with every fault."""
    if not isinstance(given, Mapping):
        raise ConfigError("it must be a mapping with url and model.")
    known = [each.name for each in fields(Endpoint)]
    faults = [unknown("part of engine", key, known) for key in given if key not in known]
    faults += [f"{name} is missing." for name in ("url", "model") if given.get(name) in (None, "")]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known or value in (None, ""):
            continue
        try:
            values[name] = _PARSERS[name](value)
        except ValueError as error:
            # An address may hold a password, and key_env the key itself: neither is repeated.
            said = "not usable" if name in ("url", "key_env") else shown(value)
            faults.append(f"{name} is {said}; {error}")
    if faults:
        raise ConfigError(faults)
    return Endpoint(**values)


def _address(value: object) -> str:
    text = str(value).strip().rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not any(each.isspace() or not each.isprintable() for each in text)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("it must be an address such as http://localhost:8000/v1.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("it must have no user, password or parameters; give the key by key_env.")
    return text if parts.path.endswith("/v1") else f"{text}/v1"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be a text.")
    return value.strip()


def _api(value: object) -> Api:
    if value not in APIS:
        raise ValueError(f"it must be one of {', '.join(APIS)}.")
    return value


def _variable(value: object) -> str:
    text = _text(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError("it must be the name of an environment variable, not the key.")
    return text


def _seconds(value: object) -> float:
    try:
        seconds = float(cast(Any, value))
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(value, bool) or not 0 < seconds <= 86_400:
        raise ValueError("it must be seconds, above 0 and at most 86400.")
    return seconds


_PARSERS = {
    "url": _address, "model": _text, "api": _api, "key_env": _variable, "tokenizer": _text, "timeout": _seconds,
}  # fmt: skip

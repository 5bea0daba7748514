"""Removes user names, passwords and tokens from addresses before they are shown: one function for all callers.

It works on any text, since client errors quote the address they were given. It treats as secret the part of an address
before the @, and the values of parameters with names such as token or password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
TRACKING = "MLFLOW_TRACKING_URI"
_USERNAME, _PASSWORD, _TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
# Up to the last @ of the host part; a password may contain an unescaped /, and a port is digits before a /.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/?#\"'<>]*@|[^\s/@:\"'<>]+:(?!\d+(?:/|\s|$))[^\s@\"'<>]*@)")
_NAMES = (
    r"[\w.-]*(?:token|secret|passw|pwd|api_?key|access_?key|signature|credential|authorization|odbc_connect)[\w.-]*"
)
_PARAMETER = re.compile(rf"(?i)(?<=[?&;#])((?:{_NAMES}|sig|key|auth))=[^\s&;#\"'<>]+")
# The format in which PostgreSQL and ODBC drivers quote connection strings.
_PAIR = re.compile(r"(?i)\b(password|passwd|pwd)=(?!\*)[^\s&;,\"'<>]+")
_HEADER = re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{8,}")


def mask(text: str) -> str:
    """Return `text` without the secrets of the addresses in it."""
    text = _USER_INFO.sub("", text)
    text = _PARAMETER.sub(rf"\1={HIDDEN}", text)
    text = _PAIR.sub(rf"\1={HIDDEN}", text)
    return _HEADER.sub(rf"\1 {HIDDEN}", text)


@contextmanager
def without_credentials(environment: MutableMapping[str, str] | None = None) -> Iterator[None]:
    """Within the context, move the credentials of the tracking URI, which MLflow prints, into MLflow's variables.

    Credentials in the URI take precedence over the variables, as they do in a request.
    """
    known = os.environ if environment is None else environment
    changed = _split(known.get(TRACKING, ""))
    before = {name: known.get(name) for name in changed}
    _put(known, changed)
    try:
        yield
    finally:
        _put(known, before)


def _split(address: str) -> dict[str, str | None]:
    """The environment variables equivalent to this address; None means that a variable must be unset."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return {}
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return {}
    result: dict[str, str | None] = {TRACKING: parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()}
    if parts.username and parts.password:
        result |= {_USERNAME: unquote(parts.username), _PASSWORD: unquote(parts.password), _TOKEN: None}
    return result


def _put(known: MutableMapping[str, str], values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value

"""Addresses as they may be shown, without user names, passwords and tokens: one function for every place.

It works on any text, since errors of clients quote the address they were given. What it takes for a secret is the part
of an address before the @, and the values of parameters whose names say so.
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
# Up to the last @ of the host part; a password may hold a / that nobody escaped, a port is digits before a /.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/?#\"'<>]*@|[^\s/@:\"'<>]+:(?!\d+(?:/|\s|$))[^\s@\"'<>]*@)")
_NAMES = (
    r"[\w.-]*(?:token|secret|passw|pwd|api_?key|access_?key|signature|credential|authorization|odbc_connect)[\w.-]*"
)
_PARAMETER = re.compile(rf"(?i)(?<=[?&;#])((?:{_NAMES}|sig|key|auth))=[^\s&;#\"'<>]+")
# As PostgreSQL and ODBC drivers quote what they were given.
_PAIR = re.compile(r"(?i)\b(password|passwd|pwd)=(?!\*)[^\s&;,\"'<>]+")
_HEADER = re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{8,}")


def mask(text: str) -> str:
    """`text` without the secrets of the addresses in it."""
    text = _USER_INFO.sub("", text)
    text = _PARAMETER.sub(rf"\1={HIDDEN}", text)
    text = _PAIR.sub(rf"\1={HIDDEN}", text)
    return _HEADER.sub(rf"\1 {HIDDEN}", text)


@contextmanager
def without_credentials(environment: MutableMapping[str, str] | None = None) -> Iterator[None]:
    """Inside, the address of a tracking server holds no credentials: MLflow, which prints it, has them by variables.

    Credentials in an address have precedence over the variables, as they do in a request.
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
    """The variables that say what this address says; None stands for one that is to be unset."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return {}
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return {}
    found: dict[str, str | None] = {TRACKING: parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()}
    if parts.username and parts.password:
        found |= {_USERNAME: unquote(parts.username), _PASSWORD: unquote(parts.password), _TOKEN: None}
    return found


def _put(known: MutableMapping[str, str], values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value

"""What the clients of served engines share: headers and timeouts, and what statuses and content types mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import httpx2

from specexp.addresses import HIDDEN, mask
from specexp.engines.endpoint import Endpoint
from specexp.errors import EngineError, shown

OK = 200
CONNECT = 10.0  # seconds to connect in
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
REFUSED = frozenset({400, 404, 415, 422, 501})  # with which servers refuse a field that they do not know
# llama-cpp-python's server answers a value that its schema does not allow with 500 and pydantic's words.
VALIDATION = re.compile(r"\d+ validation errors?\b")
Hide = Callable[[str], str]  # removes the key from what a server says


class Refused(EngineError):
    """The server refused the request's fields."""


class Busy(EngineError):
    """The server cannot answer now; `wait` is when it says to ask again, in seconds, or 0."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def headers_of(key: str) -> dict[str, str]:
    """Return the headers that carry the key, if there is one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def timeout_of(endpoint: Endpoint) -> httpx2.Timeout:
    """Return how long a client of this endpoint waits for a connection, and for a byte."""
    return httpx2.Timeout(endpoint.timeout, connect=CONNECT)


def check_stream(response: httpx2.Response, hide: Hide) -> None:
    """Raise EngineError unless the answer is a stream of events."""
    kind = response.headers.get("Content-Type", "none")
    if not kind.lower().startswith("text/event-stream"):
        said = shown(hide(kind))
        raise EngineError(f"it answers with content type {said} where a stream is asked for; check url and api.")


def check_status(response: httpx2.Response, endpoint: Endpoint, hide: Hide) -> None:
    """Raise the error that this status is: Busy, Refused or EngineError. The body of an error has been read."""
    status = response.status_code
    if status == OK:
        return
    said = f"status {status}: {shown(hide(_said(response)))}"
    refused = status in REFUSED or (status == 500 and VALIDATION.search(said) is not None)
    if status in BUSY and not refused:
        raise Busy(f"{said}; start it anew, or ask it for less at a time.", _retry_after(response))
    if status in (401, 403):
        variable = endpoint.key_env
        way_out = f"check the key in {variable}" if variable else "name the key's environment variable in key_env"
        raise EngineError(f"{said}; {way_out}.")
    if refused:
        raise Refused(f"{said}; check url, model and api, or leave out the setting that it refuses.")
    raise EngineError(f"{said}; check the url.")


def named(endpoint: Endpoint, message: str, hide: Hide) -> str:
    """Return a message with the server's address and without the key."""
    return mask(hide(f"engine {endpoint.url}: {message}"))


def without_key(text: str, key: str) -> str:
    """Return a text in which the key is hidden."""
    return text.replace(key, HIDDEN) if key else text


def _retry_after(response: httpx2.Response) -> float:
    try:
        seconds = float(response.headers.get("Retry-After", "0"))
    except ValueError:  # a date
        return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def _said(response: httpx2.Response) -> str:
    """Return what an error's body says: OpenAI's `error.message`, FastAPI's `detail`, or its text."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip() or response.reason_phrase
    if isinstance(body, Mapping):
        error = body.get("error", body.get("message", body.get("detail", body)))
        return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
    return str(body)

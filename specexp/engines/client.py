"""Sends requests to a served engine, one at a time, and times the answers.

What may pass is tried again, at most `ATTEMPTS` times: a refused connection, a server that is busy (429, 503, which may
say when to come back), an answer that ends in its middle. The request is then sent anew, and only the last attempt's
text and times count. Everything else raises EngineError at once. The key is in the header and nowhere else: it is
removed from what a server says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from specexp.addresses import HIDDEN, mask
from specexp.engines.body import Prompt, Sampling, Wanted, body_of
from specexp.engines.endpoint import Endpoint
from specexp.engines.stream import Answer, Interrupted, Reader, chunks
from specexp.errors import EngineError, first_line, shown

T = TypeVar("T")
ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds; each wait is twice the one before
TRIAL_TOKENS = 8  # enough to tell one model's output from another's
CONNECT = 10.0  # seconds to connect in
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
REFUSED = frozenset({400, 404, 415, 422, 501})  # with which servers refuse a field that they do not know


class Refused(EngineError):
    """The server refused the request's fields."""


class Busy(EngineError):
    """The server cannot answer now; `wait` is when it says to ask again, in seconds, or 0."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server gives besides the text, found out by one short request."""

    wanted: Wanted  # what it can be asked for
    token_ids: bool
    logprobs: bool
    num_tokens: bool  # that it counts the tokens of an output
    text: str = ""  # what it answered, greedily

    def words(self) -> str:
        """Return what outputs can be compared by, for the report."""
        given = [name for name, has in (("token ids", self.token_ids), ("log-probabilities", self.logprobs)) if has]
        missing = [
            name for name, has in (("token ids", self.token_ids), ("log-probabilities", self.logprobs)) if not has
        ]
        words = f"the server gives {' and '.join(['text', *given])}"
        return f"{words}, but no {' and no '.join(missing)}" if missing else words


class EngineClient:
    """A connection to one endpoint; a context manager. `sleep` and `clock` are for tests."""

    def __init__(
        self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self._key = endpoint.key()
        self._clock = clock
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # Redirects are not followed: the key is for this address alone.
        self._http = httpx2.Client(headers=headers, timeout=httpx2.Timeout(endpoint.timeout, connect=CONNECT))
        self._retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=_wait, retry=retry_if_exception(_may_pass), sleep=sleep,
            reraise=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ask(
        self, prompt: Prompt, sampling: Sampling, wanted: Wanted, switch: Mapping[str, Any] | None = None
    ) -> Answer:
        """Return the answer. Raises Refused for a request that this server does not take, EngineError for failures."""
        body = body_of(self.endpoint, prompt, sampling, wanted, switch)
        path = "/chat/completions" if self.endpoint.api == "chat" else "/completions"
        attempts = 0

        def once() -> Answer:
            nonlocal attempts
            attempts += 1
            return self._stream(self.endpoint.url + path, body)

        answer = self._with_retries(once)
        answer.attempts = attempts
        return answer

    def offer(self, prompt: Prompt, wanted: Wanted, switch: Mapping[str, Any] | None = None) -> Offer:
        """Find out what the server gives: ask for a few tokens with everything wanted, then with less and less."""
        sampling = Sampling(max_tokens=TRIAL_TOKENS)
        refusal: Refused | None = None
        for each in (wanted, *wanted.fewer()):
            try:
                answer = self.ask(prompt, sampling, each, switch)
            except Refused as error:
                refusal = refusal or error
                continue
            has = answer.token_ids is not None, answer.logprobs is not None, answer.num_tokens is not None
            return Offer(each, *has, answer.text)
        assert refusal is not None, "nothing was asked"
        raise refusal

    def models(self) -> list[str]:
        """Return the names of the server's models; empty if it does not list them, or cannot: transformers' server
        fails there where no hub cache exists."""
        try:
            text = self._get(f"{self.endpoint.url}/models")
            return [] if text is None else [str(each["id"]) for each in json.loads(text)["data"]]
        except (httpx2.HTTPError, EngineError, ValueError, KeyError, TypeError):
            return []

    def counters(self) -> str:
        """Return the text of the server's /metrics; "" if it has none."""
        return self._with_retries(lambda: self._get(f"{self.endpoint.root}/metrics")) or ""

    def _stream(self, url: str, body: Mapping[str, Any]) -> Answer:
        begun, reader = self._clock(), Reader(self._hide)
        # Not by `iter_lines`, which also splits at U+2028 and the like: JSON may hold them as they are.
        with self._http.sse(url, method="POST", json=dict(body), max_event_size=None) as source:
            response = source.response
            self._check(response)
            kind = response.headers.get("Content-Type", "none")
            if not kind.lower().startswith("text/event-stream"):
                said = shown(self._hide(kind))
                raise EngineError(
                    f"it answers with content type {said} where a stream is asked for; check url and api."
                )
            for chunk in chunks((event.data for event in source), self._hide):
                reader.add(chunk, self._clock() - begun)
        return reader.finish(self._clock() - begun)

    def _get(self, url: str) -> str | None:
        with self._http.stream("GET", url) as response:
            if response.status_code in (404, 405, 501):
                return None
            self._check(response)
            response.read()
            return response.text

    def _check(self, response: httpx2.Response) -> None:
        """Raise the error that this status is. The body of an error is read in full, since servers explain there."""
        status = response.status_code
        if status == 200:
            return
        response.read()
        said = f"status {status}: {shown(self._hide(_said(response)))}"
        if status in BUSY:
            raise Busy(f"{said}; start it anew, or ask it for less at a time.", _retry_after(response))
        if status in (401, 403):
            variable = self.endpoint.key_env
            way_out = f"check the key in {variable}" if variable else "name the key's environment variable in key_env"
            raise EngineError(f"{said}; {way_out}.")
        if status in REFUSED:
            raise Refused(f"{said}; check url, model and api, or leave out the setting that it refuses.")
        raise EngineError(f"{said}; check the url.")

    def _with_retries(self, once: Callable[[], T]) -> T:
        try:
            return self._retrying(once)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            words = first_line(error)
            raise EngineError(self._named(f"{words}; see that it runs at this address, then resume.")) from None
        except EngineError as error:
            error.args = (self._named(str(error)),)
            raise error from None

    def _named(self, message: str) -> str:
        """Return a message with the server's address and without the key."""
        return mask(self._hide(f"engine {self.endpoint.url}: {message}"))

    def _hide(self, text: str) -> str:
        return text.replace(self._key, HIDDEN) if self._key else text


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Busy | Interrupted | httpx2.TransportError) and not isinstance(
        error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
    )


def _wait(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: what the server says, or twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    said = error.wait if isinstance(error, Busy) else 0.0
    return min(LONGEST_WAIT, said or FIRST_WAIT * 2 ** (state.attempt_number - 1))


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

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
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from specexp.engines.body import OFF, Prompt, Sampling, Wanted, body_of
from specexp.engines.endpoint import Endpoint
from specexp.engines.responses import (
    OK,
    Busy,
    Refused,
    check_status,
    check_stream,
    headers_of,
    named,
    timeout_of,
    without_key,
)
from specexp.engines.stream import Answer, Interrupted, Reader
from specexp.errors import EngineError, first_line

T = TypeVar("T")
ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds; each wait is twice the one before
TRIAL_TOKENS = 8  # enough to tell one model's output from another's


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
        # Redirects are not followed: the key is for this address alone.
        self._http = httpx2.Client(headers=headers_of(self._key), timeout=timeout_of(endpoint))
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
        attempts = 0

        def once() -> Answer:
            nonlocal attempts
            attempts += 1
            return self._stream(self.endpoint.completions, body)

        answer = self._with_retries(once)
        answer.attempts = attempts
        return answer

    def offer(self, prompt: Prompt, wanted: Wanted, switch: Mapping[str, Any] | None = None) -> Offer:
        """Find out what the server gives: ask for a few tokens with everything wanted, then with less and less."""
        sampling = Sampling(max_tokens=TRIAL_TOKENS)
        refusal: Refused | None = None
        tried = (wanted, *wanted.fewer())
        if (wanted.verbose or wanted.off) and not self._takes(prompt, wanted, switch):
            allowed = self._allowed(prompt, wanted, switch)
            tried = (allowed, *allowed.fewer())
        for each in tried:
            try:
                answer = self.ask(prompt, sampling, each, switch)
            except Refused as error:
                refusal = refusal or error
                continue
            has = answer.token_ids is not None, answer.logprobs is not None, answer.num_tokens is not None
            return Offer(each, *has, answer.text)
        assert refusal is not None, "nothing was asked"
        raise refusal

    def _takes(self, prompt: Prompt, wanted: Wanted, switch: Mapping[str, Any] | None) -> bool:
        try:
            self.ask(prompt, Sampling(max_tokens=1), wanted, switch)
        except Refused:
            return False
        return True

    def _allowed(self, prompt: Prompt, wanted: Wanted, switch: Mapping[str, Any] | None) -> Wanted:
        """Of what single servers know, each by itself, so that one which is refused leaves the others."""
        bare = Wanted(False, 0, False, False)
        off = []
        for name, _ in wanted.off:
            given = [(name, value) for value in OFF[name]]
            off += [each for each in given if self._takes(prompt, replace(bare, off=(each,)), switch)][:1]
        verbose = wanted.verbose and self._takes(prompt, replace(bare, verbose=True), switch)
        return replace(wanted, verbose=verbose, off=tuple(off))

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
            check_stream(response, self._hide)
            for event in source:
                if reader.add_event(event.data, lambda: self._clock() - begun):
                    break
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
        if response.status_code != OK:
            response.read()
        check_status(response, self.endpoint, self._hide)

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
        return named(self.endpoint, message, self._hide)

    def _hide(self, text: str) -> str:
        return without_key(text, self._key)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Busy | Interrupted | httpx2.TransportError) and not isinstance(
        error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
    )


def _wait(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: what the server says, or twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    said = error.wait if isinstance(error, Busy) else 0.0
    return min(LONGEST_WAIT, said or FIRST_WAIT * 2 ** (state.attempt_number - 1))

"""Sends many requests to a served engine at once. Nothing is tried again: under load a refusal is a result.

Bodies, streams and errors are read as by `client.py`. Times are by the clock that the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from specexp.engines.body import Prompt, Sampling, Wanted, body_of
from specexp.engines.endpoint import Endpoint
from specexp.engines.responses import OK, check_status, check_stream, headers_of, named, timeout_of, without_key
from specexp.engines.stream import Answer, Reader
from specexp.errors import EngineError, first_line


class AsyncEngineClient:
    """Connections to one endpoint, as many as requests are in flight; an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self._key, self._clock = endpoint.key(), clock
        # Connections are kept: a new one for each request would be part of its time.
        self._http = httpx2.AsyncClient(
            headers=headers_of(self._key), timeout=timeout_of(endpoint),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(
        self, prompt: Prompt, sampling: Sampling, wanted: Wanted, switch: Mapping[str, Any] | None = None
    ) -> Answer:
        """Return the answer. Raises Busy, Refused or EngineError, with the server's address and without the key."""
        body = body_of(self.endpoint, prompt, sampling, wanted, switch)
        try:
            return await self._stream(body)
        except httpx2.HTTPError as error:
            raise EngineError(named(self.endpoint, f"{first_line(error)}.", self._hide)) from None
        except EngineError as error:
            error.args = (named(self.endpoint, str(error), self._hide),)
            raise error from None

    async def _stream(self, body: Mapping[str, Any]) -> Answer:
        begun, reader = self._clock(), Reader(self._hide)
        url = self.endpoint.completions
        async with self._http.sse(url, method="POST", json=dict(body), max_event_size=None) as source:
            response = source.response
            if response.status_code != OK:
                await response.aread()
            check_status(response, self.endpoint, self._hide)
            check_stream(response, self._hide)
            ended: float | None = None
            # To the end of the response, not to [DONE] alone: else its connection could not be used again.
            async for event in source:
                if ended is None and reader.add_event(event.data, lambda: self._clock() - begun):
                    ended = self._clock() - begun
        return reader.finish(self._clock() - begun if ended is None else ended)

    def _hide(self, text: str) -> str:
        return without_key(text, self._key)

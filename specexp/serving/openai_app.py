"""The OpenAI interface over HTTP: completions and chat completions, models, health, metrics.

Decoding runs in a thread of its own; this module reads bodies, checks keys, and writes answers and server-sent events.
`/health` and `/metrics` need no key, as in vLLM.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from specexp.errors import SpecexpError
from specexp.pair.detokenizer import Pieces
from specexp.serving.choices import Choice
from specexp.serving.completion_service import CompletionService
from specexp.serving.openai_answers import AnswerForm
from specexp.serving.openai_requests import read_request
from specexp.serving.refusals import FAILED, INVALID, NOT_FOUND, UNAUTHORIZED, Refusal, of_invalid
from specexp.serving.server_metrics import CONTENT_TYPE

BODY_SECONDS = 30.0  # within which a body must have come
GONE = 499  # the client closed the connection, so that nobody reads this status
Heard = asyncio.Queue[tuple[Choice, Sequence[int] | None]]


def make_app(service: CompletionService, keys: Sequence[str] = (), most_bytes: int | None = None) -> FastAPI:
    """The application. With `keys`, requests below /v1 need one of them; bodies have `most_bytes` at most."""
    app = FastAPI(title="specexp", docs_url=None, redoc_url=None, openapi_url=None)
    most = service.most_bytes if most_bytes is None else min(most_bytes, service.most_bytes)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> Response:
        kind = NOT_FOUND if error.status_code == 404 else INVALID
        refusal = Refusal(f"{request.method} {request.url.path}: {error.detail}.", error.status_code, kind)
        return JSONResponse(refusal.body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        refusal = Refusal(f"the server failed: {type(error).__name__}.", 500, FAILED)
        return JSONResponse(refusal.body, refusal.status)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=503 if service.closing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _authorize(request, keys)
        model = {
            "id": service.name, "object": "model", "created": service.created, "owned_by": "specexp",
            "root": service.name, "max_model_len": service.context,
        }  # fmt: skip
        return JSONResponse({"object": "list", "data": [model]})

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        _authorize(request, keys)
        return await _answer(service, request, await _body(request, most), chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        _authorize(request, keys)
        return await _answer(service, request, await _body(request, most), chat=True)

    return app


def _authorize(request: Request, keys: Sequence[str]) -> None:
    """Raise Refusal for a request without one of the keys. All are compared, each in constant time."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if keys and not (scheme.lower() == "bearer" and any(matches)):
        raise Refusal("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'.", 401, UNAUTHORIZED)


async def _body(request: Request, most: int) -> bytes:
    """The body. Raises Refusal for one that is too long, takes too long to come, or is not JSON by its header."""
    given = request.headers.get("content-type", "")
    if given.split(";")[0].strip().lower() != "application/json":
        got = f"got {given}" if given else "there is none"
        raise Refusal(f"the content type must be application/json; {got}.", 415)
    too_long = Refusal(f"the body has more than {most} bytes; send shorter prompts, or fewer in a request.", 413)
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        raise too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_long
                parts.append(part)
    except TimeoutError:
        raise Refusal(f"the body did not come within {BODY_SECONDS:.0f} seconds; send it again.", 408) from None
    return b"".join(parts)


async def _answer(service: CompletionService, request: Request, data: bytes, chat: bool) -> Response:
    """Answer one request, whole or as a stream; a client that goes ends its outputs."""
    try:
        wanted = await run_in_threadpool(read_request, data, chat)
        choices = await run_in_threadpool(service.prepare, wanted)
    except SpecexpError as error:
        raise of_invalid(error) from error
    heard: Heard = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hear(choice: Choice, tokens: Sequence[int] | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has gone
            loop.call_soon_threadsafe(heard.put_nowait, (choice, tokens))

    service.submit(choices, hear)
    form = AnswerForm.of(service, wanted)
    if wanted.stream:
        return EventStream(_events(form, choices, heard), choices)
    ended, gone = asyncio.create_task(_ended(choices, heard)), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            return Response(status_code=GONE)
        await ended  # raises what ended a choice
        return JSONResponse(form.whole(choices))
    finally:
        ended.cancel()
        gone.cancel()
        _let_go(choices)


async def _ended(choices: Sequence[Choice], heard: Heard) -> None:
    """Wait for the end of all choices. Raises Refusal with the first that fails."""
    left = len(choices)
    while left:
        choice, tokens = await heard.get()
        if tokens is None:
            choice.result()
            left -= 1


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _let_go(choices: Sequence[Choice]) -> None:
    """End the choices that nobody waits for any more."""
    for choice in choices:
        if choice.future is not None and not choice.future.done():
            choice.cancel()


async def _events(form: AnswerForm, choices: Sequence[Choice], heard: Heard) -> AsyncGenerator[str, None]:
    """The server-sent events of a stream. With log-probabilities or `echo`, a choice comes as one chunk at its end."""
    wanted, left = form.wanted, len(choices)
    at_once = wanted.echo or wanted.logprobs is not None
    ready: dict[Choice, list[str]] = {choice: [] for choice in choices}
    pieces = {choice: _pieces(form, choice, ready[choice]) for choice in choices}
    try:
        for choice in choices if wanted.chat else ():
            yield _event(form.opening(choice))
        while left:
            choice, tokens = await heard.get()
            if tokens is not None and not at_once:
                pieces[choice].add(tokens)
                text = "".join(ready[choice])
                ready[choice].clear()
                if text or wanted.return_token_ids:
                    yield _event(form.piece(choice, text, tokens))
            elif tokens is None:
                answered = choice.result()
                left -= 1
                if at_once:
                    text, all_tokens = form.text(choice, answered), answered.out.token_ids
                else:
                    pieces[choice].close()
                    text, all_tokens = "".join(ready[choice]), []
                yield _event(form.closing(choice, text, all_tokens, scored=at_once))
        if wanted.with_usage:
            yield _event(form.last(choices))
        yield "data: [DONE]\n\n"
    except Refusal as refusal:  # the status is sent already
        yield _event(refusal.body)
    finally:
        _let_go(choices)


def _pieces(form: AnswerForm, choice: Choice, ready: list[str]) -> Pieces:
    """What turns a choice's tokens into pieces of text, up to a stop string."""
    request, stop = choice.request, choice.stop
    ends = () if request.ending.ignore_eos else form.service.eos_ids
    return Pieces(form.service.text, ends, ready.append, stop.begin(request.prompt_ids) if stop else None)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
    """A stream of server-sent events. However it ends, its generator is closed, and its choices end with it."""

    def __init__(self, events: AsyncGenerator[str, None], choices: Sequence[Choice]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events, self._choices = events, choices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            _let_go(self._choices)

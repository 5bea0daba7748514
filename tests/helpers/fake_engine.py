"""A server of the OpenAI interface in a thread, which answers with what a test gave it, in its order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """A stream of `chunks`, ended by [DONE] if it is `complete`; or, with another status, `error` as JSON."""

    chunks: Sequence[Mapping[str, Any]] = ()
    complete: bool = True
    status: int = 200
    error: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    missing: int = 0  # bytes that the header promises and the connection ends before


@dataclass(slots=True)
class FakeEngine:
    """`replies` are given one by one, the last one again and again; `refused` fields of a request get status 400."""

    replies: list[Reply]
    refused: frozenset[str] = frozenset()
    metrics: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    models: list[str] = field(default_factory=lambda: ["m", "n"])
    refusal: object = None  # the body of status 400

    def reply(self, body: Mapping[str, Any]) -> Reply:
        if refused := sorted(self.refused & body.keys()):
            return Reply(status=400, error=self.refusal or {"error": {"message": f"unknown field {refused[0]}"}})
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def text_chunk(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def usage_chunk(completion: int, prompt: int = 3, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"choices": [], "usage": usage, **more}


@contextmanager
def fake_engine(
    *replies: Reply, refused: Sequence[str] = (), metrics: Sequence[str] = (), refusal: object = None
) -> Iterator[FakeEngine]:
    engine = FakeEngine(list(replies), frozenset(refused), list(metrics), refusal=refusal)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            engine.paths.append(self.path)
            if self.path == "/metrics" and engine.metrics:
                self._send(200, engine.metrics.pop(0).encode(), "text/plain")
            elif self.path == "/v1/models" and not engine.models:
                self._send(500, b"Internal Server Error", "text/plain")
            elif self.path == "/v1/models":
                self._send(
                    200, json.dumps({"data": [{"id": each} for each in engine.models]}).encode(), "application/json"
                )
            else:
                self._send(404, b"{}", "application/json")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            engine.paths.append(self.path)
            engine.requests.append(body)
            engine.keys.append(self.headers.get("Authorization"))
            reply = engine.reply(body)
            if reply.status != 200:
                self._send(reply.status, json.dumps(reply.error).encode(), "application/json", reply.headers)
                return
            # Servers write characters as they are.
            events = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in reply.chunks]
            text = "".join([": a comment\n\n", *events, *(["data: [DONE]\n\n"] if reply.complete else [])])
            data = text.encode()
            self._send(200, data, reply.content_type, {"Content-Length": str(len(data) + reply.missing)})

        def _send(self, status: int, data: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    engine.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

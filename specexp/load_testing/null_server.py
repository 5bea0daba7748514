"""A server that streams prepared answers at once: what a client gets from it is the client's own capacity.

`python -m specexp.load_testing.null_server TOKENS` listens on a free port of 127.0.0.1, prints it, and answers every
POST with so many chunks of one token, until its standard input is closed. It reads nothing of a request but its length.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from specexp.errors import EngineError

_START = 60.0  # seconds in which the process begins


def prepared(num_tokens: int) -> bytes:
    """Return an HTTP response that streams so many tokens, a chunk of it for each, as servers send them."""
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "text": " a", "finish_reason": None}]} for _ in range(num_tokens - 1)
    ]
    events.append({"choices": [{"index": 0, "text": " a", "finish_reason": "length"}]})
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}
    events.append({"choices": [], "usage": usage})
    parts = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chunks + b"0\r\n\r\n"


@contextmanager
def null_server(num_tokens: int) -> Iterator[str]:
    """Run the server in a process of its own; yields its address. Raises EngineError if it does not begin."""
    command = [sys.executable, "-m", "specexp.load_testing.null_server", str(num_tokens)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise EngineError("the null server, which the client's capacity is measured with, does not start.")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait(_START)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


async def _serve(num_tokens: int) -> None:
    answer = prepared(num_tokens)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent's end, however it comes, closes the input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

"""`serve` in a process of its own: many clients, bad and broken ones among them, and its end."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import specexp
from helpers.openai_process import PATIENCE, ServerProcess, serving
from specexp.tasks.task import task

ARGUMENTS = ("--method", "speculative", "--gamma", "4")
BAD = [
    (b"{", 400), (b'{"prompt": ""}', 400), (b'{"prompt": "a", "n": 99}', 400), (b'{"prompt": "a", "model": "x"}', 404),
    (b'{"prompt": "a", "logit_bias": {"5": 100}}', 400),
]  # fmt: skip

GROWTH = 32 << 20  # bytes that the last quarter may use more than the second, while buffers still fill
pytestmark = pytest.mark.slow


@contextmanager
def watching(process: int, used: list[int]) -> Iterator[None]:
    """Append the resident bytes of a process to `used`, ten times a second and once at least."""
    done = threading.Event()

    def watch() -> None:
        memory = psutil.Process(process)
        while True:
            used.append(memory.memory_info().rss)
            if done.wait(0.1):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def cut(server: ServerProcess, number: int, prompt: str) -> None:
    """Open a connection, and close it in the middle of the headers, of the body, or of the answer."""
    body = json.dumps({"prompt": prompt, "stream": True, "max_tokens": 60}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    sent = [head.encode()[:40], f"{head}\r\n".encode() + body[:20], f"{head}\r\n".encode() + body][number % 3]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(sent)
        if number % 3 == 2:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "num_requests, num_clients", [(240, 16), pytest.param(2000, 64, marks=pytest.mark.nightly)], ids=str
)
def test_many_clients_half_of_them_bad_or_cut_off(tmp_path: Path, num_requests: int, num_clients: int) -> None:
    pair = specexp.load("arith_quick", gamma=4)
    prompts = [example.turns[0] for example in task("arith").examples(20)]
    sampling: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 1, "seed": 3}]
    expected = {}
    for i, prompt in enumerate(prompts):
        for j, given in enumerate(sampling):
            out = pair.generate(prompt, max_new_tokens=12 + i % 7, **given)
            expected[i, j] = out.text, len(out.token_ids)

    with serving(tmp_path, *ARGUMENTS, "--rows", "8", "--max-waiting", "1000") as server:
        sent: list[str] = []

        def send(number: int) -> bool:
            kind, place = number % 4, number // 4
            i, j = place % len(prompts), place // len(prompts) % 2
            sent.append(("whole", "bad", "stream", "cut off")[kind])
            if kind == 1:
                body, status = BAD[place % len(BAD)]
                return server.ask(body)[0] == status
            if kind == 3:
                cut(server, place, prompts[i])
                return True
            asked = {"prompt": prompts[i], "max_tokens": 12 + i % 7, **sampling[j]}
            if kind == 0:
                status, answer = server.ask(asked)
                assert status == 200, answer
                result = json.loads(answer)
                return (result["choices"][0]["text"], result["usage"]["completion_tokens"]) == expected[i, j]
            *chunks, last = server.stream(asked)
            return last == "[DONE]" and "".join(
                json.loads(chunk)["choices"][0]["text"] for chunk in chunks
            ) == expected[i, j][0]  # fmt: skip

        used: list[int] = []  # resident bytes of the server, read again and again

        def quarter(number: int, clients: ThreadPoolExecutor) -> float:
            """Send a quarter of the requests; the median of the memory that was used meanwhile."""
            del used[:-1]
            share = num_requests // 4
            assert all(clients.map(send, range(number * share, (number + 1) * share)))
            return statistics.median(used)

        with watching(server.process.pid, used), ThreadPoolExecutor(num_clients) as clients:
            medians = [quarter(number, clients) for number in range(4)]
        grown = medians[3] - medians[1]  # the first one fills caches
        print(f"{dict(Counter(sent))}; MiB by quarters: {[round(each / (1 << 20), 1) for each in medians]}")
        assert Counter(sent) == dict.fromkeys(("whole", "bad", "stream", "cut off"), num_requests // 4)
        assert grown < GROWTH
        assert server.ask({"prompt": prompts[0], "temperature": 0, "max_tokens": 12})[0] == 200
        end = time.monotonic() + PATIENCE  # those that were cut off end with their next tokens
        while server.metric("num_requests_running") + server.metric("num_requests_waiting"):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "Traceback" not in server.log.read_text()


def test_sigterm_lets_requests_end_and_tells_those_that_cannot(tmp_path: Path) -> None:
    prompt = task("arith").examples(1)[0].turns[0]
    with serving(tmp_path, *ARGUMENTS, "--grace", "60", "--rows", "1") as server:
        stream = server.stream({"prompt": prompt, "max_tokens": 100, "ignore_eos": True})
        first = next(stream)
        server.process.send_signal(signal.SIGTERM)
        *rest, last = stream
        assert last == "[DONE]"
        tokens = [json.loads(chunk)["choices"][0]["finish_reason"] for chunk in [first, *rest]]
        assert tokens[-1] == "length"
        assert server.process.wait(PATIENCE) == 0
    with serving(tmp_path, *ARGUMENTS, "--grace", "0", "--rows", "1") as server:
        stream = server.stream({"prompt": prompt, "max_tokens": 400, "ignore_eos": True})
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        last = list(stream)[-1]
        assert json.loads(last)["error"]["code"] == "shutting_down"
        assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_kill_leaves_clients_a_broken_connection_and_no_end_of_a_stream(tmp_path: Path) -> None:
    prompt = task("arith").examples(1)[0].turns[0]
    with serving(tmp_path, *ARGUMENTS, "--rows", "1") as server:
        stream = server.stream({"prompt": prompt, "max_tokens": 400, "ignore_eos": True, "n": 16})  # far from its end
        heard = [next(stream)]
        server.process.kill()
        with pytest.raises((http.client.HTTPException, OSError)):
            heard += stream
        assert "[DONE]" not in heard
        with pytest.raises(OSError):
            server.ask(path="/health")


def test_keys_come_from_the_environment(tmp_path: Path) -> None:
    with serving(tmp_path, "--key-env", "OWN_KEYS", environment={"OWN_KEYS": "one, two"}) as server:
        assert server.ask(path="/v1/models")[0] == 401
        assert server.ask(path="/v1/models", headers={"Authorization": "Bearer two"})[0] == 200
        assert "two" not in server.log.read_text()

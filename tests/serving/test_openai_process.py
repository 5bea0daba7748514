"""`serve` in a process of its own: many clients, bad and broken ones among them, and its end."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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

WARM_UP = {"1": 500, "8": 2000}  # requests, by rows, after which nearly every shape was met, and what it takes is kept
STEP = 250  # requests between two readings of the memory
MEASURED = 4000  # requests after that
GROWTH = 32 << 20  # bytes that the second half of a storm may add with eight rows, while buffers still fill
FLAT = 16 << 20  # bytes over `MEASURED` requests: a leak of 4.2 KiB each is more; the allocator has steps of 8 MiB
pytestmark = pytest.mark.slow


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


class Storm:
    """Requests of which a quarter each is answered whole, bad, streamed, and cut off; every answer is checked."""

    def __init__(self, server: ServerProcess, num_clients: int) -> None:
        pair = specexp.load("arith_quick", gamma=4)
        self.server, self.sent = server, Counter[str]()
        self.prompts = [example.turns[0] for example in task("arith").examples(20)]
        self.sampling: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 1, "seed": 3}]
        self.expected = {}
        for i, prompt in enumerate(self.prompts):
            for j, given in enumerate(self.sampling):
                out = pair.generate(prompt, max_new_tokens=12 + i % 7, **given)
                self.expected[i, j] = out.text, len(out.token_ids)
        self.clients = ThreadPoolExecutor(num_clients)

    def send(self, first: int, count: int) -> None:
        """Send so many requests, and wait until nothing is decoded or waits."""
        assert all(self.clients.map(self._one, range(first, first + count)))
        end = time.monotonic() + PATIENCE  # those that were cut off end with their next tokens
        while self.server.metric("num_requests_running") + self.server.metric("num_requests_waiting"):
            assert time.monotonic() < end
            time.sleep(0.1)

    def resident(self) -> int:
        """Bytes of the server: the median of some readings."""
        memory = psutil.Process(self.server.process.pid)
        readings = []
        for _ in range(5):
            readings.append(memory.memory_info().rss)
            time.sleep(0.05)
        return int(statistics.median(readings))

    def _one(self, number: int) -> bool:
        server, kind, place = self.server, number % 4, number // 4
        i, j = place % len(self.prompts), place // len(self.prompts) % 2
        self.sent[("whole", "bad", "stream", "cut off")[kind]] += 1
        if kind == 1:
            body, status = BAD[place % len(BAD)]
            return server.ask(body)[0] == status
        if kind == 3:
            cut(server, place, self.prompts[i])
            return True
        asked = {"prompt": self.prompts[i], "max_tokens": 12 + i % 7, **self.sampling[j]}
        if kind == 0:
            status, answer = server.ask(asked)
            assert status == 200, answer
            result = json.loads(answer)
            return (result["choices"][0]["text"], result["usage"]["completion_tokens"]) == self.expected[i, j]
        *chunks, last = server.stream(asked)
        text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)
        return last == "[DONE]" and text == self.expected[i, j][0]


@pytest.mark.parametrize(
    "num_requests, num_clients", [(240, 16), pytest.param(2000, 64, marks=pytest.mark.nightly)], ids=str
)
def test_many_clients_half_of_them_bad_or_cut_off(tmp_path: Path, num_requests: int, num_clients: int) -> None:
    with serving(tmp_path, *ARGUMENTS, "--rows", "8", "--max-waiting", "1000") as server:
        storm, used, quarter = Storm(server, num_clients), list[int](), num_requests // 4
        with storm.clients:
            for first in range(0, num_requests, quarter):
                storm.send(first, quarter)
                used.append(storm.resident())
        print(f"MiB after each quarter: {[round(each / (1 << 20), 1) for each in used]}")
        assert storm.sent == dict.fromkeys(("whole", "bad", "stream", "cut off"), quarter)
        assert used[3] - used[1] < GROWTH
        assert server.ask({"prompt": storm.prompts[0], "temperature": 0, "max_tokens": 12})[0] == 200
        assert "Traceback" not in server.log.read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("num_rows", ["1", "8"])
def test_memory_is_flat_while_64_clients_send_thousands_of_requests(num_rows: str, tmp_path: Path) -> None:
    with serving(tmp_path, *ARGUMENTS, "--rows", num_rows, "--max-waiting", "1000") as server:
        storm = Storm(server, 64)
        used: list[int] = []
        with storm.clients:
            for first in range(0, WARM_UP[num_rows] + MEASURED, STEP):
                storm.send(first, STEP)
                used.append(storm.resident())
                print(f"{first + STEP} requests: {used[-1] / (1 << 20):.1f} MiB", flush=True)
        assert "Traceback" not in server.log.read_text()
        after = used[WARM_UP[num_rows] // STEP - 1 :]
        assert max(after) - after[0] < FLAT, [round(each / (1 << 20), 1) for each in used]


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


def test_a_kill_breaks_whole_answers_off(tmp_path: Path) -> None:
    """No client gets a status or a text that could be taken for an answer, whether it waits or is being decoded."""
    prompt = task("arith").examples(1)[0].turns[0]
    with serving(tmp_path, *ARGUMENTS, "--rows", "1") as server, ThreadPoolExecutor(3) as clients:
        long = {"prompt": prompt, "max_tokens": 400, "ignore_eos": True, "n": 16}  # far from its end
        answers = [clients.submit(server.ask, long) for _ in range(3)]
        end = time.monotonic() + PATIENCE
        while server.metric("num_requests_running") + server.metric("num_requests_waiting") < 48:
            assert time.monotonic() < end
            time.sleep(0.02)
        server.process.kill()
        for answer in answers:
            with pytest.raises((http.client.HTTPException, OSError)):
                answer.result(PATIENCE)


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

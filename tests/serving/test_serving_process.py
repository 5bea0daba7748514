"""`mlflow models serve` of a decoder: many clients at a time, half of them wrong, and it stays up."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import specexp
from entrypoints import log_decoder
from helpers.serving_process import BAD, GOOD_FORMS, JSON
from specexp.tasks.task import task

ROOT = Path(__file__).resolve().parents[2]
REQUESTS, CLIENTS, PATIENCE = 200, 8, 180.0
SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_k": 5, "seed": 4, "max_new_tokens": 30},
    {"temperature": 1.0, "top_p": 0.8, "max_new_tokens": 12},
]

pytestmark = pytest.mark.slow


@pytest.fixture
def address(workplace: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server of the embedded pair, and what it prints."""
    result = CliRunner().invoke(log_decoder.command, ["--method", "speculative", "--gamma", "4"])
    assert result.exit_code == 0, result.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = workplace / "server.log"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # the code that goes with the model is to do
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/decoder/1", "--env-manager", "local",
             "--port", str(port)],
            cwd=workplace, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE
        while not answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        yield port, log
        assert process.poll() is None, log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/ping")[0] == 200
    except OSError:
        return False


def ask(port: int, verb: str, path: str, body: bytes = b"", content_type: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(verb, path, body, {} if content_type is None else {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.nightly
def test_two_hundred_requests_half_of_them_wrong(address: tuple[int, Path]) -> None:
    port, log = address
    pair = specexp.load("arith_quick", gamma=4)
    prompts = [example.turns[0] for example in task("arith").examples(REQUESTS // 2)]
    good: list[tuple[bytes, list[dict[str, Any]]]] = []
    for prompt, form, params in zip(prompts, cycle(GOOD_FORMS.values()), cycle(SAMPLING), strict=False):
        out = pair.generate(prompt, **params)
        facts = {"text": out.text, "num_tokens": len(out.token_ids), "target_calls": out.counts["num_target_calls"],
                 "tokens_per_call": out.tokens_per_call, "finish_reason": out.finish_reason}  # fmt: skip
        good.append((json.dumps(form([prompt], params)).encode(), [facts]))
    assert len(good) == REQUESTS // 2

    def send(number: int) -> tuple[int, str]:
        if number % 2 == 0:
            return ask(port, "POST", "/invocations", good[number // 2][0], JSON)
        body, content_type, _ = list(BAD.values())[number // 2 % len(BAD)]
        return ask(port, "POST", "/invocations", body, content_type)

    with ThreadPoolExecutor(CLIENTS) as clients:
        responses = list(clients.map(send, range(REQUESTS)))
    for (_, expected), (status, answer) in zip(good, responses[::2], strict=True):
        assert status == 200, answer
        assert json.loads(answer)["predictions"] == expected
    for (_, _, reason), (status, answer) in zip(cycle(BAD.values()), responses[1::2], strict=False):
        assert status in (400, 415), answer
        assert reason in (json.loads(answer)["message"] if status == 400 else answer)
    assert answers(port)
    status, answer = ask(port, "POST", "/invocations", good[0][0], JSON)
    assert (status, json.loads(answer)["predictions"]) == (200, good[0][1])
    assert "Traceback" not in log.read_text()

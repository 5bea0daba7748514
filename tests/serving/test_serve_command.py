"""What `serve` refuses before anything is loaded."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from entrypoints import serve


@pytest.mark.parametrize(
    "arguments, reasons",
    [
        (["--port", "x"], ["port is 'x'; it must be a whole number >= 0 and at most 65535."]),
        (["--port", "70000", "--rows", "0"], ["port is '70000'", "rows is '0'"]),
        (["--max-waiting", "-1"], ["max_waiting is '-1'"]),
        (["--most-new-tokens", "1"], ["most_new_tokens is 1; it must be at least max_new_tokens, which is 160."]),
        (["--key-env", "NO_SUCH_VARIABLE"], ["the environment variable NO_SUCH_VARIABLE of key_env has no key"]),
        (["--key-env", "sk-secret"], ["key_env is not the name of an environment variable"]),
        (["--method", "nothing"], ["unknown method 'nothing'"]),
        (["--host", "203.0.113.1"], ["host is '203.0.113.1' and port is 8000; nothing can be served there"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_options_are_refused_at_once(arguments: list[str], reasons: list[str]) -> None:
    result = CliRunner().invoke(serve.command, arguments)
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == len(reasons)
    assert all(reason in line for reason, line in zip(reasons, result.output.splitlines(), strict=True))
    assert "sk-secret" not in result.output


def test_settings_of_a_file_that_change_nothing_are_named(workplace: Path) -> None:
    Path("mine.yaml").write_text("methods: [lookup]\nbatch: 4\nseed: 3\nlimit: 5\ngamma: 4\nbonus: false\ntop_k: 5\n")
    assert serve.unused_settings("mine.yaml", "speculative") == ["batch", "limit", "methods", "seed"]
    assert serve.unused_settings("mine.yaml", "lookup") == ["batch", "limit", "seed"]
    assert serve.unused_settings("", "lookup") == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(serve.command, ["--config", "mine.yaml", "--port", port])
    assert result.exit_code == 2, result.output
    said = "serve does not use batch, limit, methods, seed of 'mine.yaml': requests bring prompts and seeds"
    assert said in result.output


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(serve.command, ["--port", port])
    assert result.exit_code == 2, result.output
    assert f"port is {port}; nothing can be served there (Address already in use)" in result.output


def test_the_first_token_does_not_wait_for_an_acknowledgement() -> None:
    """A small piece after another is sent at once on every connection; else it takes 40 ms on kept ones."""

    async def answered() -> int:
        sent = asyncio.Event()
        is_set: list[int] = []

        def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            is_set.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            sent.set()

        with serve.bound("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(answer, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                await sent.wait()
                writer.close()
        return is_set[0]

    assert asyncio.run(answered()) == 1


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "is_installed", lambda name: name != "prometheus_client")
    result = CliRunner().invoke(serve.command, [])
    assert result.exit_code == 2, result.output
    assert "serve needs prometheus_client; install them with pip install 'specexp[serve]'." in result.output

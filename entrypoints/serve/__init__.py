"""serve: answer requests of the OpenAI interface with one method on one pair, many at a time; makes no run."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specexp import config, signals
from specexp.command_line import guarded, own_options, print_notes, settings_options
from specexp.config import single
from specexp.config.parsers import MOST_TOGETHER, whole
from specexp.errors import ConfigError
from specexp.installed import is_installed
from specexp.method_specs import takers
from specexp.pair import first_look
from specexp.serving.allocator import freeze_startup, share_one_arena

from ..generate import SETTINGS as GENERATE

if TYPE_CHECKING:
    from specexp.serving.completion_service import CompletionService

# A request without a seed gets one of its own.
SETTINGS = {
    **{name: text for name, text in GENERATE.items() if name != "seed"},
    "max_new_tokens": "Set the most tokens to emit, unless a request says otherwise.",
}
TRIAL, TRIAL_TOKENS = "Hello.", 8  # decoded before anything is served
NEEDED = ("fastapi", "prometheus_client", "uvicorn")  # the extra `serve`
EXTRA_GRACE = 5  # seconds in which callers are told that their requests were cut off
BACKLOG = 2048  # connections that may wait to be accepted
WHY_UNUSED = "requests bring prompts and seeds, --method names the method, and --rows how many are decoded together"
_NAME = re.compile(r"[A-Z_a-z]\w*")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The checked options. `keys` are what requests must send one of; none are needed where it is empty."""

    name: str
    host: str
    port: int
    rows: int
    max_waiting: int
    most_new_tokens: int | None  # None is what the context holds
    grace: int
    keys: tuple[str, ...]


def parse(given: Mapping[str, str]) -> ServeConfig:
    """Options from text. Raises ConfigError with every fault."""
    faults: list[str] = []

    def number(name: str, least: int, most: int) -> int:
        try:
            return whole(least, f">= {least} and at most {most}", most)(given[name])
        except ValueError as error:
            faults.append(f"{name} is {given[name]!r}; {error}")
            return least

    port = number("port", 0, 65535)
    rows, max_waiting = number("rows", 1, MOST_TOGETHER), number("max_waiting", 0, 100_000)
    grace = number("grace", 0, 3600)
    most = number("most_new_tokens", 1, 10_000_000) if given["most_new_tokens"] else None
    keys = _keys(given["key_env"], faults)
    if faults:
        raise ConfigError(faults)
    return ServeConfig(given["name"], given["host"], port, rows, max_waiting, most, grace, keys)


def _keys(variable: str, faults: list[str]) -> tuple[str, ...]:
    """The keys in an environment variable, separated by commas. They are written nowhere."""
    if not variable:
        return ()
    if not _NAME.fullmatch(variable):
        faults.append("key_env is not the name of an environment variable; put the keys there, and give its name.")
        return ()
    keys = tuple(key for part in os.environ.get(variable, "").split(",") if (key := part.strip()))
    if not keys:
        faults.append(f"the environment variable {variable} of key_env has no key; set it, or leave key_env out.")
    return keys


def serve(experiment: str, method: str, own: Mapping[str, str], flags: Mapping[str, str]) -> None:
    """Check, bind, load, and serve until a signal comes. Raises SpecexpError."""
    options = parse(own)
    asked = single.resolve(experiment, method, flags)
    if options.most_new_tokens is not None and options.most_new_tokens < asked.max_new_tokens:
        raise ConfigError(
            f"most_new_tokens is {options.most_new_tokens}; it must be at least max_new_tokens, which is"
            f" {asked.max_new_tokens}."
        )
    if missing := [name for name in NEEDED if not is_installed(name)]:
        raise ConfigError(f"serve needs {' and '.join(missing)}; install them with pip install 'specexp[serve]'.")
    first_look.check(asked)
    if unused := unused_settings(flags.get("config", ""), method):
        print_notes([f"serve does not use {', '.join(unused)} of '{flags['config']}': {WHY_UNUSED}."])
    with bound(options.host, options.port) as listener:
        share_one_arena()  # before torch is imported, which starts threads
        # Import torch only after the settings are checked.
        from specexp.api import LoadedPair
        from specexp.methods import roles_of
        from specexp.serving.completion_service import CompletionService, ServiceLimits

        pair = LoadedPair(asked, roles=roles_of(asked.methods[0]))
        most = options.most_new_tokens or max(pair.context, asked.max_new_tokens)
        limits = ServiceLimits(options.rows, options.max_waiting, most)
        service = CompletionService(pair, asked, limits, options.name)
        print_notes(pair.notes)
        pair.decode(TRIAL, replace(asked, max_new_tokens=TRIAL_TOKENS))
        if not options.keys and not is_loopback(options.host):
            print_notes(
                [f"anybody who reaches {options.host} may use this server; name a variable of keys by key_env."]
            )
        freeze_startup()
        run(service, listener, options)


def unused_settings(file: str, method: str) -> list[str]:
    """The settings of a file, such as one that was written for evaluate, that change nothing here."""
    if not file:
        return []
    given = config.load_yaml(Path(file).expanduser())
    used = {*SETTINGS, *takers()}
    if list(given.get("methods") or []) == [method]:
        used.add("methods")
    return sorted(name for name, value in given.items() if name not in used and value is not None)


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) for this protocol's number alone: else each output's first token
    # waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"host is {host!r} and port is {port}; nothing can be served there ({error.strerror or error}): choose"
            " others."
        ) from None
    return listener


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def run(service: CompletionService, listener: socket.socket, options: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; then requests in progress have `grace` seconds to end."""
    import uvicorn

    from specexp.serving.openai_app import make_app

    config = uvicorn.Config(
        make_app(service, options.keys), log_level="warning", access_log=False, server_header=False, lifespan="off",
        ws="none", backlog=BACKLOG, timeout_graceful_shutdown=options.grace + EXTRA_GRACE,
    )  # fmt: skip

    class DrainingServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            # In a thread of its own, since the interrupted one may hold the service's lock.
            threading.Thread(target=service.close, args=(options.grace,), daemon=True).start()
            super().handle_exit(sig, frame)  # type: ignore[arg-type]

    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    click.echo(f"{service.name} at http://{address}/v1 (Ctrl-C ends it)")
    with suppress(KeyboardInterrupt, signals.Terminated):  # uvicorn raises the signal again once all is closed
        DrainingServer(config).run(sockets=[listener])
    click.echo("stopped.")


@click.command("serve", help=__doc__)
@own_options("serve")
@settings_options("arith_quick", SETTINGS, output=False)
def command(
    experiment: str, method: str, name: str, host: str, port: str, rows: str, max_waiting: str, most_new_tokens: str,
    grace: str, key_env: str, **flags: str,
) -> None:  # fmt: skip
    own = {
        "name": name, "host": host, "port": port, "rows": rows, "max_waiting": max_waiting,
        "most_new_tokens": most_new_tokens, "grace": grace, "key_env": key_env,
    }  # fmt: skip
    guarded(lambda: serve(experiment, method, own, flags), "", "")

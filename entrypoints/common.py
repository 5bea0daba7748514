"""What entry points do alike: one clear line and exit code 2 for what a person can mend, a clean end on SIGTERM."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from specexp.errors import SpecexpError

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


class Flag(click.ParamType[bool]):
    """true / false as text, since MLflow passes text; a bare `--resume` works too."""

    name = "true|false"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in TRUE:
            return True
        if str(value).lower() in FALSE:
            return False
        return self.fail(f"{value!r} is neither true nor false.", param, ctx)


def guarded(work: Callable[[], None], way_on: str = "Go on with --resume (-P resume=true).") -> None:
    """Run `work`; print a SpecexpError's lines and exit with 2, an interruption's and exit with 130 or 143."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except SpecexpError as error:
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(f"interrupted; what was recorded stays. {way_on}", err=True)
        sys.exit(130)
    except _Terminated:
        click.echo(f"terminated; what was recorded stays. {way_on}", err=True)
        sys.exit(143)


class _Terminated(BaseException):
    """SIGTERM as an exception, not a kill: runs are closed on the way out."""


def _terminate(signum: int, frame: object) -> None:
    raise _Terminated

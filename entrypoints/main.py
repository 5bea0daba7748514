"""main: the whole story on the embedded pair, as far as it goes: evaluate every method on problems it never saw."""

from __future__ import annotations

import click

from entrypoints.common import guarded
from entrypoints.evaluate import evaluate, options


@click.command("main", help=__doc__)
@options("arith_quick")
def command(experiment: str, output: str, resume: bool, **flags: str) -> None:
    guarded(lambda: evaluate(experiment, output, resume, flags))


if __name__ == "__main__":
    command(prog_name="python -m entrypoints.main")

"""`specexp` lists the entry points; `specexp NAME ...` runs one.

In a checkout the command is `python -m entrypoints`. This package is `entrypoints` there and `specexp.entrypoints` when
installed, so its modules import each other by relative names.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

COMMANDS = {
    "advise": "recommend a setting: predict every one, check the best",
    "benchmark": "compare decoding speed with generate() and with the hardware's limits",
    "calibrate_rule": "set acceptance rules without training for a wanted loss, beside a judge",
    "certify": "check whether a method's output is exactly the target's, on your models and sampling",
    "collect_labels": "mine the draft's mismatches that change an answer",
    "evaluate": "decode a task's prompts with several methods and compare them",
    "generate": "decode one prompt and show its text as it arrives",
    "judge_report": "show how reliable a judge is, and which tokens pass it",
    "log_decoder": "log a pair and a method as a model that MLflow serves",
    "main": "mine labels, train a judge and evaluate every method on the embedded pair",
    "presets": "list the presets, or show one",
    "serve": "answer requests of the OpenAI interface with a method, many at a time",
    "speed_check": "compare decoding with the hardware's limits, for random models of a known shape",
    "train_drafter": "train, evaluate and register a head that drafts from the target's hidden states",
    "train_judge": "train, calibrate and register a judge on mined labels",
    "train_pair": "train the embedded pair again",
    "upload": "send an output folder's runs to the tracking store, after it did not answer",
    "validate": "check the presets that ship, or the given files",
}


class Entrypoints(click.Group):
    """Imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: Any = importlib.import_module(f".{cmd_name}", __package__).command
        return command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Entry points"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(
    cls=Entrypoints, invoke_without_command=True, help="specexp: which decoding method to use, and what it gains."
)
@click.pass_context
def cli(context: click.Context) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process, and others that hold shards of the target
        _join(int(os.environ["RANK"]))
        from specexp.command_line import JOINED

        context.meta[JOINED] = True
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _join(rank: int) -> None:
    """The first process runs the command; all others follow it, and end here."""
    if rank == 0:
        from specexp.lm.sharded.group import started_by_torchrun

        started_by_torchrun()
        return
    from specexp.lm.sharded.follower import main

    main()
    sys.exit(0)


if __name__ == "__main__":
    cli()

"""Plans runs over many workers, and measures runs on a few: `python -m specexp.scale plan`, `limits`, `measure`
or `replay`."""

from __future__ import annotations

import click

from specexp.scale import limits_command, measure_command, plan_command


@click.group("scale", help=__doc__)
def command() -> None:
    pass


command.add_command(plan_command.command)
command.add_command(measure_command.command)
command.add_command(measure_command.replay)
command.add_command(limits_command.command)

if __name__ == "__main__":
    command()

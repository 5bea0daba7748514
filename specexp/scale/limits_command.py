"""Say what breaks first as runs grow: the driver's time and memory, measured on this machine without any worker."""

from __future__ import annotations

import click

from specexp.command_line import guarded
from specexp.errors import ConfigError
from specexp.scale.arguments import numbers


@click.command("limits", help=__doc__)
@click.option("--workers", default="1,64,256,1000", show_default=True, help="Set numbers of workers.")
@click.option("--seconds", default=2.0, show_default=True, help="Set what a prompt takes on a worker.")
@click.option("--call-seconds", default=0.002, show_default=True,
              help="Set what a result takes of the driver besides its loop; measure prints it.")  # fmt: skip
@click.option("--result-bytes", default=5_000.0, show_default=True, help="Set the size of a prompt's records.")
@click.option("--labels-per-prompt", default=6.5, show_default=True, help="Set how many labels a prompt has.")
@click.option("--memory", default=64.0, show_default=True, help="Set the memory of each machine, in GB.")
def command(
    workers: str, seconds: float, call_seconds: float, result_bytes: float,
    labels_per_prompt: float, memory: float,
) -> None:  # fmt: skip
    def run() -> None:
        faults: list[str] = []
        sizes = numbers("workers", workers, faults)
        positive = {
            "seconds": seconds, "call-seconds": call_seconds,
            "result-bytes": result_bytes, "labels-per-prompt": labels_per_prompt, "memory": memory,
        }  # fmt: skip
        faults += [f"{name} is {value:g}; it must be above 0." for name, value in positive.items() if not value > 0]
        if faults:
            raise ConfigError(faults)
        from specexp.scale.limits import LargeRun, lines

        large = LargeRun(seconds, result_bytes, labels_per_prompt, call_seconds, memory * 2**30)
        for line in lines(large, sizes):
            click.echo(line)

    guarded(run, "Run the same command again.", "nothing was written.")

"""speed_check: compare decoding with the hardware's limits, for random models of a known shape; downloads nothing."""

from __future__ import annotations

import json as json_format

import click

from specexp.benchmark.shapes import SHAPES
from specexp.errors import ConfigError
from specexp.lm.runtime import DTYPES

from .common import file_of, guarded


def speed_check(shape: str, device: str, dtype: str, gamma: int, compiled: bool, json: str) -> None:
    """Measure, show and write. Raises SpecexpError."""
    faults = [
        f"{name} is {value!r}; known: {', '.join(known)}."
        for name, value, known in (("shape", shape, SHAPES), ("dtype", dtype, DTYPES))
        if value not in known
    ]
    if gamma < 1:
        faults.append(f"gamma is {gamma}; it must be >= 1.")
    if faults:
        raise ConfigError(faults)
    json_path = file_of(json, "json") if json else None
    import torch

    from specexp.benchmark import hardware_check as measuring
    from specexp.storage.files import write_whole

    place = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    small = shape == "tiny"
    check = measuring.Check(
        shape, place, dtype, gamma, context=64 if small else 512, new_tokens=32 if small else 128, compiled=compiled
    )
    result = measuring.measure(check)
    click.echo(measuring.table(result))
    if json_path:
        write_whole(json_path, json_format.dumps(result, indent=2) + "\n")


@click.command("speed_check", help=__doc__)
@click.option(
    "--shape", default="llama-8b-1b", show_default=True, help=f"Choose the models' shape: {', '.join(SHAPES)}."
)
@click.option("--device", default="", help="Choose the device: cuda:0, cpu, ... Default: cuda:0 where there is one.")
@click.option("--dtype", default="bfloat16", show_default=True, help=f"Choose the dtype: {', '.join(DTYPES)}.")
@click.option("--gamma", default=4, show_default=True, help="Set the draft length of a round.")
@click.option("--compiled/--no-compiled", default=True, help="Also time generate() compiled.")
@click.option("--json", default="", help="Write the numbers to this file, too.")
def command(shape: str, device: str, dtype: str, gamma: int, compiled: bool, json: str) -> None:
    guarded(
        lambda: speed_check(shape, device, dtype, gamma, compiled, json),
        "A check records nothing before its end: start it again.",
    )


if __name__ == "__main__":
    command()

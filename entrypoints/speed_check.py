"""speed_check: compare decoding with the hardware's limits, for random models of a known shape; downloads nothing."""

from __future__ import annotations

import json as json_format

import click

from specexp.benchmark.shapes import SHAPES
from specexp.command_line import file_of, guarded, own_options
from specexp.errors import ConfigError
from specexp.lm.runtime import DTYPES


def speed_check(shape: str, device: str, dtype: str, gamma: str, compiled: bool, json: str) -> None:
    """Measure, show and write. Raises SpecexpError."""
    faults = [
        f"{name} is {value!r}; known: {', '.join(known)}."
        for name, value, known in (("shape", shape, SHAPES), ("dtype", dtype, DTYPES))
        if value not in known
    ]
    if not (gamma.isdigit() and int(gamma) > 0):
        faults.append(f"gamma is {gamma!r}; it must be a whole number >= 1.")
    if faults:
        raise ConfigError(faults)
    json_path = file_of(json, "json") if json else None
    import torch

    from specexp.benchmark import hardware_check as measuring
    from specexp.storage.files import write_whole

    small = shape == "tiny"
    place = device or ("cpu" if small and not torch.cuda.is_available() else "cuda:0")
    check = measuring.HardwareCheck(
        shape,
        place,
        dtype,
        int(gamma),
        context=64 if small else 512,
        new_tokens=32 if small else 128,
        repeats=2 if small else 5,
        compiled=compiled,
    )
    if device or place == "cpu" or torch.cuda.is_available():
        result = measuring.measure(check)
    else:
        result = measuring.unmeasured(check, "no CUDA device here; device=cpu measures it on the CPU")
    click.echo(measuring.table(result))
    if json_path:
        write_whole(json_path, json_format.dumps(result, indent=2) + "\n")


@click.command("speed_check", help=__doc__)
@own_options("speed_check")
def command(shape: str, device: str, dtype: str, gamma: str, compiled: bool, json: str) -> None:
    guarded(
        lambda: speed_check(shape, device, dtype, gamma, compiled, json),
        "A check records nothing before its end: start it again.",
    )


if __name__ == "__main__":
    command()

"""speed_check: compare decoding with the hardware's limits, for random models of a known shape; downloads nothing."""

from __future__ import annotations

import json as json_format
from typing import Any

import click
from click.core import ParameterSource

from specexp.benchmark.shapes import ONLY_OFFLOADED, SHAPES
from specexp.command_line import file_of, guarded, own_options
from specexp.errors import ConfigError
from specexp.lm.runtime import DTYPES, OFFLOADS

ACCEPTANCE = "0.8"  # with offload, where none is given


def speed_check(
    shape: str, device: str, dtype: str, gamma: str, compiled: bool, offload: str, offload_memory: str,
    acceptance: str, json: str, compiled_given: bool = False,
) -> None:  # fmt: skip
    """Measure, show and write. Raises SpecexpError."""
    offload = offload or "none"
    faults = [
        f"{name} is {value!r}; known: {', '.join(known)}."
        for name, value, known in (("shape", shape, SHAPES), ("dtype", dtype, DTYPES), ("offload", offload, OFFLOADS))
        if value not in known
    ]
    if not (gamma.isdigit() and int(gamma) > 0):
        faults.append(f"gamma is {gamma!r}; it must be a whole number >= 1.")
    if not 0 < _number(acceptance or ACCEPTANCE) < 1:
        faults.append(f"acceptance is {acceptance!r}; it must be a number above 0 and below 1.")
    if not 0 <= _number(offload_memory or "0") < 1e6:
        faults.append(f"offload_memory is {offload_memory!r}; it must be a number >= 0 and below 1000000, in GiB.")
    if offload == "none":
        faults += [
            f"{name} is {value}, but offload is none: give --offload cpu or disk, or leave --{name} out."
            for name, value in (("acceptance", acceptance), ("offload_memory", offload_memory))
            if value
        ]
        if shape in ONLY_OFFLOADED:
            faults.append(f"shape {shape} is measured with an offloaded target only: give --offload cpu or disk.")
    elif compiled_given:
        faults.append(f"generate() is not timed with --offload {offload}: leave --compiled and --no-compiled out.")
    if faults:
        raise ConfigError(faults)
    json_path = file_of(json, "json") if json else None
    import torch

    from specexp.benchmark import hardware_check, offload_check
    from specexp.storage.files import write_whole

    small = shape == "tiny"
    place = device or ("cpu" if small and not torch.cuda.is_available() else "cuda:0")
    context, repeats = (64, 2) if small else (512, 5)
    result: dict[str, Any]
    missing = "no CUDA device here; device=cpu measures it on the CPU"
    measured = bool(device) or place == "cpu" or torch.cuda.is_available()
    if offload == "none":
        check = hardware_check.HardwareCheck(
            shape, place, dtype, int(gamma), context, new_tokens=32 if small else 128, repeats=repeats,
            compiled=compiled,
        )  # fmt: skip
        result = hardware_check.measure(check) if measured else hardware_check.unmeasured(check, missing)
        click.echo(hardware_check.table(result))
    else:
        of_offload = offload_check.OffloadCheck(
            shape, place, dtype, int(gamma), offload, float(offload_memory or 0), float(acceptance or ACCEPTANCE),
            context, repeats,
        )  # fmt: skip
        result = offload_check.measure(of_offload) if measured else offload_check.unmeasured(of_offload, missing)
        click.echo(offload_check.table(result))
    if json_path:
        write_whole(json_path, json_format.dumps(result, indent=2) + "\n")


def _number(text: str) -> float:
    """The number that a text says; NaN if it says none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


@click.command("speed_check", help=__doc__)
@own_options("speed_check")
@click.pass_context
def command(
    context: click.Context, shape: str, device: str, dtype: str, gamma: str, compiled: bool, offload: str,
    offload_memory: str, acceptance: str, json: str,
) -> None:  # fmt: skip
    given = context.get_parameter_source("compiled") is not ParameterSource.DEFAULT
    guarded(
        lambda: speed_check(
            shape, device, dtype, gamma, compiled, offload, offload_memory, acceptance, json, compiled_given=given
        ),
        "A check records nothing before its end: start it again.",
    )


if __name__ == "__main__":
    command()

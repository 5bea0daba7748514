"""Measure what several workers of this machine take beside fewer, and what handing out costs.

`python -m specexp.scale measure --limit 600 --workers 1,2` mines the same problems with one and with two workers of one
thread each, block by block, and replays both runs with the simulator. `replay FOLDER` prints that again.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specexp import config
from specexp.command_line import guarded, output_path
from specexp.errors import ConfigError, OutputError
from specexp.scale.arguments import numbers
from specexp.workers import settings as worker_settings
from specexp.workers.settings import LOCAL, WorkerSettings

if TYPE_CHECKING:
    from specexp.scale.measured_work import MeasuredWork
    from specexp.scale.recorded_runs import Measurement
    from specexp.workers.dispatch import Crew, WorkerJob

MINING, EVALUATION = "collect_labels", "evaluate"
BLOCKS = 6
_FLAGS = ("limit", "batch", "methods", "max_new_tokens", "config")


@click.command("measure", help=__doc__)
@click.option("--command", "measured", type=click.Choice([MINING, EVALUATION]), default=MINING, show_default=True,
              help="Choose what the workers do.")  # fmt: skip
@click.option("--experiment", default="arith_quick", show_default=True, help="Name an experiment preset.")
@click.option("--limit", default="", help="Set how many prompts are done. Default: that of the command.")
@click.option("--batch", default="", help="Set how many prompts a worker does together. Default: that of the command.")
@click.option("--methods", default="", help="Set the methods of an evaluation.")
@click.option("--max-new-tokens", default="", help="Set the most tokens of an output.")
@click.option("--config", default="", help="Name a settings file.")
@click.option("--workers", default="1,2", show_default=True, help="Set numbers of workers, separated by commas.")
@click.option("--blocks", default="", help=f"Divide the prompts into so many blocks. Default: {BLOCKS}, of mining.")
@click.option("--gpus-per-worker", default="", help="Set how many GPUs each worker has.")
@click.option("--cpus-per-worker", default="", help="Set how many CPUs each worker has. Default: 1, or its share.")
@click.option("--output", default="", help="Name the folder for measured.json.")
@click.option("--resume", is_flag=True, help="Go on in a folder with the runs that it lacks.")
def command(
    measured: str, experiment: str, workers: str, blocks: str, gpus_per_worker: str, cpus_per_worker: str, output: str,
    resume: bool, **flags: str,
) -> None:  # fmt: skip
    def run() -> None:
        faults: list[str] = []
        sizes = sorted(set(numbers("workers", workers, faults)))
        parts = numbers("blocks", blocks or (str(BLOCKS) if measured == MINING else "1"), faults)
        if len(parts) > 1:
            faults.append(f"blocks is '{blocks}'; give one number.")
        elif measured == EVALUATION and parts not in ([], [1]):
            faults.append(f"blocks is {blocks}, but an evaluation is measured as a whole; leave blocks out.")
        if measured == MINING and flags["methods"]:
            faults.append(f"methods is '{flags['methods']}', but mining has none; leave it out, or measure evaluate.")
        if faults:
            raise ConfigError(faults)
        cores = os.cpu_count() or 1
        each = cpus_per_worker or ("1" if sizes[-1] <= cores else f"{int(1000 * cores / sizes[-1]) / 1000:g}")
        options = {
            "workers": str(sizes[-1]), "ray": LOCAL, "gpus_per_worker": gpus_per_worker, "cpus_per_worker": each,
        }  # fmt: skip
        settings = worker_settings.parse(options)
        assert settings is not None
        given = {name: flags[name] for name in _FLAGS if flags[name]}
        _measure(measured, experiment, given, sizes, parts[0], settings, output, resume)

    guarded(run)


@click.command("replay")
@click.argument("folder")
def replay(folder: str) -> None:
    """Show a measurement again, replayed with the simulator."""

    def run() -> None:
        from specexp.scale.recorded_runs import Measurement

        measurement = Measurement.read(Path(folder))
        if not measurement.runs:
            raise OutputError(f"the measurement in '{folder}' has no run yet; go on with measure --resume.")
        _show(measurement)

    guarded(run, "", "nothing was written.")


def _measure(
    measured: str, experiment: str, flags: dict[str, str], sizes: list[int], num_blocks: int, settings: WorkerSettings,
    output: str, resume: bool,
) -> None:  # fmt: skip
    resolved = (config.resolve_mining if measured == MINING else config.resolve)(experiment, flags)
    limit = resolved.experiment.limit if isinstance(resolved, config.MiningConfig) else resolved.limit
    if not isinstance(resolved, config.MiningConfig):
        worker_settings.check_experiment(resolved)
    if num_blocks > limit:
        raise ConfigError([f"blocks is {num_blocks}, but there are {limit} prompts; lower blocks or raise limit."])
    # Nothing heavy is imported before the settings are checked.
    from specexp.scale import measuring
    from specexp.scale.measured_work import MeasuredEvaluation, MeasuredMining
    from specexp.storage.run_folder import locked

    work: MeasuredWork
    work = MeasuredMining(resolved) if isinstance(resolved, config.MiningConfig) else MeasuredEvaluation(resolved)
    folder = output_path(output, f"measured-{measured}-{resolved.hash}-{num_blocks}")
    measurement = _begun(folder, _setting(measured, experiment, flags, sizes, num_blocks, settings, resolved), resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output '{folder}' cannot be made: {error.strerror or error}.") from error

    @contextmanager
    def opened(job: WorkerJob) -> Iterator[Crew]:
        from specexp.workers.crew import crew

        with crew(settings, job) as result:
            yield result

    with locked(folder):
        measuring.measure(work, sizes, num_blocks, measurement, folder, opened)
    _show(measurement)
    click.echo(f"measured: {folder}")


def _setting(
    measured: str, experiment: str, flags: dict[str, str], sizes: list[int], num_blocks: int, settings: WorkerSettings,
    resolved: config.MiningConfig | config.Experiment,
) -> dict[str, str]:  # fmt: skip
    """What is measured, and where; a resumed measurement must agree with all but the first and the last line."""
    from specexp.storage import environment

    given = [f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in flags.items()]
    of_mining = isinstance(resolved, config.MiningConfig)
    limit = resolved.experiment.limit if isinstance(resolved, config.MiningConfig) else resolved.limit
    return {
        "command": " ".join([measured, "--experiment", experiment, *given]),
        "settings": f"{resolved.hash}, {limit} prompts, batch {resolved.batch}, {'blocks' if of_mining else 'block'}"
        f" {num_blocks}",
        "workers": f"{', '.join(map(str, sizes))}, of {settings.threads} threads and {settings.gpus:g} GPUs each",
        "processor": f"{environment.processor_name()}, {os.cpu_count()} cores",
        "begun": f"{time.strftime('%Y-%m-%d %H:%M')}, load average {os.getloadavg()[0]:.1f}",
    }


def _begun(folder: Path, setting: dict[str, str], resume: bool) -> Measurement:
    """Return the measurement that is to be completed. Raises OutputError."""
    from specexp.scale.recorded_runs import FILE, Measurement
    from specexp.storage.run_folder import LOCK

    if (folder / FILE).exists():
        if not resume:
            raise OutputError(f"'{folder}' has a measurement; give --resume to go on there, or another output.")
        result = Measurement.read(folder)
        changed = [name for name in ("settings", "workers", "processor") if result.setting.get(name) != setting[name]]
        if changed:
            was = "; ".join(f"{name}: {result.setting.get(name)}" for name in changed)
            raise OutputError(f"'{folder}' was begun with other settings ({was}); name another output.")
        return result
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK}):
        raise OutputError(f"output '{folder}' exists and has no measurement; name another one.")
    return Measurement(setting)


def _show(measurement: Measurement) -> None:
    from specexp.scale.comparison import report

    for line in report(measurement):
        click.echo(line)

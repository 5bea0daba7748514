"""benchmark: compare decoding speed with transformers' generate(), or put served engines under load."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from specexp import config, reading
from specexp.command_line import (
    file_of,
    guarded,
    outbox_of,
    output_path,
    own_options,
    print_notes,
    publish,
    settings_options,
    tags_of,
)
from specexp.config import load_settings, request_settings
from specexp.config.schema import help_texts, option_names
from specexp.errors import ConfigError
from specexp.pair import first_look

from .evaluate import CONFIG

if TYPE_CHECKING:
    from specexp.evaluation.preparation import Prepared
    from specexp.storage.journal import Journal
    from specexp.storage.run_folder import OutputFolder
    from specexp.tracking.outbox import Outbox

FULL = {"repeats": 5, "gamma": [2, 4, 6, 8, 12, 16], "limit": 20, "batch": 16}
QUICK: dict[str, Any] = {"repeats": 2, "gamma": [4, 8], "limit": 3, "max_new_tokens": 48, "batch": 16}
SETTINGS = {
    **help_texts(option_names("benchmark")),
    "config": CONFIG,
    "gamma": "Set the draft lengths to search, separated by commas.",
    "limit": f"Set how many prompts are timed. Default: {FULL['limit']}.",
    "repeats": "Set how often every prompt is timed with each contender.",
    "batch": "Set how many prompts a batch has in its timing; all else is timed one at a time. Default: 16.",
}
# Greedy; temperature 0.7 is timed as well. The chains are those that transformers' assisted generation has.
FIXED = {"methods": "baseline,speculative", "temperature": "0", "top_k": "0", "top_p": "1", "rule": "token",
         "draft_temperature": "target", "min_draft_probability": "0", "bonus": True}  # fmt: skip


def benchmark(
    experiment: str, output: str, resume: bool, quick: bool, compiled: bool | None, json: str, flags: Mapping[str, str]
) -> None:
    """Resolve, measure, show, write and log. Raises SpecexpError."""
    if _names_engine(flags):
        if quick or compiled is not None:
            raise ConfigError("quick and compiled are for models that are loaded, not for engines; leave them out.")
        put_load(experiment, output, resume, json, flags)
        return
    resolved = config.resolve(experiment, flags, QUICK if quick else FULL, FIXED)
    if any(method.auto_gamma for method in resolved.methods):
        raise ConfigError("gamma is auto, but a benchmark compares fixed lengths with transformers'; give numbers.")
    if faults := request_settings.refused(resolved, "a benchmark times whole outputs"):
        raise ConfigError(faults)
    if resolved.toy is not None:
        raise ConfigError(f"pair '{resolved.pair}' has no Transformers models; name a pair that has.")
    if resolved.target.tensor_parallel > 1:
        raise ConfigError(
            f"tensor_parallel is {resolved.target.tensor_parallel}, but generate(), which a benchmark compares with,"
            " would run in one of the processes alone; leave tensor_parallel out, or time settings with evaluate."
        )
    path = output_path(output, "benchmark", resolved.hash, resume)
    json_path = file_of(json, "json") if json else None
    from specexp.storage.run_folder import OutputFolder

    folder = OutputFolder(path, resolved, resume, maker="benchmark")
    first_look.check(resolved)
    # Import torch and mlflow only after the settings are checked.
    from specexp.benchmark import benchmark as measuring
    from specexp.benchmark import benchmark_report as report
    from specexp.evaluation.preparation import inputs_of
    from specexp.evaluation.report.figures import draw_benchmark
    from specexp.storage.files import write_whole
    from specexp.storage.journal import FILE, Journal

    outbox = _outbox(folder, resolved)
    prepared = measuring.prepare(resolved)
    print_notes(prepared.notes)
    with_compiled = not quick if compiled is None else compiled
    facts = {**inputs_of(prepared), "quick": quick, "compiled": with_compiled}
    with folder.hold(), Journal.open(folder.path / FILE, facts) as journal:
        prepared = _fitted(prepared, journal, quick, with_compiled, flags)
        result = report.as_json(measuring.measure(prepared, with_compiled, journal))
        click.echo(report.table(result))
        folder.write_json("benchmark.json", result)
        draw_benchmark(folder.path / "benchmark.png", result)
        if json_path:
            write_whole(json_path, json_format.dumps(result, indent=2, ensure_ascii=False) + "\n")
        if outbox is None:
            click.echo("mlflow is not installed: no run was made.")
        else:
            names = ("benchmark.json", "benchmark.png", "config.json")
            click.echo(publish(outbox, names, report.metrics(result), prepared.task).charts)
    click.echo(f"numbers: {json or folder.path / 'benchmark.json'}")


def put_load(experiment: str, output: str, resume: bool, json: str, flags: Mapping[str, str]) -> None:
    """Measure served engines under load, show, write and log. Raises SpecexpError."""
    resolved = load_settings.completed(config.resolve(experiment, flags, load_settings.DEFAULTS_OF_EXPERIMENT))
    if faults := load_settings.faults_of(resolved):
        raise ConfigError(faults)
    path = output_path(output, "load", resolved.hash, resume)
    json_path = file_of(json, "json") if json else None
    from specexp.storage.run_folder import OutputFolder, uid_of

    folder = OutputFolder(path, resolved, resume, maker="benchmark")
    first_look.check(resolved)
    from specexp.evaluation import preparation
    from specexp.evaluation.served import Engines
    from specexp.load_testing import load_page, measurement, results
    from specexp.storage.files import write_whole
    from specexp.storage.journal import FILE, Journal
    from specexp.storage.run_plan import Input

    outbox = _outbox(folder, resolved)
    prepared = preparation.prepare(resolved)
    print_notes(prepared.notes)
    with Engines(prepared) as engines:
        facts = {**preparation.inputs_of(prepared), **measurement.engine_facts(engines)}
        with folder.hold(), Journal.open(folder.path / FILE, facts) as journal:
            load = measurement.measure(prepared, engines, journal)
            result = results.as_json(load)
            click.echo(results.table(result))
            for line in (*results.sentences(result), *(f"warning: {each}" for each in results.warnings(result))):
                click.echo(line)
            folder.write_json(results.RESULTS, result)
            load_page.write(folder.path, result)
            if json_path:
                write_whole(json_path, json_format.dumps(result, indent=2, ensure_ascii=False) + "\n")
            if outbox is None:
                click.echo("mlflow is not installed: no run was made.")
            else:
                files = results.paths(folder.path)
                main = outbox.main({}, files, [Input.of(prepared.task.dataset(), "evaluation")])
                runs = results.method_runs(load, result, uid_of(folder.path))
                click.echo((outbox.add(files) if outbox.is_sent else outbox.send(main, runs)).charts)
    click.echo(f"page: {folder.path / results.PAGE}")


def _names_engine(flags: Mapping[str, str]) -> bool:
    """True if the settings file names a served engine. What is wrong with the file is told when it is resolved."""
    try:
        return bool(flags.get("config")) and "engine" in config.load_yaml(
            reading.path_of(flags["config"], "config file", ConfigError)
        )
    except ConfigError:
        return False


def _fitted(
    prepared: Prepared, journal: Journal, quick: bool, with_compiled: bool, flags: Mapping[str, str]
) -> Prepared:
    """What will be measured; says how long it takes. A quick benchmark lowers settings that are not given, to fit."""
    from specexp.benchmark import quick as fitting

    asked, paces = prepared.experiment, None if ("plan",) in journal else fitting.paces(prepared)
    if quick:
        given = {name for name in fitting.NAMES if flags.get(name) or getattr(asked, name) != QUICK[name]}
        plan = journal.unit(("plan",), lambda: asdict(fitting.plan(prepared, given, paces or fitting.paces(prepared))))
        prepared = fitting.shortened(prepared, plan["settings"])
        if said := fitting.note(asked, plan["settings"]):
            click.echo(said, err=True)
    else:
        journal.unit(("plan",), lambda: None)
    if paces is not None:
        fitting.announce(prepared, paces, with_compiled)
    return prepared


def _outbox(folder: OutputFolder, resolved: config.Experiment) -> Outbox | None:
    """The outbox of the benchmark's run; None where MLflow is not installed."""
    try:
        import specexp.tracking.outbox  # noqa: F401
    except ImportError:
        return None
    return outbox_of(folder, "benchmark", f"bench {resolved.name}", tags_of("benchmark", resolved))


@click.command("benchmark", help=__doc__)
@settings_options("arith_quick", SETTINGS)
@own_options("benchmark")
def command(experiment: str, output: str, resume: bool, quick: bool, compiled: str, json: str, **flags: str) -> None:
    guarded(lambda: benchmark(experiment, output, resume, quick, _switch(compiled), json, flags))


def _switch(text: str) -> bool | None:
    if text.lower() not in ("", "true", "false"):
        raise ConfigError(f"compiled is {text!r}; it must be true or false, or be left out.")
    return {"true": True, "false": False}.get(text.lower())


if __name__ == "__main__":
    command()

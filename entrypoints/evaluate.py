"""evaluate: decode a task's prompts with several methods, interleaved, and record what each costs and gains."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specexp import config
from specexp.addresses import mask
from specexp.command_line import guarded, outbox_of, output_path, own_options, print_notes, settings_options, tags_of
from specexp.config import load_settings
from specexp.config.schema import OPTIONS, help_texts, option_names
from specexp.errors import ConfigError, Unsent
from specexp.pair import first_look
from specexp.workers import settings as worker_settings
from specexp.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from specexp.judge.judge import Judge

CONFIG = OPTIONS["config"].help
SETTINGS = {**help_texts(option_names()), "config": CONFIG}


def evaluate(
    experiment: str, output: str, resume: bool, flags: Mapping[str, str], show: str = "", with_notes: bool = True,
    workers: WorkerSettings | None = None,
) -> None:  # fmt: skip
    """Resolve, run and log one experiment. Raises SpecexpError."""
    resolved = config.resolve(experiment, flags, executes=True)
    if faults := load_settings.refused(resolved):
        raise ConfigError(faults)
    if workers is not None:
        worker_settings.check_experiment(resolved)
    folder_path = output_path(output, f"{resolved.name}-{resolved.hash}")
    # Import torch and mlflow only after the settings are checked.
    from specexp.evaluation.token_view.selection import ShownPrompts
    from specexp.storage.run_folder import OutputFolder, uid_of

    shown = ShownPrompts.parse(show)
    folder = OutputFolder(folder_path, resolved, resume)
    first_look.check(resolved)
    from specexp.evaluation import divergence, measured_costs, preparation, scheduling
    from specexp.evaluation.in_process import Decoding, InProcess, records_of
    from specexp.evaluation.report import publish, run_specs
    from specexp.evaluation.token_view import token_page
    from specexp.evaluation.token_view.data import Tracer

    tags = {**tags_of("comparison", resolved), "batch": str(resolved.batch)}
    outbox = outbox_of(folder, "comparison", f"compare {resolved.name}", tags)
    judges = judges_of(resolved)
    with ExitStack() as stack:
        decoding: Decoding = InProcess()
        tracer: Tracer | None = None
        if workers is not None:
            from specexp.workers.evaluation_run import EvaluationDriver, evaluation_crew

            driver = EvaluationDriver(stack.enter_context(evaluation_crew(workers, resolved, judges)), folder)
            decoding, tracer = driver, driver.traced
        prepared = preparation.prepare(resolved, judges, shown.check, load=decoding.load_pair)
        print_notes(prepared.notes if with_notes else ())
        records = stack.enter_context(folder.open())
        preparation.note_inputs(prepared, folder)
        prepared = measured_costs.with_draft_costs(prepared, folder, decoding.draft_costs)
        commands = commands_of(experiment, folder_path, flags)
        if not scheduling.missing(prepared, records) and outbox.is_sent:
            prepared = decoding.complete(prepared, folder)
            divergence.examine(prepared, folder, records, decoding.explain(records))
            report = publish.show(prepared, folder, records.records, commands)
            sent = outbox.add([])
        else:
            with outbox.open(timed=resolved.batch == 1):
                decoding.log_nodes(outbox.metrics_run)
                prepared = decoding.run(prepared, folder, records)
                divergence.examine(prepared, folder, records, decoding.explain(records))
                kept = records_of(prepared, records)
                report = publish.show(prepared, folder, kept, commands)
                main = run_specs.main(prepared, folder, report, outbox)
                method_runs = run_specs.method_runs(prepared, folder, kept, report, uid_of(folder_path))
                try:
                    sent = outbox.send(main, method_runs)
                except Unsent:
                    if files := token_page.write(prepared, folder, records, shown, tracer=tracer):
                        outbox.add_to_plan([publish.write_page(folder, report), *files])
                    raise
        # Written last: it is only for reading, and no result depends on it.
        if files := token_page.write(prepared, folder, records, shown, tracer=tracer):
            sent = outbox.add([publish.write_page(folder, report), *files])
    click.echo(f"records: {folder.path / 'records.jsonl'}")
    click.echo(sent.charts)


def commands_of(experiment: str, folder: Path, flags: Mapping[str, str]) -> list[str]:
    """The command that decodes the same into a new folder, and the command that shows this folder again."""
    given = {"experiment": experiment, **{name: value for name, value in flags.items() if value}}
    line = ["python", "-m", "specexp", "evaluate"]
    for name, value in given.items():
        line += [f"--{name.replace('_', '-')}", mask(str(value))]
    again = folder.with_name(f"{folder.name}-again")
    return [shlex.join([*line, "--output", str(again)]), shlex.join([*line, "--output", str(folder), "--resume"])]


def judges_of(resolved: config.Experiment) -> dict[str, Judge]:
    """The judges that the methods name; MLflow is not imported if there are none."""
    names = sorted({method.judge for method in resolved.methods if method.judge})
    if not names:
        return {}
    from specexp.judge import registry

    return {name: registry.load(name) for name in names}


@click.command("evaluate", help=__doc__)
@settings_options("arith_quick", SETTINGS)
@own_options("evaluate")
def command(experiment: str, output: str, resume: bool, show: str, **flags: str) -> None:
    options = worker_settings.taken_from(flags)
    guarded(lambda: evaluate(experiment, output, resume, flags, show, workers=worker_settings.parse(options)))


if __name__ == "__main__":
    command()

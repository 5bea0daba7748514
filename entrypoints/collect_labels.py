"""collect_labels: mine the mismatches between draft and target that change an answer (AutoJudge, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import click

from specexp import config
from specexp.command_line import guarded, outbox_of, output_path, own_options, print_notes, settings_options, tags_of
from specexp.config.schema import help_texts
from specexp.pair import first_look
from specexp.workers import settings as worker_settings
from specexp.workers.settings import WorkerSettings

from .evaluate import CONFIG

SETTINGS = {
    **help_texts(("pair", "target", "draft", "chat_template")),
    "task": f"Choose where prompts come from: {', '.join(config.CHECKABLE)}.",
    **help_texts(("data", "system", "shots", "shots_data", "answer_rule", "answer_pattern", "comparator", "execute")),
    "max_new_tokens": "Set the most tokens of a response.",
    **help_texts(("thinking_budget",)),
    "limit": f"Set how many prompts are mined. Default: {config.MINED_PROMPTS}.",
    "batch": f"Set how many prompts are mined together, with the same labels. Default: {config.MINED_TOGETHER}.",
    "config": CONFIG,
}
COLUMNS = (
    ("prompts", "labels/prompts", "{:.0f}"),
    ("without answer", "labels/prompts_without_answer", "{:.0f}"),
    ("unfinished", "labels/prompts_unfinished", "{:.0f}"),
    ("mismatches a prompt", "labels/mismatches_per_prompt", "{:.2f}"),
    ("undecided swaps", "labels/unfinished_swaps", "{:.0f}"),
    ("important, of those decided", "labels/important_share", "{:.1%}"),
    ("target calls of the reference procedure", "labels/target_calls_of_slow_way", "{:.1%}"),
    ("target positions of the reference procedure", "labels/target_positions_of_slow_way", "{:.1%}"),
)


def collect_labels(
    experiment: str, output: str, resume: bool, flags: Mapping[str, str], workers: WorkerSettings | None = None
) -> Path:
    """Resolve, mine and log one label set; returns its folder. Raises SpecexpError."""
    resolved = config.resolve_mining(experiment, flags)
    path = output_path(output, f"labels-{resolved.experiment.task}-{resolved.hash}")
    # Import torch and mlflow only after the settings are checked.
    from specexp.storage.run_folder import OutputFolder

    folder = OutputFolder(path, resolved, resume, "collect_labels")
    first_look.check(resolved.experiment, {"target", "draft"})
    from specexp.judge import collection, mining_yield
    from specexp.judge.labels import MANIFEST, files_of
    from specexp.pair.loading import load_pair
    from specexp.storage.run_plan import File, Input
    from specexp.tasks.example import Dataset
    from specexp.tasks.programs import execution_of

    tags = {**tags_of("collect_labels", resolved.experiment), "group": "labels"}
    outbox = outbox_of(folder, "labels", f"labels {resolved.experiment.task}", tags)
    with ExitStack() as stack:
        driver = None
        if workers is not None and not (path / MANIFEST).exists():
            from specexp.workers.mining import MiningDriver, mining_crew

            driver = MiningDriver(stack.enter_context(mining_crew(workers, resolved)), folder)
        prepared = collection.prepare(resolved, load_pair if driver is None else driver.load_pair)
        print_notes(prepared.notes)
        stack.enter_context(folder.hold())
        collection.note_inputs(prepared, folder)
        is_sent = (path / MANIFEST).exists() and outbox.is_sent
        with nullcontext() if is_sent else outbox.open(timed=False):
            if driver is not None:
                driver.crew.log_nodes(outbox.metrics_run)
            labels = collection.collect(prepared, folder, driver)
            metrics = mining_yield.summarise(labels)
            if not is_sent:
                # Wherever the store is, the labels are among the run's own artifacts.
                mined = Dataset("labels", "runs:/{run_id}/labels", labels.hash, len(labels.labels))
                inputs = [Input.of(prepared.task.dataset(), "evaluation"), Input.of(mined, "labels")]
                main = outbox.main(metrics, [path / "config.json"], inputs, execution_of(prepared.task))
                files = [File(name, "labels") for name in files_of(path)]
                outbox.send(replace(main, files=[*main.files, *files]))
    for name, metric, form in COLUMNS:
        click.echo(f"{name:>33}  {form.format(metrics[metric])}")
    for warning in mining_yield.warnings(labels):
        click.echo(f"warning: {warning}")
    click.echo(f"labels: {path}")
    return path


@click.command("collect_labels", help=__doc__)
@settings_options("arith_quick", SETTINGS)
@own_options("collect_labels")
def command(experiment: str, output: str, resume: bool, **flags: str) -> None:
    options = worker_settings.taken_from(flags)
    guarded(lambda: collect_labels(experiment, output, resume, flags, worker_settings.parse(options)))


if __name__ == "__main__":
    command()

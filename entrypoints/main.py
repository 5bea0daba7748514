"""main: mine labels, train a judge, and evaluate every method on prompts that neither of them used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from specexp import config
from specexp.command_line import guarded, output_path, own_options, settings_options
from specexp.errors import OutputError
from specexp.pair import first_look

from .collect_labels import collect_labels
from .evaluate import SETTINGS, evaluate
from .train_judge import parse, train_judge

EXPERIMENT = "arith_judge"
CHAMPION = "models:/autojudge@champion"  # the judge that AutoJudge's presets name: it is trained here first
# What labels depend on besides the experiment.
OF_LABELS = (
    "pair",
    "target",
    "draft",
    "chat_template",
    "task",
    "data",
    "system",
    "shots",
    "shots_data",
    "answer_rule",
    "answer_pattern",
    "comparator",
    "execute",
    "max_new_tokens",
    "config",
)


def main(experiment: str, output: str, resume: bool, mine: str, flags: Mapping[str, str], show: str = "") -> None:
    """Mine labels, train a judge, evaluate; only evaluate if no method needs a judge or one is given."""
    resolved = config.resolve(experiment, flags, executes=True)
    if not any(method.judge == CHAMPION for method in resolved.methods):
        evaluate(experiment, output, resume, flags, show)
        return
    folder = output_path(output, f"{resolved.name}-{resolved.hash}")
    given = {key: value for key, value in flags.items() if key in OF_LABELS} | {"limit": mine}
    if resolved.data is not None and config.resolve_mining(experiment, given).experiment.data == resolved.data:
        given["skip"] = str(resolved.limit)  # the same rows: mining skips those of the evaluation
    config.resolve_mining(experiment, given)  # report every fault before any work
    first_look.check(resolved)
    _check(show, resolved)
    from specexp.storage import files
    from specexp.tracking import backend, client

    backend.unreachable_reason()
    with client.detached():
        labels = collect_labels(experiment, str(folder / "labels"), resume, given)
        note = folder / "judge" / "address.txt"
        if not (resume and note.is_file()):
            # The target's rows only: the verifying call yields them, so they need no draft step.
            asked = parse(str(labels), "target", "0.99", "mlp,logistic", "autojudge", str(folder / "judge"), "0", False)
            address = train_judge(asked)
            files.write_whole(note, address)
    given = {**flags, "judge": _noted(note)}
    evaluate(experiment, str(folder / "evaluation"), resume, given, show, with_notes=False)  # mining showed them


def _noted(note: Path) -> str:
    """The address of the judge that was trained. Raises OutputError."""
    try:
        address = note.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{note} cannot be read ({error}); remove it, and the judge is trained again.") from error
    if not address.startswith("models:/") or len(address.splitlines()) != 1:
        raise OutputError(f"{note} holds no judge's address; remove it, and the judge is trained again.")
    return address


def _check(show: str, resolved: config.Experiment) -> None:
    """Raise ConfigError for prompts to show that the evaluation, which comes last, will not have."""
    from specexp.evaluation.token_view.selection import ShownPrompts

    shown = ShownPrompts.parse(show)
    if shown.number is None:
        shown.check(resolved.read_task().examples(resolved.limit))


@click.command("main", help=__doc__)
@settings_options(EXPERIMENT, SETTINGS)
@own_options("main")
def command(experiment: str, output: str, resume: bool, mine: str, show: str, **flags: str) -> None:
    guarded(lambda: main(experiment, output, resume, mine, flags, show))


if __name__ == "__main__":
    command()

"""advise: recommend what to run: predict drafts of every kind and tree budgets, check the best, recommend one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from specexp import config
from specexp.command_line import (
    guarded,
    outbox_of,
    output_path,
    own_options,
    print_notes,
    publish,
    settings_options,
    tags_of,
)
from specexp.config import request_settings
from specexp.config.parsers import real
from specexp.config.schema import help_texts, option_names
from specexp.draft_faults import head_faults
from specexp.errors import ConfigError
from specexp.method_specs import models_of
from specexp.pair import first_look
from specexp.workers import settings as worker_settings

from .evaluate import CONFIG, judges_of

DEFAULTS = {
    "methods": ["speculative", "lookup", "suffix", "chained", "specexec"],
    "gamma": list(range(1, 17)),
    "min_draft_probability": [0, 0.4],
    "tree_budget": [8, 16, 32, 64, 128],
    "max_depth": 8,
    "parallel_branches": 8,
    "limit": 8,
    "repeats": 5,
}
OF_ENGINES = {"gamma": DEFAULTS["gamma"], "limit": 8, "repeats": 5}
NO_TREES = ("0", "none")
NO_DRAFT = "none"
MOST_COST = 1000.0
SETTINGS = {
    **help_texts(option_names("advise")),
    "config": CONFIG,
    "draft": f"Give the draft model: a folder or a hub id; {NO_DRAFT} weighs lookup and suffix alone.",
    "gamma": "Set the draft lengths to weigh, separated by commas. Default: 1 to 16.",
    "tree_budget": "Set the nodes of the trees to weigh, separated by commas; none leaves trees out."
    " Default: 8,16,32,64,128.",
    "limit": f"Set how many prompts are measured. Default: {DEFAULTS['limit']}.",
    "repeats": f"Set how often prompts are timed with each candidate that is checked. Default: {DEFAULTS['repeats']}.",
    "judge": "Weigh AutoJudge, which is lossy, with this judge: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME"
    " or a folder.",
}


def advise(
    experiment: str, output: str, resume: bool, sweep: bool, draft_cost: str, flags: Mapping[str, str],
    options_of_workers: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Resolve, measure, recommend, write and log. Raises SpecexpError."""
    if _names_engines(flags):
        worker_settings.refuse_engines(options_of_workers or {})
        advise_engines(experiment, output, resume, sweep, draft_cost, flags)
        return
    workers = worker_settings.parse(options_of_workers or {})
    if draft_cost:
        raise ConfigError("draft_cost is given, but calls of models that are loaded are timed; leave it out.")
    resolved, with_trees, with_draft = resolve(experiment, flags)
    if workers is not None:
        worker_settings.check_experiment(resolved)
    if with_draft and not _gives_gamma(flags):
        resolved = with_fitting_chains(resolved, first_look.longest_chain(resolved))
    from specexp.advise.candidates import validated

    resolved = validated(resolved, with_trees, with_draft)
    first_look.check(resolved)
    # Import torch and mlflow only after the settings are checked.
    from specexp.advise import advice as advising
    from specexp.advise import advice_report as report
    from specexp.advise.advice_figure import draw_advice
    from specexp.advise.recommended import NAME, recommended, recommended_for_engines
    from specexp.engine_settings import served
    from specexp.evaluation import measured_costs, preparation
    from specexp.storage.files import write_whole
    from specexp.storage.journal import FILE, Journal
    from specexp.storage.run_folder import OutputFolder

    folder = OutputFolder(output_path(output, "advise", resolved.hash, resume), resolved, resume, maker="advise")
    outbox = outbox_of(folder, "advise", f"advise {resolved.name}", tags_of("advise", resolved))
    prepared = preparation.prepare(resolved, judges_of(resolved))
    print_notes(prepared.notes)
    facts = {**preparation.inputs_of(prepared), "sweep": sweep}
    with folder.hold(), Journal.open(folder.path / FILE, facts) as journal:
        prepared = measured_costs.with_draft_costs(prepared, folder)
        preparation.announce_runs(prepared, advising.num_left(prepared, sweep, journal))
        if workers is not None:
            from specexp.advise.workers import measuring

            measuring.measure(workers, prepared, measured_costs.saved_costs(folder), journal)
        advice = advising.measure(prepared, sweep, journal=journal)
        result = report.as_json(advice)
        click.echo(report.table(result))
        folder.write_json("advice.json", result)
        draw_advice(folder.path / "advice.png", result)
        write_whole(folder.path / NAME, recommended(advice, folder.path / NAME))
        served.write(recommended_for_engines(advice), folder.path, click.echo)
        names = ("advice.json", "advice.png", NAME, served.FILE, served.TEXT_FILE, "config.json")
        sent = publish(outbox, names, report.metrics(advice), prepared.task)
    click.echo(f"settings: {folder.path / NAME}")
    click.echo(sent.charts)


def advise_engines(
    experiment: str, output: str, resume: bool, sweep: bool, draft_cost: str, flags: Mapping[str, str]
) -> None:  # fmt: skip
    """Compare the served engines of the settings file, and predict other drafts in the first. Raises SpecexpError."""
    cost = cost_of(draft_cost)
    if flags.get("draft", "").strip().lower() == NO_DRAFT:
        raise ConfigError("draft is none, but methods say what is weighed in engines; leave it out.")
    from specexp.advise.engines import engine_advice, engine_prediction

    resolved = engine_advice.checked(config.resolve(experiment, flags, OF_ENGINES), sweep, cost)
    predicts = bool(engine_prediction.own_methods(resolved))
    first_look.check(resolved)
    from specexp.advise.engines import engine_outputs
    from specexp.advise.engines import engine_prediction_report as report
    from specexp.engine_settings import served
    from specexp.evaluation import preparation
    from specexp.storage.journal import FILE, Journal
    from specexp.storage.run_folder import OutputFolder

    asked = engine_advice.engines_alone(resolved)
    folder = OutputFolder(output_path(output, "advise", asked.hash, resume), asked, resume, maker="advise")
    outbox = outbox_of(folder, "advise", f"advise {resolved.name}", tags_of("advise", resolved))
    pair = engine_prediction.load(resolved) if predicts else None
    prepared = preparation.prepare(asked)
    print_notes([*prepared.notes, *(pair.notes if pair else ())])
    result = {"setting": {**resolved.as_dict(), "settings_hash": resolved.hash}}
    names, metrics = ["advice.json", "config.json"], {}
    costs = None if cost is None else engine_prediction.EngineCosts(cost, "as draft_cost says")
    with folder.open() as records:
        if len(prepared.served) > 1:
            advice = engine_advice.measure(prepared, folder, records, predicts)
            click.echo(engine_advice.table(advice))
            result, metrics = engine_advice.as_json(advice, resolved), engine_advice.logged(advice)
            costs = costs or engine_advice.draft_costs(advice)
        if pair is not None:
            with_p = engine_prediction.needs_probabilities(resolved)
            with Journal.open(
                folder.path / FILE, {"data": prepared.task.dataset().digest, "logprobs": with_p}
            ) as journal:
                outputs = engine_outputs.take(prepared, pair.text, pair.eos_ids, with_p, journal)
            predicted = engine_prediction.predict(resolved, pair, outputs)
            prediction = report.EnginePrediction(
                prepared.served[0].config.label, resolved, predicted, costs, outputs
            )  # fmt: skip
            click.echo(report.table(prediction))
            result, metrics = result | {"prediction": report.as_json(prediction)}, metrics | report.logged(prediction)
            if (recommended := report.for_engines(prediction, pair.vocabulary)) is not None:
                served.write(recommended, folder.path, click.echo)
                names += [served.FILE, served.TEXT_FILE]
        folder.write_json("advice.json", result)
        sent = publish(outbox, names, metrics, prepared.task)
    click.echo(sent.charts)


def cost_of(given: str) -> float | None:
    """The cost of a drafted token. Raises ConfigError."""
    if not given:
        return None
    try:
        return real(lambda x: 0 <= x <= MOST_COST, f">= 0 and at most {MOST_COST:g}")(given)
    except ValueError as error:
        raise ConfigError(f"draft_cost is {given!r}; {error}") from None


def resolve(experiment: str, flags: Mapping[str, str]) -> tuple[config.Experiment, bool, bool]:
    """The candidates as an experiment; True if trees are among them; True if methods with a draft are.

    Raises ConfigError with every fault.
    """
    if flags.get("threshold") and not flags.get("judge") and not flags.get("config"):
        raise ConfigError("threshold is given without a judge; name one with judge, or leave threshold out.")
    with_trees = flags.get("tree_budget", "").strip().lower() not in NO_TREES
    with_draft = flags.get("draft", "").strip().lower() != NO_DRAFT
    if flags.get("judge") and not with_draft:
        raise ConfigError("judge is given, but draft is none; name a draft, or leave judge out.")
    left_out = {name for name, kept in (("tree_budget", with_trees), ("draft", with_draft)) if not kept}
    asked = {key: value for key, value in flags.items() if key not in left_out}
    resolved = config.resolve(experiment, asked, DEFAULTS)
    if faults := request_settings.refused(resolved, "advise predicts the speed of whole outputs"):
        raise ConfigError(faults)
    if not any(flags.get(name) for name in ("config", "methods", "gamma")):
        resolved = with_variants(resolved)
    return resolved, with_trees, with_draft


def with_variants(experiment: config.Experiment) -> config.Experiment:
    """The experiment with a draft that adapts and, where tokens are sampled, chains verified as blocks and drafts at
    temperature 0."""
    methods = list(experiment.methods)
    chains = [m for m in methods if m.method == "speculative" and not m.min_draft_probability]
    if chains:
        adapting = config.adjusted(experiment, {"methods": "speculative_auto"}).methods
        methods += [m for m in adapting if not (experiment.draft.head and head_faults([m], experiment.draft))]
    if experiment.temperature:
        methods += [replace(m, rule="block", label=f"{m.label}_block") for m in chains]
        methods += [replace(m, draft_temperature=0.0, label=f"{m.label}_dt0") for m in chains]
    return replace(experiment, methods=tuple(methods))


def _names_engines(flags: Mapping[str, str]) -> bool:
    """True if the settings file has served engines."""
    file = flags.get("config")
    return bool(file) and "engine" in config.load_yaml(Path(str(file)).expanduser())


def _gives_gamma(flags: Mapping[str, str]) -> bool:
    """True if the draft lengths are the user's own."""
    file = flags.get("config")
    return bool(flags.get("gamma")) or (bool(file) and "gamma" in config.load_yaml(Path(str(file)).expanduser()))


def with_fitting_chains(experiment: config.Experiment, most: int | None) -> config.Experiment:
    """The experiment without drafts of more than `most` tokens, which a head may not have; None: it may."""
    if not most:
        return experiment
    methods = []
    for method in experiment.methods:
        if method.auto_gamma and most > 1:
            longest = min(most, method.max_gamma)
            method = replace(method, gamma=longest, max_gamma=longest)
        if "draft" not in models_of(method) or method.gamma <= most:
            methods.append(method)
    return replace(experiment, methods=tuple(methods))


@click.command("advise", help=__doc__)
@settings_options("arith_quick", SETTINGS)
@own_options("advise")
def command(experiment: str, output: str, resume: bool, sweep: bool, draft_cost: str, **flags: str) -> None:
    options = worker_settings.taken_from(flags)
    guarded(lambda: advise(experiment, output, resume, sweep, draft_cost, flags, options))


if __name__ == "__main__":
    command()

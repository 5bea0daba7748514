"""certify: check whether the output of a method, or of a served engine, is exactly the target's; 0 yes, 1 no."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict

import click

from specexp.certify import certificate_config
from specexp.command_line import guarded, outbox_of, output_path, own_options, print_notes, settings_options
from specexp.config.schema import help_texts, option_names
from specexp.engine_certify import engine_certificate_config
from specexp.engine_certify.engine_certificate_config import EngineOptions
from specexp.errors import ConfigError
from specexp.pair import first_look
from specexp.workers import settings as worker_settings
from specexp.workers.settings import WorkerSettings

from .evaluate import CONFIG, judges_of

SETTINGS = {
    **help_texts(option_names("certify"), one=True),
    "limit": "Set how many prompts are compared token for token.",
    "batch": "Set how many prompts (default: 1) and samples (default: 32) are decoded together.",
    "config": CONFIG,
}
METHOD = "speculative"  # unless another one or an engine is named
EXIT_CODES = {"lossless": 0, "passed": 0}


def certify(
    experiment: str, method: str, samples: str, output: str, resume: bool, flags: Mapping[str, str],
    workers: WorkerSettings | None = None,
) -> str:  # fmt: skip
    """Resolve, examine, show, write and log one certificate; returns its verdict. Raises SpecexpError."""
    asked = certificate_config.resolve(experiment, method, samples, flags)
    if workers is not None:
        worker_settings.check_experiment(asked.experiment)
    path = output_path(output, f"certify-{asked.method.label}-{asked.hash}")
    # Import torch and mlflow only after the settings are checked.
    from specexp.storage.run_folder import OutputFolder

    folder = OutputFolder(path, asked, resume, "certify")
    first_look.check(asked.experiment)
    from specexp.certify import certificate as examining
    from specexp.certify import certificate_report as report
    from specexp.certify.checks import Check
    from specexp.certify.work import OneProcess, Work
    from specexp.evaluation import measured_costs, preparation
    from specexp.storage import environment
    from specexp.tracking import client

    outbox = outbox_of(folder, "certificate", f"certify {asked.method.label}", report.tags_of(asked))
    judges = judges_of(asked.experiment)
    with ExitStack() as stack:
        driver = None
        if workers is not None:
            from specexp.certify.on_workers import OnWorkers, certificate_crew

            driver = OnWorkers(stack.enter_context(certificate_crew(workers, asked, judges)))
            subject = examining.prepare(asked, judges, driver.load_pair)
        else:
            subject = examining.prepare(asked, judges)
        print_notes(subject.prepared.notes)
        stack.enter_context(folder.hold())
        preparation.note_inputs(subject.prepared, folder)
        subject = examining.with_draft_costs(subject, folder, None if driver is None else driver.draft_costs)
        work: Work = OneProcess(subject)
        if driver is not None:
            driver.costs, work = measured_costs.saved_costs(folder), driver
            facts = driver.environments()
        else:
            described = environment.describe(subject.prepared.pair.models, subject.prepared.pair.text.facts())
            facts = {environment.name_of(described): described}
        where = next(iter(facts))
        folder.write_json("environments.json", {**(folder.read_json("environments.json") or {}), **facts})
        checks = report.checks_of(folder.read_json(report.CHECKS), where)

        def note(check: Check) -> None:
            checks[check.name] = check
            completed = [asdict(each) for each in checks.values()]
            folder.write_json(report.CHECKS, {"environment": where, "checks": completed})

        if len(checks) == len(examining.NAMES) and outbox.is_sent:
            certificate = examining.examine(subject, asked.samples, checks)
            click.echo(report.text(subject, certificate))
            report.write_engines(subject, certificate, path, click.echo)
            sent = outbox.add([], [report.update_of(subject, certificate)])
        else:
            attached = client.attached()
            with outbox.open(timed=False):
                if driver is not None:
                    driver.crew.log_nodes(outbox.metrics_run)
                certificate = examining.examine(subject, asked.samples, dict(checks), note, work)
                if driver is not None:
                    facts = driver.environments()
                    folder.write_json("environments.json", {**(folder.read_json("environments.json") or {}), **facts})
                folder.write_json(report.FILE, report.as_json(subject, certificate, asked, where, facts))
                click.echo(report.text(subject, certificate))
                report.write_engines(subject, certificate, path, click.echo)
                main = report.main(subject, certificate, folder, outbox, attached)
                sent = outbox.send(main, updates=[report.update_of(subject, certificate)])
    click.echo(_tagged(sent.num_updated, certificate.verdict))
    click.echo(f"certificate: {path / report.FILE}")
    return certificate.verdict


def certify_engine(
    experiment: str, method: str, options: EngineOptions, output: str, resume: bool, flags: Mapping[str, str]
) -> str:
    """Resolve, ask, show, write and log a certificate of a served engine; returns its verdict. Raises SpecexpError."""
    if method:
        raise ConfigError(f"method is {method!r}, but engine is given; examine one of them.")
    asked = engine_certificate_config.resolve(experiment, options, flags)
    path = output_path(output, f"certify-{asked.engine.name}-{asked.hash}")
    # Import torch and mlflow only after the settings are checked.
    from specexp.storage.run_folder import OutputFolder

    folder = OutputFolder(path, asked, resume, "certify")
    if asked.weights:
        first_look.check(asked.experiment)
    from specexp.engine_certify import engine_certificate as examining
    from specexp.engine_certify import engine_certificate_report as report
    from specexp.engine_certify import engine_subject
    from specexp.evaluation import preparation
    from specexp.storage import environment
    from specexp.storage.journal import FILE, Journal
    from specexp.tracking import client

    outbox = outbox_of(folder, "certificate", f"certify {asked.engine.name}", report.tags_of(asked))
    prepared = preparation.prepare(asked.experiment)
    print_notes(prepared.notes)
    with folder.hold(), engine_subject.connected(asked, prepared) as subject:
        preparation.note_inputs(prepared, folder)
        facts = environment.describe(prepared.pair.models, prepared.pair.text.facts())
        facts["engines"] = {each.method.name: each.facts() for each in subject.engines}
        where = environment.name_of(facts)
        folder.write_json("environments.json", {**(folder.read_json("environments.json") or {}), where: facts})
        with Journal.open(path / FILE, engine_subject.facts_of(subject)) as subject.journal:
            attached, sent_before = client.attached(), outbox.is_sent
            with nullcontext() if sent_before else outbox.open(timed=False):
                certificate = examining.examine(subject)
                written = report.as_json(certificate, subject, where)
                report.write_json(folder, written)
                report.write_page(folder, certificate, asked, written)
                click.echo(report.text(certificate, asked))
                main = report.main(subject, certificate, folder, outbox, attached)
                sent = outbox.add([]) if sent_before else outbox.send(main)
    click.echo(sent.charts)
    click.echo(f"certificate: {path / report.PAGE}")
    return certificate.verdict


def _tagged(number: int, verdict: str) -> str:
    if not number:
        return "No finished run of `evaluate` in this store has these settings: none was tagged."
    runs = "1 finished run of `evaluate` has" if number == 1 else f"{number} finished runs of `evaluate` have"
    return f"{runs} these settings: tagged certificate = {verdict}."


@click.command("certify", help=__doc__)
@own_options("certify")
@settings_options("arith_quick", SETTINGS)
def command(
    experiment: str, method: str, samples: str, engine: str, engine_model: str, against: str, weights: str, bias: str,
    engine_dtype: str, output: str, resume: bool, **flags: str,
) -> None:  # fmt: skip
    options_of_workers = worker_settings.taken_from(flags)
    options = EngineOptions(engine, engine_model, against, weights, samples, bias, engine_dtype)

    def work() -> str:
        if engine:
            worker_settings.refuse_engines(options_of_workers)
            return certify_engine(experiment, method, options, output, resume, flags)
        if faults := options.given_without_engine():
            raise ConfigError(faults)
        workers = worker_settings.parse(options_of_workers)
        return certify(experiment, method or METHOD, samples, output, resume, flags, workers)

    verdict: list[str] = []
    guarded(lambda: verdict.append(work()))
    sys.exit(EXIT_CODES.get(verdict[0], 1))


if __name__ == "__main__":
    command()

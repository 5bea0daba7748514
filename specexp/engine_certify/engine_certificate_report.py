"""The outputs of an engine's certificate: text, certificate.json, certificate.html, and its MLflow run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from specexp.addresses import mask
from specexp.certify.certificate_report import FILE, INDENT, TAG, WIDTH
from specexp.engine_certify.engine_certificate import EngineCertificate
from specexp.engine_certify.engine_certificate_config import EngineCertificateConfig
from specexp.engine_certify.engine_subject import EngineSubject
from specexp.storage.files import write_whole
from specexp.storage.run_folder import OutputFolder
from specexp.storage.run_plan import Input, RunSpec
from specexp.tracking.outbox import Outbox

PAGE = "certificate.html"


def text(certificate: EngineCertificate, config: EngineCertificateConfig) -> str:
    """The certificate as text for the terminal."""
    lines = [f"certificate: {headline(config)}", ""]
    for check in certificate.checks:
        words = textwrap.wrap(check.sentence, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
        head = f"  {check.name:<16}{check.verdict:<16}"
        lines += [f"{head:<{INDENT}}{words[0]}", *(" " * INDENT + line for line in words[1:])]
    lines += ["", *(line for each in certificate.compared for line in textwrap.wrap(each, WIDTH))]
    for finding in certificate.findings:
        lines += ["", *textwrap.wrap(f"found: {said(finding.sentence, finding.plain_too, config)}", WIDTH)]
    if alone := unattributed(certificate, config):
        lines += ["", *textwrap.wrap(alone, WIDTH)]
    lines += ["", *textwrap.wrap(f"verdict: {certificate.verdict.upper()}: {certificate.reason}", WIDTH)]
    return "\n".join(lines)


def said(sentence: str, plain_too: bool, config: EngineCertificateConfig) -> str:
    """A finding's sentence, with who does it."""
    if plain_too and config.against is not None:
        return f"{sentence} Plain decoding ({config.against.method}) does it, too: it is not speculation."
    return sentence


def unattributed(certificate: EngineCertificate, config: EngineCertificateConfig) -> str:
    """That nothing tells who does what was found, as a sentence; "" if something does, or if nothing was."""
    if config.against is not None or not certificate.findings:
        return ""
    return "No plain endpoint was named by against: the server may do this without speculation as well."


def headline(config: EngineCertificateConfig) -> str:
    """The engine, what it is compared with, task, and sampling."""
    experiment, engine = config.experiment, config.engine
    words = f"{engine.method} ({engine.endpoint.model} at {engine.endpoint.url})"
    if config.against is not None:
        words += f" against {config.against.method} ({config.against.endpoint.url})"
    if config.weights:
        words += f", with the weights of pair {experiment.pair}"
    sampling = "greedy" if not experiment.temperature else f"greedy and temperature {experiment.temperature:g}"
    sampling += f", top-k {experiment.top_k}" if experiment.top_k else ""
    sampling += f", top-p {experiment.top_p:g}" if experiment.top_p < 1 else ""
    return f"{words}, task {experiment.task}, {sampling}, {config.dtype}"


def as_json(certificate: EngineCertificate, subject: EngineSubject, environment: str) -> dict[str, Any]:
    """The whole certificate as JSON."""
    config = subject.config
    return {
        "verdict": certificate.verdict,
        "reason": certificate.reason,
        "of": headline(config),
        "findings": [asdict(each) for each in certificate.findings],
        "compared": list(certificate.compared),
        "engines": {each.name: each.facts() for each in subject.engines},
        "checks": [asdict(check) for check in certificate.checks],
        "metrics": certificate.metrics(),
        "settings_hash": config.hash,
        "environment": environment,
    }


def write_json(folder: OutputFolder, written: Mapping[str, Any]) -> None:
    """Write certificate.json. Raises OutputError."""
    folder.write_json(FILE, written)


def write_page(
    folder: OutputFolder, certificate: EngineCertificate, config: EngineCertificateConfig, written: Mapping[str, Any]
) -> None:  # fmt: skip
    """Write certificate.html: the verdict, what was found, and every check with its numbers. Raises OutputError."""
    loader = ChoiceLoader([PackageLoader("specexp.engine_certify"), PackageLoader("specexp.judge_comparison")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = "|".join(re.escape(name) for name in written["engines"])
    starts = re.compile(rf" (?=(?:{names})[:,] )")
    page = environment.get_template("certificate.html").render(
        certificate=certificate, written=written, alone=unattributed(certificate, config), by_engine=starts.split
    )
    write_whole(folder.path / PAGE, mask(page))


def tags_of(config: EngineCertificateConfig) -> dict[str, str]:
    """Tags of the certificate's own run."""
    engine, experiment = config.engine, config.experiment
    return {
        "method": "certify", "preset": engine.method, "group": engine.method, "engine": engine.name,
        "pair": experiment.pair if config.weights else "", "task": experiment.task,
    }  # fmt: skip


def main(
    subject: EngineSubject, certificate: EngineCertificate, folder: OutputFolder, outbox: Outbox, attached: bool
) -> RunSpec:
    """The certificate's own run. `mlflow run` logged its raw arguments already, under the names of our parameters."""
    names = (FILE, PAGE, "config.json", "data.json", "environments.json")
    files = [folder.path / name for name in names]
    inputs = [Input.of(subject.prepared.task.dataset(), "evaluation")]
    return outbox.main(
        certificate.metrics(), files, inputs, {TAG: certificate.verdict}, {} if attached else _params(subject.config)
    )


def _params(config: EngineCertificateConfig) -> dict[str, object]:
    experiment, engine, against = config.experiment, config.engine, config.against
    return {
        "engine.url": engine.endpoint.url, "engine.model": engine.endpoint.model, "engine.api": engine.endpoint.api,
        "engine.request": dict(engine.switch) or "", "against.url": "" if against is None else against.endpoint.url,
        "against.request": "" if against is None else dict(against.switch) or "", "weights": config.weights,
        "bias": config.bias, "samples": config.samples or "", "engine_dtype": config.dtype,
        "temperature": experiment.temperature, "top_k": experiment.top_k, "top_p": experiment.top_p,
        "max_new_tokens": experiment.max_new_tokens, "limit": experiment.limit, "seed": experiment.seed,
        "task": experiment.task, "settings_hash": config.hash,
    }  # fmt: skip

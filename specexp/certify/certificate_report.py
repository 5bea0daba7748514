"""The outputs of a finished certificate: text, certificate.json, its own MLflow run, and marks on the method's runs.

The marked runs are the finished method runs of `evaluate` in the store that used the same models, the same settings
of the method and the same sampling, whatever the prompts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specexp.certify.certificate import LOSSLESS, Certificate
from specexp.certify.certificate_config import CertificateConfig
from specexp.certify.checks import Check, Subject
from specexp.engine_settings import recommendation, served
from specexp.evaluation.report import run_specs
from specexp.storage.run_folder import OutputFolder
from specexp.storage.run_plan import Input, RunSpec, RunUpdate, now
from specexp.tracking.outbox import Outbox

FILE, CHECKS = "certificate.json", "checks.json"
TAG = "certificate"
WIDTH, INDENT = 110, 34
# Logged parameters that do not affect how tokens are drawn: runs that differ in them still belong to the same method.
_OTHER = (
    "preset", "seed", "task", "experiment", "settings_hash", "limit", "max_new_tokens", "batch", "data", "shots",
    "shots_data", "system", "answer_rule", "answer_pattern", "comparator", "min_similarity", "prompt_tokens",
)  # fmt: skip


def text(subject: Subject, certificate: Certificate) -> str:
    """The certificate as text for the terminal."""
    lines = [f"certificate: {_headline(subject)}", ""]
    for check in certificate.checks:
        words = textwrap.wrap(check.sentence, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
        head = f"  {check.name:<16}{check.verdict:<16}"
        lines += [f"{head:<{INDENT}}{words[0]}", *(" " * INDENT + line for line in words[1:])]
    lines += ["", *textwrap.wrap(f"verdict: {certificate.verdict.upper()}: {certificate.reason}", WIDTH)]
    return "\n".join(lines)


def _headline(subject: Subject) -> str:
    """The method, pair, task, sampling and arithmetic that were examined."""
    experiment, warp = subject.prepared.experiment, subject.warp
    sampling = "greedy" if warp.greedy else f"temperature {warp.temperature:g}"
    sampling += f", top-k {warp.top_k}" if warp.top_k else ""
    sampling += f", top-p {warp.top_p:g}" if warp.top_p < 1 else ""
    return f"{subject.method.label} on pair {experiment.pair}, task {experiment.task}, {sampling}, {subject.arithmetic}"


def as_json(
    subject: Subject, certificate: Certificate, config: CertificateConfig, environment: str,
    environments: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The whole certificate as JSON. `environments` are those of all workers, which may differ."""
    others = [name for name in environments if name != environment]
    return {
        "verdict": certificate.verdict,
        "reason": certificate.reason,
        "lossy_by_design": certificate.lossy,
        "of": _headline(subject),
        "method": asdict(config.method),
        "arithmetic": subject.arithmetic,
        "checks": [asdict(check) for check in certificate.checks],
        "metrics": certificate.metrics(),
        "settings_hash": config.hash,
        "environment": environment,
        **({"other_environments": others} if others else {}),
    }


def write_engines(subject: Subject, certificate: Certificate, folder: Path, show: Callable[[str], object]) -> None:
    """Show and write the arguments of engines for a lossless method; nothing for others. Raises OutputError."""
    if certificate.verdict == LOSSLESS:
        prepared, setting = subject.prepared, subject.setting
        recommended = recommendation.of(prepared.experiment, setting.config, setting.lossless, prepared.pair.vocabulary)
        served.write(recommended, folder, show)


def checks_of(saved: Mapping[str, Any] | None, environment: str) -> dict[str, Check]:
    """The checks that an interrupted certificate completed in this same environment."""
    if saved is None or saved["environment"] != environment:
        return {}
    return {each["name"]: Check(**each) for each in saved["checks"]}


def tags_of(config: CertificateConfig) -> dict[str, str]:
    """Tags of the certificate's own run."""
    experiment, method = config.experiment, config.method
    return {
        "method": "certify", "preset": method.preset, "group": method.label, "pair": experiment.pair,
        "task": experiment.task,
    }  # fmt: skip


def main(subject: Subject, certificate: Certificate, folder: OutputFolder, outbox: Outbox, attached: bool) -> RunSpec:
    """The certificate's own run. `mlflow run` logged its raw arguments already, under the names of our parameters."""
    engines = (served.FILE, served.TEXT_FILE) if certificate.verdict == LOSSLESS else ()
    files = [folder.path / name for name in (FILE, *engines, "config.json", "data.json", "environments.json")]
    inputs = [Input.of(subject.prepared.task.dataset(), "evaluation")]
    tags = {TAG: certificate.verdict}
    return outbox.main(certificate.metrics(), files, inputs, tags, {} if attached else _params(subject))


def update_of(subject: Subject, certificate: Certificate) -> RunUpdate:
    """An update that writes the verdict, as tag and metrics, to the method's finished runs."""
    wanted = {key: str(value) for key, value in _params(subject).items() if key not in _OTHER}
    return RunUpdate(
        {"method": subject.method.method}, wanted, {TAG: certificate.verdict}, certificate.metrics(), now()
    )


def _params(subject: Subject) -> dict[str, object]:
    """The parameters that a method run of this method logs."""
    return run_specs.params_of(subject.prepared, subject.method, subject.prepared.experiment.seed)

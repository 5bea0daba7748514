"""The result of one check of a served engine, as `specexp.certify.checks.Check`, with what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, SKIPPED, Check
from specexp.engine_certify.findings import Finding

_ORDER = (FAILED, INCONCLUSIVE, REPORTED, PASSED, SKIPPED)  # the worst first


def made(
    name: str, verdict: str, sentence: str, findings: Sequence[Finding] = (),
    numbers: Mapping[str, float | int] | None = None, **details: Any,
) -> Check:  # fmt: skip
    return Check(
        name, verdict, sentence, numbers or {}, {"findings": [asdict(each) for each in findings], **details}
    )  # fmt: skip


def worst(verdicts: Sequence[str]) -> str:
    """The verdict of several parts."""
    return min(verdicts, key=_ORDER.index)


def findings_of(check: Check) -> list[Finding]:
    return [Finding(**each) for each in check.details["findings"]]

"""The certificate of a served engine: all checks, the verdict, and what was found. This module does not know MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, Check
from specexp.engine_certify import (
    findings,
    greedy_checks,
    parameter_checks,
    request_checks,
    sample_check,
    sampled_places,
    stability_checks,
)
from specexp.engine_certify.engine_subject import EngineSubject, Tick
from specexp.engine_certify.findings import Finding
from specexp.engine_certify.greedy_checks import GreedyOutputs

NAMES = (
    greedy_checks.AGAINST, greedy_checks.WEIGHTS, greedy_checks.END, stability_checks.REPEAT, stability_checks.LOAD,
    request_checks.STOP, request_checks.MOST, request_checks.BIAS, greedy_checks.COUNTS, stability_checks.SEED,
    sample_check.NAME, *sampled_places.VARIANTS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineCertificate:
    """The result of all checks. `compared` says what was checked with what."""

    checks: tuple[Check, ...]
    compared: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """passed, failed or inconclusive."""
        result = {check.verdict for check in self.checks}
        return FAILED if FAILED in result else INCONCLUSIVE if INCONCLUSIVE in result else PASSED

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, each by what it is; what follows from another finding is left out."""
        return findings.causes(each for check in self.checks for each in findings.findings_of(check))

    @property
    def reason(self) -> str:
        """The verdict in a sentence."""
        named = {verdict: [each.name for each in self.checks if each.verdict == verdict]
                 for verdict in (FAILED, INCONCLUSIVE, REPORTED)}  # fmt: skip
        if named[FAILED]:
            return f"{_listed(named[FAILED])} failed."
        if named[INCONCLUSIVE]:
            return f"{_listed(named[INCONCLUSIVE])} could not decide."
        note = f"; {_listed(named[REPORTED])} found what rounding explains" if named[REPORTED] else ""
        return f"every check that applies passed{note}."

    def metrics(self) -> dict[str, float]:
        """`certificate/*`; docs/metrics.md has the definitions."""
        by_name = {check.name: check.numbers for check in self.checks}
        greedy = [by_name[name] for name in (greedy_checks.AGAINST, greedy_checks.WEIGHTS) if by_name[name]]
        sampled = by_name[sample_check.NAME]
        result: dict[str, float | int | None] = {
            "passed": int(self.verdict == PASSED),
            "findings": len(self.findings),
            "prompts": greedy[0]["prompts"] if greedy else None,
            "equal_share": greedy[0]["equal"] / greedy[0]["prompts"] if greedy else None,
            "near_ties": sum(each["near_ties"] for each in greedy) if greedy else None,
            "samples": sampled.get("samples"),
            "needed_samples": sampled.get("needed"),
            "chi_square_p": sampled.get("p"),
            "control_p": sampled.get("control_p"),
            "control_variation": sampled.get("control_variation"),
            "sure_bias": sampled.get("surely"),
        }
        return {f"certificate/{name}": float(value) for name, value in result.items() if value is not None}


def examine(subject: EngineSubject, note: Callable[[Check], None] = lambda check: None) -> EngineCertificate:
    """Make every check; pass each to `note` as soon as its result is known. Raises EngineError and ModelError."""
    checks: dict[str, Check] = {}
    number = len(subject.names())
    total = (
        len(subject.engines) * number + stability_checks.num_requests(subject) + request_checks.num_requests(subject)
    )
    with tqdm(total=total, desc=f"certify {subject.engine.name}", unit="request", dynamic_ncols=True) as bar:
        tick: Tick = bar.update

        def made(name: str, make: Callable[[], Check]) -> None:
            bar.set_postfix_str(name)
            checks[name] = make()
            note(checks[name])

        bar.set_postfix_str("greedy outputs")
        outputs, counters = _greedy(subject, tick)
        made(greedy_checks.AGAINST, lambda: greedy_checks.check_against(subject, outputs, tick))
        made(greedy_checks.WEIGHTS, lambda: greedy_checks.check_weights(subject, outputs))
        made(greedy_checks.END, lambda: greedy_checks.check_ends(subject, outputs))
        made(stability_checks.REPEAT, lambda: stability_checks.check_repeat(subject, outputs, tick))
        made(stability_checks.LOAD, lambda: stability_checks.check_load(subject, outputs, tick))
        made(request_checks.STOP, lambda: request_checks.check_stop(subject, outputs, tick))
        made(request_checks.MOST, lambda: request_checks.check_limit(subject, outputs, tick))
        made(request_checks.BIAS, lambda: request_checks.check_bias(subject, outputs, tick))
        made(greedy_checks.COUNTS, lambda: greedy_checks.check_counts(subject, outputs, counters))
        made(stability_checks.SEED, lambda: stability_checks.check_seed(subject, tick))
        _sampled(subject, outputs, made, bar)
        bar.set_postfix_str("")
        bar.total = bar.n
        bar.refresh()
    return EngineCertificate(tuple(checks[name] for name in NAMES), tuple(compared(subject)))


def _greedy(subject: EngineSubject, tick: Tick) -> tuple[GreedyOutputs, tuple[str, str] | None]:
    """Greedy outputs, and the examined engine's counters before and after its own, if all were asked for in one go."""
    journal, client = subject.journal, subject.engine.client
    fresh = not any((subject.engine.role, *each.key) in journal for each in greedy_checks.requests(subject))
    before = client.counters() if fresh else ""
    subject.ask(subject.engine, greedy_checks.requests(subject), lambda: None, together=1)
    if fresh:
        journal.unit(("counters",), lambda: [before, client.counters()])
    outputs = greedy_checks.ask(subject, tick)
    if ("counters",) not in journal:
        return outputs, None
    first, last = journal.unit(("counters",), list)
    return outputs, (first, last)


def _sampled(
    subject: EngineSubject, outputs: GreedyOutputs, made: Callable[[str, Callable[[], Check]], None],
    bar: tqdm[Any],
) -> None:  # fmt: skip
    """The checks of samples, whose number is known only once places are."""
    tick: Tick = bar.update
    places: list[sampled_places.SampledPlace] = []
    if subject.prepared.experiment.temperature and subject.rows_are_known:
        bar.set_postfix_str("places")
        places = sampled_places.places_of(subject, outputs, tick)
    planned = sample_check.plan(subject, places)
    parameters = {name: parameter_checks.plan(subject, places, name) for name in sampled_places.VARIANTS}
    sampled = planned.samples * len(planned.targets) + parameter_checks.num_requests(subject, [*parameters.values()])
    bar.total = (bar.total or 0) + sampled
    bar.refresh()
    made(sample_check.NAME, lambda: sample_check.check_samples(subject, planned, tick))
    for name, each in parameters.items():
        made(name, lambda each=each: parameter_checks.check(subject, each, tick))  # type: ignore[misc]


def compared(subject: EngineSubject) -> list[str]:
    """What was checked with what, a sentence for each engine, and one for distributions."""
    result = []
    for engine in subject.engines:
        prompts = "token ids" if engine.by_ids else "messages" if engine.method.endpoint.api == "chat" else "text"
        result.append(f"{engine.name}: prompts are sent as {prompts}; {engine.offer.words()}.")
    with_what = [
        *([] if subject.against is None else [f"plain decoding by {subject.against.name}"]),
        *([] if subject.target is None else ["the weights of the target"]),
    ]
    result.append(f"Greedy outputs are compared with {' and '.join(with_what)}.")
    result.append(f"Samples are compared with {subject.rows_source()}.")
    return result


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

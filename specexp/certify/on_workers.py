"""A certificate's units on workers of Ray. Nothing is timed, so workers may share devices.

The driver holds no weights, runs the oracle, and judges what comes back: the certificate is that of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from specexp.certify import certificate
from specexp.certify.certificate_config import CertificateConfig
from specexp.certify.checks import Subject
from specexp.certify.work import Bench, Lost, R, Share, Tick, Unit, pace_of
from specexp.decoding.draft_length import RelativeCosts
from specexp.evaluation import measured_costs
from specexp.judge.judge import Judge
from specexp.pair.loading import Pair
from specexp.profiling.time_estimate import Pace
from specexp.storage import environment
from specexp.workers.crew import crew
from specexp.workers.described_pair import describe, described
from specexp.workers.dispatch import Crew
from specexp.workers.placement import here
from specexp.workers.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class CallCostsUnit:
    """What calls cost relative to each other, for chains of at most `most` tokens: RelativeCosts."""

    most: int
    title = "what calls cost"
    num_runs = 0
    size = 0.0

    @property
    def parts(self) -> Sequence[CallCostsUnit]:
        return (self,)

    def do(self, bench: Bench) -> RelativeCosts:
        return measured_costs.relative_costs(bench.subject.prepared, self.most)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A unit, and the costs of calls by which drafts of `gamma: auto` end."""

    unit: Unit[Any]
    costs: RelativeCosts | None = None

    @property
    def parts(self) -> list[Assignment]:
        return [Assignment(part, self.costs) for part in self.unit.parts]


@dataclass(frozen=True, slots=True)
class CertificateJob:
    """A certificate, as a worker computes it."""

    config: CertificateConfig
    judges: Mapping[str, Judge]

    def load(self) -> CertificateWorker:
        return CertificateWorker(certificate.prepare(self.config, self.judges))


class CertificateWorker:
    """The loaded models, and what is done with them."""

    def __init__(self, subject: Subject) -> None:
        self._bench = Bench(subject)
        self._costs: RelativeCosts | None = None

    def facts(self) -> dict[str, Any]:
        subject = self._bench.subject
        pair, experiment = subject.prepared.pair, subject.prepared.experiment
        where = environment.describe(pair.models, pair.text.facts())
        return {"pair": describe(pair, experiment), "pace": pace_of(subject), **here(where)}

    def do(self, assignment: Assignment) -> Any:
        if assignment.costs != self._costs:
            assert assignment.costs is not None, "costs that were taken back"
            self._costs = assignment.costs
            self._bench = Bench(certificate.adapted(self._bench.subject, self._costs))
        return assignment.unit.do(self._bench)


@contextmanager
def certificate_crew(
    settings: WorkerSettings, config: CertificateConfig, judges: Mapping[str, Judge]
) -> Iterator[Crew]:  # fmt: skip
    """Start the workers of a certificate. Raises WorkerError."""
    with crew(settings, CertificateJob(config, judges)) as result:
        yield result


@dataclass(slots=True)
class OnWorkers:
    """Computes with the models of this crew; a `Work`. `costs` are those of `gamma: auto`, once they are known."""

    crew: Crew
    costs: RelativeCosts | None = None

    @property
    def load_pair(self) -> Callable[..., Pair]:
        """Loads nothing: the pair is what the first worker says of its own."""
        return described(self.crew.first()["pair"])

    def environments(self) -> dict[str, Mapping[str, Any]]:
        """Where workers run, by name, the first that has started first."""
        facts = [each["environment"] for _, each in sorted(self.crew.facts.items())]
        return {environment.name_of(each): each for each in facts}

    def draft_costs(self, most: int) -> RelativeCosts:
        """Measured by one worker, for all."""
        result = self.crew.one(Assignment(CallCostsUnit(most)))
        assert isinstance(result, RelativeCosts)
        return result

    def pace(self) -> Pace:
        one: Pace = self.crew.first()["pace"]
        return Pace(one.prefill / self.crew.number, one.token / self.crew.number)

    def share(self, tick: Tick) -> Share:
        def share(units: Sequence[Unit[R]]) -> Iterator[R | Lost]:
            assigned = (Assignment(unit, self.costs) for unit in units)
            for outcome in self.crew.do(assigned, lambda each: each.unit.size, lambda each: each.parts):
                tick(outcome.unit.unit.num_runs)
                result: Any = Lost(outcome.unit.unit.title, outcome.deaths) if outcome.failed else outcome.result
                yield result

        return share

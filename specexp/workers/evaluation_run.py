"""The driver's side of an evaluation on workers: it holds no weights, hands prompts out and writes what comes back.

Records are written in the order of one process. What needs the models afterwards, workers do. No seconds of calls are
measured, since a worker's clock says nothing of another's: attainable speed-ups and the time split are left out.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tqdm import tqdm

from specexp.config import Experiment
from specexp.decoding.draft_length import RelativeCosts
from specexp.errors import WorkerError
from specexp.evaluation.divergence import Explain
from specexp.evaluation.measured_costs import saved_costs
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.runner import WARM_UP_TOKENS
from specexp.evaluation.scheduling import groups_at, indices_at, missing, places
from specexp.evaluation.token_view.data import Budget
from specexp.judge.judge import Judge
from specexp.pair.loading import Pair
from specexp.profiling import memory
from specexp.profiling.time_estimate import announce
from specexp.sequences.lazy import at
from specexp.sequences.token_ids import length_at
from specexp.storage.journal import Journal
from specexp.storage.records import Record, RecordFile
from specexp.storage.run_folder import OutputFolder
from specexp.workers import failures
from specexp.workers.crew import crew
from specexp.workers.described_pair import described
from specexp.workers.dispatch import Crew
from specexp.workers.evaluating import (
    Decoded,
    DecodeUnit,
    DifferenceUnit,
    DraftCostsUnit,
    EvaluationJob,
    TokenViewUnit,
)
from specexp.workers.failures import Failure
from specexp.workers.handout import UnitOutcome
from specexp.workers.placement import Placement
from specexp.workers.settings import WorkerSettings

COSTS = "costs.json"


@contextmanager
def evaluation_crew(settings: WorkerSettings, experiment: Experiment, judges: Mapping[str, Judge]) -> Iterator[Crew]:
    """Start the workers of an evaluation. Raises WorkerError."""
    with crew(settings, EvaluationJob(experiment, judges)) as result:
        yield result


@dataclass(slots=True)
class EvaluationDriver:
    """One evaluation that this crew decodes, into this folder."""

    crew: Crew
    output: OutputFolder

    def draft_costs(self, most: int) -> RelativeCosts:
        """What calls cost relative to each other, as `gamma: auto` needs it: by one worker, for all."""
        result = self.crew.one(DraftCostsUnit(most))
        assert isinstance(result, RelativeCosts)
        return result

    @property
    def load_pair(self) -> Callable[..., Pair]:
        """Loads nothing: the pair is what the first worker says of its own."""
        return described(self.crew.first()["pair"])

    def log_nodes(self, run: tuple[str, str] | None) -> None:
        self.crew.log_nodes(run)

    def complete(self, prepared: Prepared, output: OutputFolder) -> Prepared:
        return without(prepared, failures.read(output))

    def run(self, prepared: Prepared, output: OutputFolder, records: RecordFile) -> Prepared:
        """Append every record that is still missing; returns the evaluation without the prompts that have failed.

        Raises WorkerError if every prompt has failed.
        """
        left = missing(prepared, records)
        if left:
            self._announce(prepared, left)
            failed = list(self._decoded(prepared, records, left))
            failures.write(self.output, failed)
            for each in failed:
                print(f"warning: {each.sentence}; the others go on.", file=sys.stderr)
        self.output.write_json(COSTS, None)  # no call is measured
        return without(prepared, failures.read(self.output))

    def _decoded(self, prepared: Prepared, records: RecordFile, left: int) -> Iterator[Failure]:
        """Append records, and yield what has failed."""
        output = self.output
        placement, peaks = Placement(output), memory.peaks_of(output.read_json(memory.FILE))
        self.crew.on_change = placement.changed
        placement.changed(self.crew.facts)
        total = left + len(records.records)
        name = prepared.experiment.name
        with tqdm(total=total, initial=total - left, desc=name, unit="run", dynamic_ncols=True) as bar:

            def addressed(worker: int, unit: DecodeUnit) -> DecodeUnit:
                return replace(unit, environment=placement.known_name(self.crew.facts[worker]))

            def arrived(worker: int, result: Decoded) -> Sequence[str]:
                where = placement.name(self.crew.facts[worker])
                peaks.merge(result.peaks)
                bar.update(len(result.lines))
                bar.set_postfix_str(f"{len(self.crew.facts)} workers", refresh=False)
                return result.lines_in(where)

            units, size = _units(prepared, output, records), partial(unit_size, prepared)
            for outcome in self.crew.do(units, size, on_result=arrived, on_submit=addressed):
                for line in outcome.result or ():
                    records.append_line(line)
                yield from _failures(prepared, outcome)
        output.write_json(memory.FILE, peaks.as_dict())

    def explain(self, records: RecordFile) -> Explain:
        return partial(self._explained, records)

    def _explained(self, records: RecordFile, differing: Iterator[tuple[Record, Record]]) -> Iterable[dict[str, Any]]:
        """Entries of differences.json, for pairs of a record and plain decoding's."""
        units = (DifferenceUnit(*each, _before(records, *each)) for each in differing)
        for outcome in self.crew.do(units):
            if outcome.result is None:
                raise WorkerError(f"workers died while they examined an output: {outcome.deaths[-1]}")
            yield outcome.result

    def traced(
        self, prepared: Prepared, records: RecordFile, chosen: Sequence[int], journal: Journal, budget: Budget
    ) -> dict[str, Any]:  # fmt: skip
        """The content of tokens.json, made by one worker; the journal's prompts are decoded again, too."""
        names = [prepared.examples[index].prompt_id for index in chosen]
        known = [record for record in records.records if record["prompt_id"] in names]
        result = self.crew.one(TokenViewUnit(names, known, budget.seconds, saved_costs(self.output)))
        assert isinstance(result, dict)
        return result

    def _announce(self, prepared: Prepared, left: int) -> None:
        paces = self.crew.first()["paces"]
        most = prepared.experiment.max_new_tokens + prepared.experiment.thinking_budget
        each = sum(pace.seconds(most) for pace in paces.values()) / len(paces)
        what = (
            f"{left} outputs of up to {most} tokens on {self.crew.number} workers, as fast as the first"
            f" {WARM_UP_TOKENS} were"
        )
        announce(left * each / self.crew.number, what, "limit, max_new_tokens, repeats or the number of settings")


def without(prepared: Prepared, failed: Sequence[Failure]) -> Prepared:
    """The same without the prompts that have failed in any repeat. Raises WorkerError if nothing is left."""
    if not failed:
        return prepared
    names = {each.prompt_id for each in failed}
    kept = array("q", (i for i, example in enumerate(prepared.examples) if example.prompt_id not in names))
    if not kept:
        raise WorkerError(f"every prompt has failed: {failed[0].sentence}.")
    return replace(prepared, examples=at(prepared.examples, kept), prompts=at(prepared.prompts, kept))


def _units(prepared: Prepared, output: OutputFolder, records: RecordFile) -> Iterator[DecodeUnit]:
    """The units that have missing records, in the order of one process."""
    done, costs = records.done, saved_costs(output)
    for repeat, number in places(prepared):
        if any(groups_at(prepared, repeat, number, done)):
            keys = [
                (prepared.examples[index].prompt_id, turn, setting.config.label, repeat)
                for index in indices_at(prepared, number)
                for turn in range(len(prepared.examples[index].turns))
                for setting in prepared.everything
            ]
            yield DecodeUnit(repeat, number, [records.find(key) for key in keys if key in done], costs)


def unit_size(prepared: Prepared, unit: DecodeUnit) -> float:
    """About how long a unit takes: all that is known before is the length of its prompts."""
    return float(sum(length_at(prepared.prompts, index) for index in indices_at(prepared, unit.number)))


def _failures(prepared: Prepared, outcome: UnitOutcome[DecodeUnit, Any]) -> Iterator[Failure]:
    if outcome.failed:
        for index in indices_at(prepared, outcome.unit.number):
            yield Failure(prepared.examples[index].prompt_id, outcome.deaths, outcome.unit.repeat)


def _before(records: RecordFile, *compared: Record) -> list[Record]:
    """The records of the turns before these, and of these themselves, by the same settings in the same repeat."""
    keys = [
        (record["prompt_id"], turn, record["label"], record["repeat"])
        for record in compared
        for turn in range(record["turn"] + 1)
    ]
    return [records.find(key) for key in keys if key in records.done]

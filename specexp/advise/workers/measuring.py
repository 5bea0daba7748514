"""The untimed part of advise on workers of Ray. They end before anything is timed, which the command's process does.

A worker does all that is missing of one prompt; the driver writes it to the journal, in the order of the prompts.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from specexp.advise.candidates import PLAIN
from specexp.advise.untimed import OUTPUTS, Untimed, candidates_of, kinds_of
from specexp.config import Experiment
from specexp.decoding.draft_length import RelativeCosts
from specexp.errors import WorkerError
from specexp.evaluation import measured_costs, preparation
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import SpecexpContender
from specexp.judge.judge import Judge
from specexp.sequences.token_ids import length_at
from specexp.storage.journal import Journal, Key
from specexp.workers.crew import crew
from specexp.workers.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class PromptUnit:
    """Measurements of these kinds of one prompt. `output` is plain decoding's, if it is known."""

    index: int
    kinds: Sequence[Key]
    output: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class AdviceJob:
    """The untimed part of advise, as a worker does it; `costs` are those of `gamma: auto`."""

    experiment: Experiment
    judges: Mapping[str, Judge]
    costs: RelativeCosts | None

    def load(self) -> AdviceWorker:
        prepared = preparation.prepare(self.experiment, self.judges)
        return AdviceWorker(prepared if self.costs is None else measured_costs.adapted(prepared, self.costs))


class AdviceWorker:
    """The loaded pair, and what is done with it."""

    def __init__(self, prepared: Prepared) -> None:
        setting = next(each for each in prepared.settings if each.config.label == PLAIN)
        temperature = prepared.experiment.temperature
        plain = SpecexpContender(PLAIN, prepared, setting, temperature, time.perf_counter)
        self._untimed = Untimed(prepared, plain)

    def facts(self) -> dict[str, Any]:
        return {}

    def do(self, unit: PromptUnit) -> list[tuple[Key, Any]]:
        output, made = unit.output, []
        for kind in unit.kinds:
            value = self._untimed.measure(kind, unit.index, output)
            output = value if kind == OUTPUTS else output
            made.append((kind, value))
        return made


def measure(
    settings: WorkerSettings, prepared: Prepared, costs: RelativeCosts | None, journal: Journal
) -> None:  # fmt: skip
    """Write what the journal lacks of measurements without a clock. Raises WorkerError, if workers died at a prompt
    again and again: then the journal has all others."""
    indices = range(len(prepared.prompts))
    left = array("q", (index for index in indices if _missing(prepared, journal, index).kinds))
    if not left:
        return
    failed: list[str] = []
    size = lambda unit: float(length_at(prepared.prompts, unit.index))  # noqa: E731
    bar = tqdm(total=len(left), desc="outputs and drafts on workers", unit="prompt", dynamic_ncols=True)
    with bar, crew(settings, AdviceJob(prepared.experiment, prepared.judges, costs)) as workers:
        for outcome in workers.do((_missing(prepared, journal, index) for index in left), size):
            bar.update()
            bar.set_postfix_str(f"{len(workers.facts)} workers", refresh=False)
            index = outcome.unit.index
            for kind, value in outcome.result or ():
                journal.unit((*kind, index), partial(_given, value))
            if outcome.failed:
                name = prepared.examples[index].prompt_id
                failed.append(f"prompt '{name}': {len(outcome.deaths)} workers died at it ({outcome.deaths[-1]})")
    if failed:
        raise WorkerError(
            f"advise predicts from every prompt, and failed at {'; '.join(failed)}. What the others gave is kept:"
            " --resume tries again; or leave these prompts out of the data."
        )


def _missing(prepared: Prepared, journal: Journal, index: int) -> PromptUnit:
    kinds = [kind for kind in kinds_of(candidates_of(prepared)) if (*kind, index) not in journal]
    known = (*OUTPUTS, index)
    return PromptUnit(index, kinds, journal.unit(known, list) if known in journal else ())


def _given(value: Any) -> Any:
    return value

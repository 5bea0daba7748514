"""Writes the records of a made-up evaluation of any size, and sums them up: `python -m helpers.large_run FOLDER NUM`.

Prints, as JSON, the peak of the process's resident memory in MB, the metrics, and how many records were looked at one
by one. The records are written one at a time, and nothing here holds them.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers.comparisons import record, settings
from specexp import config
from specexp.evaluation.large_runs import sample
from specexp.evaluation.report.comparison import compare
from specexp.evaluation.summaries import summary
from specexp.storage.run_folder import OutputFolder

METHODS = "baseline,speculative,topk,specexec"
DIFFERENT = 500  # prompts whose records are made; those of further prompts repeat them


class Prompts:
    """Prompts that are made when they are asked for."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(prompt_id=f"prompt-{index}", turns=[""])


def prepared(num_prompts: int, methods: str = METHODS) -> Any:
    """An evaluation of these methods without a model."""
    chosen = settings(methods)
    experiment = replace(config.resolve("arith_quick"), methods=chosen)
    own = [
        SimpleNamespace(
            config=each, feed_last_token=0, varies=False, by_token=True, lossless=each.method != "topk",
            facts=SimpleNamespace(drafts=each.method != "baseline", grows_tree=each.method == "specexec"),
        )
        for each in chosen
    ]  # fmt: skip
    return SimpleNamespace(
        examples=Prompts(num_prompts), settings=own, served=[], everything=own, experiment=experiment
    )


def records(evaluation: Any) -> Iterator[dict[str, Any]]:
    """Make the records of an evaluation, prompt by prompt, with the settings in an order that rotates."""
    rng, own = random.Random(0), [each.config for each in evaluation.settings]
    more = {"settings_hash": evaluation.experiment.hash, "preset": "", "seed": 0}
    size = min(DIFFERENT, len(evaluation.examples))
    made = [[{**record(rng, method, "", 0, graded=True), **more} for method in own] for _ in range(size)]
    for index in range(len(evaluation.examples)):
        first, each = index % len(own), made[index % size]
        for one in each[first:] + each[:first]:
            yield {**one, "prompt_id": evaluation.examples[index].prompt_id}


def main(folder: str, num_records: str) -> None:
    evaluation = prepared(int(num_records) // len(METHODS.split(",")))
    path = Path(folder)
    output = OutputFolder(path, evaluation.experiment, resume=False)
    with output.open() as file:
        for each in records(evaluation):
            file.append(each)  # type: ignore[arg-type]
    with OutputFolder(path, evaluation.experiment, resume=True).open() as file:
        known = summary(evaluation, output, file.records)
        comparison = compare(evaluation, output, file.records, known)
        looked_at = len(sample(evaluation, file.records))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    metrics = {entry.label: dict(entry.metrics) for entry in comparison.entries}
    print(json.dumps({"megabytes": peak, "looked_at": looked_at, "metrics": metrics}))


if __name__ == "__main__":
    main(*sys.argv[1:])

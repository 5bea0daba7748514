"""Large runs: their records are added up without being held, with the numbers that a small run has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import large_run
from specexp.evaluation import large_runs, summaries
from specexp.evaluation.in_process import records_of
from specexp.evaluation.report.comparison import compare
from specexp.evaluation.summaries import summary
from specexp.metrics import paired, per_prompt, statistics, tally
from specexp.metrics.per_prompt import COUNTS, SECONDS, PromptSums
from specexp.sequences.names import NameNumbers
from specexp.storage import numbered_files
from specexp.storage import records as storage
from specexp.storage.run_folder import OutputFolder

TESTS = Path(__file__).resolve().parents[1]


def replace_examples(evaluation: Any, examples: list[Any]) -> Any:
    return SimpleNamespace(**{**vars(evaluation), "examples": examples})


def written(folder: Path, evaluation: Any) -> OutputFolder:
    output = OutputFolder(folder, evaluation.experiment, resume=False)
    with output.open() as file:
        for each in large_run.records(evaluation):
            file.append(each)
    return output


def test_records_in_files_give_the_numbers_of_records_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = large_run.prepared(60, "baseline,speculative,specexec")
    output = written(tmp_path / "run", evaluation)
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        in_memory = summary(evaluation, output, file.records)
        assert isinstance(file.records, list)
    monkeypatch.setattr(storage, "KEPT", 50)
    monkeypatch.setattr(statistics, "AT_ONCE", 500)
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        assert not isinstance(file.records, list)
        assert summary(evaluation, output, file.records) == in_memory


def test_more_prompts_than_are_known_by_id_are_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a resample sees another order of prompts: everything but the ends of intervals and random tests is equal."""
    evaluation = large_run.prepared(60, "baseline,topk")
    output = written(tmp_path / "run", evaluation)
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        few = summary(evaluation, output, file.records)
        monkeypatch.setattr(per_prompt, "LARGE", 20)
        many = summary(evaluation, output, file.records)
    drawn = ("speed/speedup_", "accept/mean_length_")
    for key, metrics in few.items():
        for name, value in metrics.items():
            if name.startswith(drawn) and not name.endswith("end_to_end"):
                assert many[key][name] == pytest.approx(value, rel=0.05, abs=0.01)
            else:
                assert many[key][name] == value, name


def test_beyond_a_number_of_prompts_single_records_are_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = large_run.prepared(60, "baseline,speculative")
    output = written(tmp_path / "run", evaluation)
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        small = compare(evaluation, output, file.records)
        monkeypatch.setattr(large_runs, "LARGE", 59)
        monkeypatch.setattr(large_runs, "SAMPLE", 12)
        large = compare(evaluation, output, file.records)
    assert [len(entry.records) for entry in small.entries] == [60, 60]
    for entry in large.entries:
        assert [record["prompt_id"] for record in entry.records] == [f"prompt-{i}" for i in range(0, 60, 5)]
    assert [entry.metrics for entry in large.entries] == [entry.metrics for entry in small.entries]
    assert large_runs.words(60).startswith("60 prompts are more than 59: ")
    assert "a sample of 12, one in every 5;" in large_runs.words(60)


def test_records_without_prompts_that_failed_stay_in_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = large_run.prepared(60, "baseline,speculative")
    output = written(tmp_path / "run", evaluation)
    some = replace_examples(evaluation, [evaluation.examples[i] for i in range(60) if i % 7])
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        in_memory = records_of(some, file)
        of_memory = summary(some, output, in_memory)
    monkeypatch.setattr(storage, "KEPT", 50)
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        kept = records_of(some, file)
        assert not isinstance(kept, list)
        assert list(kept) == in_memory
        assert len(kept) == len(in_memory) == 2 * 51
        assert [kept[5], kept[-1], kept[3:5]] == [in_memory[5], in_memory[-1], in_memory[3:5]]
        find = storage.finder(kept)
        assert find(storage.key_of(in_memory[4])) == in_memory[4]
        with pytest.raises(KeyError):
            find(("prompt-7", 0, "baseline", 0))
        assert summary(some, output, kept) == of_memory


def test_counts_take_the_narrowest_type_that_holds_them() -> None:
    sums, seconds = PromptSums(COUNTS), PromptSums(SECONDS)
    assert sums.values(2).dtype.itemsize == 1
    for prompt, value in ((0, 250), (2, 1), (0, 5)):
        sums.add(prompt, value)
    assert (sums.values(4).tolist(), sums.values(3).dtype.itemsize) == ([255, 0, 1, 0], 1)
    sums.add(0, 1)
    assert (sums.values(3).tolist(), sums.values(3).dtype.itemsize) == ([256, 0, 1], 2)
    sums.add(2, 2**40)
    assert (sums.values(3).tolist(), sums.values(3).dtype.itemsize) == ([256, 0, 2**40 + 1], 8)
    seconds.add(1, 0.25)
    assert seconds.values(2).tolist() == [0.0, 0.25]
    with pytest.raises(OverflowError):
        sums.add(1, -1)


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path: Path) -> None:
    """A million records of 250,000 prompts take at most 50 MB more than ten thousand of 2,500."""
    peaks = {}
    for number in (10_000, 1_000_000):
        command = [sys.executable, "-m", "helpers.large_run", str(tmp_path / str(number)), str(number)]
        done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        peaks[number] = result["megabytes"]
        assert result["metrics"]["baseline"]["count/prompts"] == number / 4
    assert peaks[1_000_000] <= peaks[10_000] + 50
    assert len(numbered_files.existing(tmp_path / "1000000" / "records.jsonl")) > 1


def test_all_sums_of_a_run_share_one_numbering_of_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A numbering takes 16 bytes a prompt, and each would be held until the metrics are there."""
    made: list[per_prompt.PromptNumbers] = []

    class Counted(per_prompt.PromptNumbers):
        def __init__(self, known: NameNumbers | None = None) -> None:
            super().__init__(known)
            made.append(self)

    for module in (summaries, paired, tally):
        monkeypatch.setattr(module, "PromptNumbers", Counted)
    evaluation = large_run.prepared(20, "baseline,speculative,topk,specexec")
    output = written(tmp_path / "run", evaluation)
    with OutputFolder(output.path, evaluation.experiment, resume=True).open() as file:
        summary(evaluation, output, file.records)
    assert len(made) == 1
    assert len(made[0]) == 20

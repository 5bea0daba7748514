"""Which rows a limit takes: a stratified sample where a task has categories, the first ones elsewhere."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from helpers.cli_runner import evaluate, records
from specexp.benchmark.throughput import _prompts
from specexp.tasks.example import Example
from specexp.tasks.sampling import chosen, selection, words
from specexp.tasks.source import DataConfig
from specexp.tasks.task import task

SIZES = {"writing": 4, "math": 4, "qa": 24, "rag": 8}


def rows(sizes: dict[str, int] | None = None) -> list[Example]:
    names = [(name, i) for name, size in (sizes or SIZES).items() for i in range(size)]
    return [Example(f"x-{name}-{i}", ("?",), category=name) for name, i in names]


def counted(examples: list[Example]) -> dict[str, int]:
    return dict(Counter(example.category for example in examples))


def test_a_sample_has_every_category_and_then_their_proportions() -> None:
    assert counted(chosen(rows(), 4)) == dict.fromkeys(SIZES, 1)
    assert counted(chosen(rows(), 20)) == {"writing": 2, "math": 2, "qa": 12, "rag": 4}
    for limit in range(4, 41):
        counts = counted(chosen(rows(), limit))
        assert sum(counts.values()) == limit
        for name, size in SIZES.items():
            assert counts[name] == 1 or abs(counts[name] - limit * size / 40) < 2


def test_a_larger_limit_keeps_the_rows_of_a_smaller_one_and_they_are_drawn() -> None:
    before: set[str] = set()
    for limit in range(41):
        now = {example.prompt_id for example in chosen(rows(), limit)}
        assert before < now or limit == 0
        before = now
    qa = [example.prompt_id for example in chosen(rows(), 20) if example.category == "qa"]
    assert qa != [f"x-qa-{i}" for i in range(len(qa))], "not the first ones"
    assert chosen(rows(), 20) == chosen(rows(), 20)


def test_all_rows_and_rows_of_one_kind_are_as_they_stand() -> None:
    assert chosen(rows(), 40) == chosen(rows(), 1000) == rows()
    alike = rows({"": 9})
    assert chosen(alike, 4) == alike[:4]
    assert words(rows(), 40) == words(alike, 4) == ""
    assert words(rows(), 20) == (
        "20 of 40, a stratified sample of 4 categories: one of each, then in proportion to their sizes (seed 0)"
    )


def written(folder: Path) -> Path:
    """A file in the form of Spec-Bench, category by category."""
    path = folder / "questions.jsonl"
    lines = [
        {"question_id": number, "category": example.category, "turns": [f"Say {number}."]}
        for number, example in enumerate(rows())
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_tasks_of_several_categories_sample_and_others_take_the_first(tmp_path: Path) -> None:
    bench = task("spec_bench", DataConfig(str(written(tmp_path))))
    assert counted(bench.examples(20)) == {"writing": 2, "math": 2, "qa": 12, "rag": 4}
    assert counted(task("mtbench", DataConfig(str(written(tmp_path)))).examples(4)) == {"writing": 2, "math": 2}
    assert selection(bench, 20).startswith("20 of 40, a stratified sample of 4 categories")
    assert selection(task("arith"), 20) == ""


def test_a_run_says_how_its_prompts_were_drawn_and_resumes_with_the_same(workplace: Path) -> None:
    written(workplace)
    asked = ["--experiment", "toy_quick", "--task", "spec_bench", "--data", "questions.jsonl", "--limit", "6"]
    asked += ["--output", "out", "--methods", "baseline,speculative", "--max-new-tokens", "6", "--show", "0"]
    first = evaluate(*asked)
    assert first.exit_code == 0, first.output
    categories = {r["prompt_id"]: r["category"] for r in records(workplace / "out")}
    assert set(categories.values()) == set(SIZES)
    page = (workplace / "out" / "report.html").read_text()
    assert f"{words(rows(), 6)}</td>" in page
    lines = (workplace / "out" / "records.jsonl").read_text().splitlines(keepends=True)
    (workplace / "out" / "records.jsonl").write_text("".join(lines[:5]))
    assert evaluate(*asked, "--resume").exit_code == 0
    assert {r["prompt_id"] for r in records(workplace / "out")} == set(categories)
    assert len(records(workplace / "out")) == len(lines)
    # A folder that was begun on the first rows, as they used to be taken, is not mixed with a sample.
    data = json.loads((workplace / "out" / "data.json").read_text())
    del data["selection"]
    (workplace / "out" / "data.json").write_text(json.dumps(data))
    refused = evaluate(*asked, "--resume")
    assert refused.exit_code == 2
    assert "was begun on the first rows; these settings now select 6 of 40, a stratified sample" in refused.output


def test_a_benchmarks_batches_add_rows_to_the_sample(tmp_path: Path) -> None:
    from helpers.fake_clock import prepared_toy

    prepared = prepared_toy(task="spec_bench", data=str(written(tmp_path)), history="own", limit=6)
    assert list(_prompts(prepared, 20))[:6] == [example.prompt_id for example in prepared.examples]
    assert len(_prompts(prepared, 20)) == 20
    assert len(_prompts(prepared, 100)) == 40, "each row once"


@pytest.mark.parametrize("skip", [0, 6, 30])
def test_mining_takes_no_row_that_an_evaluation_of_the_skipped_ones_has(tmp_path: Path, skip: int) -> None:
    bench = task("spec_bench", DataConfig(str(written(tmp_path))))
    evaluated = {example.prompt_id for example in bench.examples(skip)}
    from specexp.judge.collection import after_skipped

    mined = [example.prompt_id for example in after_skipped(bench, skip, 10)[0]]
    assert len(mined) == 10
    assert not evaluated & set(mined)
    assert len(after_skipped(bench, skip, 1000)[0]) == 40 - skip


def test_mining_leaves_out_prompts_of_several_turns_and_takes_others_for_them(tmp_path: Path) -> None:
    """Of the sample's rows most have two turns; as many as were asked for are mined, and of every kind there is."""
    from specexp.judge.collection import after_skipped

    path = tmp_path / "mixed.jsonl"
    turns = {"writing": ["?", "And?"], "math": ["?", "And?"], "qa": ["?"], "rag": ["?"]}
    lines = [
        json.dumps({"question_id": f"{name}-{i}", "category": name, "turns": turns[name]})
        for name, size in {"writing": 30, "math": 30, "qa": 8, "rag": 4}.items()
        for i in range(size)
    ]
    path.write_text("\n".join(lines))
    bench = task("spec_bench", DataConfig(str(path)))
    examples, left_out = after_skipped(bench, 4, 6)
    assert left_out
    assert counted(examples) == {"qa": 4, "rag": 2}
    assert not {example.prompt_id for example in bench.examples(4)} & {example.prompt_id for example in examples}
    assert after_skipped(task("arith"), 3, 5) == (task("arith").examples(8)[3:], False)

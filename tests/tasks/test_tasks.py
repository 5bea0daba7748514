"""Tasks that read rows: what they ask, how answers are read, where rows come from, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from specexp.errors import TaskError
from specexp.tasks import arith, gsm8k
from specexp.tasks.source import DataConfig, read
from specexp.tasks.task import task

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
# The full files are no part of the project; name their folder to have them read.
FULL = Path(os.environ.get("SPECEXP_TEST_DATA", ROOT.parent / "shared" / "data"))
full = pytest.mark.skipif(not (FULL / "gsm8k_test.jsonl").exists(), reason="SPECEXP_TEST_DATA names no folder of data")


@pytest.mark.parametrize(
    "text,finished,answer",
    [
        ("So it is 18. The final answer is 18.", True, "18"),
        ("The final answer is: $1,234.50", True, "1234.5"),
        ("the final answer is **-7**", True, "-7"),
        ("The final answer is $\\boxed{42}$", True, "42"),
        ("#### 1,000", True, "1000"),
        ("The final answer is 3. No: the final answer is 4", True, "4"),
        ("The final answer is 1", False, None),  # it may go on
        ("The final answer is 1\n", False, "1"),
        ("The answer is 18.", True, None),
        ("The final answer is eighteen", True, None),
        ("18", True, None),
        ("The final answer is .5", True, "0.5"),
        ("The final answer is 18.00", True, "18"),
    ],
)
def test_a_gsm8k_answer_is_read_only_where_the_text_says_so(text: str, finished: bool, answer: str | None) -> None:
    assert gsm8k.extract_answer(text, finished) == answer


@pytest.mark.parametrize(
    "said,number",
    [
        ("9{,}500", "9500"), (r"9\,500", "9500"), ("12 000", "12000"), ("1/2", "0.5"), ("1e3", "1000"),
        ("3-9500", None),
        ("-$5", "-5"), ("$ 5", "5"), ("\u22125", "-5"), (r"\(5\)", "5"), ("+5", "5"), ("5 + 3 = 8", "8"), ("1,5", None),
        ("123456789012345678901234567890123", "123456789012345678901234567890123"), ("2:30", None), ("5²", None),
    ],
)  # fmt: skip
def test_every_task_reads_a_number_whole_or_not_at_all(said: str, number: str | None) -> None:
    spec_bench = task("spec_bench", DataConfig(str(DATA / "spec_bench.jsonl")))
    for text in (f"The final answer is {said}.", f"So far so good.\n#### {said}"):
        assert gsm8k.extract_answer(text) == number
        assert spec_bench.extract(text, True) == number
    assert arith.extract_answer(f"#### {said}") == number
    assert spec_bench.extract(f"What comes out is {said}", True) == number


@pytest.mark.parametrize(
    "text", ["The final answer is 12.", "#### 12", "#### 12 0", "#### 5\nThe final answer is", "####"]
)
def test_an_unfinished_text_has_no_number_that_may_go_on(text: str) -> None:
    assert gsm8k.extract_answer(text, finished=False) is None
    assert task("spec_bench", DataConfig(str(DATA / "spec_bench.jsonl"))).extract(text, False) is None


@pytest.mark.parametrize("said", ["3-9500", "2:30"])
def test_a_marked_answer_that_is_no_number_is_not_replaced_by_another(said: str) -> None:
    """What stands before the last marker, or elsewhere in the text, is not what the text calls its answer."""
    text = f"4 and 5. #### 5\nNo: the final answer is {said}. There are 7 days."
    assert gsm8k.extract_answer(text) is None
    assert task("spec_bench", DataConfig(str(DATA / "spec_bench.jsonl"))).extract(text, True) is None


def test_gsm8k_golds_are_read_from_the_data() -> None:
    examples = task("gsm8k", DataConfig(str(DATA / "gsm8k.jsonl"))).examples(10)
    assert [x.answer for x in examples] == ["24", "2500", "7.5", "-5", "140"]
    assert [x.prompt_id for x in examples][:2] == ["gsm8k-1", "gsm8k-2"]


def test_gsm8k_comes_bare_or_behind_eight_solved_examples() -> None:
    data = DataConfig(str(DATA / "gsm8k.jsonl"))
    (bare,) = task("gsm8k", data).examples(1)
    assert [m["role"] for m in bare.messages()] == ["user"]
    assert bare.turns[0].startswith("Mia has 12 apples.")
    assert "The final answer is N" in bare.turns[0]
    (shown,) = task("gsm8k", data, 8).examples(1)
    messages = shown.messages()
    assert [m["role"] for m in messages] == ["user", "assistant"] * 8 + ["user"]
    assert messages[-1] == bare.messages()[0]
    answers = [gsm8k.extract_answer(m["content"]) for m in messages if m["role"] == "assistant"]
    assert answers == ["6", "5", "39", "8", "9", "29", "33", "8"]


def test_second_turns_go_on_behind_replies() -> None:
    (first, *_) = task("mtbench", DataConfig(str(DATA / "mtbench.jsonl"))).examples(1)
    assert [m["content"] for m in first.messages()] == [first.turns[0]]
    assert [m["content"] for m in first.messages(["Waves."])] == [first.turns[0], "Waves.", first.turns[1]]


def test_mtbench_takes_its_own_categories_of_spec_benchs_file_and_spec_bench_takes_all() -> None:
    data = DataConfig(str(DATA / "spec_bench.jsonl"))
    assert [x.category for x in task("mtbench", data).examples(9)] == ["writing"]
    examples = task("spec_bench", data).examples(9)
    assert [x.category for x in examples] == ["writing", "translation", "summarization", "math_reasoning", "rag"]
    assert [x.answer for x in examples] == [None, None, None, "3", None]
    assert [len(x.turns) for x in examples] == [2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "text,finished,answer",
    [
        ("She has 5 - 2 = 3 left.", True, "3"),
        ("She has 5 - 2 = 3 left.", False, None),
        ("The final answer is 4. Or 5?", True, "4"),
        ("None.", True, None),
    ],
)
def test_a_spec_bench_answer_is_what_a_finished_text_ends_on(text: str, finished: bool, answer: str | None) -> None:
    assert task("spec_bench", DataConfig(str(DATA / "spec_bench.jsonl"))).extract(text, finished) == answer


def test_the_hubs_own_column_names_of_mtbench_are_read(tmp_path: Path) -> None:
    row = {"prompt_id": 7, "category": "math", "prompt": ["one", "two"], "reference": []}
    (tmp_path / "hub.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = task("mtbench", DataConfig(str(tmp_path / "hub.jsonl"))).examples(1)
    assert (example.prompt_id, example.turns) == ("mtbench-7", ("one", "two"))


@pytest.mark.parametrize("form", ["folder", "parquet", "csv", "json"])
def test_rows_come_through_the_library_as_from_a_file(tmp_path: Path, form: str) -> None:
    """The same call reads a hub id; a folder is the nearest thing without a network."""
    import datasets

    rows = [json.loads(line) for line in (DATA / "gsm8k.jsonl").read_text().splitlines()]
    made = datasets.Dataset.from_list(rows)
    config = DataConfig(str(tmp_path / f"rows.{form}"))
    if form == "folder":
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "test.jsonl").write_text((DATA / "gsm8k.jsonl").read_text())
        config = DataConfig(str(tmp_path / "hub"), split="test")
    else:
        getattr(made, f"to_{form}")(config.source)
    expected = task("gsm8k", DataConfig(str(DATA / "gsm8k.jsonl"))).examples(9)
    assert task("gsm8k", config).examples(9) == expected
    assert read(config).digest == read(config).digest
    assert len(read(config).digest) == 64


def test_the_digest_is_that_of_the_file_and_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one"}\n')
    before = task("prompts", DataConfig(str(path))).dataset()
    assert (before.name, before.num_rows, before.source) == ("prompts", 1, str(path))
    path.write_text('{"prompt": "two"}\n')
    assert task("prompts", DataConfig(str(path))).dataset().digest != before.digest


def no_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import datasets

    def fail(**more: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)


def test_a_hub_id_is_asked_for_with_its_subset_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load(**more: Any) -> list[dict[str, str]]:
        asked.update(more)
        return [{"question": "1 + 1?", "answer": "#### 2"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    (example,) = task("gsm8k", DataConfig("openai/gsm8k", "main", "test", "abc")).examples(5)
    assert example.answer == "2"
    assert asked == {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": "abc"}


def test_what_the_library_says_of_a_source_comes_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch, ConnectionError("Couldn't reach the Hub\nand more"))
    with pytest.raises(TaskError) as error:
        task("gsm8k", DataConfig("openai/gsm8k", "main", "test"))
    assert str(error.value) == "data 'openai/gsm8k main test' cannot be loaded: Couldn't reach the Hub"


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("gsm8k", '{"question": "a"}', "line 1: 'answer' must be a text that is not empty, got None."),
        ("gsm8k", '{"question": "a", "answer": "it is 4"}', "line 1: 'answer' must end with #### and a number."),
        ("gsm8k", '{"question": "a", "answer": "#### four"}', "line 1: 'answer' must end with #### and a number."),
        ("gsm8k", '{"question": 3, "answer": "#### 4"}', "line 1: 'question' must be a text that is not empty, got 3."),
        ("gsm8k", '{"question": "a", "answer": "#### 4"}\n{"question"', "line 2: not JSON"),
        ("gsm8k", "", "holds no rows"),
        ("gsm8k", "[1]", "line 1: must be an object, got list."),
        ("mtbench", '{"category": "math"}', "line 1: 'turns' must be a list of one question or more, got None."),
        ("mtbench", '{"category": "math", "turns": []}', "line 1: 'turns' must be a list of one question or more"),
        ("mtbench", '{"category": "math", "turns": ["a", " "]}', "line 1: 'turns' must hold texts that are not empty."),
        ("mtbench", '{"category": "qa", "turns": ["a"]}', "holds no question of mtbench's categories"),
        (
            "spec_bench",
            '{"question_id": 1, "turns": ["a"]}\n{"question_id": 1, "turns": ["b"]}',
            "question 'spec_bench-1' is given twice",
        ),
        (
            "spec_bench",
            '{"category": "math_reasoning", "turns": ["a"], "reference": ["3"]}',
            "line 1: 'reference' of a math_reasoning question must end with #### and a number.",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(TaskError) as error:
        task(name, DataConfig(str(path)))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        json.dumps({"prompt": "one\u2028two\x85three"}, ensure_ascii=False) + "\r\n", encoding="utf-8", newline=""
    )
    (example,) = task("prompts", DataConfig(str(path))).examples(2)
    assert example.turns == ("one\u2028two\x85three",)
    with pytest.raises(TaskError, match="split is given, but a JSONL file has none"):
        task("prompts", DataConfig(str(path), split="test"))


def test_whole_numbers_that_came_as_floats_are_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("prompt,answer\na,5\nb,\n")
    examples = task("prompts", DataConfig(str(tmp_path / "mine.csv"))).examples(2)
    assert [x.answer for x in examples] == ["5", None]


def test_a_source_that_is_not_there_is_refused() -> None:
    with pytest.raises(TaskError, match=r"data './nowhere' does not exist; give a file, a folder, an address"):
        task("gsm8k", DataConfig("./nowhere"))
    with pytest.raises(TaskError, match=r"data file 'nowhere.jsonl' cannot be read: No such file"):
        task("gsm8k", DataConfig("nowhere.jsonl"))


@full
@pytest.mark.parametrize(
    "name,file,count,checked",
    [
        ("gsm8k", "gsm8k_test.jsonl", 1319, 1319),
        ("gsm8k", "gsm8k_train.jsonl", 7473, 7473),
        ("spec_bench", "spec_bench_question.jsonl", 480, 80),
        ("mtbench", "spec_bench_question.jsonl", 80, 0),
    ],
)
def test_the_full_files_load_and_every_gold_is_extracted(name: str, file: str, count: int, checked: int) -> None:
    chosen = task(name, DataConfig(str(FULL / file)))
    examples = chosen.examples(10**6)
    assert len(examples) == count
    golds = [x.answer for x in examples if x.answer is not None]
    assert len(golds) == checked
    for gold in golds:
        assert chosen.extract(f"2 and 2. The final answer is {gold}.", True) == gold
    if name == "gsm8k":
        for row, example in zip(read(DataConfig(str(FULL / file))).rows, examples, strict=True):
            assert chosen.extract(row.values["answer"], True) == example.answer

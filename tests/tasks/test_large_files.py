"""Rows of a task stay in their file: what is read again is what was checked, however little of it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specexp.errors import TaskError
from specexp.tasks import arith, arith_code, example
from specexp.tasks.conversations import Shots
from specexp.tasks.example import Example, Examples, checked, place_of
from specexp.tasks.source import DataConfig, read
from specexp.tasks.task import TASKS, Arith, LongPrompts, Toy, task

DATA = Path(__file__).resolve().parents[1] / "data"
NUMBER = 40


def row(index: int) -> dict[str, Any]:
    return {
        "id": f"a {index}",
        "prompt": f"What is {index} ä?\u2028",
        "answer": str(index),
        "more": [index, {"x": None}],
    }


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Rows with empty lines between them, a mark at the beginning, and no line feed at the end."""
    path = tmp_path / "rows.jsonl"
    texts = [json.dumps(row(index), ensure_ascii=index % 2 == 0) + "\n" * (1 + index % 3) for index in range(NUMBER)]
    path.write_text("\ufeff" + "".join(texts).rstrip("\n"), encoding="utf-8")
    return path


@pytest.fixture(params=[True, False], ids=["kept", "read again"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether examples are kept in memory once they are made."""
    if not request.param:
        monkeypatch.setattr(example, "MOST_KEPT", 0)
    return bool(request.param)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("form", ["lines", "document", "pipe", "library"])
def test_examples_are_those_of_the_rows_from_every_source(form: str, lines: Path, tmp_path: Path) -> None:
    source = lines
    if form == "document":
        source = tmp_path / "rows.json"
        source.write_text(json.dumps([row(index) for index in range(NUMBER)]), encoding="utf-8")
    elif form == "pipe":
        source = tmp_path / "pipe.jsonl"
        os.mkfifo(source)
        threading.Thread(target=lambda: source.write_bytes(lines.read_bytes()), daemon=True).start()
    elif form == "library":
        source = tmp_path / "rows"
        source.mkdir()
        (source / "data.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(NUMBER)))
    chosen = task("prompts", DataConfig(str(source)))
    expected = [Example(f"a {i}", (f"What is {i} ä?\u2028",), str(i)) for i in range(NUMBER)]
    examples = chosen.examples(99)
    assert examples == expected
    assert [examples[index] for index in (7, -1, 0, 7)] == [expected[index] for index in (7, -1, 0, 7)]
    assert chosen.examples(3) == expected[:3]
    assert place_of(examples, "a 9") == place_of(expected, "a 9") == 9
    assert place_of(examples[5:], "a 9") == 4
    for some in (examples, expected, examples[:9]):
        with pytest.raises(KeyError):
            place_of(some, "a 99")
    assert place_of(examples, "a 9") == 9
    assert chosen.dataset().num_rows == NUMBER


def test_the_hash_is_that_of_the_file_and_a_row_names_its_line(lines: Path, tmp_path: Path) -> None:
    rows = read(DataConfig(str(lines)))
    assert rows.digest == hashlib.sha256(lines.read_bytes()).hexdigest()
    assert rows.columns == ("id", "prompt", "answer", "more")
    numbers, line = [], 1
    for index in range(NUMBER):
        numbers.append(line)
        line += 1 + index % 3
    assert [each.number for each in rows.rows] == numbers
    assert rows.rows[5].where == f"{lines}, line {numbers[5]}"
    assert [each.values for each in rows.rows] == [row(index) for index in range(NUMBER)]
    document = tmp_path / "rows.json"
    document.write_text(json.dumps([row(3), {"prompt": "x", "late": 1}]))
    of_document = read(DataConfig(str(document)))
    assert of_document.digest == hashlib.sha256(document.read_bytes()).hexdigest()
    assert of_document.columns == ("id", "prompt", "answer", "more", "late")
    assert [(each.where, each.number) for each in of_document.rows] == [(f"{document}, row {i}", i) for i in (1, 2)]
    by_line = tmp_path / "lines.json"
    by_line.write_text('\n{"prompt": "x"}\n\n{"prompt": "y"}\n')
    assert [each.where for each in read(DataConfig(str(by_line))).rows] == [f"{by_line}, line {i}" for i in (2, 4)]


def test_the_hash_of_rows_from_the_library_is_that_of_their_list(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"question": f"{i}?", "answer": f"#### {i}", "b": None} for i in range(3)]
    for some in (rows, rows[:1]):
        monkeypatch.setattr(datasets, "load_dataset", lambda _some=some, **more: _some)
        expected = hashlib.sha256(json.dumps(some, sort_keys=True).encode()).hexdigest()
        assert read(DataConfig("name/of")).digest == expected


def test_what_the_library_raises_at_a_row_comes_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Broken(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield {"question": "1?", "answer": "#### 1"}
            raise ImportError("To support decoding images, please install 'Pillow'.\nMore")

    monkeypatch.setattr(datasets, "load_dataset", lambda **more: Broken([1, 2]))
    with pytest.raises(TaskError) as error:
        task("gsm8k", DataConfig("name/of"))
    assert str(error.value) == "data 'name/of' cannot be loaded: To support decoding images, please install 'Pillow'."


def test_a_byte_that_is_not_utf8_is_told_with_its_place_in_the_file(lines: Path) -> None:
    content = lines.read_bytes()
    place = content.index("ä".encode(), 300)
    lines.write_bytes(content[:place] + b"\xff" + content[place:])
    with pytest.raises(TaskError, match=rf"not UTF-8 text \(byte {place}\); save it as UTF-8"):
        read(DataConfig(str(lines)))
    lines.write_bytes("\n".join(["{}"] * 9).encode("utf-16"))
    with pytest.raises(TaskError, match=r"not UTF-8 text \(byte 0, as UTF-16 begins\)"):
        read(DataConfig(str(lines)))


@pytest.mark.usefixtures("kept")
def test_a_fault_of_a_row_comes_before_an_id_that_is_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    twice, bad = '{"prompt": "x", "id": 1}\n', '{"prompt": ""}\n'
    path.write_text(twice + twice + bad)
    with pytest.raises(TaskError, match="line 3: 'prompt' must be a text"):
        task("prompts", DataConfig(str(path)))
    path.write_text('{"prompt": "x", "id": 2}\n' + twice + '{"prompt": "x"}\n' + twice)
    with pytest.raises(TaskError, match="id '1' is given twice"):
        task("prompts", DataConfig(str(path)))


def test_a_row_that_was_written_over_is_no_other_prompt(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "MOST_KEPT", 0)
    examples = task("prompts", DataConfig(str(lines))).examples(NUMBER)
    content = lines.read_bytes()
    other = lines.with_name("other")
    other.write_bytes(content.replace(b"What", b"Who?"))
    other.replace(lines)
    assert examples[4].turns == ("What is 4 ä?\u2028",), "an editor that replaces the file changes nothing"
    examples = task("prompts", DataConfig(str(lines))).examples(NUMBER)
    with lines.open("r+b") as file:
        file.write(content)
    with pytest.raises(TaskError, match=r"rows.jsonl' has been written over since it was read"):
        examples[4]


@pytest.mark.usefixtures("kept")
def test_solved_examples_precede_what_is_read_again() -> None:
    plain = task("gsm8k", DataConfig(str(DATA / "gsm8k.jsonl"))).examples(99)
    pairs = (("2 + 2?", "4"), (plain[1].turns[0], "the second row"))
    shown = Shots(pairs, "x").precede(checked(list(plain), lambda each: each))
    assert [each.prompt_id for each in shown] == [each.prompt_id for each in plain if each != plain[1]]
    assert {each.shots for each in shown} == {pairs}
    assert [each.answer for each in shown[1:]] == [each.answer for each in plain[2:]]


@pytest.mark.usefixtures("kept")
def test_generated_problems_are_made_again() -> None:
    assert [x.turns[0] for x in Arith().examples(60)] == [arith.prompt(p) for p in arith.distinct("test", 60)]
    assert [x.answer for x in Arith().examples(60)[50:]] == [str(p.answer) for p in arith.distinct("test", 60)[50:]]
    codes = TASKS["arith_code"](DataConfig(""), Shots(), "mining").examples(60)
    assert [(x.prompt_id, x.turns[0]) for x in codes] == [
        (f"arith_code-mining-{p.index}", arith_code.prompt(p)) for p in arith_code.distinct("mining", 60)
    ]
    texts = LongPrompts(300).examples(3)
    assert texts == LongPrompts(300).examples(5)[:3]
    assert len({x.turns for x in texts}) == 3
    toy = Toy().examples(9)
    assert toy[0].turns == ("3 1 3 3 0 6 9 3",)
    assert toy == Toy().examples(20)[:9]
    assert (toy[8].prompt_id, len({x.turns for x in toy})) == ("toy-8", 9)


@pytest.mark.usefixtures("kept")
def test_programs_are_found_by_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    rows = [{"task_id": i, "text": f"Say {i}.", "code": "", "test_list": [f"assert f() == {i}"]} for i in range(9)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    chosen: Any = TASKS["mbpp"](DataConfig(str(path)), Shots(), "")
    for each in chosen.examples(9):
        problem = chosen.comparator.problem(each.prompt_id)
        assert (problem.prompt_id, problem.prompt) == (each.prompt_id, each.turns[0])
    with pytest.raises(KeyError):
        chosen.comparator.problem("mbpp-9")


def test_a_large_file_takes_tens_of_bytes_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "MOST_KEPT", 20_000)
    taken = {}
    for number in (300, 2_300):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{i} " * 300}) + "\n" for i in range(number)))
        tracemalloc.start()
        try:
            examples = task("prompts", DataConfig(str(path))).examples(number)
            taken[number], peak = tracemalloc.get_traced_memory()
            assert isinstance(examples, Examples)
        finally:
            tracemalloc.stop()
        assert peak < taken[number] + 60_000 + 300 * number
    assert taken[2_300] - taken[300] < 40 * 2_000

"""What comes from outside is read alike at every door: no byte order mark, one BOS, ids or their defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import specexp
from entrypoints import generate
from helpers.cli_runner import invoke
from specexp import config, reading
from specexp.errors import ConfigError, TaskError, shown
from specexp.lm.hf.source import ZOO
from specexp.pair.tokenization import TokenizerText
from specexp.serving import requests
from specexp.tasks.source import DataConfig
from specexp.tasks.task import task

MARK = "\ufeff"
QUESTION = "Mia has 4 apples. Then she buys 3 more. How many is that in the end?\n"


def prompts_of(path: Path) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(x.prompt_id, x.turns, x.answer) for x in task("prompts", DataConfig(str(path))).examples(9)]


@pytest.mark.parametrize(
    "name,text",
    [
        ("a.jsonl", '{"prompt": "one", "answer": 5}\n{"prompt": "two"}\n'),
        ("a.jsonl", f'{{"prompt": "one", "answer": 5}}\n{MARK}{{"prompt": "two"}}\n'),
        ("a.jsonl", f'{{"prompt": "{MARK}one", "answer": 5}}\n{{"prompt": "two"}}\n'),
        ("a.json", '[{"prompt": "one", "answer": 5}, {"prompt": "two"}]'),
        ("a.csv", "prompt,answer\none,5\ntwo,\n"),
    ],
    ids=["JSONL", "JSONL appended", "a prompt", "JSON", "CSV"],
)
def test_a_byte_order_mark_is_no_part_of_rows(tmp_path: Path, name: str, text: str) -> None:
    for mark in ("", MARK):
        (tmp_path / name).write_text(mark + text, encoding="utf-8")
        assert prompts_of(tmp_path / name) == [("line-1", ("one",), "5"), ("line-2", ("two",), None)]


def test_a_byte_order_mark_is_no_part_of_turns_and_settings(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"category": "math", "turns": [f"{MARK}a", "b"]}))
    (example,) = task("mtbench", DataConfig(str(tmp_path / "a.jsonl"))).examples(1)
    assert example.turns == ("a", "b")
    (tmp_path / "mine.yaml").write_text(f"{MARK}limit: 3\n", encoding="utf-8")
    assert config.load_yaml(tmp_path / "mine.yaml") == {"limit": 3}


def test_a_byte_order_mark_is_no_part_of_a_prompt_however_it_is_given() -> None:
    arguments = ["--experiment", "toy_quick", "--method", "baseline", "--max-new-tokens", "9"]
    expected = invoke(generate.command, QUESTION, *arguments)
    assert expected.exit_code == 0, expected.output
    assert invoke(generate.command, MARK + QUESTION, *arguments).stdout == expected.stdout
    assert invoke(generate.command, "-", *arguments, stdin=(MARK + QUESTION).encode()).stdout == expected.stdout
    pair = specexp.load("toy_quick", max_new_tokens=9)
    assert pair.generate(MARK + QUESTION, "baseline").text == expected.stdout
    body = json.dumps({"prompt": MARK + QUESTION}).encode()
    assert requests.canonical(MARK.encode() + body)["dataframe_split"]["data"] == [[QUESTION]]


class Words:
    """A tokenizer of words; `before` and `after` are what it puts around a text by itself."""

    bos_token_id = 1

    def __init__(self, before: list[int], after: list[int]) -> None:
        self.before, self.after = before, after

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [1 if word == "<s>" else 5 for word in text.split()]
        return {"input_ids": [*self.before, *ids, *self.after] if add_special_tokens else ids}


@pytest.mark.parametrize(
    "before,after,text,ids",
    [
        ([1], [], "a b", [1, 5, 5]),
        ([1], [], "<s> a b", [1, 5, 5]),
        ([1], [2], "<s> a b", [1, 5, 5, 2]),
        ([1], [], "<s> <s> a", [1, 1, 5]),  # two on purpose
        ([1], [], "a <s> b", [1, 5, 1, 5]),
        ([], [], "<s> <s> a", [1, 1, 5]),
        ([], [2], "<s> <s> a", [1, 1, 5, 2]),
    ],
)
def test_a_prompt_with_a_bos_gets_no_other(before: list[int], after: list[int], text: str, ids: list[int]) -> None:
    assert TokenizerText(Words(before, after), chat=False).encode([{"role": "user", "content": text}]) == ids


def test_a_real_tokenizer_puts_one_bos_before_a_prompt_that_has_one() -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ZOO / "target")
    tokenizer.bos_token = bos = tokenizer.convert_ids_to_tokens(0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    text = TokenizerText(tokenizer, chat=False)
    plain = text.encode([{"role": "user", "content": QUESTION}])
    assert plain[0] == tokenizer.bos_token_id
    assert text.encode([{"role": "user", "content": bos + QUESTION}]) == plain


def test_an_id_that_is_null_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a", "id": null}\n{"prompt": "b", "id": 7}\n{"prompt": "c", "id": "x"}'
    )
    assert [x[0] for x in prompts_of(tmp_path / "a.jsonl")] == ["line-1", "7", "x"]
    (tmp_path / "a.csv").write_text("prompt,id\na,\nb,7\n")
    assert [x[0] for x in prompts_of(tmp_path / "a.csv")] == ["line-1", "7"]
    (tmp_path / "q.jsonl").write_text('{"turns": ["a"], "category": "math", "question_id": null, "prompt_id": 4}')
    (example,) = task("spec_bench", DataConfig(str(tmp_path / "q.jsonl"))).examples(1)
    assert example.prompt_id == "spec_bench-4"


def test_a_json_document_is_a_list_an_object_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ('[{"prompt": "a"},\n {"prompt": "b"}]', '{"prompt": "a"}\n{"prompt": "b"}\n'):
        path.write_text(text)
        assert [turns for _, turns, _ in prompts_of(path)] == [("a",), ("b",)]
    path.write_text('{\n "prompt": "a"\n}\n')
    assert [turns for _, turns, _ in prompts_of(path)] == [("a",)]


def test_long_texts_in_quotes_are_read_from_csv(tmp_path: Path) -> None:
    long = "one, two\n" * 20_000  # longer than a field that Python's csv reads by default
    (tmp_path / "a.csv").write_text(f'prompt,answer\n"{long}",5\n')
    assert prompts_of(tmp_path / "a.csv") == [("line-1", (long,), "5")]


@pytest.mark.parametrize("cause", ["the cache is a file", "the home is a file"])
def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    import datasets

    (tmp_path / "a.csv").write_text("prompt\na\n")
    (tmp_path / "taken").write_text("")
    cache = tmp_path / "taken" / "" if cause == "the cache is a file" else tmp_path / "taken" / "hub" / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    with pytest.raises(TaskError) as error:
        task("prompts", DataConfig(str(tmp_path / "a.csv")))
    assert f"the cache of the library datasets, '{cache}', cannot be written" in str(error.value)
    assert str(error.value).endswith("; name another folder in HF_DATASETS_CACHE, or in HF_HOME.")


def test_what_the_library_raises_is_told_by_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(**more: Any) -> None:
        try:
            raise ValueError("row 3 is broken\nand more")
        except ValueError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TaskError, match=r"data 'hub/id' cannot be loaded: row 3 is broken$"):
        task("prompts", DataConfig("hub/id"))


def test_rows_of_the_hub_are_checked_like_those_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda **more: [{"prompt": "a"}, {"prompt": "b", "id": "\ud800"}])
    with pytest.raises(TaskError, match=r"hub/id, row 2: 'id' holds '\\ud800', half of a character"):
        task("prompts", DataConfig("hub/id"))


def test_aliases_are_followed_up_to_the_bound_and_no_further() -> None:
    def nested(count: int) -> str:
        return f"a: &a [{', '.join(['x'] * 99)}]\nb: [{', '.join(['*a'] * count)}]\n"

    assert len(reading.parse_yaml(nested(90), "x", ConfigError)["b"]) == 90
    with pytest.raises(ConfigError, match="more than 10,000 values"):
        reading.parse_yaml(nested(110), "x", ConfigError)
    merged = reading.parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", "x", ConfigError)
    assert merged["b"] == {"x": 1, "y": 3}


def test_a_long_value_is_cut_in_a_message() -> None:
    assert shown("short") == "'short'"
    assert len(shown("x" * 5000)) < 120

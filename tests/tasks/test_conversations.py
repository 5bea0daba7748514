"""Rows that are conversations, and solved examples before prompts: from a task's own, a split or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specexp import config
from specexp.errors import ConfigError, TaskError
from specexp.pair.tokenization import ToyText, joined
from specexp.tasks import arith, gsm8k
from specexp.tasks.source import DataConfig
from specexp.tasks.task import notes_of, task

DATA = Path(__file__).resolve().parent.parent / "data"
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "2 + 3?"}
SAID = {"role": "assistant", "content": "5"}
NEXT = {"role": "user", "content": "And 4 more?"}


def written(folder: Path, *rows: Any, name: str = "rows.jsonl") -> DataConfig:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(str(folder / name))


@pytest.mark.parametrize("messages", [[ASKED], [SYSTEM, ASKED], [ASKED, SAID, NEXT], [SYSTEM, ASKED, SAID, NEXT]])
def test_a_conversation_is_asked_as_it_is_written(tmp_path: Path, messages: list[dict[str, str]]) -> None:
    chosen = task("prompts", written(tmp_path, {"messages": messages, "answer": "9", "id": "a"}))
    (example,) = chosen.examples(9)
    assert example.messages() == messages
    assert (example.turns, example.answer, example.prompt_id) == ((messages[-1]["content"],), "9", "a")
    assert notes_of(chosen) == []


def test_rows_of_both_kinds_go_together_and_a_null_is_no_conversation(tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "2 + 3?", "messages": None}, {"prompt": None, "messages": [ASKED]})
    one, other = task("prompts", rows).examples(9)
    assert one.messages() == other.messages() == [ASKED]


@pytest.mark.parametrize(
    "messages,fault",
    [
        ([], "'messages' must be a list of one message or more, got []."),
        ("2 + 3?", "'messages' must be a list of one message or more, got '2 + 3?'."),
        ([SYSTEM], "'messages' holds a system message alone; add the user's."),
        ([ASKED, SAID], "the last of 'messages' is the assistant's; end with the user's, which is answered."),
        ([ASKED, NEXT], "message 2 is the user's, but the assistant's is next"),
        ([SAID, NEXT], "message 1 is the assistant's, but the user's is next"),
        ([SYSTEM, SAID], "message 2 is the assistant's, but the user's is next"),
        ([ASKED, SAID, SYSTEM, NEXT], "message 3 is the system's, but the user's is next"),
        (["2 + 3?"], "message 1 must have a role of system, user, assistant and a content, got '2 + 3?'."),
        ([{"role": "tool", "content": "5"}], "message 1 must have a role of system, user, assistant and a content"),
        ([ASKED, {"role": "assistant", "content": " "}, NEXT], "the content of message 2 must be a text that is not"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the content of message 1 must be a text that is not"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(tmp_path: Path, messages: Any, fault: str) -> None:
    with pytest.raises(TaskError) as error:
        task("prompts", written(tmp_path, {"prompt": "a"}, {"messages": messages}))
    assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 2: ")
    assert fault in str(error.value)


def test_a_row_has_a_prompt_or_messages(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="line 1: has 'prompt' and 'messages'; give one of them"):
        task("prompts", written(tmp_path, {"prompt": "a", "messages": [ASKED]}))


def test_without_a_template_a_system_prompt_is_the_first_text() -> None:
    assert joined([ASKED]) == "2 + 3?"
    assert joined([SYSTEM, ASKED]) == "Be brief.\n\n2 + 3?"
    assert joined([SYSTEM, ASKED, SAID, NEXT]) == "Be brief.\n\n" + joined([ASKED, SAID, NEXT])
    text = ToyText(24, "Be brief.")
    assert text.encode([ASKED]) == ToyText(24).encode([SYSTEM, ASKED])
    other = [{"role": "system", "content": "Be long."}, ASKED]
    assert text.encode(other) == ToyText(24).encode(other), "a conversation's own takes its place"


def test_solved_examples_of_a_file_precede_every_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + 1?", "answer": n + 1} for n in range(5)]
    talk = {"messages": [ASKED, SAID, NEXT, {"role": "assistant", "content": "9"}]}
    shots = written(tmp_path, {"question": "1 + 0?", "answer": "It is 1."}, talk, rows[3], name="shots.jsonl")
    chosen = task("prompts", written(tmp_path, *rows), 3, shots_data=shots)
    examples = chosen.examples(9)
    assert [each.turns[0] for each in examples] == ["0 + 1?", "1 + 1?", "2 + 1?", "4 + 1?"], (
        "what is shown is not asked"
    )
    before = [("1 + 0?", "It is 1."), ("2 + 3?", "5"), ("And 4 more?", "9"), ("3 + 1?", "4")]
    assert [m["content"] for m in examples[0].messages()] == [text for pair in before for text in pair] + ["0 + 1?"]
    assert chosen.examples(2) == examples[:2]


def test_the_rows_of_solved_examples_are_part_of_the_datas_hash(tmp_path: Path) -> None:
    rows, digests = written(tmp_path, {"prompt": "a"}), set()
    for answer in ("b", "c"):
        shots = written(tmp_path, {"prompt": "x", "answer": answer}, name="shots.jsonl")
        digests.add(task("prompts", rows, 1, shots_data=shots).dataset().digest)
    assert len(digests | {task("prompts", rows).dataset().digest}) == 3


def test_gsm8ks_rows_are_worded_as_its_own_examples(tmp_path: Path) -> None:
    data = DataConfig(str(DATA / "gsm8k.jsonl"))
    shots = written(tmp_path, {"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"})
    (example, *_) = task("gsm8k", data, 1, shots_data=shots).examples(1)
    ((question, answer),) = example.shots
    assert question == gsm8k.ask("1 + 1?")
    assert answer == "1 + 1 = <<1+1=2>>2\nThe final answer is 2."
    assert gsm8k.extract_answer(answer) == "2"


def test_arith_makes_solved_examples_of_another_split() -> None:
    (plain,), (shown,) = task("arith").examples(1), task("arith", shots=3).examples(1)
    assert (shown.prompt_id, shown.turns) == (plain.prompt_id, plain.turns)
    assert len(shown.shots) == 3
    for _, answer in shown.shots:
        assert arith.extract_answer(answer) is not None
    made = {problem.question: problem for problem in arith.distinct("train", 3, 1)}
    assert [made[question.strip()].solution for question, _ in shown.shots] == [answer for _, answer in shown.shots]
    (mined,) = task("arith", shots=3, shots_data=DataConfig("", split="mining")).examples(1)
    assert {arith.split_of(p.numbers) for p in arith.distinct("mining", 3, 1)} == {"mining"}
    assert mined.shots != shown.shots


@pytest.mark.parametrize(
    "row,fault",
    [
        ({"text": "a"}, "a solved example has prompt or question, and answer, but this row has 'text'."),
        ({"prompt": "a"}, "a solved example has prompt or question, and answer, but this row has 'prompt'."),
        ({"prompt": "a", "answer": " "}, "'answer' must be a text that is not empty, got ' '."),
        ({"messages": [ASKED, SAID, NEXT]}, "'messages' of a solved example must be the user's and the assistant's"),
        ({"messages": [SYSTEM, ASKED, SAID]}, "without a system message; set system for one."),
    ],
)
def test_what_is_not_solved_is_refused(tmp_path: Path, row: Any, fault: str) -> None:
    with pytest.raises(TaskError) as error:
        task("prompts", written(tmp_path, {"prompt": "a"}), 1, shots_data=written(tmp_path, row, name="shots.jsonl"))
    assert fault in str(error.value)


def test_too_few_rows_and_nothing_left_to_ask(tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "a", "answer": "b"})
    with pytest.raises(TaskError, match=r"shots is 2, but shots_data '.*rows\.jsonl' has 1 rows; lower it"):
        task("prompts", rows, 2, shots_data=rows)
    with pytest.raises(TaskError, match="every prompt is among the solved examples; lower shots, or name other"):
        task("prompts", rows, 1, shots_data=rows)


@pytest.mark.parametrize(
    "flags,fault",
    [
        ({"system": " "}, "system is ' '; it must be a text that is not empty, of at most 100,000 characters."),
        ({"shots": "-1"}, "shots is '-1'; it must be a whole number >= 0 and at most 1000."),
        (
            {"task": "prompts", "data": "a.jsonl", "shots": "2"},
            "shots is 2, but task 'prompts' has no solved examples of its own; leave it out, or set shots_data to rows"
            " that are solved.",
        ),
        (
            {"task": "gsm8k", "shots": "5"},
            "shots is 5, but gsm8k has 8 solved examples of its own; set it to 8, or set shots_data, as to"
            " split=train.",
        ),
        (
            {"task": "prompts", "data": "a.jsonl", "shots_data": "b.jsonl"},
            "shots_data is given, but shots is 0; set shots to how many of its rows are shown, or leave it out.",
        ),
        (
            {"task": "toy", "pair": "toy", "methods": "baseline", "shots": "2", "shots_data": "split=train"},
            "shots_data is split=train, but task 'toy' has no rows of its own; name a file.",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", flags)
    assert error.value.faults == [fault]


def test_a_split_is_of_the_tasks_own_rows() -> None:
    asked = config.resolve("gsm8k_8shot_llama_8b_1b", {"shots": "4", "shots_data": "split=train"})
    assert asked.shots_data == DataConfig("openai/gsm8k", "main", "train")
    assert config.resolve("arith_quick", {"shots": "2", "shots_data": "split=mining"}).shots_data == DataConfig(
        "", split="mining"
    )


def test_they_leave_hashes_of_settings_without_them_alone(tmp_path: Path) -> None:
    plain = config.resolve("arith_quick", {"shots": "2"})
    given = [{"system": "a"}, {"system": "b"}, {"shots_data": "a.jsonl"}, {"shots_data": "split=train"}]
    hashes = {config.resolve("arith_quick", {"shots": "2", **each}).hash for each in given}
    assert len(hashes | {plain.hash}) == 5
    mined = {config.resolve_mining("arith_quick", {"shots": "2", **each}).hash for each in ({}, *given)}
    trained = {config.resolve_drafter("arith_quick", {"shots": "2", **each}).hash for each in ({}, *given)}
    assert len(mined) == len(trained) == 5

"""A system prompt, solved examples and a conversation's earlier messages, in evaluations, mining and `generate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import specexp
from helpers.cli_runner import evaluate, records, run, runs
from specexp import config
from specexp.errors import PromptError
from specexp.judge import collection
from specexp.pair.tokenization import joined

HOW = (
    "--experiment", "toy_quick", "--task", "prompts", "--methods", "baseline,speculative", "--gamma", "4",
    "--show", "0",
)  # fmt: skip
SYSTEM = "Be brief."
SOLVED = [("1 + 1?", "2"), ("3 + 1?", "4")]
TALK = [("user", "2 + 3?"), ("assistant", "5"), ("user", "And 4 more?")]


def messages(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def test_the_models_read_what_is_written_before_a_prompt(workplace: Path) -> None:
    solved = [(role, text) for pair in SOLVED for role, text in zip(("user", "assistant"), pair, strict=True)]
    whole = joined(messages(("system", SYSTEM), *solved, *TALK))
    (workplace / "talk.jsonl").write_text(json.dumps({"messages": messages(*TALK), "id": "a"}) + "\n")
    (workplace / "whole.jsonl").write_text(json.dumps({"prompt": whole, "id": "a"}) + "\n")
    (workplace / "solved.jsonl").write_text("".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in SOLVED))
    before = ("--system", SYSTEM, "--shots", "2", "--shots_data", "solved.jsonl")
    for name, flags in (("talk", before), ("whole", ())):
        result = evaluate(*HOW, "--data", f"{name}.jsonl", "--output", name, *flags)
        assert result.exit_code == 0, result.output
    tokens = [[row["token_ids"] for row in records(workplace / name)] for name in ("talk", "whole")]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 2
    logged = [each.data.params for each in runs() if each.data.params.get("system")]
    assert {(each["system"], each["shots"], each["shots_data"]) for each in logged} == {(SYSTEM, "2", "solved.jsonl")}
    (workplace / "solved.jsonl").write_text('{"prompt": "x", "answer": "y"}\n' * 2)
    (workplace / "talk" / "records.jsonl").unlink()
    again = evaluate(*HOW, "--data", "talk.jsonl", "--output", "talk", "--resume", *before)
    assert again.exit_code == 2
    assert "was begun on other rows" in again.output


def test_generate_takes_a_system_prompt(workplace: Path) -> None:
    how = ("--experiment", "toy_quick", "--gamma", "4", "--max-new-tokens", "9", "--json")
    given = run("generate", "hello", *how, "--system", SYSTEM)
    whole = run("generate", joined(messages(("system", SYSTEM), ("user", "hello"))), *how)
    assert json.loads(given.stdout)["token_ids"] == json.loads(whole.stdout)["token_ids"]


def test_labels_are_mined_after_solved_examples(workplace: Path) -> None:
    asked = config.resolve_mining(
        "arith_quick", {"shots": "2", "limit": "2", "system": "Solve.", "max_new_tokens": "9"}
    )
    prepared = collection.prepare(asked)
    assert [len(example.shots) for example in prepared.examples] == [2, 2]
    ids = prepared.pair.text.encode(prepared.examples[0].messages())
    assert prepared.pair.text.decode(ids).startswith("Solve.\n\n" + prepared.examples[0].shots[0][0].strip())


def test_the_python_api_takes_a_conversation() -> None:
    pair = specexp.load("toy_quick", system=SYSTEM)
    out = pair.generate(messages(*TALK), "speculative", max_new_tokens=9)
    whole = joined(messages(("system", SYSTEM), *TALK))
    assert out.token_ids == specexp.load("toy_quick").generate(whole, "speculative", max_new_tokens=9).token_ids
    for talk, fault in (
        (TALK[:2], "the conversation ends with the assistant; end it with the user, who is answered."),
        (TALK[1:], "the conversation: message 1 is the assistant's, but the user's is next"),
        ([("user", "\ud800")], "the conversation holds"),
    ):
        with pytest.raises(PromptError, match=re.escape(fault)):
            pair.generate(messages(*talk))

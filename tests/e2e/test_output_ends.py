"""Stop strings, a minimum length and an ignored EOS in an evaluation and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import specexp
from helpers.cli_runner import evaluate, is_refused, records, run, runs


@pytest.fixture(scope="module")
def pair() -> specexp.LoadedPair:
    return specexp.load("arith_quick")


HOW = ("--experiment", "toy_quick", "--limit", "3", "--show", "0")


@pytest.mark.slow
def test_an_evaluation_cuts_texts_at_a_stop_string_for_every_method(workplace: Path) -> None:
    assert evaluate(*HOW, "--output", "free", "--ignore-eos", "true").exit_code == 0
    free = {(r["prompt_id"], r["label"]): r for r in records(workplace / "free")}
    assert {r["finish_reason"] for r in free.values()} == {"length"}
    first = next(iter(free.values()))["token_ids"]
    stop = f"{first[3]} {first[4]}"
    assert evaluate(*HOW, "--output", "out", "--ignore-eos", "true", "--stop", stop).exit_code == 0
    rows = records(workplace / "out")
    for row in rows:
        whole = " ".join(map(str, row["token_ids"]))
        assert free[row["prompt_id"], row["label"]]["token_ids"][: len(row["token_ids"])] == row["token_ids"]
        assert (row["finish_reason"] == "stop_string") == (stop in " " + whole)
        assert row["text"] == whole.partition(stop)[0]
    assert any(row["finish_reason"] == "stop_string" for row in rows)
    assert {each.data.params.get("stop") for each in runs()} >= {json.dumps([stop])}


def test_generate_streams_up_to_a_stop_string(workplace: Path) -> None:
    how = ("hello", "--experiment", "toy_quick", "--method", "speculative", "--gamma", "4", "--max-new-tokens", "20")
    free = json.loads(run("generate", *how, "--json").stdout)
    ids = free["token_ids"]
    stop = json.dumps([f"{ids[4]} {ids[5]}", "no such"])
    shown = run("generate", *how, "--stop", stop)
    assert "finished by stop_string" in shown.stderr
    got = json.loads(run("generate", *how, "--stop", stop, "--json").stdout)
    assert got["token_ids"] == ids[: len(got["token_ids"])]
    assert got["text"] == shown.stdout.rstrip("\n")
    assert got["text"] == free["text"].partition(f"{ids[4]} {ids[5]}")[0]


def test_commands_that_need_whole_outputs_refuse_stop_strings(workplace: Path) -> None:
    (workplace / "mine.yaml").write_text('stop: ["x"]\n')
    how = ("--config", "mine.yaml")
    is_refused(run("benchmark", *how), "stop is ('x',), but a benchmark times whole outputs; leave it out.")
    is_refused(run("advise", *how), "stop is ('x',), but advise predicts the speed of whole outputs; leave it out.")
    is_refused(run("certify", *how), "stop is ('x',), but a certificate is for the target's own distribution")


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("stop", [["is"], ["\n#### "], ["no such", " now.", "gives"]])
def test_tokens_are_those_of_generate_with_stop_strings(pair: specexp.LoadedPair, stop: list[str]) -> None:
    prompt = "Mia has 4 apples. Then she buys 3 more. Zoe gives Mia 5 more. How many is that in the end?\n"
    target: Any = pair._pair.models["target"]
    ids = pair.text.encode([{"role": "user", "content": prompt}])
    with torch.inference_mode():
        out = target.module.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=60, stop_strings=stop, tokenizer=pair.text.tokenizer, pad_token_id=0,  # type: ignore[attr-defined]
        )  # fmt: skip
    expected = [int(token) for token in out[0, len(ids) :]]
    assert len(expected) < 60
    for method in ("baseline", "speculative", "lookup", "suffix", "specexec"):
        heard: list[str] = []
        got = pair.generate(prompt, method, max_new_tokens=60, stop=stop, on_text=heard.append)
        assert (got.token_ids, got.finish_reason) == (expected, "stop_string"), method
        assert "".join(heard) == got.text
        assert not any(each in got.text for each in stop)

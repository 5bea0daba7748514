"""`gamma: auto` from settings to records: costs that a folder keeps, what is logged, and who refuses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import specexp
from helpers.cli_runner import evaluate, flat_runs, records, run, without_clocks
from specexp.api import LoadedPair
from specexp.config import single
from specexp.serving.decoder_spec import Reference, make_decoder_spec

TOY = ("--experiment", "toy_quick", "--limit", "3", "--max_new_tokens", "24", "--temperature", "1")
# A draft for nearly nothing: on the toy, where both models cost the same, drafting would never pay.
COSTS = {"draft": 0.1, "target": [1 + n / 50 for n in range(17)]}


def begun(folder: Path) -> Path:
    """An output folder whose costs are known."""
    arguments = (*TOY, "--methods", "baseline,speculative", "--gamma", "auto,2", "--output", str(folder))
    assert evaluate(*arguments).exit_code == 0
    (folder / "records.jsonl").unlink()
    (folder / "draft_costs.json").write_text(json.dumps(COSTS))
    result = evaluate(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_a_resumed_run_ends_its_drafts_by_the_costs_that_it_was_begun_with(workplace: Path) -> None:
    folder = begun(workplace / "out")
    rows = records(folder)
    drafted = {r["prompt_id"]: r["drafted_before_end"] for r in rows if r["label"] == "speculative_kauto"}
    assert sum(number > 0 for row in drafted.values() for number in row[1:]) > 2, "drafts of several lengths"
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:2]))
    arguments = (*TOY, "--methods", "baseline,speculative", "--gamma", "auto,2", "--output", str(folder), "--resume")
    assert evaluate(*arguments).exit_code == 0
    key = ("prompt_id", "label")
    again = sorted(without_clocks(records(folder)), key=lambda r: [r[k] for k in key])
    assert again == sorted(without_clocks(rows), key=lambda r: [r[k] for k in key])
    assert json.loads((folder / "draft_costs.json").read_text()) == COSTS
    params = flat_runs()["speculative_kauto"].data.params
    assert (params["gamma"], params["max_gamma"]) == ("auto", "16")
    metrics = json.loads((folder / "summary.json").read_text())["speculative_kauto"]
    total = sum(length * number for row in drafted.values() for length, number in enumerate(row))
    assert metrics["accept/drafted_length"] == pytest.approx(total / sum(map(sum, drafted.values())))


@pytest.mark.slow
def test_a_batch_gives_the_tokens_of_one_prompt_at_a_time(workplace: Path) -> None:
    folder = begun(workplace / "out")
    other = workplace / "batch"
    arguments = (*TOY, "--methods", "baseline,speculative", "--gamma", "auto,2", "--batch", "2", "--output", str(other))
    other.mkdir()
    assert evaluate(*arguments[:-1], str(workplace / "first")).exit_code == 0
    config = (workplace / "first" / "config.json").read_text()
    (other / "config.json").write_text(config)
    (other / "draft_costs.json").write_text(json.dumps(COSTS))
    result = evaluate(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    tokens = [{(r["prompt_id"], r["label"]): r["token_ids"] for r in records(each)} for each in (folder, other)]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
def test_costs_that_were_edited_are_refused(workplace: Path) -> None:
    folder = begun(workplace / "out")
    (folder / "draft_costs.json").write_text('{"draft": "cheap"}')
    arguments = (*TOY, "--methods", "baseline,speculative", "--gamma", "auto,2", "--output", str(folder), "--resume")
    result = evaluate(*arguments)
    assert result.exit_code == 2
    assert "draft_costs.json" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("temperature", ["0", "1"])
def test_certify_finds_it_lossless(workplace: Path, temperature: str) -> None:
    sampling = ["--temperature", temperature, *(["--samples", "300"] if temperature == "1" else [])]
    result = run("certify", "--method", "speculative", "--gamma", "auto", "--experiment", "toy_quick", "--limit", "2",
                 "--max_new_tokens", "12", *sampling, "--output", "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "gamma auto up to 4" in result.output
    assert (workplace / "out" / "draft_costs.json").exists()


def test_a_benchmark_which_compares_fixed_lengths_refuses_it(workplace: Path) -> None:
    result = run("benchmark", "--gamma", "auto,4")
    assert result.exit_code == 2
    assert "gamma is auto, but a benchmark compares fixed lengths with transformers'; give numbers." in result.output


def test_a_loaded_pair_measures_once_and_a_served_decoder_keeps_what_was_measured(tmp_path: Path) -> None:
    pair = specexp.load("toy_quick", temperature=1.0, max_new_tokens=30)
    outputs = [pair.generate("8 21 12", method="speculative", gamma="auto", seed=1) for _ in range(2)]
    assert outputs[0].token_ids == outputs[1].token_ids
    asked = single.resolve("toy_quick", "speculative", {"gamma": "auto"})
    costs = pair.draft_costs(asked.methods[0])
    assert costs is pair.draft_costs(asked.methods[0])
    assert costs is not None
    assert len(costs.target) == 17
    make_decoder_spec(pair, asked, 64).save(tmp_path)
    assert Reference.load(tmp_path).draft_costs == costs
    assert LoadedPair(asked, draft_costs=costs).draft_costs(asked.methods[0]) == costs
    assert pair.draft_costs(single.resolve("toy_quick", "speculative", {"gamma": "4"}).methods[0]) is None

"""A draft that stops behind an unlikely token: where it stops, and what it reads. Its exactness is the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.cli_runner import evaluate, flat_runs, records
from helpers.generation import LENGTH, generate, prompts
from helpers.kept_chains import Watching, toys
from specexp import config
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Drafted, Needs, Scored
from specexp.decoding.rng import CertainRng, Rng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.errors import ConfigError
from specexp.lm.hf.hf_model import HFModel

GAMMA, LEAST = 6, 0.3


@pytest.mark.parametrize("warp", [Warp(1.0), Warp(0.6, top_k=3)], ids=str)
def test_all_but_the_last_token_of_a_draft_are_likely_enough(warp: Warp) -> None:
    proposer = Watching(DraftModel(GAMMA, LEAST))
    rng: Rng = rng_for(1.0, 0, "p")
    out = Engine(toys()).generate(Chain(proposer, Lossless(), warp), [1, 2], 300, rng)
    lengths = [len(drafted.tokens) for drafted in proposer.seen]
    assert set(range(1, GAMMA + 1)) <= set(lengths), "drafts of every length: the test says something"
    assert out.num_draft_calls == sum(lengths) == out.num_drafted
    for drafted in proposer.seen[:-GAMMA]:  # the last ones may be cut to what is left
        given = [q[token] for q, token in zip(drafted.q, drafted.tokens, strict=True)]
        assert all(q >= LEAST for q in given[:-1])
        assert len(given) == GAMMA or given[-1] < LEAST, "an unlikely token stays, and ends the draft"


def test_at_temperature_0_it_is_the_probability_at_temperature_1() -> None:
    proposer, models = Watching(DraftModel(GAMMA, LEAST)), toys()
    engine = Engine(models)
    out = engine.generate(Chain(proposer, Lossless(), Warp()), [1, 2], 60, CertainRng())
    done, short = [1, 2], 0
    rounds = iter(out.token_ids)
    for drafted in proposer.seen[:-GAMMA]:
        tokens = [int(token) for token in drafted.tokens]
        logits, _ = Engine(models).score("draft", done, tokens)
        given = [float(row[token]) for row, token in zip(Warp(1.0)(logits), tokens, strict=False)]
        assert all(q >= LEAST for q in given[:-1])
        assert len(given) == GAMMA or given[-1] < LEAST
        short += len(given) < GAMMA
        for token in tokens:  # what was accepted, and the target's own behind it
            done.append(next(rounds))
            if done[-1] != token:
                break
        else:
            done.append(next(rounds))
    assert short > 0


def test_it_reads_one_value_for_each_token_that_another_may_follow() -> None:
    for least, reads in ((0.0, 0), (1e-9, GAMMA - 1)):
        limit = 5 * (GAMMA + 1)
        same = Engine({"target": toys()["target"], "draft": toys()["target"]})
        out = same.generate(Chain(DraftModel(GAMMA, least), Lossless(), Warp()), [1], limit, CertainRng())
        assert (out.num_rounds, out.num_drafted) == (5, 5 * GAMMA)
        assert same.num_host_reads == 5 * (1 + reads)


class Reading:
    """A rule that reads the draft's rows, the last token's row too, and accepts nothing more."""

    @property
    def needs(self) -> Needs:
        return Needs(draft=True, feed_last_token=True)

    def accept_anyway(self, drafted: Drafted, scored: Scored) -> None:
        assert drafted.hidden is not None
        assert drafted.hidden.shape[0] == drafted.tokens.shape[0] + 1


def test_a_judge_gets_the_rows_of_as_many_tokens_as_were_drafted() -> None:
    plain = Engine(toys()).generate(Chain(DraftModel(GAMMA, LEAST), Lossless(), Warp()), [1, 2], 40, CertainRng())
    out = Engine(toys()).generate(Chain(DraftModel(GAMMA, LEAST), Reading(), Warp()), [1, 2], 40, CertainRng())
    assert out.token_ids == plain.token_ids
    assert out.num_drafted < GAMMA * out.num_rounds
    assert out.num_draft_calls <= out.num_drafted + out.num_rounds


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_output_equals_generate(pair: Callable[[str], dict[str, HFModel]], family: str) -> None:
    models = pair(family)
    early = plain = 0
    for prompt in prompts():
        for least in (0.5, 0.0):
            decoder = Chain(DraftModel(8, least), Lossless(), Warp())
            out = Engine(models).generate(decoder, prompt, LENGTH, CertainRng())
            assert out.token_ids == generate(models["target"], prompt, LENGTH, None)
            early += out.num_draft_calls * (least > 0)
            plain += out.num_draft_calls * (least == 0)
    assert early < plain, "no draft ever stopped: the test says little"


def test_it_is_a_setting_of_methods_that_draft_a_chain(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("min_draft_probability: 0.4\n")
    asked = config.resolve("arith_quick", {"config": str(file), "methods": "baseline,speculative,topk,specexec,lookup"})
    got = {method.label: method.min_draft_probability for method in asked.methods}
    assert got == {"baseline": 0, "speculative": 0.4, "topk": 0.4, "specexec": 0, "lookup": 0}
    for value in ("1", "-0.1", "often"):
        file.write_text(f"min_draft_probability: {value}\n")
        with pytest.raises(ConfigError, match=r"min_draft_probability is .*; it must be a number in \[0, 1\) "):
            config.resolve("arith_quick", {"config": str(file)})
    file.write_text("min_draft_probability: 0.4\nmethods: [baseline, lookup]\n")
    with pytest.raises(ConfigError, match="no selected method uses it; leave it out, or add speculative or chained"):
        config.resolve("arith_quick", {"config": str(file)})


@pytest.mark.slow
def test_what_is_attainable_is_that_of_the_rounds_as_they_were(workplace: Path) -> None:
    (workplace / "mine.yaml").write_text("min_draft_probability: 0.5\n")
    settings = ["--methods", "baseline,speculative", "--limit", "2", "--max_new_tokens", "60", "--output", "out"]
    result = evaluate("--experiment", "arith_quick", "--config", "mine.yaml", *settings)
    assert result.exit_code == 0, result.output
    method_records = [r for r in records(workplace / "out") if r["label"] == "speculative"]
    assert all(r["num_drafted"] < 8 * r["num_rounds"] for r in method_records)
    run = flat_runs()["speculative"].data
    assert run.params["min_draft_probability"] == "0.5"
    metrics = run.metrics
    steps = sum(r["num_draft_calls"] for r in method_records) / sum(r["num_rounds"] for r in method_records)
    call = steps * metrics["speed/c"] + metrics["speed/catch_up"] + metrics["speed/v"]
    expected = metrics["accept/mean_length"] / call
    assert metrics["speed/attainable"] == pytest.approx(expected)
    assert "speed/predicted_speedup" not in metrics, "its formula is of rounds that are alike"

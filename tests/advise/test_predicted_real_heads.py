"""Predicted rounds of real drafts that read the target's states: the shipped head, MTP layers, a DFlash block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from helpers import tiny_models
from helpers.chain_heads import dflash_folder, mtp_folder, mtp_models
from helpers.fake_clock import prepared_toy
from helpers.generation import prompts
from helpers.rounds import Noting, as_before, decode, plainly, trace_of
from specexp import config
from specexp.advise.rounds import chain_rounds, most_drafted
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rules import Warp
from specexp.drafter import acceptance, head_folder
from specexp.drafter.target_outputs import TargetOutput
from specexp.drafter.target_states import TargetStates
from specexp.evaluation import preparation
from specexp.evaluation.preparation import Prepared
from specexp.lm.heads.loading import load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.source import ZOO
from specexp.lm.runtime import ModelConfig

SIGMAS = 5  # a difference beyond it has a chance of 6e-7


def tiny(kind: str, folder: Path, temperature: float, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """MTP layers that know a little of these prompts; a block that is right by chance, of few tokens."""
    if kind == "mtp":
        models, texts = mtp_models(mtp_folder(folder, "deepseek_v3"), "deepseek_v3", monkeypatch), list(prompts())[2:5]
    else:
        target = HFModel(tiny_models.build("llama", vocab_size=5), "llama", graphs="off")
        draft = load_head(ModelConfig("llama", dflash=str(dflash_folder(folder, [0, 1]))), target)
        models, texts = {"target": target, "draft": draft}, [[3, 1, 2, 4], [2, 4, 4], [1, 3]]
    length = 30 if kind == "mtp" else 60
    prepared = prepared_toy(models, eos_ids=(), max_new_tokens=length, limit=3, temperature=temperature)
    return replace(prepared, prompts=texts)


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mtp", "dflash"])
@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_rounds_of_mtp_layers_and_of_a_dflash_block(
    kind: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, accepted, other = tiny(kind, tmp_path, temperature, monkeypatch), 0, 0
    gammas = (1, 2, 3) if kind == "mtp" else (1, 2, 4)
    for gamma in gammas:
        off = []
        for index, seed in itertools.product(range(3), range(4 if temperature else 1)):
            out = decode(prepared, Chain(DraftModel(gamma), Lossless(), Warp(temperature)), index, seed)
            trace = trace_of(prepared, index, out.token_ids, max(gammas))
            rounds = chain_rounds([trace], gamma)
            accepted += out.num_accepted
            other += abs(chain_rounds([as_before(trace)], gamma).rounds - rounds.rounds) > 1e-3
            if not temperature:
                assert (rounds.rounds, rounds.drafted) == (out.num_rounds, out.num_drafted)
                assert rounds.caught_up == out.num_draft_positions - out.num_draft_calls
            off.append(out.num_rounds - rounds.rounds)
        spread = fmean(each * each for each in off)
        assert abs(fmean(off)) <= SIGMAS * (spread / len(off)) ** 0.5
    assert accepted > 20
    assert other, "by first tokens alone it would be other rounds"


@pytest.fixture(scope="module")
def shipped() -> Prepared:
    given = {"methods": "baseline,speculative", "gamma": "4,8", "limit": 24}
    return preparation.prepare(config.resolve("arith_drafter", given))


@pytest.mark.slow
def test_each_position_is_accepted_as_often_as_train_drafter_reports(shipped: Prepared) -> None:
    """Two ways to the same numbers: chains of the loaded head from every place, and the batched steps of training."""
    depth, outputs, traces = 5, [], []
    target: Any = shipped.pair.models["target"]
    for index in range(4):
        tokens = plainly(shipped, index).token_ids
        outputs.append(TargetOutput(shipped.prompts[index], tokens, sampled=False))
        traces.append(trace_of(shipped, index, tokens, depth))
    head = head_folder.read(ZOO / "drafter", target.module.get_input_embeddings().weight)
    reported = acceptance.of_head(head, outputs, TargetStates(target, head.shape.layers), depth).greedy
    shares = [fmean(x for trace in traces for x in trace.after(i).accepted[i:]) for i in range(depth)]
    assert shares == pytest.approx(reported, abs=0.003), "a near tie may fall either way"
    first = [fmean(x for trace in traces for x in trace.accepted[i:]) for i in range(depth)]
    assert max(abs(a - b) for a, b in zip(first, reported, strict=True)) > 0.006


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [4, 8])
def test_the_shipped_head_makes_the_rounds_that_are_predicted(shipped: Prepared, gamma: int) -> None:
    tokens, counted, rounds, before = 0, 0, 0.0, 0.0
    for index in range(6):
        out = decode(shipped, Chain(DraftModel(gamma), Lossless(), Warp()), index)
        output = plainly(shipped, index).token_ids
        assert out.token_ids == output
        trace = trace_of(shipped, index, output, gamma)
        rounds += chain_rounds([trace], gamma).rounds
        before += chain_rounds([as_before(trace)], gamma).rounds
        tokens, counted = tokens + len(output), counted + out.num_rounds
    assert tokens / rounds == tokens / counted
    assert tokens / before != pytest.approx(tokens / counted, rel=0.005), "by first tokens alone it is another length"


def ratio(tokens: Sequence[int], rounds: Sequence[float]) -> tuple[float, float]:
    """Tokens a call, and its standard error over outputs (delta method)."""
    total, calls = sum(tokens), sum(rounds)
    parts = [t / total - r / calls for t, r in zip(tokens, rounds, strict=True)]
    return total / calls, total / calls * math.fsum(each * each for each in parts) ** 0.5


@pytest.fixture(scope="module")
def sampled(shipped: Prepared) -> Prepared:
    return replace(shipped, experiment=replace(shipped.experiment, temperature=1.0))


@pytest.mark.nightly
@pytest.mark.parametrize("gamma", [4, 8])
def test_sampled_chains_of_the_shipped_head_have_the_predicted_length(sampled: Prepared, gamma: int) -> None:
    """Predicted from plain decoding's samples, counted along others of the same prompts: the difference of the two
    ratios is 0 but for their standard errors."""
    chain = Chain(DraftModel(gamma), Lossless(), sampled.experiment.warp)
    plain, expected, tokens, counted = [], [], [], []
    for index, seed in itertools.product(range(len(sampled.prompts)), range(2)):
        output = plainly(sampled, index, seed).token_ids
        plain.append(len(output))
        expected.append(chain_rounds([trace_of(sampled, index, output, gamma)], gamma).rounds)
        out = decode(sampled, chain, index, seed)
        tokens.append(len(out.token_ids))
        counted.append(float(out.num_rounds))
    (predicted, one), (measured, other) = ratio(plain, expected), ratio(tokens, counted)
    assert abs(predicted - measured) < SIGMAS * math.hypot(one, other)
    assert math.hypot(one, other) < 0.03 * measured, "so that an error of a seventh would be seen"


@pytest.mark.nightly
def test_sampled_tokens_of_the_shipped_head_are_accepted_as_often_as_expected_after_others(sampled: Prepared) -> None:
    """Given the output, the token at a place that a chain reaches is accepted with probability b, so that what was
    accepted less the sum of b is 0 but for chance, of variance b (1 - b) each. Every token but a chain's first."""
    off, variance = {"now": 0.0, "before": 0.0}, {"now": 0.0, "before": 0.0}
    for gamma, index, seed in itertools.product((4, 8), range(len(sampled.prompts)), range(4)):
        noting = Noting(Chain(DraftModel(gamma), Lossless(), sampled.experiment.warp))
        out = decode(sampled, noting, index, seed)
        trace, place = trace_of(sampled, index, out.token_ids, gamma), 0
        for num_accepted in noting.rounds:
            tested = min(num_accepted + 1, most_drafted(trace, place, gamma, True), len(out.token_ids) - place)
            for i in range(1, tested):
                for name, each in (("now", trace.after(i)), ("before", trace)):
                    b = each.accepted[place + i]
                    off[name] += (i < num_accepted) - b
                    variance[name] += b * (1 - b)
            place += num_accepted + 1
    sigmas = {name: abs(off[name]) / variance[name] ** 0.5 for name in off}
    assert sigmas["now"] < SIGMAS
    assert sigmas["before"] > SIGMAS, "as if each were a chain's first token, it is outside"

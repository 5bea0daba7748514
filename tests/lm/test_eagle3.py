"""EAGLE-3 heads: outputs are generate()'s, on every forward of the target, alone and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_models
from helpers.drafted_chains import GREEDY, greedy_chains
from helpers.eagle3_heads import ReferenceHead
from helpers.generation import generate, prompts
from helpers.model_folders import slow_for
from helpers.tape import Tape
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.rng import CertainRng
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.engine.request import Request
from specexp.lm.heads.loading import load_head
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.runtime import ModelConfig

LENGTH = 40
DECODERS: dict[str, Decoder] = {
    **greedy_chains(4, 3),
    "tree": SpecExec(12, 4, GREEDY, 3),
    "stops early": Chain(DraftModel(6, 0.5), Lossless(), GREEDY),
    "adapts": Chain(DraftModel(8, costs=NOMINAL), Lossless(), GREEDY),
}


def target_of(family: str = "llama", capture: Any = "off", **values: Any) -> HFModel:
    return HFModel(tiny_models.build(family, num_hidden_layers=5), family, graphs=capture, **values)


def with_head(target: HFModel, reference: ReferenceHead, folder: Path) -> dict[Any, Any]:
    config = ModelConfig(target.name, eagle3=str(reference.save(folder)))
    return {"target": target, "draft": load_head(config, target)}


def fitted(target: HFModel, **values: Any) -> ReferenceHead:
    texts = [[*prompt, *generate(target, prompt, LENGTH, None)] for prompt in prompts()]
    return ReferenceHead(target, **values).fit(texts)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferenceHead, dict[Any, Any]]:
    target = target_of()
    reference = fitted(target)
    return reference, with_head(target, reference, tmp_path_factory.mktemp("head"))


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("name", slow_for(DECODERS, "no bonus", "stops early"))
def test_greedy_output_equals_generate(llama: tuple[ReferenceHead, dict[Any, Any]], name: str) -> None:
    _, models = llama
    for engine in (Engine(models), Engine(models, reuse=True)):
        outs = []
        for prompt in prompts():
            outs.append(engine.generate(DECODERS[name], prompt, LENGTH, CertainRng()))
            assert outs[-1].token_ids == generate(models["target"], prompt, LENGTH, None)
        accepted = sum(out.num_accepted for out in outs)
        rounds = sum(out.num_rounds for out in outs)
        assert accepted > rounds, "a fitted head has more than one token a round accepted"
        assert any(len(out.accepted_histogram) > 1 and out.accepted_histogram[0] > 0 for out in outs), "and rejected"


@pytest.mark.parametrize("family", slow_for(("gemma2", "gpt2", "qwen3_moe"), "gemma2", "qwen3_moe"))
def test_targets_on_other_forwards(tmp_path: Path, family: str) -> None:
    target = target_of(family)
    reference = ReferenceHead(target)
    models = with_head(target, reference, tmp_path)
    for name in ("chain", "tree"):
        for prompt in prompts():
            out = Engine(models).generate(DECODERS[name], prompt, LENGTH, CertainRng())
            assert out.token_ids == generate(target, prompt, LENGTH, None)


@pytest.mark.slow
def test_rows_decoded_together_give_what_each_gives_alone(llama: tuple[ReferenceHead, dict[Any, Any]]) -> None:
    _, models = llama
    given = [prompt for prompt in prompts() for _ in range(2)]
    for name in ("chain", "tree", "in turn"):
        alone = [Engine(models).generate(DECODERS[name], prompt, LENGTH, CertainRng()) for prompt in given]
        requests = [Request(DECODERS[name], prompt, LENGTH, CertainRng()) for prompt in given]
        together = dict(Engine(models, max_batch_size=3).generate_all(requests))
        for i, out in enumerate(alone):
            assert together[i].token_ids == out.token_ids
            assert together[i].num_accepted == out.num_accepted


def test_what_is_fed(llama: tuple[ReferenceHead, dict[Any, Any]]) -> None:
    """Each committed token is fed to the head once, with the target's states, and each drafted one but the last."""
    _, models = llama
    prompt, rounds = list(prompts())[3], []
    engine = Engine(models)
    out = engine.generate(
        DECODERS["chain"], prompt, LENGTH, CertainRng(), on_tokens=lambda new: rounds.append(len(new))
    )
    begun = [sum(rounds[:i]) for i in range(len(rounds))]  # tokens committed before each round
    drafted = [min(4, LENGTH - each - 1) for each in begun]
    drafting = [i for i, each in enumerate(drafted) if each]
    spent = engine.spent()
    assert len(rounds) < LENGTH / 2, "many are accepted"
    assert out.num_drafted == sum(drafted)
    assert spent["target_calls"] == 1 + len(rounds)
    assert spent["target_positions"] == len(prompt) - 1 + sum(1 + each for each in drafted)
    assert spent["draft_calls"] == 1 + sum(drafted)
    assert spent["draft_positions"] == len(prompt) + begun[drafting[-1]] + sum(drafted) - len(drafting)


@pytest.mark.parametrize("family", slow_for(("llama", "gemma2"), "llama", "gemma2"))
def test_recorded_forwards_of_the_target(tmp_path: Path, family: str) -> None:
    target = target_of(family, Tape())
    reference = fitted(target_of(family))
    reference.target = target
    models = with_head(target, reference, tmp_path)
    engine = Engine(models)
    for name in ("chain", "tree", "in turn"):
        for prompt in prompts():
            out = engine.generate(DECODERS[name], prompt, LENGTH, CertainRng())
            assert out.token_ids == generate(target, prompt, LENGTH, None)
    assert target.graph_pools is not None
    assert target.graph_pools.pools[0].recordings.num_replays > 0

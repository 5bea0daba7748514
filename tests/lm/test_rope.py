"""Models whose rotary angles depend on the length of the sequence: generate()'s tokens, or a context that ends before.

Phi-3 and PhiMoE change theirs at 64 of 640 tokens here, by factors that change what is said at once.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from helpers import reference_miner, tiny_models
from helpers.mining import Reads, miner, toy_examples
from helpers.mining import disagreements as of_labels
from helpers.model_folders import LONGROPE, build, disturbed
from helpers.seeded_bugs import ROPE_BUGS, Bug, mutated
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, Request
from specexp.errors import ModelError, PromptError
from specexp.lm.blocks.long_factors import boundary_of
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.hf.rope import note
from specexp.lm.model import Branches
from specexp.lm.runtime import ModelConfig
from specexp.pair.loading import Pair
from specexp.pair.tokenization import ToyText

BOUNDARY = 64
LENGTH = 14
SIZES = (56, 63, 64, 65, 301)  # of prompts: before, at and past the boundary, and fed in pieces
# Phi-3 on the native forward, on transformers' and recorded by a stand-in for CUDA graphs; PhiMoE on transformers'.
OTHERS = ("phi3, module", "phi3, recorded", "phimoe")
FAMILIES = ["phi3", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
DECODERS: dict[str, Any] = {
    "baseline": Baseline(Warp()),
    "gamma 4": Chain(DraftModel(4), Lossless(), Warp()),
    "gamma 9, no bonus": Chain(DraftModel(9), Lossless(), Warp(), bonus=False),
    "early stop": Chain(DraftModel(9, 0.3), Lossless(), Warp()),
    "lookup": Chain(Lookup(4, 2), Lossless(), Warp()),
    "specexec": SpecExec(12, 4, Warp(), parallel_branches=3),
}
SLOW = ("gamma 9, no bonus", "early stop")
METHODS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DECODERS]
Models = dict[str, HFModel]


@cache
def models(family: str) -> Models:
    kind, _, how = family.partition(", ")
    target = build(kind)
    more: dict[str, Any] = {"module": {"forward": "transformers"}, "recorded": {"graphs": Tape()}, "": {}}[how]
    result = {"target": HFModel(target, "target", **more), "draft": HFModel(disturbed(target, 0.06), "draft", **more)}
    assert all((model.native is None) == (family in ("phi3, module", "phimoe")) for model in result.values())
    return result


@cache
def prompt(size: int) -> list[int]:
    rng = random.Random(size)
    return [rng.randrange(3, 96) for _ in range(size)]


@cache
def generated(family: str, size: int, length: int = LENGTH) -> list[int]:
    return generate(models(family)["target"], prompt(size), length)


def generate(model: HFModel, ids: Sequence[int], length: int) -> list[int]:
    with torch.inference_mode():
        out = model.module.generate(
            torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=length, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return [int(i) for i in out[0, len(ids) :]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_output_past_the_boundary_is_that_of_generate(family: str, method: str) -> None:
    accepted = 0
    for size in SIZES:
        out = Engine(models(family)).generate(DECODERS[method], prompt(size), LENGTH, CertainRng())
        assert out.token_ids == generated(family, size), size
        accepted += out.num_accepted
    assert accepted > 0 or method == "baseline"


@pytest.mark.parametrize("family", FAMILIES)
def test_several_rows_say_what_each_says_alone(family: str) -> None:
    methods = ("gamma 4", "specexec", "baseline", "lookup", "gamma 4")
    requests = [
        Request(DECODERS[m], prompt(size), LENGTH, CertainRng()) for m, size in zip(methods, SIZES, strict=True)
    ]
    for place, out in Engine(models(family), max_batch_size=3).generate_all(requests):
        assert out.token_ids == generated(family, SIZES[place])


@pytest.mark.parametrize("cached", [True, False])
def test_caches_that_are_kept_or_that_are_none_change_nothing(cached: bool) -> None:
    """With `reuse` a sequence that had passed the boundary is cut back to before it."""
    engine = Engine(models("phi3"), cached=cached, reuse=cached)
    for size, length in ((62, 12), (70, 4), (62, 12), (40, 28), (66, 4)):
        out = engine.generate(DECODERS["gamma 4"], prompt(100)[:size], length, CertainRng())
        assert out.token_ids == generate(models("phi3")["target"], prompt(100)[:size], length)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_those_of_the_literal_procedure(family: str) -> None:
    """Continuations by transformers' generate(); responses begin before the boundary and end past it."""
    pair: Any = Pair(ToyText(96), models(family), tuple(range(2, 96, 9)))  # type: ignore[arg-type]
    task, count = Reads("the sum modulo 3"), 0
    for example in toy_examples(4):
        example = type(example)(example.prompt_id, (example.turns[0] + "x" * (60 - len(example.turns[0])),), "gold")
        (slow,) = reference_miner.mine_all(pair, task, 24, [example])
        mined = miner(pair, task, 24).mine(example)
        assert list(of_labels(mined, slow, 1e-4)) == []
        count += len(mined.labels)
    assert count > 3


def fed(session: Any, rng: random.Random, most: int = 12) -> Iterator[tuple[list[list[int]], Any, Any]]:
    """Chains and trees around the boundary, cut back at random: (each row's whole sequence, logits, hidden rows)."""
    ids: list[int] = []
    for turn in range(40):
        size = rng.randrange(300, 320) if turn == 20 else rng.randrange(1, most)
        tokens = [rng.randrange(3, 96) for _ in range(size)]
        rows = rng.randrange(0, min(size, most) + 1)
        branches, paths = None, [ids + tokens[: i + 1] for i in range(size)]
        if turn % 3 == 0 and ids and size < most:
            ancestors: list[list[int]] = []
            for i in range(size):
                parent = rng.randrange(-1, i)
                ancestors.append([*(ancestors[parent] if parent >= 0 else []), i])
            branches = Branches(len(ids), [len(path) - 1 for path in ancestors], ancestors)
            paths = [ids + [tokens[a] for a in path] for path in ancestors]
        logits, hidden = session.feed(torch.tensor(tokens), rows, True, branches)
        yield paths[size - rows :], logits, hidden
        if branches is not None:
            best = max(branches.ancestors, key=len)
            session.truncate(len(ids), [len(ids) + a for a in best])
            ids = ids + [tokens[a] for a in best]
        else:
            ids = ids + tokens
        if len(ids) > 80 or rng.random() < 0.3:
            ids = ids[: rng.randrange(45, 75)]
            session.truncate(len(ids))
        assert session.length == len(ids)


def gaps(model: Any, seed: int) -> Iterator[float]:
    """How far rows of any block are from those of a forward over just their sequence, by the module alone."""
    for paths, logits, hidden in fed(model.session(), random.Random(seed)):
        for i, path in enumerate(paths):
            with torch.inference_mode():
                expected = model.module(torch.tensor([path]), output_hidden_states=True)
            yield float((logits[i] - expected.logits[0, -1]).abs().max())
            yield float((hidden[i] - expected.hidden_states[-1][0, -1]).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_last_of_its_own_sequence_in_any_block(family: str) -> None:
    assert max(gaps(models(family)["target"], 0)) < 2e-4


def test_angles_that_change_are_seen_to() -> None:
    """Else the tests above would show nothing: by one set of factors or the other, rows differ widely."""
    model = models("phi3")["target"]
    ids = torch.tensor([prompt(301)])
    with torch.inference_mode():
        logits, first = (model.module(ids[:, :size]).logits[0, 60] for size in (301, 61))
    assert float((logits - first).abs().max()) > 1


# Families whose generate() keeps its cache: their context ends at the boundary.

KEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": LONGROPE, "max_position_embeddings": 640}),
    "mistral": ("mistral", {"rope_parameters": LONGROPE, "max_position_embeddings": 640}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": LONGROPE, "max_position_embeddings": 640}),
}


@pytest.mark.parametrize("case", ["llama", *(pytest.param(case, marks=pytest.mark.slow) for case in list(KEPT)[1:])])
def test_a_context_ends_where_what_follows_depends_on_the_grouping(case: str) -> None:
    family, more = KEPT[case]
    target = build(family, **more)
    pair: Models = {"target": HFModel(target, "t"), "draft": HFModel(disturbed(target, 0.06), "d")}
    for method in ("baseline", "gamma 4", "specexec"):
        for size in (54, 63):
            out = Engine(pair).generate(DECODERS[method], prompt(size), LENGTH, CertainRng())
            assert out.finish_reason == "context"
            assert len(out.token_ids) == BOUNDARY - size
            assert out.token_ids == generate(pair["target"], prompt(size), LENGTH)[: BOUNDARY - size]
    with pytest.raises(PromptError, match="the prompt has 64 tokens, but the target model's context is 64"):
        Engine(pair).generate(DECODERS["baseline"], prompt(64), LENGTH, CertainRng())


def test_it_is_said_before_weights_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, more = KEPT["llama"]
    build(family, **more).config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelConfig(str(tmp_path)))
    said = capsys.readouterr().err
    assert said.startswith(
        f"note: model '{tmp_path}' (llama) has rope type longrope, whose factors change at 64 tokens"
    )
    assert "Its context ends there (of 640)" in said


def test_a_boundary_that_the_context_does_not_reach_is_none() -> None:
    for length, expected in ((64, 64), (159, 159), (160, None), (200, None)):
        parameters = LONGROPE | {"original_max_position_embeddings": length}
        boundary = boundary_of(LlamaConfig(rope_parameters=parameters, max_position_embeddings=160))
        assert (boundary and boundary.length) == expected
    assert note("x", build("phi3").config) is None, "what is computed anew needs no note"
    nested = build("llama").config
    nested.rope_parameters = {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}
    assert (boundary_of(nested) or pytest.fail("of one kind of layers")).length == 64


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_angles_do_not_change_where_a_table_is_longer_than_the_context(family: str) -> None:
    """Tables of angles grow by more positions than a sequence has; the module would take the last one's factors."""
    ends = {"original_max_position_embeddings": 600}
    more = ends if family == "phi3" else {}
    module = build(family, rope_parameters=LONGROPE | ends, max_position_embeddings=600, **more)
    model = HFModel(module, "m")
    assert model.native is not None
    assert boundary_of(module.config) is None
    session, ids = model.session(), torch.tensor(prompt(580))
    session.feed(ids[:20], 0)
    logits, _ = session.feed(ids[20:], 60)  # the table grows from 512 positions to 1,024
    with torch.inference_mode():
        expected = module(ids[None]).logits[0, -60:]
    assert float((logits - expected).abs().max()) < 1e-3


def test_phi3_within_a_model_of_images_and_text_has_a_context_that_ends() -> None:
    """Its generate() is LLaVA's, which keeps the cache."""
    text = build("phi3").config
    module = tiny_models.conditional("llava", text)
    model = HFModel(module, "m")
    assert model.recomputed_at is None
    assert model.context == BOUNDARY
    for size in (10, 60):
        out = Engine({"target": model}).generate(DECODERS["baseline"], prompt(size), 4, CertainRng())
        assert out.token_ids == generate(model, prompt(size), 4)


def test_sessions_of_a_batch_share_no_recordings_and_keep_none() -> None:
    model = HFModel(build("phi3"), "m", graphs=Tape())
    requests = [Request(DECODERS["gamma 4"], prompt(size), LENGTH, CertainRng()) for size in SIZES]
    for place, out in Engine({"target": model, "draft": model}, max_batch_size=3).generate_all(requests):
        assert out.token_ids == generated("phi3", SIZES[place])
    assert model.graph_pools is not None
    assert model.pools_beyond is not None
    assert not model.graph_pools.pools
    assert not model.pools_beyond.pools


def test_a_configuration_of_a_models_own_repository_is_not_taken_for_phi3s() -> None:
    """Its generate() may be another."""
    config = build("phi3").config
    boundary = boundary_of(config)
    assert boundary is not None
    assert boundary.recomputed
    config.__class__ = type("Phi3Config", (type(config),), {"__module__": "transformers_modules.x"})
    boundary = boundary_of(config)
    assert boundary is not None
    assert not boundary.recomputed


# Every other type.

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 40},
    "llama3": {
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32
    },
    "longrope": {k: v for k, v in LONGROPE.items() if k != "rope_type"},
    "proportional": {"factor": 4.0},
}  # fmt: skip


def test_every_rope_type_is_known() -> None:
    assert set(ROPE_INIT_FUNCTIONS) | {"default"} == set(PARAMETERS), "look at the new one: may its angles change?"


@pytest.mark.parametrize("kind", PARAMETERS)
def test_angles_within_the_context_depend_on_the_length_where_it_is_said(kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **PARAMETERS[kind]}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=160, rope_parameters=parameters)
    rotary, x = LlamaRotaryEmbedding(config), torch.zeros(1, 1, 1)
    short, long = (rotary(x, torch.tensor([[0, 1, 2, 3, 30, last]]))[0][:, :5] for last in (31, 159))
    assert torch.equal(short, long) == (boundary_of(config) is None)


@pytest.mark.parametrize("method", METHODS)
def test_dynamic_angles_change_only_where_the_context_has_ended(method: str) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    target = build("llama", rope_parameters=rope, max_position_embeddings=64)
    pair: Models = {"target": HFModel(target, "t"), "draft": HFModel(disturbed(target, 0.06), "d")}
    for size in (54, 60):
        out = Engine(pair).generate(DECODERS[method], prompt(size), LENGTH, CertainRng())
        assert out.token_ids == generate(pair["target"], prompt(size), 64 - size)
        assert out.finish_reason == "context"


# Seeded bugs.


def caught_by(bug: Bug) -> str | None:
    with mutated(bug):
        model = importlib.import_module("specexp.lm.hf.hf_model").HFModel(build("phi3"), "m")
        if model.native is None:
            return str(model.why_not_native)
        refused = importlib.import_module("specexp.errors").ModelError  # by the check before the first tree
        try:
            worst = max(gaps(model, 0))
        except (AssertionError, IndexError, RuntimeError, TypeError, refused) as error:
            if bug.name in str(error):  # it could not be seeded
                raise
            return f"{type(error).__name__}: {error}"[:120]
    return None if worst < 2e-4 else f"rows differ by {worst:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("bug", ROPE_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None

"""The memory pool of CUDA graphs outlives the recordings of any one buffer; `fake_cuda_graph.py` stands in for CUDA."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator

import pytest
import torch

from helpers.fake_cuda_graph import FakeCuda, FakeGraph, fake_cuda
from helpers.model_folders import build, disturbed
from helpers.seeded_bugs import CUDA_MEMORY, mutated
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native import cuda_graphs
from specexp.lm.native.graph_capture import CudaGraphs

Pair = dict[str, HFModel]
PROMPT = [5, 9, 11, 40]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 16)
    with fake_cuda() as fake:
        yield fake


def models(captured: bool) -> Pair:
    made = {"target": build("llama"), "draft": disturbed(build("llama"), 0.06)}
    return {
        role: HFModel(module, role, graphs=CudaGraphs(torch.device("cuda")) if captured else "off")
        for role, module in made.items()
    }


def decode(engine: Engine, length: int) -> list[int]:
    return engine.generate(Chain(DraftModel(4), Lossless(), Warp(0.7)), PROMPT, length, rng_for(0.7, 1, "p")).token_ids


def pools(pair: Pair) -> list[int]:
    return [id(each.pool) for model in pair.values() for each in model.graph_pools.pools]


def test_a_pool_that_grows_is_captured_anew(cuda: FakeCuda) -> None:
    pair = models(True)
    plain, captured = Engine(models(False)), Engine(pair)
    for length, capacity in ((8, 128), (150, 256), (8, 256)):
        assert decode(captured, length) == decode(plain, length)
        assert pair["target"].graph_pools.pools[0].pool.capacity == capacity
    assert len(set(cuda.handles)) == 2, "one memory for each model"


@pytest.mark.slow
def test_a_new_pool_in_place_of_a_small_one_is_captured(cuda: FakeCuda) -> None:
    pair = models(True)
    for length in (8, 150, 8):
        engine, before = Engine(pair), pools(pair)
        assert decode(engine, length) == decode(Engine(models(False)), length)
        assert (pools(pair) == before) == (length == 8 and bool(before))
        del engine
        gc.collect()
    assert len(set(cuda.handles)) == 2


@pytest.mark.slow
def test_recordings_that_are_all_gone_may_be_made_again(cuda: FakeCuda) -> None:
    pair = models(True)
    for _ in range(3):
        engine = Engine(pair)
        assert decode(engine, 20) == decode(Engine(models(False)), 20)
        del engine
        for model in pair.values():
            model.graph_pools.pools.clear()
        gc.collect()
        assert len(cuda.graphs) == 2, "only what holds the memory stays: one graph of each model"
    del pair, model
    gc.collect()
    assert len(cuda.graphs) == 0, "and it goes with the model"


def test_a_capture_that_fails_leaves_no_handle_behind(cuda: FakeCuda) -> None:
    capture, x = CudaGraphs(torch.device("cuda")), torch.ones(2)
    for function in (lambda y: (y + int(y[0]),), lambda y: (y / 0 if y[0] else y,)):
        with pytest.raises(AssertionError, match="host value"):
            capture(function, (x,))
    replay = capture(lambda y: (y + 1,), (x,))
    x.fill_(4)
    assert replay()[0].tolist() == [5, 5]


def test_outputs_are_memory_that_other_graphs_do_not_use(cuda: FakeCuda) -> None:
    capture, x, made = CudaGraphs(torch.device("cuda")), torch.ones(2), []

    def function(y: torch.Tensor) -> tuple[torch.Tensor]:
        made.append(y + 1)
        return (made[-1],)

    replay = capture(function, (x,))
    x.fill_(4)
    (out,) = replay()
    with torch.inference_mode():
        made[-1].fill_(-1)  # what another graph may do to memory of the pool
    assert out.tolist() == [5, 5]
    assert replay()[0] is out


def test_the_fake_ends_a_pool_with_its_last_graph(cuda: FakeCuda) -> None:
    """Else the tests above would show nothing."""
    x = torch.ones(2)
    one, other = FakeGraph(), FakeGraph()
    with cuda.capture(one):
        x + 1
    handle = one.pool()
    with cuda.capture(other, pool=handle):
        doubled = x * 2
    del one
    gc.collect()
    with cuda.capture(FakeGraph(), pool=handle):
        pass
    x.fill_(7)
    other.replay()
    assert doubled.tolist() == [14, 14]
    del other
    gc.collect()
    with pytest.raises(RuntimeError, match="use_count > 0 INTERNAL ASSERT FAILED"), cuda.capture(FakeGraph(), handle):
        pass


@pytest.mark.slow
def test_a_handle_without_a_graph_is_caught() -> None:
    with mutated(CUDA_MEMORY), fake_cuda():
        graphs = importlib.import_module("specexp.lm.native.graph_capture").CudaGraphs(torch.device("cuda"))
        graphs(lambda x: (x + 1,), (torch.ones(2),))
        gc.collect()
        with pytest.raises(RuntimeError, match="use_count > 0 INTERNAL ASSERT FAILED"):
            graphs(lambda x: (x + 1,), (torch.ones(2),))

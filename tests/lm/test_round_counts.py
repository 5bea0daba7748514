"""Counts of a round whose forwards are recorded: replays, host reads, operations between replays, and bytes held."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.fake_device import counting
from helpers.model_folders import build, disturbed
from helpers.round_counts import Between, CountingTape, Memory
from specexp.decoding import rng as noise
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine, recorded_rounds
from specexp.engine.engine import Request
from specexp.engine.host_transfer import HostTransfer
from specexp.lm.hf.hf_model import HFModel

OFTEN = 2  # rounds of a kind are recorded as soon as they come again: a warm-up of two runs is enough
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
LENGTH, LAST = 48, 2  # tokens of an output, and rounds near its end, which may draft less
METHODS: dict[str, Callable[[Warp], Decoder]] = {
    "plain": Baseline,
    "chain": lambda warp: Chain(DraftModel(4), Lossless(), warp),
    "longer chain": lambda warp: Chain(DraftModel(9), Lossless(), warp),
    "chain that ends early": lambda warp: Chain(DraftModel(4, min_draft_probability=0.2), Lossless(), warp),
    "tree": lambda warp: SpecExec(24, 4, warp),
}
# Replays of the draft, of the target, and reads by the host: one more where it must learn how long a chain is.
COUNTS = {"plain": (0, 1, 1), "chain that ends early": (1, 1, 2)}
WARPS = {"greedy": Warp(), "warm": Warp(0.7)}
# Trees of several rows are grown by the host.
CASES = [
    ("plain", "greedy", 1),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("plain", "warm", 1), ("chain", "greedy", 1), ("chain", "warm", 1), ("chain that ends early", "greedy", 1),
            ("tree", "greedy", 1), ("tree", "warm", 1),
            ("plain", "greedy", 3), ("chain", "greedy", 3), ("chain", "warm", 3), ("chain that ends early", "warm", 3),
        )
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _recorded_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_rounds, "OFTEN", OFTEN)


@pytest.fixture(scope="module", params=DEVICES)
def recorded(request: pytest.FixtureRequest) -> tuple[dict[str, HFModel], list[CountingTape]]:
    """A pair with recordings, and what stands in for CUDA graphs, if anything does."""
    tapes = [CountingTape(), CountingTape()] if request.param == "cpu" else []
    modules = {"target": build("llama"), "draft": disturbed(build("llama"), 0.06)}
    pair = {
        role: HFModel(module.to(request.param), role, graphs=tapes[i] if tapes else "auto")
        for i, (role, module) in enumerate(modules.items())
    }
    return pair, tapes


def replays(pair: dict[str, HFModel], rows: int) -> list[int]:
    """Of all recordings so far, by model."""
    pools = (pair[role].graph_pools for role in ("draft", "target"))
    return [
        sum(each.recordings.num_replays for each in (pool.pools if rows == 1 else pool.batches))
        for pool in pools
        if pool
    ]


def ready(pair: dict[str, HFModel], decoder: Decoder, warp: Warp, rows: int) -> tuple[Engine, Callable[..., object]]:
    """An engine that has recorded what it needs, and a run of it again, which calls `note` after each round."""
    engine = Engine(pair, max_batch_size=rows)

    def run(note: Callable[..., None]) -> None:
        rng = [rng_for(warp.temperature, 3, str(row)) for row in range(rows)]
        asked = [
            Request(decoder, [5 + row, 6, 7], LENGTH, rng[row], None if row else note)
            for row in range(rows)
        ]  # fmt: skip
        for _ in engine.generate_all(asked):
            pass

    for _ in range(2):
        run(lambda *_: None)
    return engine, run


@pytest.mark.parametrize(("method", "warp", "rows"), CASES)
def test_a_round_is_one_replay_of_each_model_and_one_read(recorded: Any, method: str, warp: str, rows: int) -> None:
    pair, _ = recorded
    engine, run = ready(pair, METHODS[method](WARPS[warp]), WARPS[warp], rows)
    seen: list[tuple[int, ...]] = []
    run(lambda *_: seen.append((*replays(pair, rows), engine.num_host_reads)))
    rounds = [tuple(b - a for a, b in zip(one, other, strict=True)) for one, other in itertools.pairwise(seen)]
    assert len(rounds) > 2 * LAST
    assert set(rounds[:-LAST]) == {COUNTS.get(method, (1, 1, 1))}


@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
def test_a_trees_path_is_kept_by_one_replay_of_each_model(recorded: Any, warp: str) -> None:
    pair, _ = recorded
    _, run = ready(pair, METHODS["tree"](WARPS[warp]), WARPS[warp], 1)
    seen: list[tuple[int, ...]] = []
    pools = [pool for role in ("draft", "target") if (pool := pair[role].graph_pools)]
    run(lambda *_: seen.append(tuple(sum(each.recordings.num_moves for each in pool.pools) for pool in pools)))
    rounds = {tuple(b - a for a, b in zip(one, other, strict=True)) for one, other in itertools.pairwise(seen)}
    assert len(rounds) > 1
    assert rounds <= {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.at_most(slow=5)
@pytest.mark.parametrize(("method", "warp", "rows"), CASES)
def test_nothing_is_allocated_after_the_warm_up(
    recorded: Any, method: str, warp: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request by itself takes no byte from the allocator outside of its replays. Several give back what they take,
    and it had its place before."""
    monkeypatch.setattr(noise, "_BLOCKS", 1)  # noise is kept by the block, up to a number of them
    pair, tapes = recorded
    _, run = ready(pair, METHODS[method](WARPS[warp]), WARPS[warp], rows)

    def run_again(note: Callable[..., None]) -> None:
        for _ in range(3):
            run(note)

    memory = (Memory.on_cpu if tapes else Memory.on_cuda)(run_again)
    rounds = len(memory.held) // 3
    assert memory.held[2 * rounds :] == memory.held[rounds : 2 * rounds]
    assert memory.most[-1] == memory.most[2 * rounds - 1]
    held, taken = memory.held[2 * rounds : -LAST], memory.taken[2 * rounds : -LAST]
    assert len(held) > 2 * LAST
    if rows == 1:
        assert len(set(taken)) == 1
    if warp == "greedy" and method in ("plain", "chain") and rows == 1:
        assert len(set(held)) == 1
        return
    # What a round drafts, and the last block of noise, are held until the next ones: the least of it does not grow, and
    # neither does the most of it where a request by itself drafts as much in each round.
    half = len(held) // 2
    assert min(held[half:]) <= min(held[half // 2 : half])
    if rows == 1 and method != "chain that ends early":
        assert max(held[half:]) <= max(held[:half])


@pytest.mark.slow
def test_operations_between_replays_do_not_grow_with_what_a_round_drafts(recorded: Any) -> None:
    pair, tapes = recorded
    per_round: dict[str, set[int]] = {}
    for method in ("plain", "chain", "longer chain", "chain that ends early"):
        _, run = ready(pair, METHODS[method](Warp()), Warp(), 1)
        seen: list[int] = []
        with Between(tapes) as between:
            run(lambda *_, between=between, seen=seen: seen.append(between.num))
        per_round[method] = {b - a for a, b in itertools.pairwise(seen[:-LAST])}
        assert len(per_round[method]) == 1, method
    # Each fills an input of a replay: the tokens that the host knows, and all its numbers; of the target also the
    # drafted tokens, and what is read with the round. Where chains end is one more input of the draft.
    assert per_round == {"plain": {2}, "chain": {6}, "longer chain": {6}, "chain that ends early": {7}}


def test_one_array_is_read_as_it_is() -> None:
    """Without an operation on the device before it."""
    with Between([]) as between, counting() as waits:
        (values,) = HostTransfer().read([torch.ones(3, device="meta", dtype=torch.float64)])
    assert (len(values), waits.counts, between.num) == (3, {"tolist": 1}, 1), "the array itself"

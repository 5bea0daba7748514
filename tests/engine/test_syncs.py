"""How often the host waits for the device: once a round, and of a tree that the host grows once a draft forward.

Counted on a device that has no values (fake_device.py), where reading one without saying so fails; `num_host_reads`,
the engine's own count, must be all there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.fake_device import counting, on_fake_device
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless, Suffix
from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import Needs, SuffixLimits
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import FLy, Fuzzy, Typical
from specexp.engine import Engine
from specexp.engine.engine import Request

WARPS = {"greedy": Warp(), "sampled": Warp(0.7, top_k=20, top_p=0.9)}
CHAINS: dict[str, Callable[[Warp], Any]] = {
    "baseline": Baseline,
    "chain": lambda warp: Chain(DraftModel(4), Lossless(), warp),
    "chain, no bonus": lambda warp: Chain(DraftModel(4), Lossless(), warp, bonus=False),
    "block": lambda warp: Chain(DraftModel(4), Lossless(), warp, verification="block"),
    "likeliest drafts": lambda warp: Chain(DraftModel(4, temperature=0.0), Lossless(), warp),
    "top-k": lambda warp: Chain(DraftModel(4), TopK(2), warp),
    "relaxed": lambda warp: Chain(DraftModel(4), TopK(3, 0.2, warp), warp),
    "typical": lambda warp: Chain(DraftModel(4), Typical(0.3, 0.5, warp), warp),
    "fuzzy": lambda warp: Chain(DraftModel(4), Fuzzy("js", 0.1, warp), warp),
    "suffix": lambda warp: Chain(Suffix(6, SuffixLimits(2.0)), Lossless(), warp),
    "lookup": lambda warp: Chain(Lookup(4), Lossless(), warp),
}
JUDGE = Judged(lambda x: torch.sigmoid(x.sum(-1)), ("target_token",), 0.4, (2,), Needs(target=True))
LENGTH = 4


def engine(captured: bool, **more: Any) -> Engine:
    return Engine({role: on_fake_device(graphs=Tape() if captured else "off") for role in ("target", "draft")}, **more)


@pytest.mark.at_most(fast=14, slow=12)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("method", CHAINS)
def test_a_round_waits_once(method: str, warp: str, captured: bool) -> None:
    decoder, running = CHAINS[method](WARPS[warp]), engine(captured)
    with counting() as waits:
        out = running.generate(decoder, [5, 6, 7], LENGTH, rng_for(decoder.warp.temperature, 1, "x"))
    assert out.num_rounds == LENGTH, "every read finds a 1: a token a round"
    assert waits.counts == {"tolist": out.num_rounds}
    assert running.num_host_reads == out.num_rounds


@pytest.mark.parametrize("captured", [False, True])
def test_a_window_waits_once_a_round(captured: bool) -> None:
    running = engine(captured)
    with counting() as waits:
        out = running.generate(
            Chain(DraftModel(4), FLy(0.2, 2, (0,), Warp()), Warp()), [5, 6, 7], LENGTH, rng_for(0, 1, "x")
        )
    assert waits.counts == {"tolist": out.num_rounds}


@pytest.mark.at_most(fast=3)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("rule", [None, JUDGE], ids=["drawn", "judged"])
def test_a_trees_round_waits_once_and_for_each_forward_of_a_draft_that_is_not_recorded(
    rule: Any, warp: str, captured: bool
) -> None:
    decoder, running = SpecExec(8, 3, WARPS[warp], rule=rule), engine(captured)
    with counting() as waits:
        out = running.generate(decoder, [5, 6, 7], LENGTH, rng_for(decoder.warp.temperature, 1, "x"))
    reads = out.num_rounds if captured else out.num_draft_calls + out.num_rounds
    assert waits.counts == {"tolist": reads}
    assert running.num_host_reads == reads
    # Every read finds a 1: of trees on the device, that each has one level.
    assert out.num_draft_calls > out.num_rounds or captured, "trees of one level say little"


@pytest.mark.at_most(fast=5)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("method", ["baseline", "chain", "block", "top-k"])
def test_rows_that_are_decoded_together_wait_together(method: str, warp: str, captured: bool) -> None:
    running, decoder = engine(captured, max_batch_size=3), CHAINS[method](WARPS[warp])
    requests = [Request(decoder, [5, 6, 7 + i], LENGTH, rng_for(decoder.warp.temperature, 1, "x")) for i in range(3)]
    with counting() as waits:
        list(running.generate_all(requests))
    assert waits.counts == {"tolist": LENGTH}


@pytest.mark.at_most(fast=3)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("costs", [None, RelativeCosts(0.2, (1.0, 1.1))])
def test_recorded_drafts_that_stop_early_wait_once_more_a_round(costs: Any, warp: str, rows: int) -> None:
    """For how many tokens all of them have; without recordings, for each token's probability."""
    draft = DraftModel(4, 0.0 if costs else 0.3, costs=costs)
    decoder = Chain(draft, Lossless(), WARPS[warp])
    requests = [Request(decoder, [5, 6, 7 + i], LENGTH, rng_for(decoder.warp.temperature, 1, "x")) for i in range(rows)]
    running = engine(True, max_batch_size=rows)
    with counting() as waits:
        outputs = dict(running.generate_all(requests))
    assert {out.num_rounds for out in outputs.values()} == {LENGTH}
    assert waits.counts == {"tolist": 2 * LENGTH - 1}, "the last round has no draft"
    assert running.num_host_reads == 2 * LENGTH - 1


def test_keeping_a_path_of_a_tree_waits_for_nothing() -> None:
    for captured in (False, True):
        session = on_fake_device(graphs=Tape() if captured else "off").session()
        with counting() as waits:
            session.feed(torch.ones(9, dtype=torch.int64, device="meta"), rows=1)
            session.truncate(3, [5, 8])
        assert not waits.counts


def test_what_waits_is_noticed() -> None:
    """Else the tests above would show nothing."""
    x = torch.ones(3, device="meta")
    with counting() as waits:
        x.tolist()
        torch.tensor([1, 2], device="meta")
        torch.ones(3).to("meta")
        torch.tensor(1, device="meta")
        x.copy_(torch.ones(3))
    assert sum(waits.counts.values()) == 5
    for read in (lambda: x[x > 0], lambda: x.sum().item(), lambda: bool(x[0]), lambda: int(x[0]), lambda: x.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with counting(), pytest.raises((AssertionError, RuntimeError), match="device"):
        torch.add(x, torch.ones(3))

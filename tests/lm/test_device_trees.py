"""Trees that the draft grows and the target scores on the device give the tokens and counts of those grown on the host.

A tape replaces CUDA graphs, as in test_graphs.py: it freezes host values, and refuses to read any while it records.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import GrowTree, Needs
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import Typical
from specexp.engine import Engine, Generation, recorded_rounds
from specexp.engine.ending import Ending
from specexp.engine.engine import Request
from specexp.errors import ModelError
from specexp.evaluation.token_view.origins import TracedDecoder
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native import cuda_graphs, tree_graphs
from specexp.lm.native.native_forward import NativeForward

Pair = dict[str, HFModel]
PROMPTS = ([7], [5, 9, 11, 40], [(17 * i) % 90 + 3 for i in range(60)])
WARPS = {"greedy": Warp(), "sampled": Warp(0.9, top_k=20, top_p=0.9)}
SHAPES: list[dict[str, Any]] = [
    {"tree_budget": 24, "max_depth": 4},
    {"tree_budget": 6, "max_depth": 6, "parallel_branches": 3, "branch_width": 2},
    {"tree_budget": 300, "max_depth": 3, "parallel_branches": 2, "branch_prune_threshold": 0.3},
    {"tree_budget": 16, "max_depth": 5, "parallel_branches": 8, "min_log_prob": -5.0},
    {"tree_budget": 1, "max_depth": 3},
]
JUDGE = Judged(lambda x: torch.sigmoid(x.sum(-1)), ("target_token",), 0.4, (2,), Needs(target=True))


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of tests go through several."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 64)


def models(capture: Any, family: str = "llama", **more: Any) -> Pair:
    made = {"target": build(family), "draft": disturbed(build(family), 0.06)}
    return {role: HFModel(module, role, graphs=capture, **more) for role, module in made.items()}


def counts(out: Generation) -> dict[str, Any]:
    return {name: getattr(out, name) for name in Generation.__dataclass_fields__ if not name.endswith("seconds")
            and name != "time_to_first_token"}  # fmt: skip


def compare(family: str, decoders: list[SpecExec], length: int = 24) -> tuple[int, int]:
    """Accepted tokens and levels that a recording skipped; every count is that of the host's trees."""
    tape = Tape()
    plain, captured = models("off", family), models(tape, family)
    accepted = 0
    for decoder in decoders:
        engines: Any = Engine(plain), Engine(captured)
        reads = 0
        for number, prompt in enumerate(PROMPTS):
            rng = rng_for(decoder.warp.temperature, 3, str(number))
            expected, got = (engine.generate(decoder, prompt, length, rng) for engine in engines)
            assert counts(got) == counts(expected)
            assert engines[0].spent() == engines[1].spent()
            accepted, reads = accepted + got.num_accepted, reads + got.num_rounds
        assert engines[1].num_host_reads == reads, "one read a round"
        assert engines[0].num_host_reads > reads
    return accepted, tape.num_skipped


@pytest.mark.at_most(slow=2)
@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral_window"])
def test_tokens_and_counts_are_those_of_the_hosts_trees(family: str, warp: str) -> None:
    accepted, skipped = compare(family, [SpecExec(warp=WARPS[warp], **shape) for shape in SHAPES])
    assert accepted > 20
    assert skipped > 10


def test_one_tree_is_that_of_the_host() -> None:
    accepted, skipped = compare("llama", [SpecExec(warp=Warp(), **SHAPES[1])], 12)
    assert accepted
    assert skipped, "levels beyond the limit are skipped"


@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
def test_lossy_rules_see_the_same_trees(warp: str) -> None:
    own = WARPS[warp]
    rules: list[Any] = [JUDGE, TopK(3), Typical(0.3, 0.5, own)]
    accepted, _ = compare("llama", [SpecExec(12, 4, own, rule=rule) for rule in rules])
    assert accepted > 20


def test_a_shape_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One growth for each size of what comes before it, and one verification; another prompt records nothing."""
    monkeypatch.setattr(recorded_rounds, "OFTEN", 2)
    tape = Tape()
    pair: Any = models(tape)
    recorded = []
    for prompt in ([5, 6, 7], [9, 8, 4], [30, 2, 17]):
        Engine(pair).generate(SpecExec(8, 3, Warp(), 2), prompt, 16, CertainRng())
        recorded.append(tape.num_recorded)
    kept = {role: [key[:2] for key in model.graph_pools.pools[0].recordings.kept] for role, model in pair.items()}
    keys = {role: [key for key in each if key[0] != "keep"] for role, each in kept.items()}
    assert set(keys["draft"]) <= {("prefill", 16), ("grow", 1), ("grow", 2)}, "growths after one or two tokens"
    # The first tree of an engine is scored by itself, and a round in which one token is left has no tree.
    assert set(keys["target"]) == {("prefill", 16), ("grown tree", 1), ("tree through", 1), ("chain", 1)}
    # Trees of one level and two levels, before the limit, are walked by recordings of their own.
    assert len(keys["target"]) == 3 + len({key[6].depth for key in every("tree through", pair["target"])}) <= 6
    assert recorded[-1] == sum(len(each) for each in kept.values())
    assert recorded[1] == recorded[2], "another prompt is another recording"


def every(kind: str, model: Any) -> list[Any]:
    return [key for key in model.graph_pools.pools[0].recordings.kept if key[0] == kind]


def test_padding_has_neither_a_row_nor_a_slot() -> None:
    """The target's rows of a grown tree are those of its nodes fed as the host's tree; padding changes none of them."""
    pair = models(Tape())
    ask, prompt = GrowTree(40, 3, 2, 3, threshold=0.5), [4, 5, 6, 9]
    draft, target = (pair[role].session() for role in ("draft", "target"))
    for model, session in ((pair["draft"], draft), (pair["target"], target)):
        session.feed(model.ids(prompt), rows=0)
    tree = draft.grow([8], ask, 3)  # type: ignore[attr-defined]
    logits, hidden = target.feed_tree(pair["target"].ids([8]), tree, True)  # type: ignore[attr-defined]
    num = int(tree.counts[0])
    assert num < tree.depths.shape[0], "no padding"
    tokens, parents = tree.table[0].tolist(), tree.table[1].tolist()
    for row in range(num + 1):
        path, at = [], row
        while at > 0:
            path.append(tokens[at])
            at = parents[at]
        expected, state = (
            pair["target"].session().feed(pair["target"].ids([*prompt, 8, *reversed(path)]), rows=1, hidden=True)
        )
        assert torch.allclose(logits[row], expected[0], atol=1e-4)
        assert torch.allclose(hidden[row], state[0], atol=1e-4)


def test_trees_that_a_device_does_not_take_are_grown_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are banned, several rows, no cache, more nodes than a recording has: the same tokens."""
    pair, plain = models(Tape()), models("off")
    grown: list[int] = []
    original = tree_graphs.grow
    monkeypatch.setattr(tree_graphs, "grow", lambda *given: (grown.append(1), original(*given))[1])
    decoder, prompt, rng = SpecExec(8, 3, Warp(), 2), [5, 6, 7], CertainRng()
    any_pair: Any = pair
    expected = Engine(plain).generate(Baseline(Warp()), prompt, 12, rng).token_ids  # type: ignore[arg-type]
    assert Engine(any_pair, cached=False).generate(decoder, prompt, 12, rng).token_ids == expected
    outputs = dict(Engine(any_pair, max_batch_size=2).generate_all([Request(decoder, prompt, 12, rng)] * 2))
    assert [outputs[i].token_ids for i in range(2)] == [expected] * 2
    late = Ending(min_new_tokens=12)
    both = [
        Engine(each, [expected[3]]).generate(decoder, prompt, 12, rng, ending=late).token_ids
        for each in (any_pair, plain)
    ]
    assert both[0] == both[1]
    monkeypatch.setattr(cuda_graphs, "TREES", 8)
    assert Engine(any_pair).generate(decoder, prompt, 12, rng).token_ids == expected
    assert not grown
    monkeypatch.setattr(cuda_graphs, "TREES", 1024)
    assert Engine(any_pair).generate(decoder, prompt, 12, rng).token_ids == expected
    assert grown


def test_a_draft_that_gives_no_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pair: Any = models(Tape())
    native = pair["draft"].native
    monkeypatch.setattr(native, "logits", lambda x: NativeForward.logits(native, x) * float("nan"))
    with pytest.raises(ModelError, match="the draft model 'draft' gives NaN logits at position 0 of the output"):
        Engine(pair).generate(SpecExec(8, 3, Warp(), 2), [5, 6, 7], 12, CertainRng())


@pytest.mark.slow
def test_the_origins_of_tokens_are_those_of_the_hosts_trees() -> None:
    traced = []
    for capture in ("off", Tape()):
        pair: Any = models(capture)
        decoder = TracedDecoder(SpecExec(12, 4, Warp(), rule=JUDGE))
        Engine(pair).generate(decoder, [5, 9, 11, 40], 16, CertainRng())
        traced.append([(each.token, each.origin, each.round) for each in decoder.tokens])
    assert traced[0] == traced[1]

"""What a call costs: which calls are measured, how they are averaged, and what stands between measured sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from specexp.decoding.draft_length import RelativeCosts, Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Rng
from specexp.lm.model import Array, Branches, Feed, Session
from specexp.lm.toy import ToyModel, ToySession
from specexp.profiling import call_costs
from specexp.profiling.call_costs import Costs, TreeRound, measure

IDS = [1, 2, 3, 4, 5]


class SlowToy(ToyModel):
    """Its calls move a clock by a second, and a tenth for each position; a tree's by half a second more."""

    def __init__(self, times: float = 1.0) -> None:
        super().__init__(8, context=64)
        self.times = times
        self.fed: list[int] = []
        self.now = [0.0]

    def session(self) -> SlowSession:
        return SlowSession(self)

    def sessions(self, count: int, capacity: int = 0) -> list[SlowSession]:
        return [SlowSession(self) for _ in range(count)]


class SlowSession(ToySession):
    def __init__(self, model: SlowToy) -> None:
        super().__init__(model)
        self._slow = model

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        self._slow.fed.append(len(tokens))
        self._slow.now[0] += self._slow.times * (1 + 0.1 * len(tokens) + 0.5 * (branches is not None))
        return super().feed(tokens, rows, hidden, branches)


def pair() -> tuple[SlowToy, SlowToy]:
    target, draft = SlowToy(), SlowToy(0.1)
    draft.now = target.now
    return target, draft


def test_chains_and_trees_are_measured_as_they_come() -> None:
    target, draft = pair()
    costs = measure({"target": target, "draft": draft}, IDS, [2, 4], [TreeRound(12, 3, 4)], clock=lambda: target.now[0])
    assert costs.draft_step == pytest.approx(0.11)
    assert costs.target == pytest.approx({1: 1.1, 3: 1.3, 5: 1.5})
    assert costs.tree_draft == pytest.approx({4: 0.19})
    assert costs.tree_target == pytest.approx({13: 2.8})
    assert costs.catch_up == pytest.approx({1: 0.11, 2: 0.12, 3: 0.13, 5: 0.15})
    assert costs.c == pytest.approx(0.1)
    assert costs.v_tree(13) == pytest.approx(2.8 / 1.1)


def test_without_a_draft_none_is_measured() -> None:
    target = SlowToy()
    costs = measure({"target": target}, IDS, [3], clock=lambda: target.now[0])
    assert costs.draft_step is None
    assert costs.target == pytest.approx({1: 1.1, 4: 1.4})
    assert costs.catch_up == {}
    assert costs.more_to_take_in(3) == 0
    with pytest.raises(AssertionError, match="no draft was measured"):
        _ = costs.c


def test_trees_without_a_draft_are_verified_alone() -> None:
    target = SlowToy()
    costs = measure({"target": target}, IDS, [], [TreeRound(12, 3, 4)], clock=lambda: target.now[0])
    assert (costs.draft_step, costs.tree_draft) == (None, {})
    assert costs.tree_target == pytest.approx({13: 2.8})
    assert costs.v_tree(13) == pytest.approx(2.8 / 1.1)


def test_trees_alone_have_a_draft_step_and_a_plain_one_too() -> None:
    target, draft = pair()
    trees: Sequence[TreeRound] = [TreeRound(2, 1, 4)]
    costs = measure({"target": target, "draft": draft}, IDS, [], trees, clock=lambda: target.now[0])
    assert costs.draft_step == pytest.approx(0.11)
    assert costs.tree_draft == {}, "a tree of one level is grown by the root's call alone"
    assert costs.tree_target == pytest.approx({3: 1.8})


def test_slow_calls_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_costs, "PATIENCE", 5.0)
    target, draft = pair()
    measure({"target": target, "draft": draft}, IDS, [2], clock=lambda: target.now[0])
    assert target.fed.count(3) == 2 * (call_costs.WARM_UP + 1)


def test_sizes_between_are_on_a_straight_line_and_beyond_the_ends_the_ends() -> None:
    costs = Costs(0.2, {1: 1.0, 5: 1.4, 9: 3.0}, {4: 0.5}, {17: 2.6})
    assert [costs.v(n) for n in (1, 3, 5, 7, 9, 12)] == pytest.approx([1.0, 1.2, 1.4, 2.2, 3.0, 3.0])
    assert [costs.v_tree(n) for n in (1, 9, 17, 40)] == pytest.approx([1.0, 1.8, 2.6, 2.6])
    assert [costs.c_tree(n) for n in (1, 2.5, 4)] == pytest.approx([0.2, 0.35, 0.5])


def test_more_positions_do_not_cost_less() -> None:
    assert call_costs.nondecreasing([1.0, 3.0, 2.0, 4.0, 3.0, 2.0, 5.0]) == [1.0, 2.5, 2.5, 3.0, 3.0, 3.0, 5.0]
    assert call_costs.nondecreasing([2.0, 1.0, 1.2, 1.1]) == pytest.approx([1.325] * 4)
    target, draft = SlowToy(), WholeChains(0.1)
    draft.now = target.now
    costs = call_costs.relative_costs({"target": target, "draft": draft}, IDS, 4, clock=lambda: target.now[0])
    assert costs.draft == pytest.approx(0.05 / 1.1)
    assert costs.target == pytest.approx([1, 1.3 / 1.1, 1.3 / 1.1, 1.4 / 1.1, 1.5 / 1.1])


@pytest.mark.parametrize("reads", [False, True])
def test_only_a_draft_that_reads_states_begins_a_chain_with_all_that_was_committed(reads: bool) -> None:
    target, draft = SlowToy(), (Reading if reads else SlowToy)(0.1)
    draft.now = target.now
    costs = call_costs.relative_costs({"target": target, "draft": draft}, IDS, 4, clock=lambda: target.now[0])
    assert costs.begin == pytest.approx(0.1 * 0.2 / 1.1 if reads else 0.0), "3 tokens instead of 1"
    assert RelativeCosts.of(json.loads(json.dumps(asdict(costs)))) == costs


class Reading(SlowToy):
    """Its sessions are told what is committed."""

    def session(self) -> SlowSession:
        return ReadingSession(self)


class ReadingSession(SlowSession):
    def read(self, ids: Sequence[int], keeper: Session | None) -> None:
        pass


class WholeChains(SlowToy):
    """It drafts a chain in one go, which costs less than its steps do."""

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        return True

    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        self.now[0] += 0.05 * length
        return Drafted(self.ids([0] * length), None)


def test_a_draft_that_makes_whole_chains_is_timed_making_them() -> None:
    target, draft = SlowToy(), WholeChains(0.1)
    draft.now = target.now
    costs = measure({"target": target, "draft": draft}, IDS, [2, 4], clock=lambda: target.now[0])
    assert costs.draft_step == pytest.approx(0.05)
    assert draft.fed.count(1) == 2 * draft.fed.count(2), "none but those that take in what was committed"
    assert costs.target == pytest.approx({1: 1.1, 3: 1.3, 5: 1.5})


class SlowHead(SlowToy):
    """It reads the target's states, and is told which tokens these are of."""

    def session(self) -> SlowHeadSession:
        return SlowHeadSession(self)


class SlowHeadSession(SlowSession):
    def read(self, ids: Sequence[int], keeper: Session | None) -> None:
        assert keeper is None or keeper.length == max(len(IDS), len(ids) - 1), "the target holds all but the newest"
        self.committed = list(ids)

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        start, stop = self.length, self.length + len(tokens)
        assert tokens.tolist() == self.committed[start:stop] or start >= len(self.committed), "committed, or drafted"
        assert rows in (0, 1, len(tokens))
        return super().feed(tokens, rows, hidden, branches)


def test_a_head_is_measured_on_committed_tokens_and_their_states() -> None:
    target, draft = SlowToy(), SlowHead(0.1)
    draft.now = target.now
    costs = measure({"target": target, "draft": draft}, IDS, [3], [TreeRound(12, 3, 4)], clock=lambda: target.now[0])
    assert costs.draft_step == pytest.approx(0.11)
    assert costs.catch_up == pytest.approx({1: 0.11, 2: 0.12, 4: 0.14})
    assert not costs.block
    assert [costs.more_to_take_in(n) for n in (1, 2, 3, 9)] == pytest.approx([0, 0.01 / 1.1, 0.02 / 1.1, 0.03 / 1.1])


class Blocks(SlowToy):
    """It drafts a block in one call."""

    def draft_block(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, banned: Sequence[frozenset[int]] = ()
    ) -> Drafted:
        raise NotImplementedError


def test_a_draft_that_makes_a_block_in_a_call_has_no_steps() -> None:
    target, draft = SlowToy(), Blocks(0.1)
    draft.now = target.now
    costs = measure({"target": target, "draft": draft}, IDS, [4], clock=lambda: target.now[0])
    assert costs.block
    assert (costs.draft_calls(4), costs.draft_calls(0)) == (1, 0)
    assert costs.draft_step == pytest.approx(0.11)
    assert max(draft.fed[1:]) == 5, "of the catch-up"
    steps = measure({"target": target, "draft": SlowToy(0.1)}, IDS, [4], clock=lambda: target.now[0])
    assert (steps.draft_calls(4), steps.draft_calls(4, feed_last_token=True), steps.draft_calls(0, True)) == (4, 5, 0)

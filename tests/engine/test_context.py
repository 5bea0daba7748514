"""What a context feeds and keeps of a sequence: slots and ids by hand, on a session that only writes down its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from specexp.engine.context import Context


class FakeSession:
    """Holds the ids it is fed."""

    def __init__(self) -> None:
        self.held: list[int] = []

    @property
    def length(self) -> int:
        return len(self.held)

    def feed(self, tokens: Any, rows: int, hidden: bool = False, branches: Any = None) -> tuple[None, None]:
        self.held += tokens.tolist()
        return None, None

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        self.held = self.held[:length] + [self.held[slot] for slot in slots]


class Model:
    context = 12
    vocab_size = 100

    def ids(self, tokens: Sequence[int]) -> Any:
        return np.asarray(tokens, dtype=np.int64)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def context(session: FakeSession) -> Context:
    return Context(Model(), session)  # type: ignore[arg-type]


def feed(context: Context, tokens: list[int] | None = None, parents: list[int] | None = None) -> Any:
    planned = context.plan(None if tokens is None else np.asarray(tokens), parents, False)
    planned.session.feed(planned.tokens, planned.rows)
    return planned


def test_a_prompt_is_held_but_for_its_last_token(context: Context, session: FakeSession) -> None:
    context.open([1, 2, 3], reuse=False)
    assert session.held == [1, 2]
    assert (context.num_calls, context.num_positions) == (1, 2)
    fed = feed(context, [7, 8])
    assert (fed.tokens.tolist(), fed.rows) == ([3, 7, 8], 3)
    again = feed(context, [9])
    assert (again.tokens.tolist(), again.rows) == ([9], 1), "row 0 was answered by the round's first ask"
    assert (context.num_calls, context.num_positions) == (3, 6)


def test_a_prompt_of_one_token_feeds_nothing(context: Context, session: FakeSession) -> None:
    context.open([1], reuse=False)
    assert (session.held, context.num_calls) == ([], 0)
    assert feed(context).tokens.tolist() == [1]


def test_the_longest_common_prefix_is_reused_and_no_more(context: Context, session: FakeSession) -> None:
    context.open([1, 2, 3, 4, 5], reuse=True)
    context.open([1, 2, 9, 4, 5], reuse=True)
    assert session.held == [1, 2, 9, 4]
    assert context.num_positions == 4 + 2
    context.open([1, 2, 9], reuse=True)
    assert (session.held, context.num_positions) == ([1, 2], 6)
    context.open([1, 2, 9], reuse=False)
    assert (session.held, context.num_positions) == ([1, 2], 8)


def test_a_prompt_beyond_the_context_is_not_fed(context: Context, session: FakeSession) -> None:
    context.open(list(range(13)), reuse=False)
    assert len(session.held) == 12, "12 fit, and none after them"
    context.open(list(range(20, 34)), reuse=False)
    assert session.held == []


def test_a_round_keeps_the_accepted_slots_without_the_last_committed_token(
    context: Context, session: FakeSession
) -> None:
    context.open([1, 2], reuse=False)
    feed(context, [3, 4, 5])  # slots 0, 1, 2
    context.commit([3, 4, 8], range(2))
    assert session.held == [1, 2, 3, 4]
    assert feed(context, [6]).tokens.tolist() == [8, 6]
    context.commit([6, 7], range(1))
    assert session.held == [1, 2, 3, 4, 8, 6]


def test_a_fully_accepted_chain_keeps_its_last_token_out(context: Context, session: FakeSession) -> None:
    """All was fed and all committed, no bonus: the next round asks for the last token's row."""
    context.open([1, 2], reuse=False)
    feed(context, [3, 4])
    context.commit([3, 4], range(2))
    assert session.held == [1, 2, 3]
    assert feed(context).tokens.tolist() == [4]


def test_a_trees_path_is_moved_together(context: Context, session: FakeSession) -> None:
    """root 2; children 3 (slot 0) and 4 (slot 1); 5 (slot 2) under 4."""
    context.open([1, 2], reuse=False)
    planned = feed(context, [3, 4, 5], [-1, -1, 1])
    assert planned.branches.base == 2
    assert planned.branches.depths == [0, 0, 1]
    assert planned.branches.ancestors == [[0], [1], [1, 2]]
    context.commit([4, 5, 6], [1, 2])
    assert session.held == [1, 2, 4, 5]
    assert context.num_slots == 0


def test_slots_that_were_never_fed_are_not_kept(context: Context, session: FakeSession) -> None:
    """A draft model that did not feed its last token holds one slot less than was accepted."""
    context.open([1, 2], reuse=False)
    feed(context, [3])
    context.commit([3, 4, 5], range(2))
    assert session.held == [1, 2, 3]
    assert feed(context).tokens.tolist() == [4, 5], "what is missing is fed first"


def test_without_a_cache_everything_is_fed_at_each_ask(session: FakeSession) -> None:
    context = Context(Model(), session, cached=False)  # type: ignore[arg-type]
    context.open([1, 2, 3], reuse=False)
    assert (session.held, context.num_calls) == ([], 0)
    assert feed(context, [7]).tokens.tolist() == [1, 2, 3, 7]
    assert feed(context, [8]).tokens.tolist() == [1, 2, 3, 7, 8]
    context.commit([7, 9], range(1))
    assert feed(context).tokens.tolist() == [1, 2, 3, 7, 9]


def test_forgetting_empties_the_cache(context: Context, session: FakeSession) -> None:
    context.open([1, 2, 3], reuse=True)
    context.forget()
    assert session.held == []
    context.open([1, 2, 3], reuse=True)
    assert (session.held, context.num_positions) == ([1, 2], 4)

"""Which open asks are answered next: those of the earliest phase, all rows that can share a forward together."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from specexp.decoding.protocol import Ask, Draft, GrowTree, Recall, Round, Score
from specexp.engine.request_state import RequestState

A = TypeVar("A", Score, Draft, Recall, GrowTree, Round)


class Phase(IntEnum):
    """The order of answers: drafts come before target calls, so that rows that began at different times share one."""

    LENGTH = 0  # GrowTree and Recall, which take no forward of several rows
    DRAFT = 1
    SCORE_DRAFT = 2
    SCORE_TARGET = 3
    COMMIT = 4


_PHASES: dict[type, Phase] = {
    GrowTree: Phase.LENGTH, Recall: Phase.LENGTH, Draft: Phase.DRAFT, Round: Phase.COMMIT,
}  # fmt: skip


def phase_of(ask: Ask) -> Phase:
    """The phase in which an ask is answered."""
    if isinstance(ask, Score):
        return Phase.SCORE_TARGET if ask.model == "target" else Phase.SCORE_DRAFT
    return _PHASES[type(ask)]


def next_phase(active: Sequence[RequestState]) -> tuple[Phase, list[RequestState]]:
    """The earliest phase of any open ask, and the states to answer in it, in their order.

    Drafts that differ in more than gamma are answered in a later step.
    """
    phases = [phase_of(state.ask) for state in active if state.ask is not None]
    phase = min(phases)
    states = [state for state, each in zip(active, phases, strict=True) if each == phase]
    if phase == Phase.DRAFT:
        asked = with_asks(states, Draft)
        states = [state for state, ask in asked if _alike(ask, asked[0][1])]
    return phase, states


def with_asks(states: Sequence[RequestState], kind: type[A]) -> list[tuple[RequestState, A]]:
    """Each state with its ask, all of which are of this kind."""
    return [(state, ask) for state in states if isinstance(ask := state.ask, kind)]


def _alike(one: Draft, other: Draft) -> bool:
    return (
        one.warp, one.reserve, one.hidden, one.feed_last_token, one.min_draft_probability, one.by_round, one.costs,
        one.keep_q,
    ) == (
        other.warp, other.reserve, other.hidden, other.feed_last_token, other.min_draft_probability, other.by_round,
        other.costs, other.keep_q,
    )  # fmt: skip

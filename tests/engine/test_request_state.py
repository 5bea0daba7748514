"""A request's counts, round by round, as the engine reads them; and who pays for a step that several rows share."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.fake_clock import Clock, ClockedToy
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Round
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Request
from specexp.engine.ending import End
from specexp.engine.request_state import RequestState, parts_of

EOS = 9


def begun(remaining_tokens: int = 20, on_tokens: Any = None) -> RequestState:
    return RequestState(Baseline(Warp()), [5, 6], CertainRng(), remaining_tokens, on_tokens, end=End(frozenset({EOS})))


def commit(run: RequestState, tokens: list[int], num_tokens: int, overlap: list[float], **counts: int) -> int:
    """Commit a chain's round of len(overlap) drafted tokens."""
    drafted = {"num_drafted": len(overlap), "num_accepted": num_tokens - 1, "judged": 0, **counts}
    ask = Round(tokens, num_tokens, {}, {**drafted, "overlap": overlap})  # type: ignore[arg-type]
    values = [[float(v) for v in part] if isinstance(part, list) else [float(part)] for part in parts_of(ask)]  # type: ignore[attr-defined]
    return run.commit(ask, iter(values), iter(()))


def test_a_rejected_round_counts_what_was_tested() -> None:
    """Of four drafts two are accepted: three were tested, and what was drafted after the rejection is not emitted."""
    run = begun()
    assert commit(run, [1, 2, 3, 77, 77], 3, [0.5, 0.25, 0.125, 1.0]) == 17
    out = run.out
    assert out.token_ids == [1, 2, 3]
    assert (out.num_drafted, out.num_accepted, out.num_tested, out.num_full, out.num_cut) == (4, 2, 3, 0, 0)
    assert out.overlap == 0.875
    assert out.accepted_histogram == [0, 0, 1]
    assert run.ids == [5, 6, 1, 2, 3]


def test_a_full_round_emits_the_bonus_token_and_counts_as_full() -> None:
    run = begun()
    commit(run, [1, 2, 3], 3, [0.5, 0.5])
    commit(run, [4, 4], 1, [0.25])
    commit(run, [8], 1, [])
    out = run.out
    assert (out.num_rounds, out.num_full, out.num_drafted, out.num_accepted, out.num_tested) == (3, 1, 3, 2, 3)
    assert out.accepted_histogram == [2, 0, 1]


def test_an_eos_inside_a_block_ends_the_run_there() -> None:
    run = begun()
    assert commit(run, [1, EOS, 3, 4], 4, [0.5, 0.5, 0.5]) == 0
    out = run.out
    assert out.token_ids == [1, EOS]
    assert run.ids == [5, 6, 1, EOS]
    assert (out.num_cut, out.finish_reason, out.num_accepted) == (2, "stop", 3)
    assert (out.num_tested, out.overlap) == (2, 1.0), "alpha leaves out what is no part of the sequence"


def test_the_limit_cuts_at_its_token_and_keeps_its_reason() -> None:
    run = begun(remaining_tokens=2)
    assert commit(run, [1, 2, 3], 3, [1.0, 1.0]) == 0
    assert run.out.token_ids == [1, 2]
    assert (run.out.num_cut, run.out.finish_reason) == (1, "length")
    run = begun(remaining_tokens=2)
    assert commit(run, [1, 2, EOS], 3, [1.0, 1.0]) == 0
    assert run.out.finish_reason == "length", "an EOS beyond the limit was not emitted"


def test_tokens_are_told_once_each() -> None:
    heard: list[list[int]] = []
    run = begun(on_tokens=lambda tokens: heard.append(list(tokens)))
    run.emit()
    commit(run, [1, 2], 2, [1.0])
    run.emit()
    run.emit()
    commit(run, [3], 1, [])
    run.emit()
    assert heard == [[1, 2], [3]]


@pytest.mark.parametrize("rows", [1, 3])
def test_the_seconds_of_prompts_decoded_together_add_up_to_what_passed(rows: int) -> None:
    """Each row pays its share of every step: as many seconds as the clock moved, however many rows there were."""
    clock = Clock()
    models = {role: ClockedToy(clock, 0.5, 0.25, vocab_size=12, seed=1, draft_noise=noise, context=160)
              for role, noise in (("target", 0.0), ("draft", 0.4))}  # fmt: skip
    engine = Engine(models, max_batch_size=rows, clock=clock)  # type: ignore[arg-type]
    decoder = Chain(DraftModel(3), Lossless(), Warp())
    requests = [Request(decoder, [1 + i, 2], 6 + 5 * i, CertainRng()) for i in range(5)]
    outputs = [out for _, out in engine.generate_all(iter(requests))]
    assert clock.now > 0
    assert sum(out.seconds + out.prefill_seconds for out in outputs) == pytest.approx(clock.now)
    assert all(0 < out.time_to_first_token <= clock.now for out in outputs)


def test_the_first_token_comes_after_the_prefill_and_one_round() -> None:
    """A call takes half a second, and a quarter for each position: two prompt tokens are prefilled, the third asks."""
    clock = Clock()
    target = ClockedToy(clock, 0.5, 0.25, vocab_size=12, seed=1, context=160)
    out = Engine({"target": target}, clock=clock).generate(Baseline(Warp()), [1, 2, 3], 5, CertainRng())  # type: ignore[dict-item]
    assert out.prefill_seconds == pytest.approx(0.5 + 2 * 0.25)
    assert out.time_to_first_token == pytest.approx(1.0 + 0.75)
    assert out.seconds == pytest.approx(5 * 0.75)

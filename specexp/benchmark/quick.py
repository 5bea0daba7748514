"""Estimates how long a benchmark takes, and plans a quick one of about a minute.

Settings that the user has set stay. Only a few tokens are timed here; the numbers come from the benchmark that follows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from specexp.benchmark import benchmark, throughput
from specexp.benchmark.contenders import HFContender
from specexp.benchmark.peers import plain_peer
from specexp.config import Experiment
from specexp.evaluation import measured_costs
from specexp.evaluation.preparation import Prepared
from specexp.lm import out_of_memory
from specexp.profiling import time_estimate
from specexp.profiling.time_estimate import Pace, pace

BUDGET = 45.0  # seconds of decoding; loading and the limits of the hardware come on top
NAMES = ("batch", "limit", "repeats", "max_new_tokens")
LADDER = ((16, 3, 2, 48), (4, 3, 2, 48), (1, 3, 2, 48), (1, 2, 2, 48), (1, 2, 2, 32), (1, 2, 1, 32), (1, 1, 1, 32),
          (1, 1, 1, 16))  # fmt: skip
TOKENS = 6  # of a timed call of generate()
TOGETHER = 0.5  # a batch's pass takes at most this share of a pass one at a time
INSTRUMENTED = 2.0  # an instrumented run, which waits between its parts, takes as long as this many plain ones


@dataclass(frozen=True, slots=True)
class QuickSettings:
    """The settings to measure with, and the most seconds that are expected."""

    settings: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Paces:
    """The paces of plain decoding and of `generate()`."""

    plain: Pace
    generate: Pace


def paces(prepared: Prepared) -> Paces:
    """The paces, from a few tokens on the first prompt."""
    peer = plain_peer(prepared.pair)
    first, more = (HFContender("pace", prepared, peer, most) for most in (1, TOKENS))
    with out_of_memory.translate_oom("a few timed calls", "max_new_tokens", prepared.experiment.models):
        more.time(0, 0)
        start, end = first.time(0, 0), more.time(0, 0)
    each = (end.seconds - start.seconds) / max(1, len(end.token_ids) - 1)
    return Paces(pace(prepared.pair.models, prepared.prompts), Pace(start.seconds, max(0.0, each)))


def announce(prepared: Prepared, paces: Paces, with_compiled: bool) -> None:
    """Announce how long the benchmark takes at most."""
    experiment = prepared.experiment
    what = (
        f"{benchmark.num_runs(prepared, with_compiled)} outputs of up to {experiment.max_new_tokens} tokens (plain"
        f" decoding {1 / paces.plain.token:.3g} tokens/s), and passes over batches"
    )
    taken = seconds(prepared, paces, with_compiled)
    time_estimate.announce(taken, what, "limit, repeats, max_new_tokens or batch, or give quick,")


def note(before: Experiment, settings: Mapping[str, int]) -> str | None:
    """The settings that were lowered, in one line; None if none was."""
    changed = [f"{name} {value} instead of {getattr(before, name)}" for name, value in settings.items()
               if value != getattr(before, name)]  # fmt: skip
    if not changed:
        return None
    return f"quick: {', '.join(changed)}, since more would take over a minute with these models."


def plan(prepared: Prepared, given: Collection[str], paces: Paces) -> QuickSettings:
    """The first rung that fits the budget, else the last one. Settings in `given` stay as they are."""
    experiment = prepared.experiment
    result: QuickSettings | None = None
    for rung in LADDER:
        settings = {name: value for name, value in zip(NAMES, rung, strict=True) if name not in given}
        # Never more than the experiment has.
        settings = {name: min(value, getattr(experiment, name)) for name, value in settings.items()}
        result = QuickSettings(settings, seconds(shortened(prepared, settings), paces))
        if result.seconds <= BUDGET:
            break
    assert result is not None
    return result


def seconds(prepared: Prepared, paces: Paces, with_compiled: bool = False) -> float:
    """Seconds of the benchmark if every output has the full length and a chain is no faster than plain decoding."""
    experiment, plain, generate = prepared.experiment, paces.plain, paces.generate
    tokens, prompts = experiment.max_new_tokens, len(prepared.prompts)
    run = (plain.seconds(tokens) + generate.seconds(tokens)) / 2
    split = 2 * INSTRUMENTED * min(benchmark.SPLIT_PROMPTS, prompts) * plain.seconds(tokens)
    kinds = len({length for setting in prepared.settings for length in setting.lengths}) + 2
    costs = (
        2 * -(-experiment.repeats * prompts // benchmark.EVERY) * (measured_costs.ROUNDS + 1) * 8 * kinds * plain.token
    )
    batch = 0.0
    if experiment.batch > 1:
        each = throughput.BATCHES * experiment.batch * plain.seconds(tokens)
        batch = 2 * throughput.num_turns(prepared) * each * (1 + TOGETHER)
    return benchmark.num_runs(prepared, with_compiled) * run + split + costs + batch


def shortened(prepared: Prepared, settings: Mapping[str, Any]) -> Prepared:
    """The same, with these settings."""
    experiment = replace(prepared.experiment, **settings)
    limit = experiment.limit
    return replace(
        prepared, experiment=experiment, examples=prepared.examples[:limit], prompts=prepared.prompts[:limit]
    )

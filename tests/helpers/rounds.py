"""Decoders that record their rounds, on toy models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specexp.advise.rounds import Trace
from specexp.advise.traces import Watching, agreement
from specexp.decoding.rng import rng_for
from specexp.engine import Engine, Generation
from specexp.evaluation.preparation import Prepared
from specexp.lm.toy import ToyModel


class Noting(Watching):
    """Records how many drafts every round accepted."""

    def steps(self, rng: Any, remaining_tokens: int) -> Any:
        self.rounds: list[int] = []
        steps, answer = super().steps(rng, remaining_tokens), None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                return
            if hasattr(ask, "num_tokens"):
                self.rounds.append(int(ask.counts["num_accepted"]))
            answer = yield ask


def toy_models(noise: float, draft_context: int = 512, seed: int = 0) -> dict[Any, Any]:
    return {
        "target": ToyModel(12, seed, context=512),
        "draft": ToyModel(12, seed, noise, context=draft_context),
    }


def decode(prepared: Prepared, decoder: Any, index: int, seed: int = 0) -> Generation:
    experiment = prepared.experiment
    rng = rng_for(experiment.temperature, seed, prepared.examples[index].prompt_id)
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids)
    return engine.generate(decoder, prepared.prompts[index], experiment.max_new_tokens, rng)


def plainly(prepared: Prepared, index: int, seed: int = 0) -> Generation:
    return decode(prepared, prepared.settings[0].decoder, index, seed)


def trace_of(prepared: Prepared, index: int, output: Sequence[int], longest: int) -> Trace:
    """What an output shows of chains of up to so many tokens."""
    agreed = agreement(prepared, index, output, longest=longest)
    return replace(agreed.trace, certainty=agreed.certainty)


def as_before(trace: Trace) -> Trace:
    """What it shows if every token is drafted as a chain's first one, which for a head it is not."""
    return replace(trace, deeper=())

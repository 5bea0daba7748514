"""Runs advise, also with a simulated clock."""

from __future__ import annotations

from typing import Any

from click.testing import Result

from entrypoints.advise import command
from helpers.cli_runner import invoke
from helpers.fake_clock import Clock, ClockedToy, prepared_toy
from specexp.advise.advice import Advice, measure

TOY = {"vocab_size": 24, "context": 512}
SMALL = ["--experiment", "toy_quick", "--limit", "3", "--max-new-tokens", "20", "--gamma", "2,4", "--repeats", "2",
         "--tree-budget", "4"]  # fmt: skip


def advise(*arguments: str) -> Result:
    return invoke(command, *arguments)


def advised(
    draft_step: float = 0.1, noise: float = 0.4, per_token: float = 0.04, sweep: bool = True, **flags: Any
) -> Advice:
    """Advice on a pair whose target call takes 1 second, of which `per_token` for each token, and whose draft call
    takes `draft_step`; every round takes the host 0.2 seconds more for each model."""
    clock = Clock()
    models: Any = {
        "target": ClockedToy(clock, 1 - per_token, per_token, 0.2, draft_noise=0.0, **TOY),
        "draft": ClockedToy(clock, draft_step, 0.0, 0.2, draft_noise=noise, **TOY),
    }
    return measure(prepared_toy(models, **flags), sweep, clock)


def predicted(advice: Advice) -> dict[str, float]:
    return {label: prediction.speedup for label, prediction in advice.forecast.predicted.items()}


def measured(advice: Advice) -> dict[str, float]:
    return {label: checked.speedup.value for label, checked in advice.checked.items()}

"""Compares the tokenizer of served engines with the target's, whose ids an engine is sent where our own methods run
next to it. It knows what a settings file names; what a server was started with it cannot know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from specexp.config import Experiment
from specexp.errors import ModelError
from specexp.lm.runtime import ModelConfig


def check_served_tokenizer(experiment: Experiment, target: Any, load: Callable[[ModelConfig], Any]) -> None:
    """Raise ModelError if an engine's `tokenizer` gives a token of the target's another id.

    `target` is the target's tokenizer, `load` loads another one. More tokens than the target's are no fault: they are
    never sent.
    """
    engines = [each for each in experiment.engine if each.endpoint.tokenizer]
    if not engines:
        return
    named, own = engines[0].endpoint.tokenizer, experiment.target.tokenizer or experiment.target.model
    if named == own:
        return
    served: dict[str, int] = load(replace(experiment.target, model=named, tokenizer="", revision="")).get_vocab()
    tokens: dict[str, int] = target.get_vocab()
    wrong = sorted(token for token, number in tokens.items() if served.get(token) != number)
    if wrong:
        shown = ", ".join(f"{token!r} is {tokens[token]} and {served.get(token, 'missing')}" for token in wrong[:3])
        raise ModelError(
            f"{', '.join(each.method for each in engines)}: tokenizer '{named}' is not that of the target '{own}',"
            f" whose ids our own methods and the engines are given: {len(wrong)} tokens differ ({shown}). Serve the"
            " target itself, leave tokenizer out to send text, or leave out our own methods."
        )


def check_toy(experiment: Experiment) -> None:
    """Raise ModelError if an engine has a tokenizer next to the toy pair, which has none that a server could have."""
    if named := next((each.endpoint.tokenizer for each in experiment.engine if each.endpoint.tokenizer), ""):
        raise ModelError(
            f"engine has the tokenizer '{named}', but our own methods decode the toy pair, whose ids no engine knows;"
            " leave tokenizer out to send text, or leave out our own methods."
        )

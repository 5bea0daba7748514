"""One setting of one method of an experiment, for who brings his own prompts. Light: no model library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specexp import config
from specexp.config import Experiment
from specexp.errors import ConfigError, PromptError

# What prompts the experiment would ask, and what that would take, is beside the point.
_NO_TASK = {"task": "prompts", "data": "-", "shots": 0, "history": "baseline"}


def resolve(experiment: str, method: str, flags: Mapping[str, Any]) -> Experiment:
    """The experiment with this one method alone. Raises ConfigError with every fault."""
    if not method:
        raise ConfigError("method is not given; name one preset, such as speculative.")
    found = config.resolve(experiment, {**flags, "methods": method}, _NO_TASK)
    if len(found.methods) > 1:
        names = ", ".join(each.label for each in found.methods)
        raise ConfigError(
            f"method '{method}' makes {len(found.methods)} settings here ({names}); name one preset, and one value of"
            " gamma, tree_budget, threshold and accept_k."
        )
    return found


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that says nothing, or is no text. Raises PromptError."""
    if not prompt.strip():
        raise PromptError("the prompt is empty; give it some text.")
    if half := next((c for c in prompt if "\ud800" <= c <= "\udfff"), None):
        raise PromptError(f"the prompt holds {half!r}, half of a character; give it as UTF-8 text.")

"""Drives decoders over models."""

from specexp.engine.ending import Ending
from specexp.engine.engine import Engine
from specexp.engine.request import Request, RequestCoroutine, ScoreRequest, UsageQuery, output_limit
from specexp.engine.request_state import Decoder, Generation
from specexp.engine.thought import ThinkingBudget

__all__ = [
    "Decoder", "Ending", "Engine", "Generation", "Request", "RequestCoroutine", "ScoreRequest", "ThinkingBudget",
    "UsageQuery", "output_limit",
]  # fmt: skip

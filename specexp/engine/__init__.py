"""Drives decoders over models."""

from specexp.engine.engine import Engine
from specexp.engine.request import Request, RequestCoroutine, ScoreRequest, UsageQuery
from specexp.engine.run import Decoder, Generation

__all__ = [
    "Decoder", "Engine", "Generation", "Request", "RequestCoroutine", "ScoreRequest", "UsageQuery",
]  # fmt: skip

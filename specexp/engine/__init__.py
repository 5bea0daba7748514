"""Drives decoders over models."""

from specexp.engine.engine import Engine
from specexp.engine.request import Look, Procedure, Request, Spent
from specexp.engine.run import Decoder, Generation

__all__ = ["Decoder", "Engine", "Generation", "Look", "Procedure", "Request", "Spent"]

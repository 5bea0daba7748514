"""Drives decoders over models."""

from specexp.engine.engine import Engine, Request
from specexp.engine.run import Decoder, Generation

__all__ = ["Decoder", "Engine", "Generation", "Request"]

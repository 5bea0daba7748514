"""Drives decoders over models."""

from specexp.engine.engine import Decoder, Engine, Generation

__all__ = ["Decoder", "Engine", "Generation"]

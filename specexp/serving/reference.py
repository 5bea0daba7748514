"""The name that decoders registered by version 0.1 import: their code file is kept in MLflow with them."""

from specexp.serving.decoder_spec import ROWS, ServedDecoder

__all__ = ["ROWS", "ServedDecoder"]

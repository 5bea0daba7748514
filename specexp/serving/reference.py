"""The old name of `decoder_spec`, which decoders registered by version 0.1 import: MLflow keeps their code file."""

from specexp.serving.decoder_spec import MAX_BATCH_SIZE, ServedDecoder

__all__ = ["MAX_BATCH_SIZE", "ServedDecoder"]

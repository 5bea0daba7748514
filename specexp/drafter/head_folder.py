"""Writes a head's folder, whole or not at all, and reads it back: config.json and model.safetensors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specexp.drafter.eagle3 import Eagle3Head
from specexp.drafter.head_shape import ARCHITECTURE, HeadShape
from specexp.errors import ModelError, first_line
from specexp.reading import decode, parse_json, read_bytes
from specexp.storage.files import is_unwritable, make_folder, unwritable, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write(head: Eagle3Head, facts: Mapping[str, Any], folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the head; `facts` has the `target`, its fingerprint, and what else is known. Raises OutputError."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    weights = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in head.state_dict().items()
    }
    try:
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        write_json(partial / CONFIG, head.shape.as_config(facts))
        for path in partial.iterdir():
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception as error:  # the library that writes weights has its own error types
        if not is_unwritable(error):
            raise
        raise unwritable(folder, error) from error


def read_facts(folder: Path, name: str = "") -> dict[str, Any]:
    """The content of a head's config.json. Raises ModelError."""
    name = name or str(folder)
    where = f"drafter '{name}': {CONFIG}"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"'{name}' holds no drafter: it needs {CONFIG} and {WEIGHTS}, as train_drafter writes them.")
    content = decode(read_bytes(folder / CONFIG, "config file", ModelError), where, ModelError)
    result = parse_json(content, where, ModelError)
    if not isinstance(result, dict) or ARCHITECTURE not in (result.get("architectures") or []):
        raise ModelError(f"{where} is not that of an EAGLE-3 head ({ARCHITECTURE}).")
    return result


def read(folder: Path, embedding: Tensor, name: str = "") -> Eagle3Head:
    """The head of a folder that `write` made, in float32, on the target's `embedding`[V, E]. Raises ModelError."""
    config = read_facts(folder, name)
    try:
        shape = HeadShape.of_config(config)
        weights = load_file(folder / WEIGHTS)
        ids = weights["d2t"] + torch.arange(shape.draft_vocab_size)
        head = Eagle3Head(shape, ids.tolist(), embedding)
        head.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except Exception as error:  # keys that are missing, a file that is cut off, sizes that do not fit
        raise ModelError(f"drafter '{name or folder}' cannot be read ({first_line(error)}); train it again.") from error
    return head.eval()


def size_of(folder: Path) -> int:
    """Bytes of the weights' file."""
    return (folder / WEIGHTS).stat().st_size

"""Loads a head for a target that is loaded already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specexp.errors import ModelError
from specexp.lm.heads.eagle3_config import ARCHITECTURES, Eagle3Config, read_config
from specexp.lm.heads.eagle3_forward import Eagle3Forward
from specexp.lm.heads.eagle3_weights import read_weights
from specexp.lm.heads.head_model import HeadModel, native
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native.attention import SingleRowAttention
from specexp.lm.native.kv_cache import LEAST, Pool
from specexp.lm.runtime import ModelConfig
from specexp.lm.threads import fastest


def check_head(config: ModelConfig, folder: Path | None = None) -> None:
    """Raise ModelError if the head of this draft, in `folder`, does not fit the target's config."""
    read_config(config.eagle3, loading.read_config(config), config.model, folder)


def load_head(config: ModelConfig, target: HFModel, folder: Path | None = None) -> HeadModel:
    """The head of this draft, on the target's embedding; the target's sessions keep what it reads from now on.

    `folder` is where its files are, if they are not at `config.eagle3`.

    Raises ModelError.
    """
    head = read_config(config.eagle3, target.module.config, target.name, folder)
    if head.target and head.target != target.fingerprint():
        raise ModelError(
            f"head '{head.name}' was trained for another target ({head.target}) than model '{target.name}'"
            f" ({target.fingerprint()}); train one with train_drafter, or name the head of this target."
        )
    output = target.module.get_output_embeddings().weight.detach()
    embedding = target.module.get_input_embeddings().weight.detach()
    if embedding.device.type == "meta" or not embedding.is_floating_point():
        raise ModelError(f"head '{head.name}' needs the embedding of model '{target.name}', which is offloaded.")
    weights = read_weights(head, target.module.dtype, embedding.device)
    forward = Eagle3Forward(head, weights, embedding, output, target.vocab_size, target.suppressed)
    target.keep_states(head.layers)
    note = (
        f"the draft, {config.shown}, reads the target's hidden states and does not decode by itself: methods that need"
        " a draft model, such as draft_only, are left out."
    )
    capture = target.graph_pools.capture if target.graph_pools is not None else None
    model = HeadModel(target, forward, config.shown, _facts(config, head, weights, forward, target), (note,), capture)
    _tune(model)
    return model


def _facts(
    config: ModelConfig, head: Eagle3Config, weights: Mapping[str, Tensor], forward: Eagle3Forward,
    target: HFModel,
) -> dict[str, Any]:  # fmt: skip
    return {
        "class": ARCHITECTURES[0],
        "model": config.shown,
        "revision": None,
        "fingerprint": _fingerprint(weights),
        "hidden_size": head.size,
        "reads_layers": list(head.layers),
        "parameters": sum(value.numel() for value in weights.values() if value.is_floating_point()),
        "bytes": sum(value.nbytes for value in weights.values()),
        "offload": "none",
        "offloaded_bytes": 0,
        "dtype": str(forward.dtype).removeprefix("torch."),
        "device": str(forward.device),
        "device_name": target.facts()["device_name"],
        "device_map": {},
        "quantization": None,
        "vocab_size": target.vocab_size,
        "scored_ids": int(forward.drafted_ids.shape[0]),
        "context": target.context,
        "forward": "own",
        "graphs": "off" if target.graph_pools is None else "captured",
        "threads": torch.get_num_threads(),
    }


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash of the weights in sixteen hex digits, the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        value = value.to(torch.bfloat16).float() if value.is_floating_point() else value
        digest.update(f"{name} {tuple(value.shape)}".encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _tune(model: HeadModel) -> None:
    """Measure which thread counts are fastest for this head, on a CPU, and use them."""
    forward = model.forward
    if forward.device.type != "cpu":
        return
    pool = Pool.empty(native(forward), 1, LEAST)

    def feed(rows: int) -> None:
        features = torch.zeros(rows, forward.hidden_size, dtype=forward.dtype)
        tokens = torch.zeros(rows, dtype=torch.int64)
        x = forward(tokens, features, forward.angles(rows).at(0, rows), SingleRowAttention(pool, 0, 0, rows))
        forward.logits(x)

    forward.threads = fastest(feed, torch.get_num_threads())

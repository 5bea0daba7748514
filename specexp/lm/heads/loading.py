"""Loads a head for a target that is loaded already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from specexp.errors import ModelError
from specexp.lm.heads import dflash, mtp
from specexp.lm.heads.eagle3_config import ARCHITECTURES, Eagle3Config, read_config
from specexp.lm.heads.eagle3_forward import Eagle3Forward
from specexp.lm.heads.eagle3_weights import read_weights
from specexp.lm.heads.head_model import HeadModel, native
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.source import model_source
from specexp.lm.model import Model
from specexp.lm.native.attention import SingleRowAttention
from specexp.lm.native.kv_cache import LEAST, Pool
from specexp.lm.runtime import DFLASH, EAGLE3, MTP, ModelConfig
from specexp.lm.threads import fastest


def check_head(config: ModelConfig, lengths: Mapping[str, int], folder: Path | None = None) -> None:
    """Raise ModelError if the head of this draft, in `folder`, does not fit the target's config, or the methods' chains
    (label: length)."""
    target = loading.read_config(config)
    if config.head == MTP:
        mtp.check(target, config.model, lengths)
    elif config.head == DFLASH:
        dflash.check(config.dflash, target, config.model, lengths)
    else:
        read_config(config.eagle3, target, config.model, folder)


def load_head(config: ModelConfig, target: HFModel, folder: Path | None = None) -> Model:
    """The head of this draft, on the target's embedding; the target's sessions keep what it reads from now on.

    `folder` is where its files are, if they are not at `config.eagle3`.

    Raises ModelError.
    """
    if config.head == EAGLE3:
        return _eagle3(config, target, folder)
    if target.offloaded:
        raise ModelError(f"draft '{config.shown}' needs the embedding of model '{target.name}', which is offloaded.")
    total = int(target.module.config.get_text_config(decoder=True).num_hidden_layers)
    if config.head == MTP:
        module = mtp.load(target, _folder(config), config.model)
        target.keep_states([total])
        return mtp.MtpDraft(target, module, config.shown, _facts_of(config, module, target, [total - 1]))
    values = dflash.check(config.dflash, target.module.config, target.name, {})
    module = dflash.load(config.dflash, target.module.dtype, target.device)
    target.keep_states(dflash.layers_read(values, total))
    return dflash.DFlashDraft(target, module, config.shown, _facts_of(config, module, target, values.target_layer_ids))


def _folder(config: ModelConfig) -> str:
    """Where the target's own files are: a revision is a snapshot, since transformers looks for MTP layers in the
    newest one."""
    source = model_source(config)
    if source.gguf:
        raise ModelError(f"model '{config.model}' is a GGUF file, whose MTP layers are not read; name a draft model.")
    if not config.revision or Path(source.place).is_dir():
        return source.place
    return snapshot_download(source.place, revision=config.revision, allow_patterns=["*.safetensors", "*.json"])


def _facts_of(config: ModelConfig, module: Any, target: HFModel, layers: Sequence[int]) -> dict[str, Any]:
    """Of a module of transformers; what it shares with the target is not its own."""
    shared = {id(parameter) for parameter in target.module.parameters()}
    weights = {name: value for name, value in module.named_parameters() if id(value) not in shared}
    return {
        "class": type(module).__name__,
        "model": config.shown,
        "revision": None,
        "fingerprint": _fingerprint({name: value.detach() for name, value in weights.items()}),
        "hidden_size": int(module.config.hidden_size),
        "reads_layers": list(layers),
        "parameters": sum(value.numel() for value in weights.values()),
        "bytes": sum(value.nbytes for value in weights.values()),
        "offload": "none",
        "offloaded_bytes": 0,
        "dtype": str(module.dtype).removeprefix("torch."),
        "device": str(next(iter(weights.values())).device),
        "device_name": target.facts()["device_name"],
        "device_map": {},
        "quantization": None,
        "vocab_size": target.vocab_size,
        "scored_ids": target.vocab_size,
        "context": target.context,
        "forward": "transformers",
        "graphs": "off",
        "threads": torch.get_num_threads(),
    }


def _eagle3(config: ModelConfig, target: HFModel, folder: Path | None) -> HeadModel:
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
    capture = target.graph_pools.capture if target.graph_pools is not None else None
    model = HeadModel(target, forward, config.shown, _facts(config, head, weights, forward, target), capture)
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

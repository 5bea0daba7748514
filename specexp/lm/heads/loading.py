"""Loads a head for a target that is loaded already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from specexp.errors import ModelError
from specexp.lm.heads import dflash, dflash_config, mtp
from specexp.lm.heads.base import facts_of
from specexp.lm.heads.eagle3_config import ARCHITECTURES, read_config
from specexp.lm.heads.eagle3_forward import Eagle3Forward
from specexp.lm.heads.eagle3_weights import read_weights
from specexp.lm.heads.head_model import HeadModel, native
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.source import hub_place, model_source
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
        dflash_config.check(config.dflash, target, config.model, lengths)
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
        return mtp.MtpDraft(target, config.shown, _facts_of(config, module, target, [total - 1]), module)
    read = dflash_config.check(config.dflash, target.module.config, target.name, {})
    module = dflash.load(config.dflash, read, target.module.dtype, target.device)
    target.keep_states(dflash_config.layers_kept(read.layers, total))
    return dflash.DFlashDraft(target, config.shown, _facts_of(config, module, target, read.layers), module)


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
    weights = [(name, value.detach()) for name, value in module.named_parameters() if id(value) not in shared]
    return facts_of(
        target, config.shown, type(module).__name__, layers, weights,
        hidden_size=int(module.config.hidden_size), forward="transformers", graphs="off",
        revision=hub_place(config.dflash)[1],
    )  # fmt: skip


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
        raise ModelError(
            f"head '{head.name}' needs the embedding of model '{target.name}', which is offloaded or quantized."
        )
    weights = read_weights(head, target.module.dtype, embedding.device)
    forward = Eagle3Forward(head, weights, embedding, output, target.vocab_size, target.suppressed)
    target.keep_states(head.layers)
    capture = target.graph_pools.capture if target.graph_pools is not None else None
    facts = facts_of(
        target, config.shown, ARCHITECTURES[0], head.layers, sorted(weights.items()), hidden_size=head.size,
        forward="own", graphs="off" if capture is None else "captured", scored_ids=int(forward.drafted_ids.shape[0]),
        revision=None if folder else hub_place(config.eagle3)[1],
    )  # fmt: skip
    model = HeadModel(target, config.shown, facts, forward, capture)
    _tune(model)
    return model


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

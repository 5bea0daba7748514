"""What a loaded model is: its weights, wherever they came from, and the settings that it decodes with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from specexp.lm.hf import generation_config
from specexp.lm.hf.offload import stored

if TYPE_CHECKING:
    from specexp.lm.hf.hf_model import HFModel

NUM_VALUES = 64  # of each parameter


def fingerprint(module: Any) -> str:
    """Hash of the weights in sixteen hex digits, from the first values of every parameter.

    The values are rounded to bfloat16, so that the same weights in float32 and in bfloat16 have the same fingerprint;
    quantized weights have another one.
    """
    named = (
        (name, stored(module, name) if parameter.device.type == "meta" else parameter.detach())
        for name, parameter in module.named_parameters()
    )
    return fingerprint_of(type(module).__name__, named)


def fingerprint_of(kind: str, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """`fingerprint` of a module of this class with these parameters."""
    return fingerprint_of_parts(kind, ((name, each.shape, _plain_parts(each)) for name, each in weights))


def fingerprint_of_parts(kind: str, weights: Iterable[tuple[str, Sequence[int], Sequence[torch.Tensor]]]) -> str:
    """`fingerprint_of` parameters of these names and shapes, by tensors that have the first values of each."""
    digest = hashlib.sha256(kind.encode())
    for name, shape, parts in weights:
        digest.update(f"{name} {tuple(shape)}".encode())
        for part in parts:
            values = part.flatten()[:NUM_VALUES]
            if part.is_floating_point():
                values = values.to(torch.bfloat16).float()
            digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself, or those that a quantized one is made of: torchao's takes no views."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_parts(getattr(tensor, name))]


def facts(model: HFModel) -> dict[str, Any]:
    """`Model.facts`."""
    config = model.module.config
    quantization = getattr(config, "quantization_config", None)
    cuda = model.device.type == "cuda"
    return {
        "class": type(model.module).__name__,
        "model": model.name,
        "layers": list(model.own.indices) if model.own else None,
        "revision": getattr(config, "_commit_hash", None),
        "fingerprint": model.fingerprint(),
        "hidden_size": int(config.get_text_config(decoder=True).hidden_size),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "bytes": int(model.module.get_memory_footprint()),
        "offload": model.offload.kind if model.offload else "none",
        "offloaded_bytes": sum(p.nbytes for p in model.module.parameters() if p.device.type == "meta"),
        "dtype": str(model.module.dtype).removeprefix("torch."),
        "device": str(model.device),
        "device_name": torch.cuda.get_device_name(model.device) if cuda else "cpu",
        "device_map": {k: str(v) for k, v in (getattr(model.module, "hf_device_map", None) or {}).items()},
        "quantization": quantization if isinstance(quantization, dict | None) else quantization.to_dict(),
        "attention": config._attn_implementation,
        "vocab_size": model.vocab_size,
        "scored_ids": int(config.get_text_config(decoder=True).vocab_size),
        "context": model.context,
        "eos_ids": list(model.eos_ids),
        "generation_config": {
            "suppress_tokens": list(model.suppressed),
            "not_applied": generation_config.not_applied(model.module.generation_config),
        },
        "forward": "own" if model.native is not None else f"transformers ({model.why_not_native})",
        "graphs": "captured" if model.graph_pools is not None else "off",
        "threads": torch.get_num_threads(),
        "threads_by_rows": dict(zip(("one", "several"), model.native.threads, strict=True)) if model.native else None,
    }


def notes(model: HFModel, native_fault: str | None) -> list[str]:
    """`HFModel.notes`; `native_fault` is why its native forward is not used."""
    unused = generation_config.not_applied(model.module.generation_config)
    result = [generation_config.note(unused, model.name)] if unused else []
    if model.native is not None:
        result += [
            f"model '{model.name}' does without a kernel, and may be slower: {fault}."
            for fault in model.native.kernels.faults
        ]
    if native_fault is not None:
        result.append(f"model '{model.name}' runs on transformers' forward, which is slower: {native_fault}.")
    return result

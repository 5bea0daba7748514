"""Tiny folders whose weights are quantized, as other tools leave them: what transformers loads by itself on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers import tiny_models

WIDE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 4}  # of one group or more
# The values of MXFP4's sixteen codes: a sign, two bits of exponent, one of mantissa.
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = torch.cat([FP4, -FP4])
MXFP4_GROUP = 32
INT4_GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _plain(kind: str, folder: Path, **sizes: Any) -> dict[str, torch.Tensor]:
    tiny_models.build(kind, **sizes).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def _write(folder: Path, weights: dict[str, torch.Tensor], quantization: dict[str, Any]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))


def fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Blocks of 128 x 128 values in 8-bit floats, with a scale each, as DeepSeek and Qwen publish theirs."""
    weights, values = {}, {}
    for name, weight in _plain("llama", folder).items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax() / torch.finfo(torch.float8_e4m3fn).max
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
            values[name] = weights[name].float() * scale
        else:
            weights[name] = weight
    how = {"weight_block_size": [128, 128], "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
    _write(folder, weights, {"quant_method": "fp8", **how})
    return values


def mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """GPT-OSS' experts in 4-bit floats, with an exponent for each 32 values of a row."""
    weights, values = {}, {}
    for name, weight in _plain("gpt_oss", folder, hidden_size=32, intermediate_size=32).items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            rows = weight.transpose(1, 2)  # a row for each output
            groups = rows.reshape(*rows.shape[:2], -1, MXFP4_GROUP)
            exponent = torch.ceil(torch.log2(groups.abs().amax(-1, keepdim=True) / FP4.max()))
            codes = ((groups / 2**exponent)[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
            weights[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).contiguous()
            weights[f"{name}_scales"] = (exponent.squeeze(-1) + 127).to(torch.uint8)
            values[name] = (FP4[codes.int()] * 2**exponent).reshape(rows.shape).transpose(1, 2)
        else:
            weights[name] = weight
    floats = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    _write(folder, weights, {"quant_method": "mxfp4", "modules_to_not_convert": floats})
    return values


def bitsandbytes(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in nf4, saved as they are; its kernel for CPUs with AVX-512 BF16 takes whole groups of a row only."""
    _plain("llama", folder, **WIDE)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).save_pretrained(folder)
    return {}


def torchao(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in int8, a scale for each row."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    _plain("llama", folder)
    how = TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).save_pretrained(folder)
    return {}


def compressed_tensors(folder: Path, scheme: str = "W4A16") -> dict[str, torch.Tensor]:
    """Weights in int4 packed into int32, a scale for each 128 of a row, as vLLM's compressor leaves them."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    _plain("llama", folder, **WIDE)
    module = AutoModelForCausalLM.from_pretrained(folder)
    apply_quantization_config(module, QuantizationConfig(config_groups={scheme: ["Linear"]}, ignore=["lm_head"]))
    for part in module.modules():
        if hasattr(part, "weight_scale"):
            rows, groups = part.weight_scale.shape
            part.weight_scale.data = part.weight.reshape(rows, groups, -1).abs().amax(-1) / 7
    compressor = ModelCompressor.from_pretrained_model(module)
    compressor.compress_model(module)
    module.save_pretrained(folder)
    compressor.update_config(folder)
    return {}


def gptq(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in int4, eight of a column in an int32, each zero less one, as GPTQ's first tools left them."""
    weights = {}
    for name, weight in _plain("llama", folder, **WIDE).items():
        if not name.endswith("_proj.weight"):
            weights[name] = weight
            continue
        codes, zeros, scales = _int4(weight, symmetric=True)
        stem = name.removesuffix("weight")
        weights[f"{stem}qweight"] = _pack(codes.t()).t().contiguous()
        weights[f"{stem}qzeros"] = _pack(zeros - 1)
        weights[f"{stem}scales"] = scales
        weights[f"{stem}g_idx"] = torch.arange(len(codes), dtype=torch.int32) // INT4_GROUP
    how = {"bits": 4, "group_size": INT4_GROUP, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
    _write(folder, weights, {"quant_method": "gptq", **how})
    return {}


def awq(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in int4, eight of a row in an int32, even places first, as AutoAWQ left them (`gemm`).

    Its kernel is named: gptqmodel, where none is, looks for Triton first, which PyTorch for CPUs comes without.
    """
    weights = {}
    for name, weight in _plain("llama", folder, **WIDE).items():
        if not name.endswith("_proj.weight"):
            weights[name] = weight
            continue
        codes, zeros, scales = _int4(weight, symmetric=False)
        stem = name.removesuffix("weight")
        weights[f"{stem}qweight"] = _pack(codes, AWQ_ORDER)
        weights[f"{stem}qzeros"] = _pack(zeros, AWQ_ORDER)
        weights[f"{stem}scales"] = scales
    how = {"bits": 4, "group_size": INT4_GROUP, "zero_point": True, "version": "gemm", "backend": "torch_awq"}
    _write(folder, weights, {"quant_method": "awq", **how})
    return {}


def _int4(weight: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [inputs, outputs], zeros and scales [groups, outputs] of a weight [outputs, inputs]."""
    groups = weight.t().reshape(-1, INT4_GROUP, len(weight))
    low, high = groups.amin(1), groups.amax(1)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round() if not symmetric else torch.full_like(low, 8)
    codes = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return codes.reshape(-1, len(weight)).int(), zeros.int(), scales


def _pack(codes: torch.Tensor, order: Sequence[int] = range(8)) -> torch.Tensor:
    """Eight codes of a row in an int32, the first of `order` in its lowest bits: [rows, columns / 8]."""
    eights = codes.reshape(len(codes), -1, 8)[..., list(order)].long()
    words = (eights << 4 * torch.arange(8)).sum(-1)
    return (words - ((words >> 31) << 32)).int()


# What writes a folder and returns the values that some weights stand for, and the forward that decodes it.
KINDS: dict[str, tuple[Callable[[Path], dict[str, torch.Tensor]], str]] = {
    "fp8": (fp8, "own"),
    "mxfp4": (mxfp4, "own"),
    "bitsandbytes": (bitsandbytes, "transformers (its weights are quantized)"),
    "torchao": (torchao, "transformers (its weights are quantized)"),
    "compressed-tensors": (compressed_tensors, "transformers (its weights are quantized)"),
    "gptq": (gptq, "transformers (its weights are quantized)"),
    "awq": (awq, "transformers (its weights are quantized)"),
}

"""The table of a model's settings, which are the parts of `target` and of `draft`, and the parser of them."""

from __future__ import annotations

from typing import Any

from specexp.config.parsers import mapping, one_of, switch, text
from specexp.config.setting import Setting
from specexp.lm.runtime import (
    ATTENTIONS,
    CHAT_TEMPLATES,
    DTYPES,
    OFFLOADS,
    QUANTIZATIONS,
)

MODEL_SETTINGS: dict[str, Setting] = {
    "model": Setting(text, "Name the model: a folder, a hub id, `zoo:target` or `zoo:draft`.", otherwise="the pair's"),
    "revision": Setting(text, "Name a revision of the model on the hub.", otherwise="the newest"),
    "tokenizer": Setting(
        text, "Take the tokenizer from elsewhere: a folder or a hub id.", otherwise="the model's own"
    ),
    "device": Setting(
        text, "Choose the device: `cpu`, `cuda:0`, ...; `auto` spreads the layers by accelerate.", "cpu"
    ),
    "dtype": Setting(one_of("dtype", DTYPES), "Choose the dtype of the weights.", "float32"),
    "quantization": Setting(
        one_of("quantization", QUANTIZATIONS), "Choose how bitsandbytes quantizes the weights.", "none"
    ),
    "compute_dtype": Setting(
        one_of("dtype", DTYPES), "Choose the dtype of arithmetic with quantization `nf4` or `fp4`.",
        otherwise="`dtype`",
    ),
    "offload": Setting(
        one_of("offload", OFFLOADS),
        "Keep the layers' weights in CPU memory or on disk: every call brings each layer's weights to `device`.",
        "none",
        more="Not with quantization or device `auto`. On disk, safetensors files are read where they are, and weights"
        " that have to be rearranged are read from a folder below TMPDIR that is removed with the process.",
    ),
    "attention": Setting(
        one_of("attention", ATTENTIONS), "Choose how attention is computed.", otherwise="transformers' choice"
    ),
    "chat_template": Setting(
        one_of("chat_template", CHAT_TEMPLATES), "Choose the chat template of prompts; the target's is for both.",
        "auto",
        more="`own` is the tokenizer's; `auto` is its own where it has one and prompts are no completions, as those of"
        " `arith` are.",
    ),
    "trust_remote_code": Setting(switch, "Let transformers run code that comes with the model.", "false"),
}  # fmt: skip


def model_settings(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value:
        return {"model": text(value)}
    if not isinstance(value, dict):
        raise ValueError("it must be a folder, a hub id, or a mapping with 'model'.")
    result = mapping("model", value, {name: setting.parse for name, setting in MODEL_SETTINGS.items()})
    if result.get("compute_dtype") and result.get("quantization", "none") not in ("nf4", "fp4"):
        raise ValueError("compute_dtype goes with quantization nf4 or fp4 only.")
    return result


def laid_over(preset: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Given settings of a model on top of a preset's; another model drops the preset's revision and tokenizer."""
    if given.get("model", preset.get("model")) != preset.get("model"):
        preset = {key: value for key, value in preset.items() if key not in ("revision", "tokenizer")}
    return {**preset, **given}

"""Validates a model's config before its weights are read: the sizes, the stop token ids and the quantization.

transformers builds a module from any values in a config; the errors it then raises name neither the file nor the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from specexp.errors import ModelError, shown
from specexp.installed import is_installed
from specexp.lm.runtime import ModelConfig

SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "head_dim",
)  # fmt: skip
STOPS = "eos_token_id"
WINDOW = "sliding_window"
# The packages that transformers reads a quantization with, by its `quant_method`: module and name for pip. Methods
# that are not here need none, or are not looked at.
PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "awq": (("gptqmodel", "gptqmodel"),),
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "fp8": (),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum.gptq", "optimum")),
    "hqq": (("hqq", "hqq"),),
    "mxfp4": (),
    "quanto": (("optimum.quanto", "optimum-quanto"),),
    "torchao": (("torchao", "torchao"),),
}


def check_sizes(values: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if the values of a config.json, or of a loaded config, contain invalid sizes."""
    faults = _faults_of_sizes(values)
    if faults:
        raise _no_good(name, "config.json", faults)


def check_config(config: Any, name: str) -> None:
    """Raise ModelError, with every fault, if a loaded config is invalid."""
    text = config.get_text_config(decoder=True)
    if not hasattr(text, "get_text_config"):
        raise _no_good(name, "config.json", [f"text_config is {shown(text)}; it must be an object"])
    result = {field: getattr(text, field, None) for field in (*SIZES, WINDOW)}
    faults = _faults_of_sizes(result)
    if result[WINDOW] is not None and not _is_whole(result[WINDOW], 0):
        faults.append(f"{WINDOW} is {shown(result[WINDOW])}; it must be a whole number >= 0, or null")
    if not faults:
        faults += _faults_of_stops(getattr(text, STOPS, None), getattr(text, "vocab_size", 1))
    if faults:
        raise _no_good(name, "config.json", faults)


def check_stops(generation_config: Any, vocab_size: int, name: str) -> None:
    """Raise ModelError if the stop tokens of a generation config are not token ids."""
    faults = _faults_of_stops(getattr(generation_config, STOPS, None), vocab_size)
    if faults:
        raise _no_good(name, "generation_config.json", faults)


def check_quantization(values: Any, config: ModelConfig) -> None:
    """Raise ModelError if weights that are quantized in the folder cannot be read, or not with these settings.

    `values` is the `quantization_config` of a config.json, or of a loaded config; None if there is none.
    """
    get = values.get if isinstance(values, Mapping) else partial(getattr, values)
    method = get("quant_method", None)
    kind = str(getattr(method, "value", method))
    if method is None and (get("load_in_4bit", None) or get("load_in_8bit", None)):
        kind = "bitsandbytes"  # what transformers, too, takes an old config for
    if kind not in PACKAGES:
        return
    for setting, value in (("quantization", config.quantization), ("offload", config.offload)):
        if value != "none":
            raise ModelError(
                f"model '{config.model}' has quantized weights ({kind}), and {setting} is {value}; leave {setting} out,"
                " or name the model that it was quantized from."
            )
    if missing := [package for module, package in PACKAGES[kind] if not is_installed(module)]:
        raise ModelError(
            f"model '{config.model}' has quantized weights ({kind}), which need what is not installed:"
            f" pip install {' '.join(missing)}."
        )


def _no_good(name: str, file: str, faults: Sequence[str]) -> ModelError:
    return ModelError(f"model '{name}': in its {file}, {', '.join(faults)}; get the file as it was published.")


def _faults_of_sizes(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{field} is {shown(value)}; it must be a whole number >= 1"
        for field in SIZES
        if (value := values.get(field)) is not None and not _is_whole(value, 1)
    ]


def _faults_of_stops(value: Any, vocab_size: int) -> list[str]:
    """Faults of the stop tokens. Ids >= vocab_size pass: they are never emitted, and published configs have them."""
    stops = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if all(isinstance(each, int) and _is_whole(each, 0) for each in stops):
        return []
    return [f"{STOPS} is {shown(value)}; it must be a token id in 0 to {vocab_size - 1}, or a list of them"]


def _is_whole(value: Any, least: int) -> bool:
    """True for an int >= `least`, or a list of them: some families have one value per layer."""
    if isinstance(value, list | tuple):
        return all(_is_whole(each, least) for each in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

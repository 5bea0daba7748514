"""Loads a tokenizer, a config or a model from a folder or hub id; a ModelError says what is wrong with it.

Faults that the config shows are reported before any weights are read.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from specexp.errors import ModelError, first_line
from specexp.installed import is_installed
from specexp.lm.configs.config_check import check_config, check_quantization, check_sizes, check_stops
from specexp.lm.configs.layer_ranges import check_layers
from specexp.lm.hf import generation_config, model_config
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.offload import Offload
from specexp.lm.hf.own_layers import OwnLayers, module_of_layers
from specexp.lm.hf.rope import note
from specexp.lm.hf.source import Source, hub_fault, merged, model_source, tokenizer_source
from specexp.lm.model import Sharding
from specexp.lm.native.tuning import tune
from specexp.lm.out_of_memory import is_exhausted
from specexp.lm.runtime import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer for this model: `config.tokenizer`, or the model's own."""
    source, name = tokenizer_source(config), config.tokenizer or config.model
    try:
        return AutoTokenizer.from_pretrained(
            source.place, **source.arguments, **_options(config, bool(config.tokenizer))
        )
    except Exception as error:
        if fault := hub_fault(name, error):
            raise ModelError(f"{fault}.") from error
        raise ModelError(f"'{name}' has no tokenizer that can be loaded: {_words(error)}") from error


def read_config(config: ModelConfig) -> Any:
    """Load and validate a model's config, without its weights. Raises ModelError."""
    source, options = model_source(config), _options(config)
    path = source.place
    try:
        result = _config(source, options)
    except Exception as error:
        if fault := hub_fault(config.model, error):
            raise ModelError(f"{fault}.") from error
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            # The config class divides by the sizes or rejects their type; its error does not name the file.
            check_sizes(PretrainedConfig.get_config_dict(path, **options)[0], config.model)
        raise ModelError(f"model '{config.model}' has no config that can be loaded: {_words(error)}") from error
    check_config(result, config.model)
    model_config.check(result, config.model)
    if not source.gguf:  # its weights are read as floats
        check_quantization(getattr(result, "quantization_config", None), config)
    vocab_size = getattr(result.get_text_config(decoder=True), "vocab_size", None)
    if vocab_size is None:
        raise ModelError(
            f"model '{config.model}': its config.json has no vocab_size; get the file as it was published."
        )
    try:
        check_stops(GenerationConfig.from_pretrained(path, **options), vocab_size, config.model)
    except OSError:
        if Path(path, "generation_config.json").is_file():
            raise ModelError(f"model '{config.model}': its generation_config.json cannot be read.") from None
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"model '{config.model}': its generation_config.json is invalid: {_words(error)}") from error
    return result


def vocabulary_size(config: ModelConfig) -> int:
    """Number of ids the model scores, padding included; read from its config, without its weights."""
    return int(read_config(config).get_text_config(decoder=True).vocab_size)


def context_size(config: ModelConfig) -> int:
    """The maximum number of positions in a sequence; read from the model's config, without its weights."""
    return model_config.context_of(read_config(config), config.model)


def check_decodable(config: ModelConfig, trees: bool) -> None:
    """Raise ModelError if by its config the model cannot decode, or (with `trees`) cannot score a token tree."""
    result = read_config(config)
    if trees:
        model_config.check_trees(result, config.model)


def suppressed_ids(config: ModelConfig) -> tuple[int, ...]:
    """The `suppress_tokens` of the folder's or hub id's generation_config.json: ids that are never emitted."""
    result = generation_config.read(model_source(config).place, read_config(config), config.revision)
    return generation_config.suppressed(result, config.model)


def stop_ids(config: ModelConfig) -> tuple[int, ...]:
    """The ids at which this model stops, without its weights."""
    of_model = read_config(config)
    return generation_config.stop_ids(
        generation_config.read(model_source(config).place, of_model, config.revision), of_model
    )


def own_layers(config: ModelConfig) -> tuple[int, ...]:
    """The layers of the target that this draft is made of; empty if it is a model of its own. Raises ModelError."""
    return check_layers(config.layers, read_config(config), config.model) if config.layers else ()


def model_of_layers(target: HFModel, layers: Sequence[int], name: str) -> HFModel:
    """The draft that has these layers of the target, on the same weights. Raises ModelError."""
    module = module_of_layers(target.module, layers, target.name)
    own = OwnLayers(tuple(layers), target.native and target.native.with_layers(layers))
    result = HFModel(
        module, name, target.num_valid_ids, graphs=target.graphs, suppressed=target.suppressed, own=own
    )  # fmt: skip
    if result.native is not None:
        tune(result.native)
    return result


def load_model(
    config: ModelConfig, num_valid_ids: int | None = None, suppressed: Sequence[int] = (),
    sharding: Sharding | None = None, invariant: bool = False,
) -> HFModel:  # fmt: skip
    """Load the model of this folder or hub id, ready to decode.

    Of the ids it scores, only the first `num_valid_ids` are used, and those in `suppressed` never. With `sharding`, all
    processes load their shard at the same time.
    """
    source, options = model_source(config), _options(config)
    how = f"{config.dtype}{'' if config.quantization == 'none' else ', ' + config.quantization} on {config.device}"
    try:
        hf_config = _config(source, options)
        if said := note(config.model, hf_config):
            print(said, file=sys.stderr)
        placement = _placement(config)
        offload = Offload.of(config)
        if offload:
            placement |= offload.placement(_empty(source, config))
        with quiet():
            module, result = _auto_class(hf_config).from_pretrained(
                source.place, output_loading_info=True, **source.arguments, **options, **placement
            )
        if getattr(module.config, "quantization_config", None) is not None and not source.gguf:
            _finish(module)
        if offload:
            offload.stream(module)
    except Exception as error:  # a broken folder can raise anything: report the message in one line
        if not is_exhausted(error):
            raise ModelError(f"model '{config.model}' cannot be loaded ({how}): {first_line(error)}") from error
        raise ModelError(
            f"model '{config.model}' does not fit ({how}): its weights need {_needed(source, config)};"
            f" {first_line(error)} Choose a smaller dtype, quantization nf4, device auto, offload cpu or disk, or a"
            " smaller model."
        ) from error
    if result["missing_keys"]:
        some, number = ", ".join(sorted(result["missing_keys"])[:3]), len(result["missing_keys"])
        raise ModelError(f"model '{config.model}' lacks {number} of its weights ({some}); get all its files.")
    if source.gguf:  # its weights are floats by now, whatever the file holds
        module.hf_quantizer, module.config.quantization_config = None, None
    if source.adapter:
        module = merged(module, source.adapter, config.model)
    model = HFModel(
        module.eval(), config.model, num_valid_ids, offload, suppressed=suppressed, sharding=sharding,
        invariant=invariant,
    )  # fmt: skip
    if model.native is not None:
        tune(model.native)
    return model


@torch.inference_mode()
def _finish(module: Any) -> None:
    """Run one forward of a model with quantized weights.

    Some packages unpack them at the first one, which changes the fingerprint, and some fail only there.
    """
    module.eval()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=module.device))


def _options(config: ModelConfig, other_repository: bool = False) -> dict[str, Any]:
    """Further arguments of from_pretrained; a revision does not apply to a tokenizer from another repository."""
    revision = {"revision": config.revision} if config.revision and not other_repository else {}
    return {"trust_remote_code": config.trust_remote_code, **revision}


def _config(source: Source, options: Mapping[str, Any]) -> Any:
    """The config of a source. That of a GGUF file takes seconds to read, so it is kept."""
    if not source.gguf or not Path(source.place).is_dir():
        return AutoConfig.from_pretrained(source.place, **source.arguments, **options)
    stat = Path(source.place, source.gguf).stat()
    return copy.deepcopy(_gguf_config(source, stat.st_mtime_ns, stat.st_size))


@cache
def _gguf_config(source: Source, modified: int, size: int) -> Any:
    return AutoConfig.from_pretrained(source.place, **source.arguments)


def _placement(config: ModelConfig) -> dict[str, Any]:
    """Arguments of from_pretrained for the device, the dtype, the attention and the quantization."""
    if faults := config.faults():
        raise ValueError(" ".join(faults))
    if config.device != "auto" and torch.device(config.device).type == "meta":
        raise ValueError("device meta holds no weights")
    if config.quantization != "none" and not is_installed("bitsandbytes"):
        raise ValueError(f"quantization {config.quantization} needs the package 'bitsandbytes', which is not installed")
    result: dict[str, Any] = {"dtype": DTYPES[config.dtype]}
    if config.attention:
        result["attn_implementation"] = config.attention
    if config.tensor_parallel > 1:  # each process on its own device
        result["distributed_config"] = DistributedConfig(tp_size=config.tensor_parallel, tp_plan="auto")
    elif config.device != "cpu" or config.quantization != "none":
        result["device_map"] = "auto" if config.device == "auto" else {"": torch.device(config.device)}
    if config.quantization != "none":
        _log_only("bitsandbytes.backends.cpu.ops")  # it warns of an optional kernel
    if config.quantization == "int8":
        # bitsandbytes casts to float16 at every call, and logs that at every call.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        # No outlier columns: they are chosen over all rows fed, so that several rows would differ from one at a time.
        result["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    elif config.quantization != "none":
        result["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_compute_dtype=DTYPES[config.compute_dtype or config.dtype],
        )
    return result


def _needed(source: Source, config: ModelConfig) -> str:
    """The memory that the weights take, as text, computed from a model on the meta device."""
    try:
        empty = _empty(source, config)
    except Exception:  # the model's own code may fail on the meta device
        return "more memory than there is"
    each = {"int8": 1.0, "nf4": 0.5, "fp4": 0.5}.get(config.quantization, float(DTYPES[config.dtype].itemsize))
    return f"about {sum(p.numel() for p in empty.parameters()) * each / 2**30:.2f} GiB"


def _empty(source: Source, config: ModelConfig) -> Any:
    """The model on the meta device, without its weights."""
    hf_config = _config(source, _options(config))
    with torch.device("meta"):
        return _auto_class(hf_config).from_config(hf_config, trust_remote_code=config.trust_remote_code)


def _auto_class(hf_config: Any) -> Any:
    """The auto class that builds the model of this config."""
    return AutoModelForImageTextToText if model_config.is_conditional(hf_config) else AutoModelForCausalLM


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off transformers' progress bar, which would break up ours, and accelerate's messages about offloading."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    dispatching = logging.getLogger("accelerate.big_modeling")
    level = dispatching.level
    dispatching.setLevel(logging.ERROR)
    try:
        yield
    finally:
        dispatching.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _log_only(name: str) -> None:
    """Stop Python from printing a logger's warnings by default; handlers that are configured still receive them."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _words(error: BaseException) -> str:
    """An error's message in one line: a validation error names the field in its first line, the fault in the next."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"

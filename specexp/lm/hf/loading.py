"""From a folder or hub id to a tokenizer, a config or a loaded model; ModelError says what is wrong there.

What can be told from a config is told before any weights are read.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.utils import logging as transformers_logging

from specexp.errors import ModelError, first_line
from specexp.lm.hf import generation_config, model_config
from specexp.lm.hf.config_check import check_config, check_sizes, check_stops
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.offload import Offload
from specexp.lm.hf.rope import note
from specexp.lm.native.kv_cache import tune
from specexp.lm.out_of_memory import is_exhausted
from specexp.lm.runtime import ModelConfig
from specexp.reading import path_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ZOO = Path(__file__).resolve().parents[2] / "zoo"
ZOO_PREFIX = "zoo:"


def resolve(name: str) -> str:
    """`zoo:target` is the embedded model's folder; any other name stands as it is."""
    return str(ZOO / name.removeprefix(ZOO_PREFIX)) if name.startswith(ZOO_PREFIX) else name


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer that this model is to be used with."""
    name = config.tokenizer or config.model
    path = _checked(name)
    try:
        return AutoTokenizer.from_pretrained(path, **_source(config, "tokenizer"))
    except Exception as error:
        raise ModelError(f"'{name}' has no tokenizer that can be loaded: {_words(error)}") from error


def read_config(config: ModelConfig) -> Any:
    """A model's config, checked, before any weights are read. Raises ModelError."""
    path = _checked(config.model)
    try:
        found = AutoConfig.from_pretrained(path, **_source(config, "model"))
    except Exception as error:
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            # Its class divides by them, or says of what type they should have been and not which file that is.
            check_sizes(PretrainedConfig.get_config_dict(path, **_source(config, "model"))[0], config.model)
        raise ModelError(f"model '{config.model}' has no config that can be loaded: {_words(error)}") from error
    check_config(found, config.model)
    vocab_size = found.get_text_config(decoder=True).vocab_size
    try:
        check_stops(GenerationConfig.from_pretrained(path, **_source(config, "model")), vocab_size, config.model)
    except OSError:
        if Path(path, "generation_config.json").is_file():
            raise ModelError(f"model '{config.model}': its generation_config.json cannot be read.") from None
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"model '{config.model}': its generation_config.json is no good: {_words(error)}") from error
    return found


def vocabulary_size(config: ModelConfig) -> int:
    """How many ids the model scores, padding included; read from its config, before any weights."""
    return int(read_config(config).get_text_config(decoder=True).vocab_size)


def context_size(config: ModelConfig) -> int:
    """The most positions a sequence may have; read from the model's config, before any weights."""
    found = read_config(config)
    model_config.check(found, config.model)
    return model_config.context_of(found, config.model)


def check_decodable(config: ModelConfig, trees: bool) -> None:
    """Refuse a model that cannot decode, or with `trees` score a token tree, by its config, before any weights."""
    found = read_config(config)
    model_config.check(found, config.model)
    if trees:
        model_config.check_trees(found, config.model)


def suppressed_ids(config: ModelConfig) -> tuple[int, ...]:
    """The ids that the folder's or hub id's generation_config.json wants never emitted."""
    found = generation_config.read(_checked(config.model), read_config(config), config.revision)
    return generation_config.suppressed(found, config.model)


def load_model(config: ModelConfig, known: int | None = None, suppressed: Sequence[int] = ()) -> HFModel:
    """Weights of this folder or hub id, ready to decode. Of the ids it scores, the first `known` are used, and those in
    `suppressed` never."""
    path = _checked(config.model)
    how = f"{config.dtype}{'' if config.quantization == 'none' else ', ' + config.quantization} on {config.device}"
    try:
        found_config = AutoConfig.from_pretrained(path, **_source(config, "model"))
        if said := note(config.model, found_config.get_text_config(decoder=True)):
            print(said, file=sys.stderr)
        placement = _placement(config)
        offload = Offload(config.offload, torch.device(config.device)) if config.offload != "none" else None
        if offload:
            placement |= offload.placement(_empty(path, config))
        with _quiet():
            module, found = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, **_source(config, "model"), **placement
            )
    except Exception as error:  # whatever a broken folder makes of a loader: its own words, in one line
        if not is_exhausted(error):
            raise ModelError(f"model '{config.model}' cannot be loaded ({how}): {first_line(error)}") from error
        raise ModelError(
            f"model '{config.model}' does not fit ({how}): its weights need about {_needed(path, config)};"
            f" {first_line(error)} Choose a smaller dtype, quantization nf4, device auto, offload cpu or disk, or a"
            " smaller model."
        ) from error
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise ModelError(
            f"model '{config.model}' lacks {len(found['missing_keys'])} of its weights ({some}); get all its files."
        )
    model = HFModel(module.eval(), config.model, known, offload, suppressed=suppressed)
    if model.own is not None:
        tune(model.own)
    return model


def _source(config: ModelConfig, part: str) -> dict[str, Any]:
    """Which files: a revision names those of the model's repository, not of a tokenizer from elsewhere."""
    own = part == "model" or not config.tokenizer
    revision = {"revision": config.revision} if config.revision and own else {}
    return {"trust_remote_code": config.trust_remote_code, **revision}


def _placement(config: ModelConfig) -> dict[str, Any]:
    """Where, and as what, the weights are read."""
    if faults := config.faults():
        raise ValueError(" ".join(faults))
    if config.device != "auto" and torch.device(config.device).type == "meta":
        raise ValueError("device meta holds no weights")
    if config.quantization != "none" and find_spec("bitsandbytes") is None:
        raise ValueError(f"quantization {config.quantization} needs the package 'bitsandbytes', which is not installed")
    found: dict[str, Any] = {"dtype": DTYPES[config.dtype]}
    if config.attention:
        found["attn_implementation"] = config.attention
    if config.device != "cpu" or config.quantization != "none":
        found["device_map"] = "auto" if config.device == "auto" else {"": torch.device(config.device)}
    if config.quantization != "none":
        _log_only("bitsandbytes.backends.cpu.ops")  # it warns of a kernel that it can do without
    if config.quantization == "int8":
        # It casts to float16 at every call, and says so at every call.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        # No outlier columns: they are picked over all rows fed, so that several rows would not equal one at a time.
        found["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    elif config.quantization != "none":
        found["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_compute_dtype=DTYPES[config.compute_dtype or config.dtype],
        )
    return found


def _needed(path: str, config: ModelConfig) -> str:
    """Memory that the weights take, counted on a model without any."""
    try:
        empty = _empty(path, config)
    except Exception:  # a model whose own code builds nothing without memory: the loader's words must do
        return "more than there is"
    each = {"int8": 1.0, "nf4": 0.5, "fp4": 0.5}.get(config.quantization, float(DTYPES[config.dtype].itemsize))
    return f"{sum(p.numel() for p in empty.parameters()) * each / 2**30:.2f} GiB"


def _empty(path: str, config: ModelConfig) -> Any:
    """The model without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(path, **_source(config, "model")), trust_remote_code=config.trust_remote_code
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bar over weight files, which would break up ours, and its news of an offload."""
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
    """Leave a logger's warnings to handlers that someone has set up: Python prints those that nobody handles."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _checked(name: str) -> str:
    path = resolve(name)
    looks_local = path.startswith((".", "/", "~")) or name.startswith(ZOO_PREFIX) or path.count("/") > 1
    if path_of(path, "model", ModelError).is_file():
        raise ModelError(f"'{name}' is a file; a model or a tokenizer is the folder that its files are in: give that.")
    if looks_local and not Path(path).expanduser().is_dir():
        raise ModelError(f"model folder '{name}' does not exist; give a folder with a config.json, or a hub id.")
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ModelError(f"folder '{name}' has no config.json; give a folder made by save_pretrained().")
    return str(Path(path).expanduser()) if looks_local else path


def _words(error: BaseException) -> str:
    """An error's words in one line: a validation error names the field in its first line, and the fault in the next."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"

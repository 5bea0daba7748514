"""Hugging Face causal language models behind `Model`: any `AutoModelForCausalLM` folder or hub id.

Llama, Qwen2 and Mistral are decoded by this project's own forward (`own.py`), every other by transformers' own: each
session then has a full-length `DynamicCache`, which is cut back by cropping; sliding-window layers keep all their keys
and mask them. Where rotary angles depend on the length, `rope.py` does what generate() does. A model whose cache cannot
be cut back to any length (recurrent and convolutional states) is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Dice, HashDice
from specexp.decoding.rules import Warp
from specexp.errors import ModelError
from specexp.lm import forward_check, generation_config, model_config
from specexp.lm.config_check import check_config, check_sizes, check_stops
from specexp.lm.drafting import draft_chain
from specexp.lm.graphs import SPARE, Capture, CudaGraphs, Graphs, GraphSession
from specexp.lm.kv import OwnSession, Pool, together, tune
from specexp.lm.memory import is_exhausted
from specexp.lm.model import CHUNK, Branches, Feed, Session, in_pieces, one_by_one
from specexp.lm.offload import Offload, stored
from specexp.lm.own import OwnForward, refusal
from specexp.lm.place import integers
from specexp.lm.rope import LongRopeSession, boundary_of, note
from specexp.lm.runtime import ModelConfig
from specexp.lm.tree_mask import tree_mask
from specexp.reading import path_of

Array = torch.Tensor
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ZOO = Path(__file__).resolve().parent.parent / "zoo"
ZOO_PREFIX = "zoo:"
_FINGERPRINT_VALUES = 64


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
            raise ModelError(f"model '{config.model}' cannot be loaded ({how}): {_first_line(error)}") from error
        raise ModelError(
            f"model '{config.model}' does not fit ({how}): its weights need about {_needed(path, config)};"
            f" {_first_line(error)} Choose a smaller dtype, quantization nf4, device auto, offload cpu or disk, or a"
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(slots=True)
class HFModel:
    """A loaded module and the facts about it that decoding needs."""

    module: Any
    name: str
    known: int | None = None  # ids that the tokenizer knows; those behind them are padding
    offload: Offload | None = None
    forward: str = "auto"  # this project's own where it applies; or "transformers"
    graphs: str | Capture = "auto"  # on CUDA, where the forward is our own; "off"; or a way of capturing
    suppressed: Sequence[int] = ()  # ids that are never emitted
    keeps_rows: bool = field(init=False)  # whether forward can leave out the logits of rows nobody asked for
    own: OwnForward | None = field(init=False, default=None)
    _trees_checked: bool = field(init=False, default=False)
    why_not_own: str | None = field(init=False)
    capture: Capture | None = field(init=False, default=None)
    pools: list[Graphs] = field(
        init=False, default_factory=list
    )  # with recordings; each is lent to one owner at a time
    # Read at every step: looking them up in the module takes as long as a small layer.
    vocab_size: int = field(init=False)
    context: int = field(init=False)
    recomputed_at: int | None = field(init=False)  # the length beyond which its rotary angles are others
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.graphs, str) and self.graphs not in ("auto", "off"):
            raise ValueError(f"graphs is {self.graphs!r}; it must be 'auto', 'off' or a way of capturing.")
        self.vocab_size = self.known or int(self._text_config.vocab_size)
        self.suppressed = [i for i in self.suppressed if i < self.vocab_size]
        model_config.check(self.module.config, self.name)
        self.context = model_config.context_of(self.module.config, self.name)
        boundary = boundary_of(self._text_config)
        self.recomputed_at = boundary.length if boundary is not None and boundary.recomputed else None
        self.device = torch.device(self.module.device)
        self.keeps_rows = "logits_to_keep" in inspect.signature(self.module.forward).parameters
        self.why_not_own = refusal(self.module) if self.forward == "auto" else "it was not asked for"
        if self.why_not_own is None:
            self.own = OwnForward(self.module, self.suppressed)
            if not isinstance(self.graphs, str):
                self.capture = self.graphs
            elif self.graphs == "auto" and self.device.type == "cuda":
                self.capture = CudaGraphs(self.device)

    @property
    def offloaded(self) -> bool:
        """Whether some weights are brought to the device at each call: only the module's own forward does that."""
        return any(parameter.device.type == "meta" for parameter in self.module.parameters())

    @property
    def notes(self) -> list[str]:
        """What a person should be told of settings in the folder that are not applied."""
        unused = generation_config.not_applied(self.module.generation_config)
        return [generation_config.note(unused, self.name)] if unused else []

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token at which this model stops."""
        found = self.module.generation_config.eos_token_id
        if found is None:
            found = self._text_config.eos_token_id
        return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)

    def check_cache(self) -> None:
        """Raise ModelError when tokens behind cached ones are not scored as in one piece, by transformers' forward."""
        if self.own is None:
            forward_check.check_cache(self, self.name)

    def check_trees(self) -> None:
        """Raise ModelError when a token tree cannot be masked here, or is not scored as its paths are one by one."""
        if self._trees_checked:
            return
        attention = self.module.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ModelError(
                f"model '{self.name}' uses {attention} attention, which takes no tree mask; use sdpa or eager."
            )
        model_config.check_trees(self.module.config, self.name)
        self._trees_checked = True  # measuring feeds a tree itself
        try:
            forward_check.check_trees(self, self.name)
        except BaseException:
            self._trees_checked = False
            raise

    @property
    def _text_config(self) -> Any:
        return self.module.config.get_text_config(decoder=True)

    def session(self) -> Session:
        return self.sessions(1)[0]

    @torch.inference_mode()
    def sessions(self, count: int, capacity: int = 0) -> Sequence[Session]:
        if self.recomputed_at is not None:
            rotary, length = self.module.model.rotary_emb, self.recomputed_at
            return [LongRopeSession(HFSession(self), HFSession(self), rotary, length) for _ in range(count)]
        if self.own is None:
            return [HFSession(self) for _ in range(count)]
        if self.capture is not None and count == 1:
            return [self._graphed(capacity).session()]
        pool = Pool(self.own, count, capacity, self.known)
        return [OwnSession(pool, row) for row in range(count)]

    def _graphed(self, capacity: int) -> Graphs:
        """A pool nobody uses any more, with its recordings; or a new one, in place of those that are too small."""
        assert self.own is not None
        assert self.capture is not None
        free = [graphs for graphs in self.pools if not graphs.lent]
        for graphs in free:
            if graphs.pool.capacity >= capacity + SPARE:
                return graphs
        self.pools = [graphs for graphs in self.pools if graphs not in free]
        # Room for longer prompts: growing would cost every recording.
        slots = 1 << (capacity + SPARE - 1).bit_length()
        self.pools.append(Graphs(Pool(self.own, 1, slots, self.known), self.capture))
        return self.pools[-1]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        if self.own is None or len(feeds) == 1:
            return one_by_one(feeds)
        return together(feeds)

    def drafts(self, ask: Draft, dice: Dice) -> bool:
        if self.own is None or ask.min_probability:
            return False
        # A recording holds the warp and the dice themselves: those that do more than they say cannot go into one.
        plain = type(ask.warp) is Warp and (ask.warp.greedy or isinstance(dice, HashDice))
        return self.capture is None or plain

    def draft(self, feed: Feed, ask: Draft, length: int, dice: Dice, position: int) -> Drafted:
        if isinstance(feed.session, GraphSession):
            return feed.session.draft(feed.tokens, ask, length, dice, position)
        assert isinstance(feed.session, OwnSession)
        return draft_chain(feed.session, feed.tokens, ask, length, dice, position)

    def ids(self, tokens: Sequence[int]) -> Array:
        return integers(tokens, self.device)

    def fingerprint(self) -> str:
        """Sixteen hex digits of the weights themselves, wherever they came from: the first values of every parameter.

        Rounded to bfloat16, so that weights kept in float32 and in bfloat16 have one name; quantized ones have another.
        """
        digest = hashlib.sha256(type(self.module).__name__.encode())
        for name, parameter in self.module.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            if parameter.device.type == "meta":
                parameter = stored(self.module, name)
            if parameter.is_floating_point():
                values = parameter.detach().flatten()[:_FINGERPRINT_VALUES].to(torch.bfloat16).float().cpu()
                digest.update(values.numpy().tobytes())
            else:  # quantized
                digest.update(parameter.detach().flatten()[:_FINGERPRINT_VALUES].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        config = self.module.config
        quantization = getattr(config, "quantization_config", None)
        cuda = self.device.type == "cuda"
        return {
            "class": type(self.module).__name__,
            "model": self.name,
            "revision": getattr(config, "_commit_hash", None),
            "fingerprint": self.fingerprint(),
            "hidden_size": int(self._text_config.hidden_size),
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "bytes": int(self.module.get_memory_footprint()),
            "offload": self.offload.kind if self.offload else "none",
            "offloaded_bytes": sum(p.nbytes for p in self.module.parameters() if p.device.type == "meta"),
            "dtype": str(self.module.dtype).removeprefix("torch."),
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "device_map": {k: str(v) for k, v in (getattr(self.module, "hf_device_map", None) or {}).items()},
            "quantization": quantization if isinstance(quantization, dict | None) else quantization.to_dict(),
            "attention": config._attn_implementation,
            "vocab_size": self.vocab_size,
            "scored_ids": int(self._text_config.vocab_size),
            "context": self.context,
            "eos_ids": list(self.eos_ids),
            "generation_config": {
                "suppress_tokens": list(self.suppressed),
                "not_applied": generation_config.not_applied(self.module.generation_config),
            },
            "forward": "own" if self.own is not None else f"transformers ({self.why_not_own})",
            "graphs": "captured" if self.capture is not None else "off",
            "threads": torch.get_num_threads(),
            "threads_by_rows": dict(zip(("one", "several"), self.own.threads, strict=True)) if self.own else None,
        }

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class HFSession:
    """One sequence in a `DynamicCache` of full length."""

    def __init__(self, model: HFModel) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @torch.inference_mode()
    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        num = tokens.shape[0]
        if num > CHUNK and branches is None:
            return in_pieces(self.feed, torch.split(tokens, CHUNK), rows, hidden)
        positions = torch.arange(self._length, self._length + num, device=tokens.device)
        more: dict[str, Any] = {}
        if branches is not None:
            self._model.check_trees()
            more["attention_mask"], positions = tree_mask(self._model.module, self._length, num, branches)
        if self._model.keeps_rows:
            more["logits_to_keep"] = max(rows, 1)  # 0 would mean all of them
        out = self._model.module(
            input_ids=tokens[None],
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=hidden,
            **more,
        )
        self._length += num
        logits = out.logits[0, :, : self._model.known]
        states = out.hidden_states[-1][0, num - rows :] if hidden else None
        logits = logits[logits.shape[0] - rows :].float()
        if self._model.suppressed:
            logits[:, self._model.suppressed] = float("-inf")
        return logits, states

    @torch.inference_mode()
    def keep(self, length: int, slots: Sequence[int] = ()) -> None:
        assert 0 <= length <= self._length, f"cannot keep {length} of {self._length} slots"
        if slots:
            kept = integers([*range(length), *slots], self._model.device)
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys.index_select(2, kept), layer.values.index_select(2, kept)
        elif length == 0:
            self._cache = DynamicCache()
        elif length < self._length:
            self._cache.crop(length - self._length)
        self._length = length + len(slots)

    def slots(self) -> object:
        return tuple(tuple(layer.keys.flatten().tolist()) for layer in self._cache.layers)

"""Reads from a model's config, without its weights, the context length and which kinds of decoding are impossible.

There are two kinds of decoding: chains (plain decoding is one of length 1), which need a cache that can be truncated,
and trees, which also need layers that place tokens by their position ids and mask, not by their slot in the cache.
`forward_check.py` measures on the loaded model what no config says. docs/models.md lists the results of both.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from specexp.errors import ModelError
from specexp.lm.hf.rope import boundary_of

NO_LIMIT = 1 << 30
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of layer types
# Config fields for the context length, in the order in which they are tried.
CONTEXT_NAMES = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_seq_length",
    "max_target_positions", "seq_length", "model_max_length", "context_length",
)  # fmt: skip
# Layers of a cache that can be truncated; a `DummyLayer` holds nothing.
REWINDABLE = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)
# Encoders, which also attend to later tokens unless their config sets `is_decoder`.
ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
# Families that do not decode text alone, or whose cached decoding differs from their whole forward, with the reason.
CLOSED = {
    "moshi": "needs audio codes in addition to the text at every step",
    "cpmant": "puts its own prompt before the tokens of every call, including cached ones",
    "prophetnet": "scores a token differently after cached ones than in one piece",
    "xlnet": "decodes with a memory (mems), after which it scores a token differently than in one piece",
}
# Families whose modules take a cache of their own, which cannot be copied or cut back.
OWN_CACHES = frozenset({"minimax", "rwkv", "xlstm"})
KEY_VALUE, RECURRENT, NO_CACHE = "key-value", "recurrent", "none"


def check(config: Any, name: str) -> None:
    """Raise ModelError if a model with this config cannot decode token by token, or has no valid context length."""
    if reason := refusal(config):
        raise ModelError(f"model '{name}' ({config.model_type}) {reason}.")
    context_of(config, name)


def check_trees(config: Any, name: str) -> None:
    """Raise ModelError if this config's layers would give the tokens of a tree wrong positions."""
    if reason := tree_refusal(config):
        raise ModelError(f"model '{name}' ({config.model_type}) {reason}; use a chain method (speculative, lookup).")


def context_of(config: Any, name: str) -> int:
    """The maximum number of positions in a sequence; `NO_LIMIT` if the config states none. Raises ModelError.

    It is limited to the length at which the rotary angles change, if decoding cannot follow the change (`rope.py`).
    """
    text = config.get_text_config(decoder=True)
    stated, boundary = _stated_context(text, name), boundary_of(text)
    return stated if boundary is None or boundary.recomputed else min(stated, boundary.length)


def _stated_context(text: Any, name: str) -> int:
    for key in CONTEXT_NAMES:
        value = getattr(text, key, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(
                f"model '{name}' has {key} {value!r} in its config; the context must be a whole number >= 1 of tokens:"
                " correct it, or remove it for a model without a limit."
            )
        return min(value, NO_LIMIT)
    return NO_LIMIT


def refusal(config: Any) -> str | None:
    """The reason why a model with this config cannot decode; None if it can."""
    text = config.get_text_config(decoder=True)
    kind = str(config.model_type)
    if config.is_encoder_decoder:
        return "is an encoder-decoder model, whose decoder cannot continue a prompt; use a decoder-only model"
    if kind in ENCODERS and not getattr(text, "is_decoder", False):
        return (
            "is an encoder: each token attends to later ones; use a decoder-only model, or set is_decoder to true in"
            " the config of one that was trained as a decoder"
        )
    if kind in CLOSED:
        return f"{CLOSED[kind]}; use a decoder-only model of text"
    if kind == "xmod" and not getattr(text, "default_language", None):
        return "has an adapter for each language and no default_language in its config; set one"
    return None


def cache_kind(config: Any) -> str:
    """How a model with this config continues after earlier tokens: `KEY_VALUE`, `RECURRENT` or `NO_CACHE`."""
    model, kind = _class(config), str(config.model_type)
    if kind in OWN_CACHES or (model is not None and cache_argument(model.forward) is None):
        return NO_CACHE
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # the config lacks fields that every cache needs
        return NO_CACHE
    if all(type(layer) in REWINDABLE for layer in layers):
        return NO_CACHE if getattr(model, "_is_stateful", False) else KEY_VALUE
    known = all(type(layer) in REWINDABLE or isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    return RECURRENT if known else NO_CACHE


def cache_argument(forward: Any) -> str | None:
    """The parameter in which a module's forward takes its key-value cache; None if it takes none.

    It is `past_key_values`, or, since transformers 5.24, `cache`, which in XLM has always been something else; some
    recurrent families call it `cache_params`.
    """
    parameters = inspect.signature(forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in parameters:
            return name
    return "cache" if "cache" in parameters and "Cache" in str(parameters["cache"].annotation) else None


def tree_refusal(config: Any) -> str | None:
    """The reason why a model with this config cannot score a token tree; None if no reason is known."""
    text = config.get_text_config(decoder=True)
    parameters, kind = _forward(config), cache_kind(config)
    if kind == RECURRENT:
        return "has layers with a recurrent state, which holds one sequence and no tree"
    if kind == NO_CACHE:
        return "decodes without a cache, so it cannot score token trees"
    if getattr(text, "index_topk", None):
        return "has an index of keys in its cache, which holds one sequence and no tree"
    if parameters is not None and "position_ids" not in parameters:
        return "places tokens by their slot in the cache and takes no position ids, so it cannot score token trees"
    if config.model_type == "falcon" and text.alibi:
        return "weighs tokens by their slot in the cache (ALiBi), so it cannot score token trees"
    if config.model_type == "gpt_neo" and "local" in text.attention_layers:
        return "has local layers, whose window counts slots of the cache, so it cannot score token trees"
    if getattr(text, "attn_temperature_tuning", False) and not all(getattr(text, "no_rope_layers", None) or [0]):
        return "scales attention by slots of the cache (attn_temperature_tuning), so it cannot score token trees"
    if other := [kind for kind in attention_kinds(config) if kind not in (FULL, SLIDING)]:
        return f"has {other[0]} layers, which take no tree mask"
    return None


def attention_kinds(config: Any) -> list[str]:
    """The kinds of attention layers, sorted; each kind takes its own mask."""
    text = config.get_text_config(decoder=True)
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    return sorted(set(getattr(text, "layer_types", None) or [SLIDING if windowed else FULL]))


def _class(config: Any) -> Any:
    """The class that AutoModelForCausalLM selects; None if the class comes from the model's own repository."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    result = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return result[0] if isinstance(result, list | tuple) else result


def _forward(config: Any) -> frozenset[str] | None:
    """Parameter names of that class's forward; None if there is no such class."""
    result = _class(config)
    return None if result is None else frozenset(inspect.signature(result.forward).parameters)

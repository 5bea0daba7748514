"""What a model's config says about how it can decode, with reasons; imports neither torch nor transformers.

There are two kinds of decoding: chains (plain decoding is one of length 1), which need a way to go back to an earlier
token, and trees, which also need layers that place tokens by their position ids and mask, not by their slot in the
cache. A config here is transformers' own or a `RawConfig`, made from a config.json alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp.errors import ModelError

NO_LIMIT = 1 << 30
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of layer types
KEY_VALUE, RECURRENT, NO_CACHE = "key-value", "recurrent", "none"  # how a model continues after earlier tokens
# Fields that are lists of names or numbers.
LISTS: dict[str, type] = {
    **dict.fromkeys(("architectures", "layer_types", "layers_block_type", "block_types", "attention_layers"), str),
    "no_rope_layers": int,
}
# Older names of layer types, which transformers' config classes replace.
RENAMED: dict[Any, str] = {
    "mamba": "linear_attention", "attention": "full_attention", "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}  # fmt: skip
LAYER_LISTS = ("layer_types", "layers_block_type", "block_types")
WITHOUT_ATTENTION = frozenset({"mlp", "moe"})
RECURRENT_LAYERS = frozenset({"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"})
# Config fields for the context length, in the order in which they are tried.
CONTEXT_NAMES = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_seq_length",
    "max_target_positions", "seq_length", "model_max_length", "context_length",
)  # fmt: skip
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
# What a class of weights is for, where that is not the next token: endings of `architectures` in a config.
OTHER_HEADS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
    "ForImageClassification",
)  # fmt: skip
NO_HEAD = (
    "is neither a causal language model nor a model of images and text that decodes text alone here (docs/models.md);"
    " use one that is"
)


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """What transformers' classes for a model type say, which no config does."""

    has_head: bool = True  # there is a class that scores the next token
    cache_kind: str = KEY_VALUE
    takes_positions: bool = True  # its forward takes `position_ids`


class RawConfig:
    """A config.json as an object. A field that it leaves out reads as None: only its class knows the default. So does a
    list that is none: the class says what is wrong with it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        value = self.values.get(name)
        if name not in LISTS:
            return value
        if not isinstance(value, list) or not all(isinstance(each, LISTS[name]) for each in value):
            return None
        return [RENAMED.get(each, each) for each in value]

    def get_text_config(self, decoder: bool = False) -> RawConfig:
        text = self.values.get("text_config")
        return RawConfig(text) if isinstance(text, dict) else self


def refusal(config: Any, facts: TypeFacts) -> str | None:
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
    if not facts.has_head:
        return NO_HEAD
    names = getattr(config, "architectures", None)
    names = [str(name) for name in names] if isinstance(names, list) else []
    if names and all(name.endswith(OTHER_HEADS) for name in names):
        return f"was saved as {names[0]}, which has no head that scores the next token; use a causal language model"
    if kind == "xmod" and not getattr(text, "default_language", None):
        return "has an adapter for each language and no default_language in its config; set one"
    return None


def tree_refusal(config: Any, facts: TypeFacts) -> str | None:
    """The reason why a model with this config cannot score a token tree; None if no reason is known."""
    text = config.get_text_config(decoder=True)
    if facts.cache_kind == NO_CACHE:
        return "decodes without a cache, so it cannot score token trees"
    if facts.cache_kind == RECURRENT or has_recurrent_layers(text):
        return "has layers with a recurrent state, which holds one sequence and no tree"
    if getattr(text, "index_topk", None):
        return "has an index of keys in its cache, which holds one sequence and no tree"
    if not facts.takes_positions:
        return "places tokens by their slot in the cache and takes no position ids, so it cannot score token trees"
    if config.model_type == "falcon" and text.alibi:
        return "weighs tokens by their slot in the cache (ALiBi), so it cannot score token trees"
    if config.model_type == "gpt_neo" and "local" in (text.attention_layers or ()):
        return "has local layers, whose window counts slots of the cache, so it cannot score token trees"
    if getattr(text, "attn_temperature_tuning", False) and not all(getattr(text, "no_rope_layers", None) or [0]):
        return "scales attention by slots of the cache (attn_temperature_tuning), so it cannot score token trees"
    if other := [kind for kind in attention_kinds(config) if kind not in (FULL, SLIDING)]:
        return f"has {other[0]} layers, which take no tree mask"
    return None


def has_recurrent_layers(text: Any) -> bool | None:
    """True if a text config lists layers with a recurrent or convolutional state; None if it lists no layers."""
    lists = [value for name in LAYER_LISTS if isinstance(value := getattr(text, name, None), list | tuple) and value]
    return any(kind in RECURRENT_LAYERS for kinds in lists for kind in kinds) if lists else None


def attention_kinds(config: Any) -> list[str]:
    """The kinds of attention layers, sorted; each kind takes its own mask."""
    text = config.get_text_config(decoder=True)
    windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    kinds = set(getattr(text, "layer_types", None) or ()) - WITHOUT_ATTENTION
    return sorted(kinds or {SLIDING if windowed else FULL})


def check(config: Any, facts: TypeFacts, name: str) -> None:
    """Raise ModelError if a model with this config cannot decode token by token."""
    if reason := refusal(config, facts):
        raise ModelError(f"model '{name}' ({config.model_type}) {reason}.")


def check_trees(config: Any, facts: TypeFacts, name: str) -> None:
    """Raise ModelError if this config's layers would give the tokens of a tree wrong positions."""
    if reason := tree_refusal(config, facts):
        raise ModelError(f"model '{name}' ({config.model_type}) {reason}; use a chain method (speculative, lookup).")


def stated_context(text: Any, name: str) -> int:
    """The maximum number of positions that a text config states; `NO_LIMIT` for none. Raises ModelError."""
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

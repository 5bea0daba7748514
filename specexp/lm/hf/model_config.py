"""What transformers knows of a config's model type: its class, its cache, and the context that decoding has.

`refusals.py` has the rules that need no class; `forward_check.py` measures on the loaded model what no config says.
docs/models.md lists the results of all three.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from specexp.lm.blocks.long_factors import boundary_of
from specexp.lm.configs import refusals
from specexp.lm.configs.refusals import KEY_VALUE, NO_CACHE, RECURRENT, TypeFacts

# Layers of a cache that can be truncated; a `DummyLayer` holds nothing.
REWINDABLE = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)
# Families whose modules take a cache of their own, which cannot be copied or cut back.
OWN_CACHES = frozenset({"minimax", "rwkv", "xlstm"})
# Families that only transformers' auto class for images and text builds, and that decode text alone.
CONDITIONAL = frozenset({
    "aya_vision", "cohere2_vision", "exaone4_5", "glm4v", "idefics3", "internvl", "lfm2_vl", "llava", "mistral3",
    "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm",
})  # fmt: skip


def check(config: Any, name: str, model: type | None = None) -> None:
    """Raise ModelError if a model with this config cannot decode token by token, or has no valid context length.

    `model` is the class of a model that is loaded; otherwise it is the class that the auto class selects.
    """
    refusals.check(config, type_facts(config, model), name)
    context_of(config, name)


def check_trees(config: Any, name: str, model: type | None = None) -> None:
    """Raise ModelError if this config's layers would give the tokens of a tree wrong positions."""
    refusals.check_trees(config, type_facts(config, model), name)


def context_of(config: Any, name: str) -> int:
    """The maximum number of positions in a sequence; `NO_LIMIT` if the config states none. Raises ModelError.

    It is limited to the length at which the rotary angles change, if decoding cannot follow the change (`rope.py`).
    """
    text = config.get_text_config(decoder=True)
    stated, boundary = refusals.stated_context(text, name), boundary_of(config)
    return stated if boundary is None or boundary.recomputed else min(stated, boundary.length)


def refusal(config: Any) -> str | None:
    """The reason why a model with this config cannot decode; None if it can."""
    return refusals.refusal(config, type_facts(config))


def tree_refusal(config: Any) -> str | None:
    """The reason why a model with this config cannot score a token tree; None if no reason is known."""
    return refusals.tree_refusal(config, type_facts(config))


def type_facts(config: Any, model: Any = None) -> TypeFacts:
    """What the class of this config says; one from the model's own repository is taken as it comes."""
    model = model or model_class(config)
    if model is None:
        own = type(config).__module__.startswith("transformers.") and not _has_own_class(config)
        return TypeFacts(has_head=not own, cache_kind=cache_kind(config))
    parameters = inspect.signature(model.forward).parameters
    return TypeFacts(True, cache_kind(config, model), "position_ids" in parameters)


def cache_kind(config: Any, model: Any = None) -> str:
    """How a model with this config continues after earlier tokens: `KEY_VALUE`, `RECURRENT` or `NO_CACHE`."""
    model, kind = model or model_class(config), str(config.model_type)
    if kind in OWN_CACHES or (model is not None and cache_argument(model.forward) is None):
        return NO_CACHE
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # the config lacks fields that every cache needs
        return NO_CACHE
    if all(type(layer) in REWINDABLE for layer in layers):
        return KEY_VALUE
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


def is_conditional(config: Any) -> bool:
    """True if the auto class for images and text builds this model, and the one for causal models does not."""
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return known and config.model_type in CONDITIONAL and not _has_own_class(config)


def _has_own_class(config: Any) -> bool:
    """True if the model's own repository has a causal class."""
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def model_class(config: Any) -> Any:
    """The class that the auto class selects; None if the class comes from the model's own repository, or none does."""
    classes = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if is_conditional(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in classes:
        return None
    result = classes[type(config)]
    return result[0] if isinstance(result, list | tuple) else result

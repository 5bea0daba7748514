"""What transformers' classes say of each model type (`TypeFacts`), kept in a file, since importing them takes seconds.

`lm/hf/type_table.py` writes it anew from the transformers that is installed. A type that the file does not have is
judged when its class is loaded (`lm/hf/model_config.py`); the others are judged there a second time.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from specexp.lm.configs.refusals import KEY_VALUE, NO_CACHE, RECURRENT, TypeFacts, has_recurrent_layers

FILE = Path(__file__).with_suffix(".json")
# The file's lists, besides those of `KINDS`. A causal type that is in no other list has a key-value cache and takes
# position ids.
CAUSAL, NO_HEAD, SLOTS = "causal", "no_head", "no_position_ids"
KINDS = (RECURRENT, NO_CACHE)


@cache
def _lists() -> dict[str, list[str]]:
    result: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return result


def _counts_none(text: Any) -> bool:
    """True if a text config says by a number or a pattern that it has no recurrent layers."""
    if 1 in (text.attn_layer_period, text.full_attention_interval, text.layer_group_size):  # every layer has attention
        return True
    pattern, delta = text.hybrid_override_pattern, text.linear_attn_config
    return (isinstance(pattern, str) and "M" not in pattern) or (
        isinstance(delta, dict) and delta.get("kda_layers") == []
    )


def facts_of(config: Any) -> TypeFacts:
    """What is known of a config's model type; of an unknown one, nothing that would refuse it.

    Some types have recurrent layers by default only: a config that lists its layers and has none overrides that.
    """
    lists, kind = _lists(), str(config.model_type)
    own_classes = config.auto_map if isinstance(config.auto_map, dict) else {}
    if kind in lists[NO_HEAD]:
        return TypeFacts(has_head="AutoModelForCausalLM" in own_classes)
    if kind not in lists[CAUSAL]:
        return TypeFacts()
    cache_kind = next((each for each in KINDS if kind in lists[each]), KEY_VALUE)
    text = config.get_text_config(decoder=True)
    if cache_kind == RECURRENT and (has_recurrent_layers(text) is False or _counts_none(text)):
        cache_kind = KEY_VALUE
    return TypeFacts(True, cache_kind, kind not in lists[SLOTS])

"""What transformers' classes say of each model type (`TypeFacts`), kept in a file, since importing them takes seconds.

`python -m specexp.lm.hf.model_types FILE` writes it anew from the transformers that is installed. A type that the file
does not have is judged when its class is loaded (`model_config.py`), which also judges the others a second time.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from specexp.lm.hf.refusals import KEY_VALUE, NO_CACHE, RECURRENT, TypeFacts, has_recurrent_layers

FILE = Path(__file__).with_suffix(".json")
# The file's lists. A causal type in none of the first three has a key-value cache and takes position ids.
NO_HEAD, SLOTS = "no_head", "no_position_ids"
KINDS = (RECURRENT, NO_CACHE)


@cache
def _lists() -> dict[str, list[str]]:
    result: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return result


def facts_of(config: Any) -> TypeFacts:
    """What is known of a config's model type; of an unknown one, nothing that would refuse it.

    Some types have recurrent layers by default only: a config that lists its layers and has none overrides that.
    """
    lists, kind = _lists(), str(config.model_type)
    if kind in lists[NO_HEAD]:
        return TypeFacts(has_head=False)
    if kind not in lists["causal"]:
        return TypeFacts()
    cache_kind = next((each for each in KINDS if kind in lists[each]), KEY_VALUE)
    if cache_kind == RECURRENT and has_recurrent_layers(config.get_text_config(decoder=True)) is False:
        cache_kind = KEY_VALUE
    return TypeFacts(True, cache_kind, kind not in lists[SLOTS])


def read_classes() -> dict[str, list[str]]:
    """The file's lists, from transformers' classes and their default configs; imports all of them (seconds)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from specexp.lm.hf.model_config import type_facts

    lists: dict[str, list[str]] = {name: [] for name in ("causal", *KINDS, SLOTS, NO_HEAD)}
    for name in sorted(CONFIG_MAPPING):
        try:
            facts = type_facts(CONFIG_MAPPING[name]())
        except Exception:  # a config without defaults: the type is judged when it is loaded
            continue
        lists["causal" if facts.has_head else NO_HEAD].append(name)
        if facts.cache_kind in KINDS:
            lists[facts.cache_kind].append(name)
        if not facts.takes_positions:
            lists[SLOTS].append(name)
    return lists


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(read_classes(), indent=0) + "\n", encoding="utf-8")

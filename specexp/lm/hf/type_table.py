"""Writes `lm/configs/model_types.json` anew from transformers' classes: `python -m specexp.lm.hf.type_table`."""

from __future__ import annotations

import json

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specexp.lm.configs.model_types import CAUSAL, FILE, KINDS, NO_HEAD, SLOTS
from specexp.lm.hf.model_config import type_facts


def read_classes() -> dict[str, list[str]]:
    """The file's lists, from transformers' classes and their default configs; imports all of them (seconds)."""
    lists: dict[str, list[str]] = {name: [] for name in (CAUSAL, *KINDS, SLOTS, NO_HEAD)}
    for name in sorted(CONFIG_MAPPING):
        try:
            facts = type_facts(CONFIG_MAPPING[name]())
        except Exception:  # a config without defaults: the type is judged when it is loaded
            continue
        if not facts.has_head:
            lists[NO_HEAD].append(name)
            continue
        lists[CAUSAL].append(name)
        if facts.cache_kind in KINDS:
            lists[facts.cache_kind].append(name)
        if not facts.takes_positions:
            lists[SLOTS].append(name)
    return lists


if __name__ == "__main__":
    FILE.write_text(json.dumps(read_classes(), indent=0) + "\n", encoding="utf-8")

"""The embedded pair as models that think: a template opens `<think>`, and `</think>` comes where solutions end.

Both markers are tokens of their own, with the newline's embedding. That of `</think>` is longer, so that the models
give it in the newline's place, before `#### answer`: the steps of a solution become the thought, and its last line the
answer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specexp.lm.hf.source import ZOO

TEMPLATE = (
    "{{ bos_token }}{{ messages[-1]['content'] | trim }}{% if add_generation_prompt %}<think>{% else %}\n{% endif %}"
)
LONGER = 1.1


def save(place: Path) -> dict[str, str]:
    """Write `place`/target and `place`/draft, and return the folders by these names."""
    for role in ("target", "draft"):
        tokenizer = AutoTokenizer.from_pretrained(ZOO / role)
        module = AutoModelForCausalLM.from_pretrained(ZOO / role, dtype=torch.float32)
        tokenizer.add_tokens(["<think>", "</think>"], special_tokens=False)
        tokenizer.chat_template = TEMPLATE
        module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        (newline,) = tokenizer.encode("\n", add_special_tokens=False)
        with torch.no_grad():
            rows = module.get_input_embeddings().weight
            rows[-2], rows[-1] = rows[newline], LONGER * rows[newline]
        module.save_pretrained(place / role)
        tokenizer.save_pretrained(place / role)
    return {role: str(place / role) for role in ("target", "draft")}

"""The output of transformers' generate(), and prompts to compare on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from specexp.lm.hf.hf_model import HFModel

LENGTH = 48


def generate(model: HFModel, prompt: list[int], length: int, eos: list[int] | None) -> list[int]:
    """What transformers emits after the prompt, with none of the model's own settings in effect."""
    with torch.inference_mode():
        ids = model.module.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=length, eos_token_id=eos, pad_token_id=0, repetition_penalty=1.0,
        )  # fmt: skip
    return [int(i) for i in ids[0, len(prompt) :]]


def prompts() -> Iterator[list[int]]:
    rng = random.Random(0)
    yield [7]  # one token: nothing to prefill
    for length in (2, 5, 17, 40):
        yield [rng.randrange(3, 96) for _ in range(length)]

"""A real language model, SmolLM2-135M-Instruct, with drafts that have another tokenizer: `generate()`'s tokens.

The draft is the model under other ids, with 4,000 merges fewer (`fewer`), or by sentencepiece's names with byte tokens
(`sentencepiece`): its first third is rarely right. The other way round, that is the draft of a target with such tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import other_tokenizers, real_model
from specexp import config
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.pair.loading import Pair, load_pair

LENGTH, MERGES = 16, 4000
PROMPTS = (
    "Tom has 12 cards. He buys 3 more. How many cards does Tom have now?",
    "Translate to French: “naïve” – 日本 👍",
)
# (target, draft, vocabulary): prompts, common tokens of the target's, and the least number of tokens accepted of chains
# and of trees.
CASES = {
    ("whole", "fewer", "intersection"): (2, 45_152, {"chain": 21, "tree": 23}),
    ("whole", "fewer", "text"): (2, 45_152, {"chain": 21}),
    ("whole", "sentencepiece", "text"): (1, 44_413, {"chain": 10}),
    ("sentencepiece", "third", "intersection"): (1, 44_413, {"chain": 0, "tree": 2}),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not real_model.FILES, reason="the model is not installed: make test-real"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("smollm2")
    saved = real_model.save(place)
    for kind in ("fewer", "sentencepiece"):
        saved[kind] = other_tokenizers.save(place / kind, kind, str(saved["whole"]), MERGES)
    return saved


def load(folders: dict[str, Path], target: str, draft: str, way: str) -> Pair:
    values = {
        "target": {"model": str(folders[target]), "chat_template": "own"}, "methods": "baseline,speculative",
        "draft": {"model": str(folders[draft]), "vocabulary": way},
    }  # fmt: skip
    return load_pair(config.resolve("arith_quick", values), {"target", "draft"}, own_prompts=True)


def generated(target: HFModel, prompt: list[int]) -> list[int]:
    """`generate()` of the target, on transformers' own forward."""
    with torch.inference_mode():
        ids = target.module.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=LENGTH,
        )  # fmt: skip
    return [int(i) for i in ids[0, len(prompt) :]]


@pytest.mark.parametrize(("target", "draft", "way"), CASES)
def test_greedy_outputs_are_those_of_generate(folders: dict[str, Path], target: str, draft: str, way: str) -> None:
    num_prompts, num_common, least = CASES[target, draft, way]
    pair = load(folders, target, draft, way)
    model = pair.models["target"]
    assert isinstance(model, HFModel)
    assert (pair.vocabulary, pair.models["draft"].facts()["common_tokens"]) == (way, num_common)
    decoders: dict[str, Decoder] = {
        "chain": Chain(DraftModel(4), Lossless(), Warp()), "tree": SpecExec(12, 4, Warp(), 3),
    }  # fmt: skip
    accepted = dict.fromkeys(least, 0)
    for text in PROMPTS[:num_prompts]:
        prompt = pair.text.encode([{"role": "user", "content": text}])
        expected = generated(model, prompt)
        assert len(set(expected)) > 5, "text, not one token"
        for name in least:
            out = Engine(pair.models, pair.eos_ids).generate(decoders[name], prompt, LENGTH, CertainRng())
            assert out.token_ids == expected, f"{name}, {text}"
            accepted[name] += out.num_accepted
    assert all(accepted[name] >= least[name] for name in least), accepted

"""What drafts of the target's hidden states are compared by: chains of the engine, candidates and outputs of
transformers' generate()."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch

from helpers.generation import generate, prompts
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless
from specexp.decoding.protocol import Drafted
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine
from specexp.engine.drafting import Drafting
from specexp.engine.request import Request

Chains = list[tuple[list[int], Drafted]]
GREEDY = Warp()


def greedy_chains(longest: int, shorter: int) -> dict[str, Decoder]:
    """Chains of these draft lengths, with the bonus token, without it, and in turn with prompt lookup."""
    return {
        "chain": Chain(DraftModel(longest), Lossless(), GREEDY),
        "no bonus": Chain(DraftModel(shorter), Lossless(), GREEDY, bonus=False),
        "in turn": Chain(InTurn({"lookup": Lookup(5, 3, 2), "draft": DraftModel(shorter)}), Lossless(), GREEDY),
    }


def watch_chains(monkeypatch: pytest.MonkeyPatch) -> Chains:
    """Every chain that the engine drafts from now on, and the ids it follows."""
    seen: Chains = []
    draft = Drafting.draft

    def watched(self: Any, asked: Any) -> list[Drafted]:
        result = draft(self, asked)
        # The next chain may overwrite what a recording drafted.
        seen.extend((list(state.ids), deepcopy(each)) for (state, _), each in zip(asked, result, strict=True))
        return result

    monkeypatch.setattr(Drafting, "draft", watched)
    return seen


def candidates(
    monkeypatch: pytest.MonkeyPatch, kind: Any, module: Any, texts: Sequence[list[int]], length: int, **how: Any
) -> list[tuple[list[int], list[int]]]:
    """Every text that transformers' candidate generator of this kind was asked about while generate() continued these
    texts, and the tokens it drafted."""
    seen: list[tuple[list[int], list[int]]] = []
    asked = kind.get_candidates

    def watched(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = asked(self, input_ids, *args, **kwargs)
        if result[1] is not None:
            seen.append((input_ids[0].tolist(), result[0][0, input_ids.shape[1] :].tolist()))
        return result

    monkeypatch.setattr(kind, "get_candidates", watched)
    for text in texts:
        ids = torch.tensor([text])
        module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, eos_token_id=None,
            pad_token_id=0, **how,
        )  # fmt: skip
    assert len(seen) > 20
    return seen


def outputs_equal_generate(
    models: Mapping[Any, Any], decoders: Mapping[str, Decoder], length: int, cached: Sequence[bool] = (True,)
) -> Iterator[tuple[str, Any]]:
    """Assert that greedy outputs are those of generate(), alone and of the decoder `chain` in a batch, too; yield the
    decoder's name and the generation of each prompt."""
    wanted = {tuple(prompt): generate(models["target"], prompt, length, None) for prompt in prompts()}
    for name, decoder in decoders.items():
        for each in cached:
            engine = Engine(models, cached=each, reuse=each and name == "chain")
            for prompt, text in wanted.items():
                out = engine.generate(decoder, list(prompt), length, CertainRng())
                assert out.token_ids == text, name
                yield name, out
    requests = [Request(decoders["chain"], list(prompt), length, CertainRng()) for prompt in wanted]
    outs = dict(Engine(models, max_batch_size=2).generate_all(requests))
    assert [outs[i].token_ids for i in range(len(requests))] == list(wanted.values())

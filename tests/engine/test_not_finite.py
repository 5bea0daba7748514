"""Logits that are NaN or infinite end a run, in one line with the model, the prompt and the position."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.cli_runner import evaluate, invoke, refused, tiny, with_models
from helpers.model_folders import build
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.lossy_rules import TopK
from specexp.decoding.protocol import Draft, Role
from specexp.decoding.rng import Rng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, Request
from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Array, Feed
from specexp.lm.toy import ToyModel

PROMPT, BAD = [1, 2, 0, 3], 9  # the position whose row is bad: it says what output token 6 is to be
NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "all -inf": float("-inf")}
METHODS: dict[str, Callable[[Warp], Any]] = {
    "baseline": Baseline,
    "draft_only": lambda warp: Baseline(warp, "draft"),
    "chain": lambda warp: Chain(DraftModel(3), Lossless(), warp),
    "lookup": lambda warp: Chain(Lookup(3), Lossless(), warp),
    "top-k": lambda warp: Chain(DraftModel(3), TopK(2), warp),
    "stops early": lambda warp: Chain(DraftModel(3, 0.4), Lossless(), warp),
    "specexec": lambda warp: SpecExec(8, 3, warp),
}


class Overflowing(ToyModel):
    """From a position on, one logit of a row is bad, or with -inf all of them."""

    value = float("nan")

    def rows(self, before: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
        logits, hidden = super().rows(before, tokens, positions)
        columns = slice(None) if self.value == float("-inf") else slice(4, 5)
        logits[positions >= BAD, columns] = self.value
        return logits, hidden


def toys(bad: Role | None, value: float = float("nan"), noise: float = 0.3) -> dict[Role, Any]:
    models: dict[Role, Any] = {}
    for role, amount in (("target", 0.0), ("draft", noise)):
        models[role] = (Overflowing if role == bad else ToyModel)(6, 1, amount)
        if role == bad:
            models[role].value = value
    return models


def where(error: pytest.ExceptionInfo[ModelError]) -> tuple[str, str, int]:
    """Prompt, model and position of a message, which is one line."""
    match = re.fullmatch(
        r"prompt '(.+)': the (target|draft) model '.+' gives (?:NaN|infinite) logits at position (\d+) of the output"
        r" \(after (\d+) tokens, prompt included\)\. Check its weights; .+",
        str(error.value),
    )
    assert match is not None, str(error.value)
    assert int(match[4]) == int(match[3]) + len(PROMPT)
    return match[1], match[2], int(match[3])


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of the toy: inf - inf
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("method", METHODS)
def test_a_late_overflow_of_the_model_that_decides_ends_the_run(method: str, value: str, temperature: float) -> None:
    role: Role = "draft" if method == "draft_only" else "target"
    engine = Engine(toys(role, NOT_FINITE[value]))
    decoder, rng = METHODS[method](Warp(temperature)), rng_for(temperature, 3, "late")
    fine = engine.generate(decoder, PROMPT, BAD - len(PROMPT) + 1, rng, name="late")
    assert len(fine.token_ids) == 6, "up to there nothing is wrong"
    with pytest.raises(ModelError) as error:
        engine.generate(decoder, PROMPT, 20, rng, name="late")
    assert where(error) == ("late", role, BAD - len(PROMPT) + 1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["chain", "top-k", "stops early", "specexec"])
def test_a_draft_that_overflows_ends_the_run_too(method: str, temperature: float) -> None:
    engine = Engine(toys("draft"))
    with pytest.raises(ModelError) as error:
        engine.generate(METHODS[method](Warp(temperature)), PROMPT, 20, rng_for(temperature, 3, "x"), name="late")
    prompt, role, position = where(error)
    assert (prompt, role) == ("late", "draft")
    assert BAD - len(PROMPT) - 2 <= position <= BAD - len(PROMPT) + 1, "a tree names the first place of its round"


@pytest.mark.parametrize("method", METHODS)
def test_a_masked_token_is_no_fault(method: str) -> None:
    """-inf at one id says that it cannot be drawn, as padded ids cannot."""

    class Masked(ToyModel):
        def rows(self, before: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
            logits, hidden = super().rows(before, tokens, positions)
            logits[:, 4] = float("-inf")
            return logits, hidden

    models: dict[Role, Any] = {"target": Masked(6, 1), "draft": Masked(6, 1, 0.3)}
    for temperature in (0.0, 0.8):
        rng = rng_for(temperature, 3, "x")
        out = Engine(models).generate(METHODS[method](Warp(temperature)), PROMPT, 20, rng)
        assert 4 not in out.token_ids


def test_what_is_scored_after_a_rejection_is_not_looked_at() -> None:
    """A target that overflows behind one token, which the draft proposes and the target never takes."""

    class Behind(ToyModel):
        def rows(self, before: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
            logits, hidden = super().rows(before, tokens, positions)
            logits[:, 4] = -50.0
            logits[tokens == 4] = np.nan
            return logits, hidden

    models: dict[Role, Any] = {"target": Behind(6, 1), "draft": ToyModel(6, 1, 0.5)}
    plain = Engine(models).generate(Baseline(Warp()), PROMPT, 25, rng_for(0, 0, "x"))
    for method in ("chain", "specexec"):
        assert Engine(models).generate(METHODS[method](Warp()), PROMPT, 25, rng_for(0, 0, "x")).token_ids == (
            plain.token_ids
        )


def test_in_a_batch_it_is_the_prompt_that_is_named() -> None:
    """Three prompts, of which one is long enough to reach the place."""
    engine = Engine(toys("target"), max_batch_size=3)
    decoder, rng = METHODS["chain"](Warp()), rng_for(0, 0, "x")
    requests = [Request(decoder, PROMPT[:length], 4, rng, name=f"p{length}") for length in (2, 3)]
    assert len(list(engine.generate_all(requests))) == 2
    with pytest.raises(ModelError) as error:
        list(engine.generate_all([*requests, Request(decoder, PROMPT, 20, rng, name="p4")]))
    assert where(error)[:2] == ("p4", "target")


def poisoned(family: str, role: Role, token: int | None = None, **more: Any) -> dict[Role, Any]:
    """A pair of one family; the one of `role` has NaN in the embedding of a token, or of a late position."""
    models: dict[Role, Any] = {}
    for each in ("target", "draft"):
        module = build(family)
        with torch.no_grad():
            if each == role and token is None:
                module.transformer.wpe.weight[BAD] = float("nan")
            elif each == role:
                module.get_input_embeddings().weight[token] = float("nan")
        models[each] = HFModel(module, each, **more)
    return models


class Noting(HFModel):
    """Notes the tokens of each call, with the length of the output so far, which `told` counts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.emitted, self.fed = 0, list[tuple[int, list[int]]]()

    def told(self, tokens: Sequence[int]) -> None:
        self.emitted += len(tokens)

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        self.fed += [(self.emitted, feed.tokens.tolist()) for feed in feeds]
        return super().feed(feeds)

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        return False  # step by step, each through `feed`


@pytest.mark.at_most(fast=14)
@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["baseline", "chain", "specexec"])
@pytest.mark.parametrize("forward", ["own", "transformers", "captured"])
def test_every_forward_tells(forward: str, method: str, temperature: float, role: Role) -> None:
    if method == "baseline" and role == "draft":
        return
    more = {"own": {}, "transformers": {"forward": "transformers"}, "captured": {"graphs": Tape()}}[forward]
    decoder = METHODS[method](Warp(temperature))
    models: dict[Role, Noting] = {"target": Noting(build("llama"), "target"), "draft": Noting(build("llama"), "draft")}
    rng, noting = rng_for(temperature, 3, "x"), models[role]
    tokens = Engine(models).generate(decoder, PROMPT, 12, rng, noting.told).token_ids
    at = max(i for i, token in enumerate(tokens[:10]) if token not in [*PROMPT, *tokens[:i]])
    with pytest.raises(ModelError) as error:
        Engine(poisoned("llama", role, tokens[at], **more)).generate(decoder, PROMPT, 12, rng, name="x")
    prompt, model, position = where(error)
    assert (prompt, model) == ("x", role)
    # What a call feeds after a place counts as 0 there, and 0 x NaN is NaN: any row of the round that first feeds the
    # token may tell, also of a tree in which it is on another branch.
    first = next(emitted for emitted, fed in noting.fed if tokens[at] in fed)
    assert first <= position <= at + 1


def test_learned_positions_overflow_late() -> None:
    for decoder in (METHODS["baseline"](Warp()), METHODS["chain"](Warp())):
        with pytest.raises(ModelError) as error:
            Engine(poisoned("gpt2", "target")).generate(decoder, PROMPT, 20, rng_for(0, 0, "x"), name="x")
        assert BAD - len(PROMPT) - 2 <= where(error)[2] <= BAD - len(PROMPT) + 1


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_folder_whose_weights_are_no_numbers_is_refused_in_one_line(workplace: Path, role: str) -> None:
    from transformers import AutoModelForCausalLM

    folders = {each: tiny(workplace / each) for each in ("target", "draft")}
    module = AutoModelForCausalLM.from_pretrained(folders[role])
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[:] = float("nan" if role == "target" else "inf")
    module.save_pretrained(folders[role])
    arguments = [*with_models(workplace, folders["target"], folders["draft"]), "--methods", "baseline,speculative"]
    result = evaluate(*arguments, "--max-new-tokens", "8")
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "prompt 'arith-test-0'" in lines[0]
    assert f"the {role} model '{folders[role]}' gives NaN logits at position 0 of the output" in lines[0]
    assert "Traceback" not in result.output
    assert not (workplace / "out" / "records.jsonl").exists()


def test_generate_says_so_too(workplace: Path) -> None:
    from entrypoints.generate import command

    folder = tiny(workplace / "target")
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        module.lm_head.weight[7, :] = float("inf")
    module.save_pretrained(folder)
    result = invoke(command, "Mia has 4 apples.", "--target", str(folder), "--draft", str(folder))
    refused(result, f"error: the prompt: the draft model '{folder}' gives", workplace)

"""The table of docs/models.md: what each causal family of transformers decodes right, and on which forward.

`python -m helpers.family_table` (in tests/) writes it anew; `tests/lm/test_architectures.py` compares it, family by
family. A cell is the outcome of decoding with a tiny random model in float32 whose greedy output is not one repeated
token, with a draft of which 0.3 to 0.9 of the tokens are accepted. Plain decoding is compared with `generate()`, every
other method with plain decoding; cached logits are compared with those of a whole forward when a model is checked.
"""

from __future__ import annotations

import contextlib
import random
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helpers import tiny_models
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Engine
from specexp.engine.engine import Request
from specexp.errors import ModelError
from specexp.lm.configs import refusals
from specexp.lm.hf import model_config
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native import cuda_graphs

FAMILIES = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | model_config.CONDITIONAL
DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
RIGHT, REFUSED, UNTRIED, NONE = "right", "refused", "not tried", "-"
LENGTH = 20
GREEDY, SAMPLED = Warp(), Warp(0.8)
CHAIN, LOOKUP = Chain(DraftModel(4), Lossless(), GREEDY), Chain(Lookup(4, 2), Lossless(), GREEDY)
TREE, SAMPLED_TREE = SpecExec(8, 3, GREEDY, 4), SpecExec(8, 3, SAMPLED, 4)
SEEDS, NOISES = range(12), (0.05, 0.1, 0.02, 0.2, 0.01, 0.4)
ACCEPTED = (0.3, 0.9)


@dataclass(frozen=True, slots=True)
class Row:
    """What comes of a family: a forward, an outcome for each way of decoding, and the reason for what is refused."""

    forward: str
    chain: str = NONE
    lookup: str = NONE
    tree: str = NONE
    sampled_tree: str = NONE
    batch: str = NONE
    recorded: str = NONE
    why: str = ""


HEADINGS = ("forward", "chain", "lookup", "tree", "sampled tree", "batch", "recorded", "what is refused, and why")


class Unsuitable(Exception):
    """No tiny model of this family shows enough: its outputs repeat a token, or its draft is always or never right."""


def prompts() -> Iterator[list[int]]:
    """One shorter than the windows, and one that is longer and repeats itself."""
    rng = random.Random(0)
    yield [rng.randrange(3, 90) for _ in range(3)]
    long = [rng.randrange(3, 90) for _ in range(21)]
    yield long[:10] + long[2:8] + long[10:]


def generated(module: Any, prompt: list[int]) -> list[int]:
    """The greedy output of `generate()`, with no other settings."""
    module.generation_config = GenerationConfig()
    settings = GenerationConfig(max_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        ids = module.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), generation_config=settings
        )
    return [int(i) for i in ids[0, len(prompt) :]]


def suitable(kind: str, **more: Any) -> tuple[Any, Any]:
    """(target, draft) modules of this family that show enough. Raises Unsuitable, or whatever making them raises."""
    for untied in ({}, {"tie_word_embeddings": False}):
        for seed in SEEDS:
            module = tiny_models.build(kind, seed, **more, **untied)
            if any(len(set(generated(module, prompt))) < 4 for prompt in prompts()):
                continue
            for noise in NOISES:
                draft = tiny_models.disturbed(module, noise)
                engine = Engine({"target": HFModel(module, kind), "draft": HFModel(draft, kind)})
                outs = [engine.generate(CHAIN, prompt, LENGTH, CertainRng()) for prompt in prompts()]
                rate = sum(out.num_accepted for out in outs) / sum(out.num_drafted for out in outs)
                if ACCEPTED[0] <= rate <= ACCEPTED[1]:
                    return module, draft
    raise Unsuitable(kind)


def row(kind: str, **more: Any) -> Row:
    """What comes of this family; an AssertionError where an output is another than it should be."""
    try:
        config = tiny_models.config(kind, **more)
        tiny_models.build(kind, **more)
    except Exception:  # no tiny model can be made: only its config says something
        with contextlib.suppress(Exception):
            if reason := model_config.refusal(CONFIG_MAPPING[kind]()):
                return Row(NONE, *[REFUSED] * 5, why=reason)
        return Row(NONE, *[UNTRIED] * 5)
    if reason := model_config.refusal(config):
        return Row(NONE, *[REFUSED] * 5, why=reason)
    try:
        module, draft = suitable(kind, **more)
    except (RuntimeError, ValueError):  # generate() itself fails on a model of this size
        return Row(NONE, *[UNTRIED] * 5)
    except Unsuitable:
        return Row(NONE, *[UNTRIED] * 5, why="not refused; no tiny model of it says more than one token")
    models: Any = {"target": HFModel(module, kind), "draft": HFModel(draft, kind)}
    try:
        models["target"].check_cache()
    except ModelError as error:
        return Row(NONE, *[REFUSED] * 5, why=str(error))
    plain = []
    for prompt in prompts():
        plain.append(Engine(models).generate(Baseline(GREEDY), prompt, LENGTH, CertainRng()).token_ids)
        assert plain[-1] == generated(module, prompt), "plain decoding"
    cells = {name: _alone(models, decoder, plain, name) for name, decoder in (("chain", CHAIN), ("lookup", LOOKUP))}
    cells["tree"], cells["sampled_tree"], why = RIGHT, RIGHT, ""
    try:
        models["target"].check_trees()
    except ModelError as error:
        cells["tree"] = cells["sampled_tree"] = REFUSED
        why = "trees: " + re.sub(r"^model '[^']*' \([^)]*\) |; use a chain method.*$", "", str(error))
    else:
        _alone(models, TREE, plain, "specexec")
        _sampled(models)
    cells["batch"] = _together(models, plain, trees=cells["tree"] == RIGHT)
    native = models["target"].native is not None
    recorded = _recorded(module, draft, plain, trees=cells["tree"] == RIGHT) if native else NONE
    forward = (
        "native"
        if native
        else {refusals.RECURRENT: "recurrent", refusals.NO_CACHE: "whole"}.get(
            models["target"].cache_kind, "transformers"
        )
    )
    return Row(forward, **cells, recorded=recorded, why=why)


def _alone(models: Any, decoder: Decoder, plain: Sequence[list[int]], name: str) -> str:
    engine = Engine(models)
    for prompt, expected in zip(prompts(), plain, strict=True):
        assert engine.generate(decoder, prompt, LENGTH, CertainRng()).token_ids == expected, name
    return RIGHT


def _sampled(models: Any) -> None:
    """SpecExec draws what plain decoding draws with the same seed."""
    for number, prompt in enumerate(prompts()):
        plain, tree = (
            Engine(models).generate(decoder, prompt, LENGTH, rng_for(0.8, 0, str(number))).token_ids
            for decoder in (Baseline(SAMPLED), SAMPLED_TREE)
        )
        assert tree == plain, "sampled tree"


def _together(models: Any, plain: Sequence[list[int]], trees: bool) -> str:
    decoders: list[Decoder] = [CHAIN, LOOKUP, Baseline(GREEDY), *([TREE] if trees else [])]
    requests = [Request(decoder, prompt, LENGTH, CertainRng()) for decoder in decoders for prompt in prompts()]
    outs = dict(Engine(models, max_batch_size=3).generate_all(requests))
    for number in range(len(requests)):
        assert outs[number].token_ids == plain[number % len(plain)], "batch"
    return RIGHT


def _recorded(module: Any, draft: Any, plain: Sequence[list[int]], trees: bool) -> str:
    """With a stand-in for CUDA graphs, which freezes host values and refuses to read any."""
    cuda_graphs.LEAST_BUCKET, before = 16, cuda_graphs.LEAST_BUCKET
    try:
        models: Any = {role: HFModel(m, role, graphs=Tape()) for role, m in (("target", module), ("draft", draft))}
        for decoder in (CHAIN, *([TREE] if trees else [])):
            _alone(models, decoder, plain, "recorded")
    finally:
        cuda_graphs.LEAST_BUCKET = before
    return RIGHT


def documented() -> dict[str, Row]:
    """The rows of docs/models.md, by model type."""
    rows: dict[str, Row] = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 1 + len(HEADINGS):
            for kind in re.findall(r"`([^`]+)`", cells[0]):
                assert kind not in rows, f"{kind} has two rows"
                rows[kind] = Row(*cells[1:])
    return rows


def table(rows: dict[str, Row]) -> str:
    """Families with the same outcome share a line; those of the native forward come first."""
    groups: dict[Row, list[str]] = {}
    for kind in sorted(rows):
        groups.setdefault(rows[kind], []).append(kind)
    order = {"native": 0, "transformers": 1, "recurrent": 2, "whole": 3, NONE: 4}
    lines = [f"| model types | {' | '.join(HEADINGS)} |", "|---" * (len(HEADINGS) + 1) + "|"]
    for each in sorted(groups, key=lambda r: (order[r.forward], -len(groups[r]), groups[r])):
        names = ", ".join(f"`{kind}`" for kind in groups[each])
        lines.append(f"| {names} | {' | '.join(astuple(each))} |")
    return "\n".join(lines)


def main(kinds: Sequence[str]) -> int:
    """Write the table of these families, or of all, into docs/models.md. Families that fail are printed, and stay."""
    warnings.simplefilter("ignore")
    rows, failed = documented(), 0
    for number, kind in enumerate(kinds or sorted(FAMILIES), 1):
        try:
            rows[kind] = row(kind)
            print(f"{number:4d} {kind:28s} {astuple(rows[kind])}", flush=True)
        except Exception as error:  # a family may fail in any way; the others go on
            failed += 1
            print(f"{number:4d} {kind:28s} FAILED: {type(error).__name__}: {error}", flush=True)
    text = DOCS.read_text()
    start, end = text.index("| model types |"), text.index("\n\n", text.index("| model types |"))
    DOCS.write_text(text[:start] + table(rows) + text[end:])
    return failed


assert len(fields(Row)) == len(HEADINGS)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

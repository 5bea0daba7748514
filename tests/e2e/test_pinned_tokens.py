"""The tokens of every method for given seeds, as hashes kept from an earlier version: a change of them is never silent.

`python tests/e2e/test_pinned_tokens.py` writes the file anew, and refuses prompts on which rounding could decide: there
this project's forward and transformers' have to emit the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import specexp
from helpers.judges import judge_for
from specexp import config
from specexp.api import LoadedPair
from specexp.judge import features
from specexp.lm.hf.hf_model import HFModel
from specexp.tasks.task import Arith

KEPT = Path(__file__).resolve().parents[1] / "data" / "pinned_tokens.json"
EXPERIMENT, JUDGE, NUM_PROMPTS = "arith_quick", "random", 2
METHODS: dict[str, dict[str, Any]] = {
    "baseline": {"methods": "baseline"},
    "draft_only": {"methods": "draft_only"},
    "speculative, gamma 4": {"methods": "speculative", "gamma": 4},
    "speculative, gamma 8, no bonus": {"methods": "speculative", "gamma": 8, "bonus": False},
    "speculative, stops early": {"methods": "speculative", "gamma": 8, "min_draft_probability": 0.4},
    "lookup": {"methods": "lookup", "gamma": 6},
    "autojudge": {"methods": "autojudge", "judge": JUDGE, "gamma": 8},
    "autojudge, threshold 0": {"methods": "autojudge", "judge": JUDGE, "threshold": 0, "gamma": 8},
    "topk": {"methods": "topk", "accept_k": 2, "gamma": 8},
    "specexec, 8 nodes": {"methods": "specexec", "tree_budget": 8, "parallel_branches": 3, "branch_width": 3},
    "specexec, 32 nodes": {"methods": "specexec", "tree_budget": 32},
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "T = 0.7": {"temperature": 0.7, "seed": 5},
    "T = 1, top-p 0.9, top-k 20": {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 6},
}


def pair() -> LoadedPair:
    loaded = specexp.load(EXPERIMENT, max_new_tokens=64)
    loaded._known[JUDGE] = judge_for(EXPERIMENT, features.mode("both"))
    return loaded


def digest(loaded: LoadedPair, method: str, sampling: str) -> str:
    """Sixteen hex digits of the token ids of all prompts."""
    asked = config.adjusted(loaded.experiment, {**METHODS[method], **SAMPLING[sampling]})
    outputs = [loaded.decode(e.turns[0], asked, e.prompt_id).token_ids for e in Arith("test").examples(NUM_PROMPTS)]
    assert all(len(ids) > 20 for ids in outputs)
    return hashlib.sha256(json.dumps(outputs).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def loaded() -> LoadedPair:
    return pair()


@pytest.mark.at_most(fast=14)
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_emits_the_tokens_of_earlier_versions(loaded: LoadedPair, method: str, sampling: str) -> None:
    assert digest(loaded, method, sampling) == json.loads(KEPT.read_text())[method][sampling]


def test_methods_tell_apart() -> None:
    """A list of hashes that are all the same would hold nothing together."""
    kept = json.loads(KEPT.read_text())
    for sampling in SAMPLING:
        hashes = {method: kept[method][sampling] for method in METHODS}
        assert len(set(hashes.values())) >= 4, sampling
        assert hashes["specexec, 8 nodes"] == hashes["specexec, 32 nodes"] == hashes["baseline"]
    assert kept["speculative, gamma 4"]["greedy"] == kept["baseline"]["greedy"]


def write() -> None:
    own = pair()
    reference = pair()
    for role, model in reference._pair.models.items():
        reference._pair.models[role] = HFModel(model.module, role, model.num_valid_ids, forward="transformers")
    reference._engine = reference.engine()
    kept: dict[str, dict[str, str]] = {}
    for method in METHODS:
        for sampling in SAMPLING:
            digests = {digest(each, method, sampling) for each in (own, reference)}
            assert len(digests) == 1, f"rounding decides for {method}, {sampling}: choose other prompts"
            kept.setdefault(method, {})[sampling] = digests.pop()
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    write()

"""TensorRT-LLM: `trtllm-serve MODEL --config FILE`, where the YAML file has `speculative_config`.

The keys are those of docs/source/features/speculative-decoding.md at commit 04c8822cc42f of the main branch
(nvidia.github.io/TensorRT-LLM/features/speculative-decoding.html). `decoding_type` names the class whose fields follow:
DraftTarget, Eagle3, NGram, MTP, DFlash or SA. The page turns the overlap scheduler off for DraftTarget and NGram. Its
dynamic trees are for EAGLE-3 heads. The API reference of 1.4.0rc4 has `use_rejection_sampling` and
`allow_advanced_sampling`, both false by default.
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from specexp.engine_settings import abilities
from specexp.engine_settings.abilities import HEADS_AND_MODEL, Abilities
from specexp.engine_settings.engine_arguments import EngineArguments, options
from specexp.engine_settings.recommendation import LOOKUP, MODEL, PLAIN, SUFFIX, Recommendation, place_of
from specexp.lm.runtime import DFLASH, EAGLE3, MTP

NAME = "TensorRT-LLM"
CHECKED = "main at 04c8822cc42f"
PAGE = "https://nvidia.github.io/TensorRT-LLM/features/speculative-decoding.html"
FILE = "speculative.yaml"  # the name of the YAML file in the command
ABILITIES = Abilities(NAME, HEADS_AND_MODEL | {LOOKUP, SUFFIX}, trees=frozenset({EAGLE3}))
_TYPES = {MODEL: "DraftTarget", EAGLE3: "Eagle3", MTP: "MTP", DFLASH: "DFlash", LOOKUP: "NGram", SUFFIX: "SA"}


def arguments(recommended: Recommendation) -> EngineArguments:
    if refused := abilities.refusal(recommended, ABILITIES):
        return EngineArguments(NAME, CHECKED, PAGE, refusal=refused)
    settings = _settings(recommended)
    target = recommended.target
    place, _ = place_of(target)
    server: dict[str, Any] = {"--tokenizer": target.tokenizer} if target.tokenizer else {}
    server |= {"--trust_remote_code": True} if target.trust_remote_code else {}
    content = {"dtype": target.dtype, **settings}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    serve = shlex.join(["trtllm-serve", place, "--config", FILE, *options(server)])
    command = f"cat > {FILE} <<'END'\n{text}END\n{serve}"
    return EngineArguments(
        NAME, CHECKED, PAGE, command, settings, _request(recommended), tuple(_differences(recommended))
    )


def _settings(recommended: Recommendation) -> dict[str, Any]:
    """The YAML about drafts; empty for plain decoding."""
    method, drafter = recommended.method, recommended.drafter
    if drafter == PLAIN:
        return {}
    result: dict[str, Any] = {"decoding_type": _TYPES[drafter], "max_draft_len": recommended.gamma}
    if recommended.draft is not None and drafter != MTP:
        result["speculative_model"], _ = place_of(recommended.draft)
    if drafter == LOOKUP:
        result |= {"max_matching_ngram_size": method.max_ngram, "is_public_pool": False}
    if method.tree is not None:
        branches, depth = method.tree.parallel_branches, method.tree.max_depth
        budget = min(max(method.tree.tree_budget, depth), branches * depth)
        result |= {"use_dynamic_tree": True, "dynamic_tree_max_topK": branches, "max_total_draft_tokens": budget}
    scheduler = {"disable_overlap_scheduler": True} if drafter in (MODEL, LOOKUP) else {}
    return {**scheduler, "speculative_config": result}


def _request(recommended: Recommendation) -> dict[str, Any]:
    return {
        "temperature": recommended.temperature, "top_k": recommended.top_k, "top_p": recommended.top_p,
        "seed": recommended.seed, "max_tokens": recommended.max_new_tokens,
    }  # fmt: skip


def _differences(recommended: Recommendation) -> list[str]:
    result, method = list(abilities.differences(recommended, ABILITIES)), recommended.method
    models = filter(None, (recommended.target, recommended.draft))
    for place, revision in dict.fromkeys(place_of(model) for model in models):
        if revision:
            result.append(f"It takes no revision here: download {place} at {revision} and name the folder.")
    if method.tree is not None:
        result.append(
            "Its dynamic trees have at most dynamic_tree_max_topK x max_draft_len tokens, and are not SpecExec's."
        )
    if recommended.drafter == SUFFIX:
        result.append("Its suffix automaton drafts what followed the longest match, however likely that is.")
    if recommended.drafter == MTP:
        result.append("Its page says that MTP is for DeepSeek models.")
    if recommended.temperature and recommended.drafter != PLAIN:
        result.append(
            "An older page (commit 35dac55716a6) says that drafts are verified greedily alone; allow_advanced_sampling"
            " and use_rejection_sampling are false by default and not set here: examine it before you sample."
        )
    return result

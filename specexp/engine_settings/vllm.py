"""vLLM: `vllm serve --speculative-config JSON`.

The keys are the fields of `SpeculativeConfig` in vllm/config/speculative.py at commit 002e77c1f0ef of the main branch;
docs.vllm.ai/en/latest/features/speculative_decoding shows the form. Drafts are greedy unless `draft_sample_method` is
probabilistic. `prompt_lookup_min` must be given: it defaults to `prompt_lookup_max`. `rejection_sample_method: block`
is block verification (Sun et al.), and `use_heterogeneous_vocab` drafts over the common tokens, greedily. FLy is
`rejection_sample_method: fly` in docs/features/speculative_decoding/fly.md at commit 230dd2641566.
`--generation-config vllm` keeps a model's generation_config.json from changing the sampling of requests.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from specexp.engine_settings import abilities
from specexp.engine_settings.abilities import HEADS_AND_MODEL, Abilities
from specexp.engine_settings.engine_arguments import EngineArguments, options
from specexp.engine_settings.recommendation import LOOKUP, MODEL, PLAIN, SUFFIX, Recommendation, place_of
from specexp.lm.runtime import DFLASH, EAGLE3, INTERSECTION, MTP, SAME

NAME = "vLLM"
CHECKED = "main at 002e77c1f0ef"
PAGE = "https://docs.vllm.ai/en/latest/api/vllm/config/speculative.html"
DEEPEST_MATCH = 64  # tokens that our suffix decoding matches at most
ABILITIES = Abilities(
    NAME,
    HEADS_AND_MODEL | {LOOKUP, SUFFIX},
    vocabularies=frozenset({SAME, INTERSECTION}),
    matches_at_least=frozenset({LOOKUP}),
    block=True,
    rules={
        "fly": "it has FLy of its own (rejection_sample_method fly), whose entropy is of the likeliest tokens alone."
    },
)
_METHODS = {MODEL: "draft_model", EAGLE3: "eagle3", MTP: "mtp", DFLASH: "dflash", LOOKUP: "ngram", SUFFIX: "suffix"}


def arguments(recommended: Recommendation) -> EngineArguments:
    if refused := abilities.refusal(recommended, ABILITIES):
        return EngineArguments(NAME, CHECKED, PAGE, refusal=refused)
    settings = _settings(recommended)
    target = recommended.target
    place, revision = place_of(target)
    server: dict[str, Any] = {"--dtype": target.dtype, "--generation-config": "vllm"}
    server |= {"--revision": revision} if revision else {}
    server |= {"--tokenizer": target.tokenizer} if target.tokenizer else {}
    server |= {"--trust-remote-code": True} if target.trust_remote_code else {}
    server |= {"--speculative-config": json.dumps(settings)} if settings else {}
    return EngineArguments(
        NAME, CHECKED, PAGE, shlex.join(["vllm", "serve", place, *options(server)]), settings, _request(recommended),
        tuple(_differences(recommended)),
    )  # fmt: skip


def _settings(recommended: Recommendation) -> dict[str, Any]:
    """The JSON of --speculative-config; empty for plain decoding."""
    method, drafter = recommended.method, recommended.drafter
    if drafter == PLAIN:
        return {}
    result: dict[str, Any] = {"method": _METHODS[drafter]}
    if recommended.draft is not None and drafter != MTP:
        result["model"], revision = place_of(recommended.draft)
        result |= {"revision": revision} if revision else {}
    result["num_speculative_tokens"] = recommended.gamma
    if drafter == LOOKUP:
        result |= {"prompt_lookup_max": method.max_ngram, "prompt_lookup_min": min(method.min_match, method.max_ngram)}
    if drafter == SUFFIX:
        result |= {
            "suffix_decoding_max_tree_depth": DEEPEST_MATCH + recommended.gamma,
            "suffix_decoding_max_spec_factor": method.suffix_factor,
            "suffix_decoding_min_token_prob": method.suffix_min_probability,
        }
        result |= {"suffix_decoding_max_cached_requests": 0} if method.suffix_memory == "prompt" else {}
    if recommended.vocabulary == INTERSECTION:
        result["use_heterogeneous_vocab"] = True
    elif recommended.samples_drafts:
        result["draft_sample_method"] = "probabilistic"
    if method.rule == "block" and recommended.temperature:
        result["rejection_sample_method"] = "block"
    return result


def _request(recommended: Recommendation) -> dict[str, Any]:
    return {
        "temperature": recommended.temperature, "top_k": recommended.top_k, "top_p": recommended.top_p,
        "seed": recommended.seed, "max_tokens": recommended.max_new_tokens,
    }  # fmt: skip


def _differences(recommended: Recommendation) -> list[str]:
    result = list(abilities.differences(recommended, ABILITIES))
    if recommended.vocabulary == INTERSECTION and recommended.samples_drafts:
        result.append("Over the common tokens it drafts the likeliest ones, and samples no drafts.")
    if recommended.drafter == SUFFIX:
        result.append("Suffix decoding needs the package arctic-inference.")
    return result

"""SGLang: `python -m sglang.launch_server --speculative-algorithm ...`.

The options are those of docs_new/docs/advanced_features/speculative_decoding.mdx at commit 16974b80f378 of the main
branch (docs.sglang.io/docs/advanced_features/speculative_decoding), and of adaptive_speculative_decoding.md. STANDALONE
is a draft model, EAGLE without a draft path the target's MTP layers. `--speculative-num-draft-tokens` counts the last
committed token, too: with one branch it is the number of steps + 1. More than one branch is an error while the overlap
scheduler is on. `--speculative-adaptive` moves the number of steps for EAGLE with one branch alone. SUFFIX has a page
(suffix_decoding.md, commit 20725048c558) and is not among the algorithms of the reference.
"""

from __future__ import annotations

import shlex
from typing import Any

from specexp.engine_settings import abilities
from specexp.engine_settings.abilities import HEADS_AND_MODEL, Abilities
from specexp.engine_settings.engine_arguments import EngineArguments, options
from specexp.engine_settings.recommendation import LOOKUP, MODEL, PLAIN, Recommendation, place_of
from specexp.lm.runtime import DFLASH, EAGLE3, MTP

NAME = "SGLang"
CHECKED = "main at 16974b80f378"
PAGE = "https://docs.sglang.io/docs/advanced_features/speculative_decoding"
ABILITIES = Abilities(
    NAME, HEADS_AND_MODEL | {LOOKUP}, trees=frozenset({MODEL, EAGLE3}), adapts=frozenset({MTP})
)  # fmt: skip
TIERS = (1, 3, 7)  # numbers of steps between which --speculative-adaptive moves by default
_ALGORITHMS = {MODEL: "STANDALONE", EAGLE3: "EAGLE3", MTP: "EAGLE", DFLASH: "DFLASH", LOOKUP: "NGRAM"}


def arguments(recommended: Recommendation) -> EngineArguments:
    if refused := abilities.refusal(recommended, ABILITIES):
        return EngineArguments(NAME, CHECKED, PAGE, refusal=refused)
    settings = _settings(recommended)
    target = recommended.target
    place, revision = place_of(target)
    server: dict[str, Any] = {"--model-path": place, "--dtype": target.dtype, "--sampling-defaults": "openai"}
    server |= {"--revision": revision} if revision else {}
    server |= {"--tokenizer-path": target.tokenizer} if target.tokenizer else {}
    server |= {"--trust-remote-code": True} if target.trust_remote_code else {}
    command = shlex.join(["python", "-m", "sglang.launch_server", *options(server | settings)])
    return EngineArguments(
        NAME, CHECKED, PAGE, command, settings, _request(recommended), tuple(_differences(recommended))
    )


def _settings(recommended: Recommendation) -> dict[str, Any]:
    """The options about drafts; empty for plain decoding."""
    method, drafter, gamma = recommended.method, recommended.drafter, recommended.gamma
    if drafter == PLAIN:
        return {}
    result: dict[str, Any] = {"--speculative-algorithm": _ALGORITHMS[drafter]}
    if recommended.draft is not None and drafter != MTP:
        result["--speculative-draft-model-path"], revision = place_of(recommended.draft)
        result |= {"--speculative-draft-model-revision": revision} if revision else {}
    if drafter == LOOKUP:
        return result | {
            "--speculative-num-draft-tokens": gamma + 1,
            "--speculative-ngram-max-bfs-breadth": 1,
            "--speculative-ngram-max-trie-depth": method.max_ngram + gamma,
        }
    if drafter == DFLASH:
        return result | {"--speculative-num-draft-tokens": gamma + 1}
    if method.tree is not None:
        branches = method.tree.parallel_branches
        most = branches + (gamma - 1) * branches**2  # nodes that so many steps can make
        return result | {
            "--speculative-num-steps": gamma, "--speculative-eagle-topk": branches,
            "--speculative-num-draft-tokens": min(method.tree.tree_budget, most) + 1,
            **({"--disable-overlap-schedule": True} if branches > 1 else {}),
        }  # fmt: skip
    adapts = method.auto_gamma and drafter in ABILITIES.adapts
    steps = gamma or min(TIERS[1], method.gamma)
    return result | {
        "--speculative-num-steps": steps, "--speculative-eagle-topk": 1,
        "--speculative-num-draft-tokens": steps + 1, **({"--speculative-adaptive": True} if adapts else {}),
    }  # fmt: skip


def _request(recommended: Recommendation) -> dict[str, Any]:
    return {
        "temperature": recommended.temperature, "top_k": recommended.top_k or -1, "top_p": recommended.top_p,
        "seed": recommended.seed, "max_tokens": recommended.max_new_tokens,
    }  # fmt: skip


def _differences(recommended: Recommendation) -> list[str]:
    result, method = list(abilities.differences(recommended, ABILITIES)), recommended.method
    if method.tree is not None:
        result.append(
            f"Its trees are EAGLE-2's: {method.tree.parallel_branches} branches a node, reranked, which are other trees"
            " than SpecExec's of this budget."
        )
    if method.auto_gamma and recommended.drafter in ABILITIES.adapts:
        tiers = ", ".join(map(str, TIERS))
        result.append(f"It moves the length of drafts between {tiers} by the lengths that a batch accepted.")
    if recommended.drafter == LOOKUP:
        result.append(
            f"Matches may be longer than {method.max_ngram} tokens, and its cache also has what other requests put out."
        )
    if recommended.samples_drafts:
        result.append(
            "At this temperature it drafts the likeliest tokens and keeps those that the target draws itself, unless"
            " --speculative-use-rejection-sampling is given, which its page describes for DSPARK."
        )
    return result

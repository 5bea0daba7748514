"""llama.cpp: `llama-server --spec-type ...`.

The options are those of tools/server/README.md at commit 00dc8057ab28 of the main branch; docs/speculative.md has the
types. `--draft-max`, `--draft-min` and the `--spec-ngram-size-*` of older versions are removed there, and without
`--spec-type` a draft model is loaded and not used. Types are a list: proposers without a model go before a draft.
`--spec-draft-sampling probabilistic` samples drafts and verifies them by rejection sampling; greedy is the default. All
models are GGUF files; an EAGLE-3 head is converted with `--target-model-dir`.

A request that leaves out top_k, top_p and min_p gets the server's own (40, 0.95, 0.05), so each is given.
"""

from __future__ import annotations

import shlex
from typing import Any

from specexp.engine_settings import abilities
from specexp.engine_settings.abilities import HEADS_AND_MODEL, Abilities
from specexp.engine_settings.engine_arguments import EngineArguments, options
from specexp.engine_settings.recommendation import LOOKUP, MODEL, PLAIN, Recommendation, place_of
from specexp.lm.hf.source import GGUF
from specexp.lm.runtime import DFLASH, EAGLE3, MTP, ModelConfig

NAME = "llama.cpp"
CHECKED = "main at 00dc8057ab28"
PAGE = "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"
ABILITIES = Abilities(
    NAME, HEADS_AND_MODEL | {LOOKUP}, stops_early=frozenset({MODEL, EAGLE3, MTP}), before_draft=frozenset({LOOKUP}),
    matches_at_least=frozenset({LOOKUP}),
)  # fmt: skip
_TYPES = {MODEL: "draft-simple", EAGLE3: "draft-eagle3", MTP: "draft-mtp", DFLASH: "draft-dflash"}
_NGRAM = "ngram-simple"
_OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def arguments(recommended: Recommendation) -> EngineArguments:
    if refused := abilities.refusal(recommended, ABILITIES):
        return EngineArguments(NAME, CHECKED, PAGE, refusal=refused)
    settings = _settings(recommended)
    command = shlex.join(["llama-server", "--model", _file(recommended.target, "target"), *options(settings)])
    return EngineArguments(
        NAME, CHECKED, PAGE, command, settings, _request(recommended), tuple(_differences(recommended))
    )


def _settings(recommended: Recommendation) -> dict[str, Any]:
    """The options about drafts; empty for plain decoding."""
    method, drafter = recommended.method, recommended.drafter
    if drafter == PLAIN:
        return {}
    looks_up = drafter == LOOKUP or LOOKUP in recommended.others
    types = [_NGRAM] * looks_up + [name for kind, name in _TYPES.items() if kind == drafter]
    result: dict[str, Any] = {"--spec-type": ",".join(types)}
    if looks_up:
        result |= {
            "--spec-ngram-simple-size-n": method.max_ngram, "--spec-ngram-simple-size-m": recommended.gamma
        }  # fmt: skip
    if drafter not in _TYPES:
        return result
    if drafter != MTP and recommended.draft is not None:
        result["--spec-draft-model"] = _file(recommended.draft, "draft")
    result["--spec-draft-n-max"] = recommended.gamma
    if method.min_draft_probability and drafter in ABILITIES.stops_early:
        result["--spec-draft-p-min"] = float(method.min_draft_probability)
    if recommended.samples_drafts:
        result["--spec-draft-sampling"] = "probabilistic"
    return result


def _file(model: ModelConfig, name: str) -> str:
    """The GGUF file of a model: its own, or the one that it must be converted to."""
    place, _ = place_of(model)
    return place if place.endswith(GGUF) else f"{name}{GGUF}"


def _request(recommended: Recommendation) -> dict[str, Any]:
    return {
        "temperature": recommended.temperature, "top_k": recommended.top_k, "top_p": recommended.top_p, "min_p": 0.0,
        "seed": recommended.seed, "max_tokens": recommended.max_new_tokens,
    }  # fmt: skip


def _differences(recommended: Recommendation) -> list[str]:
    result = list(abilities.differences(recommended, ABILITIES))
    for role, model in (("target", recommended.target), ("draft", recommended.draft)):
        if model is None or (role == "draft" and recommended.drafter == MTP):
            continue
        place, revision = place_of(model)
        if not place.endswith(GGUF):
            named = f"{place} (revision {revision})" if revision else place
            head = " --target-model-dir" if role == "draft" and recommended.drafter == EAGLE3 else ""
            out = _OUTTYPES[model.dtype]
            result.append(f"{role}{GGUF} is {named} by convert_hf_to_gguf.py --outtype {out}{head}.")
    if recommended.drafter == LOOKUP or LOOKUP in recommended.others:
        result.append(f"It looks up exactly {recommended.method.max_ngram} tokens, never fewer.")
    return result

"""transformers: `generate(assistant_model=...)`, as Python.

Compared with transformers 5.23 (`GenerationConfig`, `_get_candidate_generator` in generation/utils.py and
generation/candidate_generator.py; huggingface.co/docs/transformers/assisted_decoding). `num_assistant_tokens`,
its schedule and `assistant_confidence_threshold` (0.4 unless set) are read from the assistant's generation config, not
from the call. With tokenizers of both models a sampled draft is over the common tokens and a greedy one goes by its
text. `assistant_early_exit` runs the first layers of a target that was trained for it. MTP layers and a DFlash block
draft as many tokens as the checkpoint has. `top_k` is 50 unless a call says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from specexp.engine_settings import abilities
from specexp.engine_settings.abilities import Abilities
from specexp.engine_settings.engine_arguments import EngineArguments
from specexp.engine_settings.recommendation import LAYERS, LOOKUP, MODEL, PLAIN, Recommendation, place_of
from specexp.lm.runtime import DFLASH, INTERSECTION, MTP, SAME, TEXT, ModelConfig

NAME = "transformers"
CHECKED = "5.23.0"
PAGE = "https://huggingface.co/docs/transformers/assisted_decoding"
ABILITIES = Abilities(
    NAME, frozenset({MODEL, LAYERS, MTP, DFLASH, LOOKUP}), vocabularies=frozenset({SAME, INTERSECTION, TEXT}),
    adapts=frozenset({MODEL, LAYERS}), stops_early=frozenset({MODEL, LAYERS}),
    fixed_lengths=frozenset({MTP, DFLASH}),
)  # fmt: skip
FIRST_LENGTH = 5  # of a draft that adapts, where no fixed length was predicted
_FIRST_LAYERS = re.compile(r"0(?:-(\d+))?")


def arguments(recommended: Recommendation) -> EngineArguments:
    refused = abilities.refusal(recommended, ABILITIES)
    if not refused and recommended.drafter == LAYERS and _first_layers(recommended) is None:
        refused = f"{NAME} leaves the target early, but {_layers(recommended)} are not its first layers."
    if refused:
        return EngineArguments(NAME, CHECKED, PAGE, refusal=refused)
    settings = {"assistant": _assistant(recommended), "generate": _generate(recommended)}
    request = _request(recommended)
    return EngineArguments(
        NAME, CHECKED, PAGE, _python(recommended, settings, request), settings, request,
        tuple(_differences(recommended)),
    )  # fmt: skip


def _layers(recommended: Recommendation) -> str:
    return recommended.draft.layers if recommended.draft is not None else ""


def _first_layers(recommended: Recommendation) -> int | None:
    """How many layers, from the first on, a draft of the target's layers has; None if it skips some."""
    match = _FIRST_LAYERS.fullmatch(_layers(recommended).replace(" ", ""))
    return None if match is None else int(match[1] or 0) + 1


def _assistant(recommended: Recommendation) -> dict[str, Any]:
    """What is set in the assistant's generation config; empty where no model drafts."""
    method = recommended.method
    if recommended.drafter not in (MODEL, LAYERS):
        return {}
    return {
        "num_assistant_tokens": recommended.gamma or min(FIRST_LENGTH, method.gamma),
        "num_assistant_tokens_schedule": "heuristic_transient" if method.auto_gamma else "constant",
        "assistant_confidence_threshold": float(method.min_draft_probability),
    }


def _generate(recommended: Recommendation) -> dict[str, Any]:
    """Arguments of `generate` about drafts, besides models and tokenizers."""
    if recommended.drafter == LOOKUP:
        return {
            "prompt_lookup_num_tokens": recommended.gamma, "max_matching_ngram_size": recommended.method.max_ngram
        }  # fmt: skip
    if recommended.drafter == LAYERS:
        return {"assistant_early_exit": _first_layers(recommended)}
    heads: dict[str, dict[str, Any]] = {MTP: {"use_mtp": True}, DFLASH: {"speculation_type": "dflash"}}
    return heads.get(recommended.drafter, {})


def _request(recommended: Recommendation) -> dict[str, Any]:
    """Arguments of `generate` about sampling. Its seed is torch's: `torch.manual_seed`."""
    length = {"max_new_tokens": recommended.max_new_tokens}
    if not recommended.temperature:
        return {"do_sample": False, **length}
    return {
        "do_sample": True, "temperature": recommended.temperature, "top_k": recommended.top_k,
        "top_p": recommended.top_p, **length,
    }  # fmt: skip


def _python(recommended: Recommendation, settings: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """The call in Python; `inputs` are a prompt's."""
    lines = [f"target = AutoModelForCausalLM.from_pretrained({_loading(recommended.target)})"]
    call = dict(settings["generate"])
    text = [f"{name}={value!r}" for name, value in {**call, **request}.items()]
    drafting = "target"
    if recommended.draft is not None and recommended.drafter in (MODEL, DFLASH):
        drafting = "assistant"
        kind = "AutoModelForCausalLM" if recommended.drafter == MODEL else "AutoModel"
        lines.append(f"assistant = {kind}.from_pretrained({_loading(recommended.draft)})")
        text.insert(0, "assistant_model=assistant")
    if recommended.vocabulary != SAME:
        text[1:1] = ["tokenizer=tokenizer", "assistant_tokenizer=assistant_tokenizer"]
    if settings["assistant"]:
        given = ", ".join(f"{name}={value!r}" for name, value in settings["assistant"].items())
        lines.append(f"{drafting}.generation_config.update({given})")
    return "\n".join([*lines, f"target.generate(**inputs, {', '.join(text)})"])


def _loading(model: ModelConfig) -> str:
    place, revision = place_of(model)
    revised = f", revision={revision!r}" if revision else ""
    return f"{place!r}{revised}, dtype={model.dtype!r}"


def _differences(recommended: Recommendation) -> list[str]:
    result, method = list(abilities.differences(recommended, ABILITIES)), recommended.method
    if recommended.drafter == PLAIN:
        return result
    result.append("It drafts for one prompt at a time, not for a batch.")
    if method.auto_gamma and recommended.drafter in ABILITIES.adapts:
        result.append(
            "Its schedule drafts two tokens more after a draft that was accepted whole and one fewer after others,"
            " without regard to what calls cost and without a greatest length."
        )
    if method.min_draft_probability and recommended.drafter in ABILITIES.stops_early:
        result.append("Where scikit-learn is installed it moves the probability that ends a draft along the way.")
    if recommended.vocabulary != SAME:
        its = INTERSECTION if recommended.temperature else TEXT
        if its != recommended.vocabulary:
            how = "over the common tokens" if its == INTERSECTION else "by its text"
            result.append(f"At this temperature it takes the other tokenizer's draft {how}.")
    if recommended.drafter == DFLASH:
        result.append("It loads drafts of its own layout (Muse Glimmer) alone, not those of z-lab or speculators.")
    if recommended.drafter == LAYERS:
        result.append("Leaving early is for targets trained for it; others are seldom right after a few layers.")
    return result

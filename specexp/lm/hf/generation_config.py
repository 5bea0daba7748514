"""Reads a model folder's generation_config.json, except for the stop tokens: which settings apply here, and which not.

No method and neither model ever emits the ids in `suppress_tokens`: they are a property of the vocabulary. All other
settings that would change tokens depend on the tokens emitted before (penalties, lengths, words); they are not applied,
and a note names them instead. Temperature, top-k and top-p are settings of a run.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from specexp.errors import ModelError

# Settings that make `generate()` emit other tokens, and their values without effect; None has no effect either.
NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": [], "sequence_bias": {},
    "min_length": 0, "min_new_tokens": 0, "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": [], "forced_bos_token_id": None, "forced_eos_token_id": None,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0,
    "remove_invalid_values": False, "watermarking_config": None, "token_healing": False, "stop_strings": [],
    "num_beams": 1, "max_time": None, "penalty_alpha": 0.0, "dola_layers": None, "constraints": None,
    "force_words_ids": None, "diversity_penalty": 0.0, "assistant_ensemble_weight": None,
}  # fmt: skip
# Further settings, which matter only if `do_sample` is set.
SAMPLING: dict[str, Any] = {
    "min_p": 0.0, "typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip


def read(path: str, config: Any, revision: str = "") -> GenerationConfig:
    """Load the generation config of a folder or hub id as transformers does: from its file, or from an older config."""
    try:
        return GenerationConfig.from_pretrained(path, **({"revision": revision} if revision else {}))
    except OSError:  # there is none
        return GenerationConfig.from_model_config(config)


def stop_ids(config: GenerationConfig, of_model: Any) -> tuple[int, ...]:
    """The ids at which a model stops: those of its generation_config, else of its config."""
    result = config.eos_token_id
    if result is None:
        result = of_model.get_text_config(decoder=True).eos_token_id
    return () if result is None else tuple(result) if isinstance(result, list | tuple) else (int(result),)


def suppressed(config: GenerationConfig, name: str) -> tuple[int, ...]:
    """The ids in `suppress_tokens`, sorted. Raises ModelError if it is not a list of token ids."""
    ids = getattr(config, "suppress_tokens", None) or []
    if not isinstance(ids, list | tuple) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ModelError(
            f"model '{name}' has suppress_tokens {ids!r:.60} in its generation_config; it must be a list of token ids:"
            " correct or remove it."
        )
    return tuple(sorted(set(ids)))


def not_applied(config: GenerationConfig) -> dict[str, Any]:
    """Settings that `generate()` would apply and that no method here applies."""
    known = {**NEUTRAL, **(SAMPLING if getattr(config, "do_sample", None) else {})}
    values = {name: getattr(config, name, None) for name in known}
    return {name: value for name, value in values.items() if value is not None and value != known[name]}


def note(unused: dict[str, Any], name: str) -> str:
    """One line for users who expect the same tokens as from `generate()`."""
    named = ", ".join(f"{key} {value!r:.40}" for key, value in unused.items())
    return (
        f"the generation_config of model '{name}' sets {named}; no method applies that, nor do plain decoding and"
        " the benchmark's peers: only generate() with the folder's settings does, so it gives other tokens."
    )

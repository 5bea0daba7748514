"""Refuses what a config.json alone tells, before torch, transformers or MLflow are imported, which takes seconds.

Every rule here is applied again when the models are loaded, with the defaults that only their classes know. A config
that cannot be read here (a GGUF file's, a broken one) is left to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from specexp.config import Experiment, MethodConfig
from specexp.config.models import STORED
from specexp.decoding.protocol import Role
from specexp.errors import ConfigError, ModelError
from specexp.lm.blocks.families import FAMILIES
from specexp.lm.configs import model_types, refusals
from specexp.lm.configs.config_check import check_quantization, check_sizes
from specexp.lm.configs.layer_ranges import check_layers
from specexp.lm.configs.refusals import RawConfig
from specexp.lm.heads import eagle3_config
from specexp.lm.hf.source import hub_fault, model_source
from specexp.lm.runtime import CHAIN_HEADS, FASTEST, INVARIANT, ModelConfig
from specexp.method_specs import models_of, spec


def check(experiment: Experiment, roles: Set[Role] = frozenset()) -> None:
    """Raise ModelError or ConfigError if a model cannot, by its config, do what the experiment's methods ask of it.

    The models are those of the methods and of `roles`.
    """
    if experiment.toy is not None:
        return
    specs = [spec(method.method) for method in experiment.methods]
    roles = frozenset(roles).union(*(models_of(method) for method in experiment.methods))
    trees = any(each.grows_tree for each in specs)
    contexts = []
    for role in sorted(roles, reverse=True):
        model = experiment.models[role]
        values = _values(model)
        if values is None:
            continue
        config = RawConfig(values)
        text = config.get_text_config(decoder=True)
        check_sizes(text.values, model.model)
        check_quantization(values.get("quantization_config"), model)
        facts = model_types.facts_of(config)
        if experiment.numerics == INVARIANT:
            _check_invariant(text, values, model.model)
        if model.layers:
            check_layers(model.layers, config, model.model)
        if model.eagle3 and not model.eagle3.startswith(STORED):
            eagle3_config.read_config(model.eagle3, config, model.model)
        if not model.trust_remote_code or "auto_map" not in values:
            refusals.check(config, facts, model.model)
            if trees:
                refusals.check_trees(config, facts, model.model)
        if text.max_position_embeddings is not None:  # the first that is asked for: no default of a class comes before
            contexts.append(refusals.stated_context(text, model.model))
    if contexts:
        check_lengths(experiment.methods, min(contexts))


def _check_invariant(text: RawConfig, values: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if invariant numerics cannot hold for this model (`invariance.require` measures the others)."""
    why = None
    if text.model_type not in FAMILIES:
        why = f"the native forward does not know its family ({text.model_type})"
    elif values.get("quantization_config") is not None:
        why = "its weights are quantized"
    elif text.values.get("enable_moe_block", True) and (text.num_experts_per_tok or text.top_k_experts):
        why = "the products of its experts depend on which tokens are fed together"
    if why is not None:
        raise ModelError(f"numerics is {INVARIANT}, but model '{name}' cannot be: {why}; set numerics to {FASTEST}.")


def longest_chain(experiment: Experiment) -> int | None:
    """The most tokens that the draft can have in a chain, by a config.json; None if it is no head that has a limit, or
    if the config does not tell. Raises ModelError."""
    draft = experiment.draft
    if experiment.toy is not None or draft.head not in CHAIN_HEADS:
        return None
    values = _values(ModelConfig(draft.dflash) if draft.dflash else draft)
    if values is None:
        return None
    if draft.dflash:
        size = values.get("block_size")
        return size - 1 if isinstance(size, int) else None
    text = RawConfig(values).get_text_config(decoder=True)
    layers = text.num_nextn_predict_layers or text.num_mtp_layers
    return layers if isinstance(layers, int) else None


def _values(model: ModelConfig) -> dict[str, Any] | None:
    """The values of a model's config.json; None if it has none, or none that can be read. Raises ModelError."""
    source = model_source(model)
    if source.gguf:
        return None
    file = Path(source.place, "config.json")
    if not Path(source.place).is_dir():
        try:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(source.place, "config.json", revision=model.revision or None))
        except Exception as error:
            if fault := hub_fault(model.model, error):
                raise ModelError(f"{fault}.") from error
            return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def check_lengths(methods: Sequence[MethodConfig], context: int) -> None:
    """Raise ConfigError for drafts that do not fit the smallest context."""
    for method in methods:
        name, length = ("max_depth", method.tree.max_depth) if method.tree else ("gamma", method.gamma)
        if length and context < 2:
            raise ConfigError(f"the models' context is {context}, which holds no draft; name models with a longer one.")
        if length > context // 2:
            raise ConfigError(f"{name} is {length}; with a context of {context} it must be at most {context // 2}.")

"""The models of a pair: its preset's, with the settings that a file or flags give laid over it."""

from __future__ import annotations

from typing import Any

from specexp.config.experiment import ROLES
from specexp.config.models import ON_TARGET, laid_over, model_settings
from specexp.config.parsers import toy_settings
from specexp.config.presets import PRESETS, load_yaml, preset_names
from specexp.errors import unknown
from specexp.lm.runtime import AUTO_VOCABULARY, OWN_TEMPLATE, TOY, ModelConfig, ToyConfig


def models_of_pair(pair: str | None, values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """The models of a pair preset with the settings of models in `values`, which are taken out, laid over it."""
    if pair is None:
        return {}
    if pair not in preset_names("models"):
        faults.append(unknown("pair", pair, preset_names("models")))
        return {}
    result = load_yaml(PRESETS / "models" / f"{pair}.yaml")
    given = {role: values.pop(role) for role in ROLES if role in values}
    toy = values.pop("toy", None)
    template = values.pop("chat_template", None)
    if "toy" in result:
        if given:
            faults.append(
                f"{' and '.join(given)}: pair '{pair}' has no model to replace; leave it out, or name another pair."
            )
        if template == OWN_TEMPLATE:
            faults.append(f"chat_template is {template}, but pair '{pair}' has no template; leave it out.")
        models = {role: ModelConfig(f"{TOY}{role}") for role in ROLES}
        return {"pair": pair, "toy": ToyConfig(**{**toy_settings(result["toy"]), **(toy or {})}), **models}
    if toy is not None:
        faults.append(f"toy is given, but pair '{pair}' is not a toy pair; leave toy out, or set pair to toy.")
    both = {} if template is None else {"chat_template": template}
    settings = {role: laid_over(model_settings(result[role]), given.get(role, {})) for role in ROLES}
    if wrong := [kind for kind in ON_TARGET if kind in settings["target"]]:
        faults.append(f"target: {wrong[0]} is a draft's; name the model of the target, and give it as draft's.")
        return {}
    if on_target := {kind: settings["draft"].pop(kind) for kind in ON_TARGET if kind in settings["draft"]}:
        (kind, *_), others = on_target, [*[*on_target][1:], *settings["draft"]]
        if others:
            faults.append(
                f"draft: {' and '.join(others)} and {kind} are given; a draft on the target has the target's settings:"
                " leave one out."
            )
        moved = settings["target"].get("device") == "auto" or settings["target"].get("offload", "none") != "none"
        if moved and kind == "layers":
            faults.append(
                "draft: layers are given, but the target's are moved between calls (offload, device auto); leave them"
                " out, or load the target on one device."
            )
        settings["draft"] = {**settings["target"], kind: on_target[kind]}
    if settings["draft"].get("tensor_parallel", 1) > 1:
        faults.append(
            "draft: it is made of the target's layers or states, which tensor_parallel shares among processes; leave"
            " tensor_parallel out, or name a draft model."
            if on_target
            else "draft: tensor_parallel is a target's setting; give it as target's."
        )
    if settings["target"].get("vocabulary", AUTO_VOCABULARY) != AUTO_VOCABULARY:
        faults.append("target: vocabulary is a draft's setting; give it as draft's.")
    models = {role: ModelConfig(**{**settings[role], **both}) for role in ROLES}
    faults += [f"{role}: {fault}" for role, model in models.items() for fault in model.faults()]
    return {"pair": pair if not given else f"{models['target'].model}+{models['draft'].shown}", **models}

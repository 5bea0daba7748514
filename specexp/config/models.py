"""The table of a model's settings (the parts of `target` and `draft`), their parser, and the models of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specexp.config.experiment import ROLES
from specexp.config.parsers import layers, mapping, one_of, real, switch, text, toy_settings, whole
from specexp.config.presets import PRESETS, load_yaml, preset_names
from specexp.config.setting import Setting
from specexp.errors import unknown
from specexp.lm.runtime import (
    ATTENTIONS,
    AUTO_VOCABULARY,
    CHAT_TEMPLATES,
    DTYPES,
    FASTEST,
    HEADS,
    INVARIANT,
    MTP,
    NUMERICS,
    OFFLOADS,
    OWN_TEMPLATE,
    QUANTIZATIONS,
    TOY,
    VOCABULARIES,
    ModelConfig,
    ToyConfig,
)

MOST_PROCESSES = 64  # that share a target's layers
ON_TARGET = ("layers", *HEADS)  # settings of drafts that are made of the target's weights or states
STORED = ("models:/", "runs:/")  # prefixes of heads in the tracking store


def only_true(value: Any) -> bool:
    if switch(value) is not True:
        raise ValueError("it can only be true; leave it out, or name another draft.")
    return True


MODEL_SETTINGS: dict[str, Setting] = {
    "model": Setting(
        text, "Name the model: a folder, a hub id, a GGUF file, `zoo:target` or `zoo:draft`.", otherwise="the pair's"
    ),
    "revision": Setting(text, "Name a revision of the model on the hub.", otherwise="the newest"),
    "tokenizer": Setting(
        text, "Take the tokenizer from elsewhere: a folder or a hub id.", otherwise="the model's own"
    ),
    "device": Setting(
        text, "Choose the device: `cpu`, `cuda:0`, ...; with `auto`, accelerate spreads the layers.", "cpu"
    ),
    "dtype": Setting(one_of("dtype", DTYPES), "Choose the dtype of the weights.", "float32"),
    "quantization": Setting(
        one_of("quantization", QUANTIZATIONS), "Choose how bitsandbytes quantizes the weights.", "none"
    ),
    "compute_dtype": Setting(
        one_of("dtype", DTYPES), "Choose the dtype of arithmetic with quantization `nf4` or `fp4`.",
        otherwise="`dtype`",
    ),
    "offload": Setting(
        one_of("offload", OFFLOADS),
        "Keep the layers' weights in CPU memory or on disk: every call copies each layer's weights to `device`.",
        "none",
        more="It excludes quantization and device `auto`. On disk, safetensors files are read in place; weights that"
        " must be rearranged are first written to a folder below TMPDIR, which is deleted when the process ends.",
    ),
    "offload_memory": Setting(
        real(lambda x: 0 <= x < 1e6, ">= 0 and below 1000000, in GiB"),
        "Let so many GiB of an offloaded model's layers stay on `device`; the others come while earlier ones compute.",
        otherwise="what is free there",
        more="On a CPU without it, each layer is copied just before it runs.",
    ),
    "attention": Setting(
        one_of("attention", ATTENTIONS), "Choose how attention is computed.", otherwise="transformers' choice"
    ),
    "chat_template": Setting(
        one_of("chat_template", CHAT_TEMPLATES),
        "Choose the chat template of prompts; the target's applies to both models.", "auto",
        more="`own` is the tokenizer's template. `auto` uses it if the tokenizer has one, except for tasks with"
        " completion prompts, such as `arith`.",
    ),
    "trust_remote_code": Setting(switch, "Let transformers run code that comes with the model.", "false"),
    "tensor_parallel": Setting(
        whole(1, f"from 1 to at most {MOST_PROCESSES}", MOST_PROCESSES),
        "Set how many processes share the layers of `target`, each with a part of every weight.", "1",
        more="For `target` alone, on `cpu` or `cuda`; transformers shards the weights."
        " [Tensor parallelism](tensor_parallel.md) has the details.",
    ),
    "vocabulary": Setting(
        one_of("vocabulary", VOCABULARIES),
        "Choose how a draft's tokens become the target's.", "auto",
        more="For `draft` alone: `same` (both have the same tokenizer), `intersection` (tokens that both have), `text`"
        " (the draft writes text). `auto` is `same` where that holds, else what a short trial finds better."
        " [Drafts](methods.md#drafts) has the details.",
    ),
    "layers": Setting(
        layers, "Make the draft of these layers of the target, in place of a model of its own: `0-9`, `0-28:4`.",
        otherwise="none",
        more="For `draft` alone, without any other setting; as an option, `layers:0-9`. [Drafts](methods.md#drafts)"
        " has the details.",
    ),
    "eagle3": Setting(
        text, "Draft with this EAGLE-3 head of the target: a folder, a hub id (ID@REVISION), or models:/NAME@ALIAS.",
        otherwise="none",
        more="For `draft` alone, without any other setting; as an option, `eagle3:PATH` or `models:/drafter@champion`."
        " [Drafts](methods.md#drafts) has the details.",
    ),
    "mtp": Setting(
        only_true, "Draft with the target's own MTP layers: `true`.", "false",
        more="For `draft` alone, without any other setting; as an option, `mtp`. [Drafts](methods.md#drafts) has the"
        " details.",
    ),
    "dflash": Setting(
        text, "Draft with this DFlash assistant of the target: a folder or a hub id (ID@REVISION).", otherwise="none",
        more="For `draft` alone, without any other setting; as an option, `dflash:PATH`. [Drafts](methods.md#drafts)"
        " has the details.",
    ),
}  # fmt: skip

NUMERIC: dict[str, Setting] = {
    "numerics": Setting(
        one_of("numerics", NUMERICS),
        "Choose whether a token's logits are the same bits whatever is fed with it: invariant or fastest.", FASTEST,
        more="For models on the native forward. [Invariant numerics](gpu.md#invariant-numerics) has the details.",
        commands=("evaluate", "certify", "generate"),
    ),
}  # fmt: skip


def model_settings(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.startswith(STORED):
        return {HEADS[0]: value}
    if value == MTP:
        return {MTP: True}
    if isinstance(value, str) and (kind := next((each for each in ON_TARGET if value.startswith(f"{each}:")), "")):
        return {kind: MODEL_SETTINGS[kind].parse(value.removeprefix(f"{kind}:"))}
    if isinstance(value, str) and value:
        return {"model": text(value)}
    if not isinstance(value, dict):
        raise ValueError("it must be a folder, a hub id, or a mapping with 'model'.")
    return mapping("model", value, {name: setting.parse for name, setting in MODEL_SETTINGS.items()})


def laid_over(preset: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A preset's settings of a model with `given` ones on top; another model drops its revision and tokenizer.

    A draft on the target, and one with a model of its own, replace each other.
    """
    on_target = [set(ON_TARGET) & settings.keys() for settings in (given, preset)]
    if on_target[0] or (on_target[1] and "model" in given):
        return given
    if given.get("model", preset.get("model")) != preset.get("model"):
        preset = {key: value for key, value in preset.items() if key not in ("revision", "tokenizer")}
    return {**preset, **given}


def numerics_faults(numerics: str, models: Mapping[str, Any]) -> list[str]:
    """Why invariant numerics cannot hold for these models of `models_of_pair`, as far as their settings tell."""
    if numerics != INVARIANT or "target" not in models:
        return []
    way_out = f"or numerics to {FASTEST}."
    if models.get("toy") is not None:
        return [f"numerics is {INVARIANT}, but the toy pair has no weights; set pair to another, {way_out}"]
    result = []
    for role in ROLES:
        model = models[role]
        if model.on_target:
            if model.head:
                result.append(
                    f"numerics is {INVARIANT}, but the draft, {model.shown}, is a head, which is not computed"
                    f" invariantly; name a draft model, or set numerics to {FASTEST}."
                )
            continue  # its other settings are the target's
        moved = {
            "offload": (model.offload, "none"), "quantization": (model.quantization, "none"),
            "tensor_parallel": (model.tensor_parallel, 1),
        }  # fmt: skip
        result += [
            f"numerics is {INVARIANT}, but {role}'s {name} is {value}: only the native forward is invariant, on"
            f" weights that stay on one device as they are; set {name} to {neutral}, {way_out}"
            for name, (value, neutral) in moved.items()
            if value != neutral
        ]
        if model.device == "auto":
            result.append(
                f"numerics is {INVARIANT}, but {role}'s device is auto, which spreads its layers; set device to one,"
                f" {way_out}"
            )
    return result


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

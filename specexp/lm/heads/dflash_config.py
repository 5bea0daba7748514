"""The config.json of a DFlash draft in each published layout, checked against the target's.

- transformers' own: an assistant model with `block_size`, `mask_token_id` and `target_layer_ids`.
- The authors' (`DFlashDraftModel`, z-lab): a Qwen3 config with `dflash_config`; `target_layer_ids` name layers whose
  outputs are read.
- speculators' (`speculators_model_type: dflash`): a Qwen3 config in `transformer_layer_config`; the numbers in
  `aux_hidden_state_layer_ids` are those of the layers that the states enter.

The last two have the weights of transformers' `MuseGlimmerAssistantModel`, `fc` and `hidden_norm` under other names.
What that module does not compute is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from specexp.errors import ModelError, first_line
from specexp.lm.hf.source import hub_fault, hub_place

FIELDS = ("block_size", "mask_token_id", "target_layer_ids")
MODULE = "muse_glimmer_assistant"
RENAMED = {r"^fc\.": "encoder.fc.", r"^hidden_norm\.": "encoder.output_norm_enc."}
# Of the target, beside the draft's own weights in speculators' layout.
COPIES = frozenset({"embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight", "verifier_norm.weight"})
AUTHORS, ARCHITECTURE = "dflash_config", "DFlashDraftModel"
SPECULATORS, LAYER = "speculators_model_type", "transformer_layer_config"
SHARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "layer_types", "vocab_size",
)  # fmt: skip
# Entries of `dflash_config` that mean nothing more than what is read here, by the values that they may have.
PLAIN = {
    "block_size": None, "mask_token_id": None, "mask_token": None, "target_layer_ids": None, "num_target_layers": None,
    "projector_type": ("dflash",), "attention_mode": ("gqa", "mha"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DFlashConfig:
    """A draft's config as transformers has it, and what loads its weights, beside the name of its folder."""

    place: str  # the folder or hub id
    values: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    copies: frozenset[str] = frozenset()  # weights in its files that are the target's

    @property
    def layers(self) -> list[int]:
        """The target's layers whose outputs it reads."""
        return list(self.values.target_layer_ids)


def check(place: str, target: Any, name_of_target: str, lengths: Mapping[str, int]) -> DFlashConfig:
    """The config of a DFlash draft that fits the target with this config and the methods' chains (label: length).

    Raises ModelError.
    """
    result = _read(place)
    config, values = result.values, result.values.to_dict()
    text = target.get_text_config(decoder=True)
    total = int(text.num_hidden_layers)
    wanted = [("hidden_size", "hidden_size", text.hidden_size)]
    wanted += [("vocab_size", "vocab_size", text.vocab_size)] if values.get("vocab_size") else []
    wanted += [("num_target_layers", "num_hidden_layers", total)] if values.get("num_target_layers") else []
    for what, shown, there in wanted:
        if values[what] != there:
            raise ModelError(
                f"DFlash draft '{place}' was made for a target with {shown} {values[what]}, but model"
                f" '{name_of_target}' has {there}; name the draft of this target."
            )
    if not 0 <= config.mask_token_id < text.vocab_size:
        raise ModelError(
            f"DFlash draft '{place}' has mask_token_id {config.mask_token_id}, but model '{name_of_target}' has"
            f" {text.vocab_size} tokens; name the draft of this target."
        )
    if not result.layers or not all(0 <= layer < total for layer in result.layers):
        raise ModelError(
            f"DFlash draft '{place}' reads the outputs of the layers {', '.join(map(str, result.layers))},"
            f" but model '{name_of_target}' has the layers 0 to {total - 1}; name the draft of this target."
        )
    for label, length in lengths.items():
        if length > config.block_size - 1:
            raise ModelError(
                f"gamma of '{label}' is {length}, but DFlash draft '{place}' drafts blocks of {config.block_size}, of"
                f" which the first token is known; set gamma to at most {config.block_size - 1}."
            )
    return result


def layers_kept(layers: list[int], total: int) -> list[int]:
    """What the target's sessions keep for these layers: of the last one the final states, after the last norm."""
    return [layer + (layer == total - 1) for layer in layers]


def _read(place: str) -> DFlashConfig:
    where, revision = hub_place(place)
    arguments = {"revision": revision} if revision else {}
    try:
        values, _ = PreTrainedConfig.get_config_dict(where, **arguments)
        published = _published(place, values)
        if published is None:
            config = AutoConfig.from_pretrained(where, **arguments)
            _check_fields(place, config.model_type, config.to_dict())
            return DFlashConfig(where, config, arguments)
        _check_fields(place, "qwen3", published[1])
        config = _as_transformers(*published)
    except ModelError:
        raise
    except Exception as error:
        fault = hub_fault(where, error) or f"DFlash draft '{place}' has no config that transformers reads:" \
            f" {first_line(error)}"  # fmt: skip
        raise ModelError(f"{fault}; draft.dflash takes a folder or hub id that transformers loads.") from error
    copies = COPIES if SPECULATORS in values else frozenset()
    return DFlashConfig(where, config, {**arguments, "config": config, "key_mapping": RENAMED}, copies)


def _published(place: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A Qwen3 config and the fields of a DFlash draft in the authors' layout or in speculators'; None in any other."""
    if SPECULATORS in values:
        layer, fields = _speculators(place, values)
    elif AUTHORS in values or ARCHITECTURE in (values.get("architectures") or ()):
        layer, fields = _authors(place, values)
    else:
        return None
    if (kind := layer.get("model_type", "qwen3")) != "qwen3":
        raise _refused(place, f"has layers of model type {kind}, not qwen3")
    if layer.get("attention_bias"):
        raise _refused(place, "has attention_bias true")
    return layer, fields


def _authors(place: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = list(map(str, values.get("architectures") or [ARCHITECTURE]))
    if names != [ARCHITECTURE]:
        raise _refused(place, f"is {' and '.join(names)}, not {ARCHITECTURE}")
    own = values.get(AUTHORS) or {}
    for name, value in own.items():
        allowed = PLAIN.get(name, ())
        if value and allowed is not None and value not in allowed:
            raise _refused(place, f"has {name} {value} in its {AUTHORS}")
    fields = {name: own.get(name, values.get(name)) for name in (*FIELDS, "num_target_layers")}
    return {name: value for name, value in values.items() if name not in (*fields, AUTHORS, "auto_map")}, fields


def _speculators(place: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    layer = dict(values.get(LAYER) or {})
    for name, allowed in ((SPECULATORS, ("dflash",)), ("projector_type", ("dflash",))):
        if values.get(name, allowed[0]) not in allowed:
            raise _refused(place, f"has {name} {values[name]}")
    for name in ("shift_label", "sample_from_anchor"):
        if values.get(name):
            raise _refused(place, f"has {name} {values[name]}")
    size, own = layer.get("vocab_size"), values.get("draft_vocab_size")
    if own != size:
        raise _refused(place, f"scores draft_vocab_size {own} of the target's {size} tokens")
    if values.get("target_hidden_size") not in (None, layer.get("hidden_size")):
        raise _refused(place, f"reads states of target_hidden_size {values['target_hidden_size']} into other layers")
    if "sliding_attention" in (layer.get("layer_types") or ()) and not values.get("sliding_window_non_causal"):
        raise _refused(place, "has layers with a window that read no later token of a block")
    entered = values.get("aux_hidden_state_layer_ids")
    layers = None if entered is None else [number - 1 for number in entered]
    return layer, {**{name: values.get(name) for name in FIELDS}, "target_layer_ids": layers}


def _refused(place: str, what: str) -> ModelError:
    return ModelError(
        f"DFlash draft '{place}' {what}, which transformers' DFlash module does not compute; draft.dflash takes drafts"
        f" in its layout, {ARCHITECTURE} of Qwen3 layers, and speculators' for all of the target's tokens."
    )


def _as_transformers(layer: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    """The config of transformers' module with this Qwen3 config and these fields."""
    qwen3: Any = AutoConfig.for_model("qwen3", **{k: v for k, v in layer.items() if k != "model_type"})
    shared = {name: getattr(qwen3, name) for name in SHARED}
    if qwen3.sliding_window is not None:
        shared["sliding_window"] = qwen3.sliding_window
    return AutoConfig.for_model(MODULE, **shared, **{k: v for k, v in fields.items() if v is not None})


def _check_fields(place: str, kind: str, values: Mapping[str, Any]) -> None:
    """Raise ModelError if these values of a config of this model type lack one that a DFlash draft has."""
    if lacking := [name for name in FIELDS if values.get(name) is None]:
        raise ModelError(
            f"draft '{place}' ({kind}) has no {lacking[0]} in its config, so it is no DFlash draft that transformers"
            " knows; draft.dflash takes an assistant with block_size, mask_token_id and target_layer_ids."
        )

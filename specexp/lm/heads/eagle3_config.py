"""The config.json of an EAGLE-3 head in the published layout (`LlamaForCausalLMEagle3`), checked against the target's.

The layout: `fc` joins the hidden states of three of the target's layers, `midlayer` (or `layers.0`) is one decoder
layer whose projections take two vectors, `norm` and `lm_head` score `draft_vocab_size` ids, and `d2t` says which of the
target's ids they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.errors import ModelError, first_line
from specexp.lm.hf.source import hub_fault, hub_place
from specexp.reading import decode, parse_json, read_bytes

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
NUM_STATES = 3  # layers of the target that a head reads
FILES = ("config.json", "*.safetensors")


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """What a head's config.json says. `layers` are those of the target whose outputs it reads, in order."""

    name: str
    folder: Path
    values: Mapping[str, Any]  # sizes, activation and rotary angles, as a Llama config has them
    layers: tuple[int, ...]
    target_size: int  # hidden size of the target
    norm_before_residual: bool
    target: str  # fingerprint of the target it was trained for; empty if the config does not say

    @property
    def size(self) -> int:
        return int(self.values["hidden_size"])

    @property
    def num_ids(self) -> int:
        """Of the target."""
        return int(self.values["vocab_size"])

    @property
    def num_draft_ids(self) -> int:
        return int(self.values.get("draft_vocab_size") or self.num_ids)


def folder_of(place: str) -> Path:
    """The local folder of a head: `place` itself, or a snapshot of the hub id. Raises ModelError."""
    where, revision = hub_place(place)
    folder = Path(where)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(where, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:
        fault = hub_fault(where, error) or f"head '{place}' cannot be read: {first_line(error)}"
        raise ModelError(f"{fault}.") from error


def read_config(place: str, target: Any, name_of_target: str, folder: Path | None = None) -> Eagle3Config:
    """The config of a head, which fits the target with the config `target`; `folder` is where `place` is, if that is
    known. Raises ModelError."""
    folder = folder or folder_of(place)
    where = f"head '{place}': config.json"
    values = parse_json(
        decode(read_bytes(folder / "config.json", "config file", ModelError), where, ModelError), where, ModelError
    )
    if not isinstance(values, dict):
        raise ModelError(f"{where} must be a mapping; get the file as it was published.")
    names = values.get("architectures") or []
    if not set(map(str, names)) & set(ARCHITECTURES):
        raise ModelError(
            f"head '{place}' is {' and '.join(map(str, names)) or 'of no architecture'}, not {ARCHITECTURES[0]};"
            " draft.eagle3 takes an EAGLE-3 head in the published layout."
        )
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if not isinstance(values.get(key), int) or values[key] < 1:
            raise ModelError(f"{where} has {key} {values.get(key)}; it must be a whole number >= 1.")
    if values.get("num_hidden_layers", 1) != 1:
        raise ModelError(f"head '{place}' has {values['num_hidden_layers']} layers; an EAGLE-3 head here has one.")
    text = target.get_text_config(decoder=True)
    size = values.get("target_hidden_size") or values["hidden_size"]
    for what, own in (("hidden_size", size), ("vocab_size", values["vocab_size"])):
        there = getattr(text, what, None)
        if there is not None and own != there:
            raise ModelError(
                f"head '{place}' was made for a target with {what} {own}, but model '{name_of_target}' has {there};"
                " name the head of this target."
            )
    eagle = values.get("eagle_config") or {}
    if eagle.get("use_aux_hidden_state") is False:
        raise ModelError(
            f"head '{place}' reads one layer of the target (use_aux_hidden_state false), as EAGLE-1 and 2 do;"
            " draft.eagle3 takes a head that reads three."
        )
    layers = _layers(place, eagle, getattr(text, "num_hidden_layers", None), name_of_target)
    of_target = str((values.get("specexp") or {}).get("target", ""))
    return Eagle3Config(place, folder, values, layers, size, bool(values.get("norm_before_residual")), of_target)


def _layers(place: str, eagle: Mapping[str, Any], total: int | None, name_of_target: str) -> tuple[int, ...]:
    """Layers of the target, by the number of the layer whose *output* is read.

    Without ids in the config, published code reads the states that *enter* the layers 2, L // 2 and L - 3.
    """
    given = eagle.get("eagle_aux_hidden_state_layer_ids")
    if total is None:
        return ()
    result = tuple(given) if isinstance(given, list) and given else (1, total // 2 - 1, total - 4)
    if len(result) != NUM_STATES or not all(isinstance(i, int) and 0 <= i < total for i in result):
        raise ModelError(
            f"head '{place}' reads the outputs of the layers {', '.join(map(str, result))}, but it must be"
            f" {NUM_STATES} of the {total} layers of model '{name_of_target}', 0 to {total - 1}."
        )
    return result

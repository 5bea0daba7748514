"""A target's own MTP layers (multi-token prediction) as a draft: those that transformers' `MtpModel` loads.

Its config.json says how many there are (`num_nextn_predict_layers`); their weights are in the target's own checkpoint.
Each drafts one token, so a chain is at most as long as there are layers, as in transformers.

Shapes: R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import MtpModel

from specexp.errors import ModelError, first_line
from specexp.lm.heads.base import ModuleDraft
from specexp.lm.heads.mtp_session import MtpSession
from specexp.lm.hf.hf_model import HFModel

KINDS = ("full_attention", "sliding_attention")  # of layers whose caches can be cut back


@dataclass(slots=True, eq=False)
class MtpDraft(ModuleDraft):
    """The layers (an `MtpModel`) and the target, whose sessions keep the states that they read."""

    @property
    def num_layers(self) -> int:
        return len(self.module.layers)

    @property
    def device(self) -> torch.device:
        return self.module.layers[0].eh_proj.weight.device  # type: ignore[no-any-return]

    def session(self) -> MtpSession:
        return MtpSession(self)

    def logits(self, x: Tensor) -> Tensor:
        """[R, V] of the layers' outputs x[R, D], by the target's own head."""
        return self.target.as_logits(self.module._project_to_logits(x))


def num_layers(config: Any, name: str) -> int:
    """How many MTP layers the target with this config has. Raises ModelError if there are none that draft here."""
    text = config.get_text_config(decoder=True)
    count = getattr(text, "num_mtp_layers", None)
    if not count:
        what = "no MTP layers" if count == 0 else "no MTP layers that transformers knows"
        raise ModelError(
            f"model '{name}' ({text.model_type}) has {what} by its config; draft mtp needs a target with"
            " num_nextn_predict_layers above 0: leave it out, or name a draft model."
        )
    try:
        kinds = getattr(config.get_mtp_config(), "layer_types", None) or ()
    except ValueError as error:
        raise ModelError(f"model '{name}': its MTP layers cannot be loaded: {first_line(error)}") from error
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ModelError(
            f"model '{name}' has MTP layers of kind {wrong[0]}, whose state cannot be cut back; name a draft model."
        )
    return int(count)


def check(config: Any, name: str, lengths: Mapping[str, int]) -> None:
    """Raise ModelError if the target has no MTP layers, or fewer than a method's chains (label: length) need."""
    count = num_layers(config, name)
    for label, length in lengths.items():
        if length > count:
            raise ModelError(
                f"gamma of '{label}' is {length}, but model '{name}' has {count} MTP layer{'s' * (count > 1)}, each of"
                f" which drafts one token; set gamma to at most {count}."
            )


def load(target: HFModel, folder: str, name: str) -> MtpModel:
    """The MTP layers in the target's folder or hub id. Raises ModelError."""
    config = target.module.config
    place = config.name_or_path
    device = next(target.module.get_decoder().layers[-1].parameters()).device
    try:
        config.name_or_path = folder
        module: MtpModel = MtpModel.from_pretrained(target.module, device_map={"": device})
    except Exception as error:
        raise ModelError(f"the MTP layers of model '{name}' cannot be loaded: {first_line(error)}") from error
    finally:
        config.name_or_path = place
    return module.eval()

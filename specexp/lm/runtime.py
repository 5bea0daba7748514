"""The settings for loading a model, and the checks of its vocabulary against the tokenizer's; plain data, no torch.

Vocabulary sizes may differ by padding: many families round the embedding up to a multiple that suits the hardware.
Decoding uses only the ids that the tokenizer knows, for target and draft, and never emits any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specexp.errors import ModelError

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
OFFLOADS = ("none", "cpu", "disk")
# Drafts that read the target's hidden states.
HEADS = (EAGLE3, MTP, DFLASH) = ("eagle3", "mtp", "dflash")
CHAIN_HEADS = (MTP, DFLASH)  # those that draft no trees
ATTENTIONS = ("sdpa", "eager")
# Whether the bits of a token's logits may depend on what is fed with it.
NUMERICS = FASTEST, INVARIANT = ("fastest", "invariant")
# How a draft's tokens become the target's: they are the same; those that both have; by their text. `auto` finds out.
VOCABULARIES = AUTO_VOCABULARY, SAME, INTERSECTION, TEXT = ("auto", "same", "intersection", "text")
# `auto` uses the tokenizer's own template if it has one and the task's prompts are not completions.
AUTO, NO_TEMPLATE, OWN_TEMPLATE = CHAT_TEMPLATES = ("auto", "none", "own")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Where a model's weights are (`zoo:NAME`, a folder or a hub id), and how they are loaded.

    `revision` and `tokenizer` default to the newest and the model's own; `device` is cpu, cuda:0, ... or auto, which
    lets accelerate spread the layers; bitsandbytes does `quantization` as the weights are read, with arithmetic in
    `compute_dtype` (default: `dtype`); `offload` leaves the layers' weights in CPU memory or on disk, and every forward
    copies each layer to the device, but for those that fit in `offload_memory` GiB; `attention` defaults to what
    transformers chooses. `chat_template` says whether prompts are formatted with the tokenizer's chat template; the
    target's setting applies to both models. A draft with `layers` shares the target's weights; the
    rest of its settings are the target's.
    """

    model: str
    revision: str = ""
    tokenizer: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    quantization: str = "none"
    compute_dtype: str = ""
    offload: str = "none"
    offload_memory: float | None = None  # GiB of an offloaded model's layers that stay on `device`
    attention: str = ""
    chat_template: str = AUTO
    trust_remote_code: bool = False
    tensor_parallel: int = 1  # of a target: so many processes hold its layers, each a part of every weight
    vocabulary: str = AUTO_VOCABULARY  # of a draft: how its tokens become the target's
    layers: str = ""  # of a draft: it is these layers of the target, and `model` is the target's
    eagle3: str = ""  # of a draft: it is this head on the target's hidden states, and `model` is the target's
    mtp: bool = False  # of a draft: it is the target's own MTP layers
    dflash: str = ""  # of a draft: it is this DFlash assistant of the target

    @property
    def head(self) -> str:
        """The kind of head that this draft is; empty if it is a model."""
        return next((kind for kind in HEADS if getattr(self, kind)), "")

    @property
    def on_target(self) -> bool:
        """True of a draft that is made of the target's own weights or states: its settings are the target's."""
        return bool(self.layers or self.head)

    @property
    def shown(self) -> str:
        """Its name in messages and in the names of pairs."""
        if self.head:
            return MTP if self.mtp else f"{self.head}:{getattr(self, self.head)}"
        return f"layers:{self.layers}" if self.layers else self.model

    def faults(self) -> list[str]:
        """Settings that contradict each other, one line each."""
        result = []
        if self.compute_dtype and self.quantization not in ("nf4", "fp4"):
            result.append(
                f"compute_dtype is {self.compute_dtype}, but quantization is {self.quantization}; compute_dtype needs"
                " quantization nf4 or fp4: leave it out, or set quantization."
            )
        if self.offload != "none" and self.quantization != "none":
            result.append(
                f"offload is {self.offload}, but quantization is {self.quantization}, whose weights cannot be moved"
                " from call to call; set one of them to none."
            )
        if self.offload_memory is not None and self.offload == "none":
            result.append(
                f"offload_memory is {self.offload_memory:g}, but offload is none: every layer stays on the device; set"
                " offload, or leave offload_memory out."
            )
        if self.offload != "none" and self.device == "auto":
            result.append(
                f"offload is {self.offload}, but device is auto, which spreads layers by itself; set device to one."
            )
        if self.tensor_parallel > 1:
            others = {"offload": self.offload, "quantization": self.quantization}
            result += [
                f"tensor_parallel is {self.tensor_parallel}, but {name} is {value}; set it to none, or leave"
                " tensor_parallel out."
                for name, value in others.items()
                if value != "none"
            ]
            if self.device not in ("cpu", "cuda"):
                result.append(
                    f"tensor_parallel is {self.tensor_parallel}, but device is {self.device}; give cpu, or cuda, of"
                    " which each process takes a GPU of its own."
                )
        return result


TOY = "toy:"  # prefix of the names of the toy pair's models


@dataclass(frozen=True, slots=True)
class ToyConfig:
    """The numpy pair: `draft_noise` is how far the draft's logits differ from the target's; `seed` selects the pair."""

    vocab_size: int = 24
    draft_noise: float = 0.5
    seed: int = 0


def shared_vocabulary(target: Mapping[str, int], draft: Mapping[str, int] | None = None) -> int:
    """Number of ids, from 0, that the tokenizer knows. Raises ModelError if the draft's token ids differ."""
    if draft is not None and draft != target:
        wrong = sorted(
            (token, target.get(token), draft.get(token))
            for token in target.keys() | draft.keys()
            if target.get(token) != draft.get(token)
        )
        named = ", ".join(f"{token!r} is {a} in the target and {b} in the draft" for token, a, b in wrong[:3])
        raise ModelError(
            f"target and draft do not share a tokenizer: {len(wrong)} tokens differ ({named});"
            " choose a draft of the target's own family, or leave out `vocabulary: same` (docs/methods.md)."
        )
    return max(target.values()) + 1


def check_vocabulary(num_valid_ids: int, sizes: Mapping[str, int]) -> None:
    """Raise ModelError if a model (name: number of ids it scores) does not score every id the tokenizer knows."""
    for name, size in sizes.items():
        if size < num_valid_ids:
            raise ModelError(
                f"the tokenizer gives ids up to {num_valid_ids - 1}, but model '{name}' has {size} tokens;"
                " use the tokenizer it was trained with."
            )

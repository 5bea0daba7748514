"""What all drafts have in common that read the target's hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.model_facts import fingerprint_of
from specexp.lm.model import Feed, Session, one_by_one
from specexp.lm.transfer import integers


@dataclass(slots=True, eq=False)
class HeadDraft:
    """A draft and the target that it was made for, whose sessions keep the states that it reads.

    Tokens come from the target's device and go back there.
    """

    target: HFModel
    name: str
    facts_of_draft: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return self.target.vocab_size

    @property
    def context(self) -> int:
        return self.target.context

    def ids(self, tokens: Sequence[int]) -> Tensor:
        return integers(tokens, self.target.device)

    def check_cache(self) -> None:
        """Its cache is cut back by its own sessions."""

    def check_trees(self) -> None:
        raise ModelError(f"draft '{self.name}' drafts chains, no trees; leave methods with trees out.")

    def facts(self) -> dict[str, Any]:
        return self.facts_of_draft

    def wait(self) -> None:
        self.target.wait()


@dataclass(slots=True, eq=False)
class ModuleDraft(HeadDraft, ABC):
    """A module of transformers that drafts chains, each row of a batch by itself."""

    module: Any

    @property
    def hidden_size(self) -> int:
        return int(self.module.config.hidden_size)

    @abstractmethod
    def session(self) -> Session:
        """One sequence."""

    def sessions(self, count: int, capacity: int = 0) -> list[Session]:
        return [self.session() for _ in range(count)]

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor | None]]:
        return one_by_one(feeds)


def facts_of(
    target: HFModel, name: str, kind: str, layers: Sequence[int], weights: Iterable[tuple[str, Tensor]], **more: Any
) -> dict[str, Any]:
    """`Model.facts` of a draft of this kind with these weights, which reads these layers of the target."""
    weights = list(weights)
    floats = [value for _, value in weights if value.is_floating_point()]
    return {
        "class": kind,
        "model": name,
        "revision": None,
        "fingerprint": fingerprint_of(kind, weights),
        "reads_layers": list(layers),
        "parameters": sum(value.numel() for value in floats),
        "bytes": sum(value.nbytes for _, value in weights),
        "offload": "none",
        "offloaded_bytes": 0,
        "dtype": str(floats[0].dtype).removeprefix("torch."),
        "device": str(floats[0].device),
        "device_name": target.facts()["device_name"],
        "device_map": {},
        "quantization": None,
        "vocab_size": target.vocab_size,
        "scored_ids": target.vocab_size,
        "context": target.context,
        "threads": torch.get_num_threads(),
        **more,
    }

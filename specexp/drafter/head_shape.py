"""Sizes of an EAGLE-3 head, and its config.json in the published layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHITECTURE = "LlamaForCausalLMEagle3"
NUM_STATES = 3  # layers of the target that a head reads


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes of a head. `layers` are those of the target whose outputs it reads, counted from 0.

    `own_embedding`: it has a token embedding of its own, of its own width; else it uses the target's.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    target_size: int
    vocab_size: int
    draft_vocab_size: int
    layers: tuple[int, ...]
    context: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    own_embedding: bool = False

    def as_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The content of config.json; `facts` go under the key `specexp`."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "num_hidden_layers": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "max_position_embeddings": self.context,
            "attention_bias": False,
            "mlp_bias": False,
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": self.target_size,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            "eagle_config": {
                "use_aux_hidden_state": True,
                "eagle_aux_hidden_state_layer_ids": list(self.layers),
            },
            "specexp": {"own_embedding": self.own_embedding, **facts},
        }

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> HeadShape:
        """The sizes that a config.json of `as_config` says. Raises KeyError and TypeError for one that lacks some."""
        return cls(
            config["hidden_size"], config["intermediate_size"], config["num_attention_heads"],
            config["num_key_value_heads"], config["head_dim"], config["target_hidden_size"], config["vocab_size"],
            config["draft_vocab_size"], tuple(config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]),
            config["max_position_embeddings"], config["rms_norm_eps"], config["rope_theta"],
            config["specexp"]["own_embedding"],
        )  # fmt: skip

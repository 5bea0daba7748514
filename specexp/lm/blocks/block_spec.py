"""What a decoder computes, beyond the values of its weights: the description that the native forward runs.

The arithmetic (`native_forward.py`, `attention.py`) reads nothing else: no config and no class name. `description.py`
reads it from a loaded module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from specexp.lm.blocks.rotary import QueryScaling, RotarySpec


class UndescribedError(Exception):
    """The native forward does not know some part of a module; the message names it."""


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One block: attention, then an MLP or a mixture of experts, each with a residual connection.

    Norms before and after the two stand with the weights (`block.py`), since a norm that is absent has none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    score_multiplier: float  # attention scores are products of queries and keys times this
    store: int  # index of the cached keys and values it attends to
    stores: bool = True  # it computes them itself; otherwise an earlier block did
    window: int = 0  # positions that a token attends to, its own included; 0: all
    score_softcap: float = 0.0  # scores s become c tanh(s / c); 0: they do not
    sinks: bool = False  # each head has one more score, whose value is 0
    rotary: int | None = 0  # which table of angles; None: no positions
    heads_outermost: bool = False  # the projection holds query, key and value per head, not queries, keys and values
    values_are_keys: bool = False  # values are the projected keys, before norm and rotation
    whole_qk_norm: bool = False  # norms of queries and keys run over all heads together
    qk_norm_last: bool = False  # they come after the rotation
    parallel: bool = False  # attention and MLP both read the block's input, and their results are added
    experts_per_token: int = 0  # 0: a dense MLP
    residual_multiplier: float = 1.0
    output_multiplier: float = 1.0

    # Computed from these, since they are read at every step.
    group: int = field(init=False)  # number of query heads that share a key
    mask: tuple[int, int] = field(init=False)  # blocks with the same value use the same attention mask: window, group

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.heads // self.kv_heads)
        object.__setattr__(self, "mask", (self.window, self.group))

    @property
    def kv_width(self) -> int:
        """Number of values cached per token: keys, then values."""
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A stack of blocks between an embedding and a head."""

    blocks: tuple[BlockSpec, ...]
    rotary: tuple[RotarySpec, ...]
    query_scaling: QueryScaling | None = None
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float = 0.0  # logits x become c tanh(x / c); 0: they do not

"""The forward of an EAGLE-3 head (Li et al. 2503.01840): one decoder layer over token embeddings and features.

A token's feature is `fc` of the target's hidden states at the token before it; where the target has not seen that one,
it is the layer's own output there, before the last norm. The embedding comes first in the layer's input, and the
feature is its residual. Keys, values and outputs go into the pool of `kv_cache.py`.

Shapes: T tokens, D hidden size, E that of the target, V vocabulary, W ids that the head scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specexp.lm.blocks.block import Block
from specexp.lm.blocks.block_spec import BlockSpec
from specexp.lm.blocks.feed_forward import Mlp, activation
from specexp.lm.blocks.linear import Linear
from specexp.lm.blocks.norms import Norm, rms_norm
from specexp.lm.blocks.rotary import Angles, RotarySpec, RotaryTables
from specexp.lm.heads.eagle3_config import Eagle3Config
from specexp.lm.kernels.table import PYTORCH
from specexp.lm.native.native_forward import NO_LIMIT, Cache, attend

ROTARY = RotarySpec(layer_type=None, adjacent=False, layout="twice")


class Eagle3Forward:
    """A head on the target's embedding, unless it has its own."""

    def __init__(
        self,
        config: Eagle3Config,
        weights: Mapping[str, Tensor],
        embedding: Tensor,
        head: Tensor,
        num_valid_ids: int,
        suppressed: Sequence[int] = (),
    ) -> None:
        """`embedding`[V, E] and `head`[V, E] are the target's. Ids from `num_valid_ids` on, and those in `suppressed`,
        are never drafted."""
        llama, like = LlamaConfig.from_dict(dict(config.values)), weights["norm.weight"]
        self.hidden_size, self.dtype, self.device = config.size, like.dtype, like.device
        self.embedding = weights.get("embed_tokens.weight", embedding)
        self.threads = (0, 0)
        self.kernels = PYTORCH
        self.kept = (0,)  # its outputs, which are features of drafted tokens
        self.most_recorded_tokens = NO_LIMIT
        self._before_residual = config.norm_before_residual
        pack = self.dtype == torch.float32 and self.device.type == "cpu" and torch._C._has_mkldnn

        def linear(*names: str) -> Linear:
            parts = [weights[f"{name}.weight"] for name in names]
            biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
            return Linear(torch.cat(parts), torch.cat(biases) if biases else None, pack)

        def norm(name: str) -> Norm:
            return rms_norm(weights[f"{name}.weight"], float(llama.rms_norm_eps), self.hidden_size, like)

        self._fc = linear("fc")
        self._input_norm, self._hidden_norm = norm("layer.input_layernorm"), norm("layer.hidden_norm")
        self._final_norm = norm("norm")
        spec = BlockSpec(
            llama.num_attention_heads, llama.num_key_value_heads, llama.head_dim, llama.head_dim**-0.5, store=0
        )
        mlp = Mlp(
            linear("layer.mlp.gate_proj", "layer.mlp.up_proj"), linear("layer.mlp.down_proj"),
            activation(ACT2FN[llama.hidden_act]), gated=True,
        )  # fmt: skip
        self._block = Block(
            spec, None, linear(*(f"layer.self_attn.{part}_proj" for part in "qkv")), None, None, None, None, None,
            linear("layer.self_attn.o_proj"), None, norm("layer.post_attention_layernorm"), mlp, None, None, None,
        )  # fmt: skip
        self.blocks, self.masks = [self._block], [spec.mask]
        self._rotary = RotaryTables(LlamaRotaryEmbedding(llama).to(self.device), [ROTARY], None, like)
        self._score(config, weights, head, num_valid_ids, suppressed, pack)

    def _score(
        self, config: Eagle3Config, weights: Mapping[str, Tensor], head: Tensor, num_valid_ids: int,
        suppressed: Sequence[int], pack: bool,
    ) -> None:  # fmt: skip
        """Lay out the scoring of the ids that may be drafted."""
        ids = torch.arange(config.num_draft_ids, device=self.device)
        if "d2t" in weights:
            ids = ids + weights["d2t"]  # an offset for each id
        allowed = ids < num_valid_ids
        if suppressed:
            allowed &= ~torch.isin(ids, torch.tensor(list(suppressed), device=self.device))
        self.num_ids = num_valid_ids
        self.drafted_ids = ids[allowed]
        self._all = bool(allowed.all()) and torch.equal(ids, torch.arange(num_valid_ids, device=self.device))
        self.head = Linear(weights.get("lm_head.weight", head)[allowed], None, pack)

    def angles(self, length: int) -> Angles:
        """Rotary angles of at least positions 0 .. length - 1."""
        return self._rotary.upto(length)

    def features(self, states: Tensor) -> Tensor:
        """[T, D] of the target's hidden states [T, 3 E]."""
        return self._fc(states.to(self.device, self.dtype))

    def logits(self, x: Tensor) -> Tensor:
        """Logits [T, V] in float32 of outputs [T, D]: minus infinity for ids that the head does not score."""
        scored = self.head(self._final_norm(x)).float()
        if self._all:
            return scored
        result = scored.new_full((x.shape[0], self.num_ids), float("-inf"))
        return result.index_copy_(1, self.drafted_ids, scored)

    def hidden(self, x: Tensor) -> Tensor:
        """The normed outputs, which the logits are read from."""
        return self._final_norm(x)

    def __call__(self, tokens: Tensor, features: Tensor, angles: Angles, cache: Cache) -> Tensor:
        """Outputs [T, D], before the last norm, of tokens[T] with features[T, D] at the positions of `angles`."""
        block, normed = self._block, self._hidden_norm(features)
        embedded = self._input_norm(self.embedding.index_select(0, tokens))
        attended = attend(block, torch.cat([embedded, normed], dim=1), angles, cache)
        after = block.out.added(attended, normed if self._before_residual else features)
        assert block.mlp_norm is not None
        x = block.mlp.added(block.mlp_norm(after), after, 1.0)
        cache.keep(x, 0)
        return x

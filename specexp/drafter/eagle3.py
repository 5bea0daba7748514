"""The module of an EAGLE-3 head with gradients, for all rows of a batch at once (training-time test, 2503.01840).

Row t of a text has the embedding of token t + 1 and a feature: at step 0, `fc` of the target's states at token t; at
step s, the layer's own output of row t - 1 at step s - 1. Its keys are those of step 0 for rows up to t - s, and those
of step j for row t - s + j, j = 1 .. s. That is what decoding sees that has drafted s tokens. Row t scores token t + 2.

Its parameters have the names of the published layout. It decodes nothing: the forward with a cache is elsewhere.

Shapes: B texts, R rows (tokens - 1), S steps, D hidden size, E that of the target, W ids that are scored, H heads, K
key-value heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specexp.drafter.head_shape import NUM_STATES, HeadShape


class Eagle3Head(nn.Module):
    """A head of this shape. `embedding`[V, E] is the target's; it is used unless the shape has its own."""

    def __init__(self, shape: HeadShape, draft_ids: Sequence[int], embedding: Tensor) -> None:
        super().__init__()
        self.shape = shape
        size, wide, eps = shape.hidden_size, 2 * shape.hidden_size, shape.rms_norm_eps
        queries, keys = shape.num_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim

        def linear(inner: int, outer: int) -> nn.Linear:
            return nn.Linear(inner, outer, bias=False)

        self.fc = linear(NUM_STATES * shape.target_size, size)
        self.midlayer = nn.ModuleDict({
            "input_layernorm": nn.RMSNorm(size, eps),
            "hidden_norm": nn.RMSNorm(size, eps),
            "self_attn": nn.ModuleDict({
                "q_proj": linear(wide, queries), "k_proj": linear(wide, keys), "v_proj": linear(wide, keys),
                "o_proj": linear(queries, size),
            }),
            "post_attention_layernorm": nn.RMSNorm(size, eps),
            "mlp": nn.ModuleDict({
                "gate_proj": linear(size, shape.intermediate_size), "up_proj": linear(size, shape.intermediate_size),
                "down_proj": linear(shape.intermediate_size, size),
            }),
        })  # fmt: skip
        self.norm = nn.RMSNorm(size, eps)
        self.lm_head = linear(size, shape.draft_vocab_size)
        if shape.own_embedding:
            self.embed_tokens = nn.Embedding(shape.vocab_size, size)
            nn.init.normal_(self.embed_tokens.weight, std=0.02)
        else:
            self.register_buffer("target_embedding", embedding.detach().float(), persistent=False)
        ids = torch.tensor(list(draft_ids))
        known = torch.zeros(shape.vocab_size, dtype=torch.bool)
        known[ids] = True
        self.register_buffer("d2t", ids - torch.arange(len(ids)))
        self.register_buffer("t2d", known)
        angles = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        self.register_buffer("_frequencies", shape.rope_theta**-angles, persistent=False)

    @property
    def draft_ids(self) -> Tensor:
        """The target's ids [W] that are scored."""
        return self.get_buffer("d2t") + torch.arange(self.shape.draft_vocab_size, device=self.lm_head.weight.device)

    @property
    def _layer(self) -> Any:
        return self.midlayer

    def outputs(self, tokens_BR: Tensor, states: Tensor, steps: int, start: int = 0) -> Tensor:
        """Outputs [S, B, R, D] before the last norm, of the tokens t + 1 and the target's states [B, R, 3 E] at t.

        Only the rows from `start` on are returned, and computed at the steps after the first.
        """
        # The residual stream stays in float32 where products run in bfloat16.
        feature = self.fc(states.to(self.fc.weight.dtype)).float()
        embedding = self.embed_tokens.weight if self.shape.own_embedding else self.get_buffer("target_embedding")
        embedded = self._layer["input_layernorm"](functional.embedding(tokens_BR, embedding))
        size, layer = self.shape.hidden_size, self._layer
        attn, mlp = layer["self_attn"], layer["mlp"]
        weight = torch.cat([attn[f"{part}_proj"].weight for part in "qkv"])
        of_tokens = functional.linear(embedded, weight[:, :size])  # the same at every step
        cos, sin = self._angles(tokens_BR.shape[1])
        rows = tokens_BR.shape[1]
        keys: list[Tensor] = []
        values: list[Tensor] = []
        result = []
        for _ in range(steps):
            normed = layer["hidden_norm"](feature)
            q, k, v = self._split(of_tokens + functional.linear(normed, weight[:, size:]))
            keys.append(_rotated(k, cos, sin))
            values.append(v)
            attended = self._attend(_rotated(q, cos, sin), keys, values, rows - q.shape[2])
            after = feature + attn["o_proj"](attended)
            inner = layer["post_attention_layernorm"](after)
            out = after + mlp["down_proj"](functional.silu(mlp["gate_proj"](inner)) * mlp["up_proj"](inner))
            feature = functional.pad(out[:, :-1], (0, 0, 1, 0))
            if len(keys) == 1 and start:
                out, feature, of_tokens = out[:, start:], feature[:, start:], of_tokens[:, start:]
                cos, sin = cos[start:], sin[start:]
            result.append(out)
        return torch.stack(result)

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits [..., W] of outputs [..., D]."""
        result: Tensor = self.lm_head(self.norm(outputs))
        return result

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, R, d]."""
        shape = self.shape
        of_heads = qkv.reshape(*qkv.shape[:2], -1, shape.head_dim).transpose(1, 2)
        sizes = [shape.num_heads, shape.num_key_value_heads, shape.num_key_value_heads]
        q, k, v = torch.split(of_heads, sizes, dim=1)
        if (times := shape.num_heads // shape.num_key_value_heads) > 1:
            k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
        return q, k, v

    def _attend(self, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], start: int) -> Tensor:
        """Attention [B, R, H d] of the last step's queries [B, H, R, d] over the keys and values of all steps.

        The first query is that of row `start`, as are the keys and values of steps after the first.
        """
        step, rows = len(keys) - 1, keys[0].shape[2]
        q = q * self.shape.head_dim**-0.5
        allowed = torch.ones(q.shape[2], rows, dtype=torch.bool, device=q.device).tril(start - step)
        scores = [(q @ keys[0].transpose(-1, -2)).masked_fill(~allowed, float("-inf"))]
        later = range(1, step + 1)
        scores += [(q * _moved(keys[j], step - j)).sum(-1, keepdim=True) for j in later]
        p = torch.cat(scores, dim=-1).float().softmax(-1).to(q.dtype)
        attended = p[..., :rows] @ values[0]
        for j in later:
            attended = attended + p[..., rows + j - 1, None] * _moved(values[j], step - j)
        return attended.transpose(1, 2).flatten(2)

    def _angles(self, rows: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [R, d] of the rotary angles; row t has position t."""
        frequencies = self.get_buffer("_frequencies")
        angles = torch.arange(rows, device=frequencies.device)[:, None] * torch.cat([frequencies, frequencies])
        return angles.cos(), angles.sin()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[B, H, R, d] turned by its position's angles; the two halves of a head make the pairs, as in Llama."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


def _moved(x: Tensor, rows: int) -> Tensor:
    """x[B, H, R, d] with what row t - `rows` has in row t; zeros in the first rows, which no loss reads."""
    return functional.pad(x[:, :, : x.shape[2] - rows], (0, 0, rows, 0)) if rows else x

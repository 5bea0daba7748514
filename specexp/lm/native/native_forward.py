"""The native forward of Llama, Qwen2 and Mistral, on the weights that transformers loaded.

The arithmetic is the same, with less overhead: query, key and value projections are one product, and so are gate and
up; keys and values go into preallocated buffers (`kv_cache.py`); a step computes nothing that does not depend on it.
The loaded module keeps working: its parameters become views of the joined ones. For models that this forward does not
support (another architecture, quantized, offloaded or scattered weights, rotary angles that depend on the length),
`refusal` gives the reason, and transformers' forward is used.

Shapes: T tokens of all rows, D hidden, H heads, K key-value heads, d head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM")
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")  # rope types whose angles do not depend on the length
PACK_ROWS = 3  # from this many rows on, oneDNN's packed product is faster than MKL's, which is slow on some CPUs
PACK_SIZE = 1 << 16  # values of a weight; for a smaller one, calling oneDNN takes longer than the product
PACK_LIMIT = 2 << 30  # bytes of a model; packing keeps copies of the weights, so larger models are not packed
_CHUNK = 512  # positions by which the rotary table grows


class Cache(Protocol):
    """Stores keys and values and computes attention over them."""

    def attend(self, layer: int, queries: Tensor, fresh: Tensor) -> Tensor:
        """Store `fresh`[T, 2 K d] (keys, then values); return the attention output [T, H d] of `queries`[T, H, d]."""
        ...


class Linear:
    """x[T, in] -> x W^T + b, by the product that is fastest for the number of rows. The choice depends on T alone, so
    that a prompt's logits do not change from run to run.

    With `pack`, the product of few rows reads a contiguous copy of W^T in memory order: reading W itself took between
    the same time and four times as long, depending on where its pages lie.
    """

    __slots__ = ("bias", "packed", "transposed", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool) -> None:
        self.weight, self.bias = weight, bias
        self.transposed = weight.t().contiguous() if pack else weight.t()
        worth = pack and weight.numel() >= PACK_SIZE
        self.packed: Tensor | None = torch.ops.mkldnn._reorder_linear_weight(weight, 8) if worth else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None and x.shape[0] >= PACK_ROWS:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return result
        if self.bias is not None:
            return torch.addmm(self.bias, x, self.transposed)
        return torch.mm(x, self.transposed)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """The product of `x`, added to `residual`[T, out]."""
        if (self.packed is not None and x.shape[0] >= PACK_ROWS) or self.bias is not None:
            return self(x).add_(residual)
        return torch.addmm(residual, x, self.transposed)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one transformer block."""

    norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class NativeForward:
    """The decoder stack. Rotary angles are cached for all positions used so far.

    The head gives the ids in `suppressed` a logit of minus infinity.
    """

    def __init__(self, module: Any, suppressed: Sequence[int] = ()) -> None:
        config = module.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.windows = _windows(config)
        stack = module.model
        self.embedding: Tensor = stack.embed_tokens.weight
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self._rotary = stack.rotary_emb
        self._tables = torch.empty(2, 0, 1, 2, self.head_dim // 2, dtype=self.dtype, device=self.device)
        exact = self.dtype == torch.float32
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        pack = exact and self.device.type == "cpu" and torch._C._has_mkldnn and size <= PACK_LIMIT
        self.packed = pack
        self.threads = (0, 0)  # for one row, for several; 0 is torch's own number (set by `kv_cache.tune`)
        self._eps: float = config.rms_norm_eps
        self._norm: Callable[[Tensor, Tensor], Tensor] = self._norm_wide
        if exact and self.device.type == "cpu":
            self._norm = self._norm_cpu
            self._width_eps = torch.tensor((self._eps * config.hidden_size) ** 0.5)
        elif self.device.type == "cuda":
            self._norm = self._norm_fused
        self.layers = [self._layer(layer, pack) for layer in stack.layers]
        self._final = self._norm_weight(stack.norm.weight)
        weight = module.lm_head.weight.detach()
        bias = None
        if suppressed:
            bias = torch.zeros(weight.shape[0], dtype=self.dtype, device=self.device)
            bias[list(suppressed)] = float("-inf")
        self.head = Linear(weight, bias, pack)

    def _layer(self, layer: Any, pack: bool) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            self._norm_weight(layer.input_layernorm.weight),
            Linear(*_joined(attention.q_proj, attention.k_proj, attention.v_proj), pack),
            Linear(*_joined(attention.o_proj), pack),
            self._norm_weight(layer.post_attention_layernorm.weight),
            Linear(*_joined(mlp.gate_proj, mlp.up_proj), pack),
            Linear(*_joined(mlp.down_proj), pack),
        )

    @property
    def kv_width(self) -> int:
        """Number of values stored per token and layer: keys, then values."""
        return 2 * self.kv_heads * self.head_dim

    def angles(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of at least positions 0 .. length - 1, each [positions, 1, 2, d / 2]."""
        have = self._tables.shape[1]
        if length > have:
            end = -(-length // _CHUNK) * _CHUNK
            positions = torch.arange(have, end, device=self.device)[None]
            cos, sin = self._rotary(torch.empty(1, 1, 1, dtype=self.dtype, device=self.device), positions)
            more = torch.stack([cos[0], sin[0]]).view(2, end - have, 1, 2, self.head_dim // 2)
            more[1, :, :, 0].neg_()  # rotate_half negates the first half
            self._tables = torch.cat([self._tables, more], dim=1)
        return self._tables[0], self._tables[1]

    def __call__(self, tokens: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        """Final hidden states [T, D], after the last norm, of tokens[T] rotated by cos and sin [T, 1, 2, d / 2]."""
        num, heads, head_dim = tokens.shape[0], self.heads, self.head_dim
        turned = heads + self.kv_heads
        x = self.embedding.index_select(0, tokens)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x, layer.norm))
            both = qkv[:, : turned * head_dim].view(num, turned, 2, head_dim // 2)
            torch.addcmul(both * cos, both.flip(2), sin, out=both)
            queries = qkv[:, : heads * head_dim].view(num, heads, head_dim)
            x = layer.out.added(cache.attend(index, queries, qkv[:, heads * head_dim :]), x)
            gate_up = layer.gate_up(self._norm(x, layer.mlp_norm))
            half = gate_up.shape[1] // 2
            x = layer.down.added(functional.silu(gate_up[:, :half]).mul_(gate_up[:, half:]), x)
        return self._norm(x, self._final)

    def _norm_weight(self, weight: Tensor) -> Tensor:
        weight = weight.detach()
        return weight * weight.shape[0] ** 0.5 if self._norm == self._norm_cpu else weight

    def _norm_cpu(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm as x / sqrt(|x|^2 + D eps) * (sqrt(D) weight): four small calls instead of transformers' eight."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.div(torch.hypot(length, self._width_eps)).mul_(weight)

    def _norm_fused(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm in one kernel, in float32 inside. It rounds once; transformers' also rounds before the weight."""
        return functional.rms_norm(x, (x.shape[1],), weight, self._eps)

    def _norm_wide(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), (x.shape[1],), None, self._eps).to(x.dtype) * weight


def refusal(module: Any) -> str | None:
    """The reason why `NativeForward` does not support this module; None if it does."""
    config = module.config
    if type(module).__name__ not in FAMILIES:
        return f"{type(module).__name__} is not one of {', '.join(FAMILIES)}"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    parameters = list(module.parameters())
    if len({(p.device, p.dtype) for p in parameters}) > 1 or parameters[0].device.type == "meta":
        return "its weights are not all on one device in one dtype"
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        return "its weights are moved at every call"
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in STATIC_ROTARY:
        return f"its rotary angles ({kind}) depend on the length"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    return None


def _joined(*parts: Any) -> tuple[Tensor, Tensor | None]:
    """Join several linear modules into one weight [sum of out, in] and bias; the modules' own become views of it."""
    with torch.no_grad():
        if len(parts) == 1:
            return parts[0].weight.detach(), None if parts[0].bias is None else parts[0].bias.detach()
        weight = torch.cat([part.weight for part in parts])
        # Qwen2 has biases here.
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        start = 0
        for part in parts:
            stop = start + part.weight.shape[0]
            part.weight.data = weight[start:stop]
            if bias is not None:
                part.bias.data = bias[start:stop]
            start = stop
    return weight, bias


def _windows(config: Any) -> list[int]:
    """The sliding window of each layer in positions, the token's own included; 0 for unlimited."""
    window = int(getattr(config, "sliding_window", None) or 0) if getattr(config, "use_sliding_window", True) else 0
    kinds = getattr(config, "layer_types", None)
    return [window if kinds is None or kinds[i] == "sliding_attention" else 0 for i in range(config.num_hidden_layers)]

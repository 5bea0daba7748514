"""The native forward of decoder stacks, on the weights that transformers loaded.

The arithmetic is the same, with less overhead: query, key and value projections are one product, and so are gate and
up; keys and values go into preallocated buffers (`kv_cache.py`); a step computes nothing that does not depend on it.
What a stack computes stands in its description (`block_spec.py`), which is read from the module (`description.py`).
The loaded module keeps working: its parameters become views of the joined ones.

Shapes: T tokens of all rows, D hidden, H heads, K key-value heads, d head size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from specexp.lm.blocks.block import Block, BlockLoader
from specexp.lm.blocks.description import describe
from specexp.lm.blocks.feed_forward import MAX_PAIRS
from specexp.lm.blocks.linear import PACK_LIMIT, Linear
from specexp.lm.blocks.long_factors import boundary_of, length_of_change
from specexp.lm.blocks.rotary import Angles, RotaryTables
from specexp.lm.kernels.product_timing import shape_name
from specexp.lm.kernels.reference import rotate
from specexp.lm.kernels.table import Kernels
from specexp.lm.kernels.verification import Heads, chosen_products, kernels_of
from specexp.lm.native.ordered_cache import OrderedCache, by_tiles, rows_by_tiles

NO_LIMIT = 1 << 30


class Cache(Protocol):
    """Stores keys and values and computes attention over them."""

    @property
    def rotate_and_store(self) -> Callable[[Block, Tensor, Angles], None] | None:
        """Rotates the queries of a projection[T, (H + 2 K) d], or [T, H d] if the block stores nothing, in place, and
        stores its rotated keys and its values; None if `attend` takes them."""
        ...

    def attend(self, block: Block, queries: Tensor, fresh: Tensor | None) -> Tensor:
        """Store `fresh`[T, 2 K d] (keys, then values), unless the block stores none or they are stored; return the
        attention output [T, H d] of `queries`[T, H, d]."""
        ...

    def keep(self, states: Tensor, index: int) -> None:
        """Store states[T, D], those of `NativeForward.kept[index]`, in the tokens' slots."""
        ...


class NativeForward:
    """The decoder stack. Rotary angles are cached for all positions used so far.

    The head gives the ids in `suppressed` a logit of minus infinity. Unless given, `kernels` are those that the device
    and the model's shapes allow. If it is `invariant`, a token's results do not depend on what is fed with it
    (`ordered_cache.py`); `invariance.py` checks that. Raises UndescribedError for a module whose description would be
    incomplete.
    """

    def __init__(
        self, module: Any, suppressed: Sequence[int] = (), kernels: Kernels | None = None, invariant: bool = False
    ) -> None:
        self.spec, parts, family = describe(module)
        self.embedding: Tensor = parts.embedding.weight
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.hidden_size = int(self.embedding.shape[1])
        self.threads = (0, 0)  # for one row, for several; 0 is torch's own number (set by `tuning.tune`)
        # Layers whose outputs caches keep, for a draft that reads them; their number stands for the final states.
        self.kept: tuple[int, ...] = ()
        exact = self.dtype == torch.float32
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        self.packed = exact and self.device.type == "cpu" and torch._C._has_mkldnn and size <= PACK_LIMIT
        config, rotary = module.config, (self.spec.rotary, self.spec.query_scaling)
        angles = partial(RotaryTables, parts.stack.rotary_emb, *rotary, self.embedding, length_of_change(config))
        self._rotary = angles()
        if kernels is None:
            shapes = [
                Heads(spec.heads, spec.kv_heads, spec.head_dim, spec.window, spec.score_softcap)
                for spec in self.spec.blocks
            ]
            kernels = kernels_of(self.device, self.dtype, self.hidden_size, shapes)
        loader = BlockLoader(family, self.embedding, self.packed, kernels)
        self.blocks = [loader.block(*each) for each in zip(self.spec.blocks, parts.layers, strict=True)]
        self._final_norm = loader.norm(parts.final_norm)
        self._layer_embeddings = loader.layer_embeddings(parts)
        self.head = self._head(parts.head, list(suppressed))
        linears = [*loader.linears, self.head]
        self.kernels = self._use_products(kernels, linears, invariant)
        self.invariant = invariant
        self.tiled = invariant and not all(linear.is_chosen for linear in linears)
        # The different attention masks of the blocks, by window and group (`BlockSpec.mask`).
        self.masks = sorted({spec.mask for spec in self.spec.blocks})
        # The largest number of tokens of which a forward does without values on the host, and so can be recorded.
        experts = max(spec.experts_per_token for spec in self.spec.blocks)
        self.most_recorded_tokens = MAX_PAIRS // experts if experts else NO_LIMIT
        # The same forward with the angles of sequences that are longer than the boundary, where they change.
        self.beyond: NativeForward | None = None
        if (boundary := boundary_of(config)) is not None and boundary.recomputed:
            self.beyond = copy.copy(self)
            self.beyond._rotary = angles(long=True)

    def with_layers(self, layers: Sequence[int]) -> NativeForward:
        """The forward of these layers alone, between the same embedding and head: on the same weights."""
        result = copy.copy(self)
        specs = [replace(self.spec.blocks[i], store=store) for store, i in enumerate(layers)]
        result.spec = replace(self.spec, blocks=tuple(specs))
        result.blocks = [replace(self.blocks[i], spec=spec) for spec, i in zip(specs, layers, strict=True)]
        result.masks, result.kept = sorted({spec.mask for spec in specs}), ()
        result.beyond = self.beyond and self.beyond.with_layers(layers)
        return result

    def _head(self, module: Any, suppressed: list[int]) -> Linear:
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        self._suppressed: Tensor | None = None
        if suppressed and (self.spec.logit_softcap or self.spec.logit_multiplier != 1):
            # A cap would make minus infinity finite.
            self._suppressed = torch.tensor(suppressed, device=self.device)
        elif suppressed:
            bias = torch.zeros(weight.shape[0], dtype=self.dtype, device=self.device) if bias is None else bias.clone()
            bias[suppressed] = float("-inf")
        return Linear(weight, bias, self.packed)

    def _use_products(self, kernels: Kernels, linears: Sequence[Linear], one_order: bool) -> Kernels:
        """Let the product kernel compute where it is chosen to, with `one_order` in one order of sums for any number of
        rows; the kernels with what there is to say of that."""
        kernels, choices = chosen_products(kernels, [linear.weight for linear in linears], one_order)
        for linear in linears:
            choice = choices.get(shape_name(linear.weight))
            if kernels.product is not None and choice is not None:
                linear.use(kernels.product, choice)
        return kernels

    def angles(self, length: int) -> Angles:
        """Rotary angles of at least positions 0 .. length - 1."""
        return self._rotary.upto(length)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, V] in float32 of final hidden states [N, D]."""
        return rows_by_tiles(self._logits, x) if self.tiled else self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        spec, result = self.spec, self.head(x)
        if spec.logit_multiplier != 1:
            result = result * spec.logit_multiplier
        if spec.logit_softcap:
            result = torch.tanh(result / spec.logit_softcap) * spec.logit_softcap
        if self._suppressed is not None:
            result.index_fill_(1, self._suppressed, float("-inf"))
        return result.float()

    def __call__(self, tokens: Tensor, angles: Angles, cache: Cache) -> Tensor:
        """Final hidden states [T, D], after the last norm, of tokens[T] at the positions of `angles`."""
        if self.tiled:
            assert isinstance(cache, OrderedCache)
            return by_tiles(self._stack, tokens, angles, cache)
        return self._stack(tokens, angles, cache)

    def _stack(self, tokens: Tensor, angles: Angles, cache: Cache) -> Tensor:
        x = self.embedding.index_select(0, tokens)
        if self.spec.embedding_multiplier != 1:
            x.mul_(self.spec.embedding_multiplier)
        if self._layer_embeddings is None and not self.kept:
            for block in self.blocks:
                x = _run(block, x, angles, cache)
            return self._final_norm(x)
        vectors: Iterable[Tensor | None] = [None] * len(self.blocks)
        if self._layer_embeddings is not None:
            vectors = self._layer_embeddings(tokens, x, len(self.blocks))
        for layer, (block, own) in enumerate(zip(self.blocks, vectors, strict=True)):
            x = _run(block, x, angles, cache, own)
            if layer in self.kept:
                cache.keep(x, self.kept.index(layer))
        x = self._final_norm(x)
        if len(self.blocks) in self.kept:
            cache.keep(x, self.kept.index(len(self.blocks)))
        return x


def _run(block: Block, x: Tensor, angles: Angles, cache: Cache, vectors: Tensor | None = None) -> Tensor:
    """The output [T, D] of a block for x[T, D], and for the tokens' vectors[T, P] if it takes such."""
    spec = block.spec
    normed = x if block.attention_norm is None else block.attention_norm(x)
    attended = attend(block, normed, angles, cache)
    multiplier = spec.residual_multiplier
    if block.attention_post_norm is None:
        after = block.out.added(attended, x, multiplier, overwrite=not spec.parallel)
    else:
        after = torch.add(x, block.attention_post_norm(block.out(attended)), alpha=multiplier)
    if block.mlp_norm is not None:
        normed = block.mlp_norm(x if spec.parallel else after)
    elif not spec.parallel:
        normed = after
    if block.mlp_post_norm is None:
        x = block.mlp.added(normed, after, multiplier)
    else:
        result = block.mlp(normed)
        if block.mixture is not None:
            result = result + block.mixture(after)
        x = torch.add(after, block.mlp_post_norm(result), alpha=multiplier)
    if vectors is not None and block.layer_input is not None:
        x = block.layer_input.added(x, vectors)
    return x if spec.output_multiplier == 1 else x.mul_(spec.output_multiplier)


def attend(block: Block, normed: Tensor, angles: Angles, cache: Cache) -> Tensor:
    """Attention output [T, H d], before its projection, of normed hidden states."""
    spec, num = block.spec, normed.shape[0]
    heads, head_dim = spec.heads, spec.head_dim
    turned = heads + spec.kv_heads if spec.stores else heads
    projected = block.projection(normed)
    if spec.values_are_keys:
        projected = torch.cat([projected, projected[:, heads * head_dim :]], dim=1)
    if spec.heads_outermost:
        projected = projected.view(num, heads, 3, head_dim).transpose(1, 2).reshape(num, -1)
    if block.query_norm is not None and block.key_norm is not None:
        end = heads * head_dim
        projected = torch.cat(
            [block.query_norm(projected[:, :end]), block.key_norm(projected[:, end : turned * head_dim]),
             projected[:, turned * head_dim :]], dim=1,
        )  # fmt: skip
    both = projected[:, : turned * head_dim].view(num, turned, head_dim)
    if block.qk_norm is not None and not spec.qk_norm_last:
        both.copy_(block.qk_norm(both))
    if block.value_norm is not None:
        values = projected[:, turned * head_dim :].view(num, spec.kv_heads, head_dim)
        values.copy_(block.value_norm(values))
    queries, fresh = both[:, :heads], None
    if cache.rotate_and_store is not None and (block.qk_norm is None or not spec.qk_norm_last):
        cache.rotate_and_store(block, projected, angles)
    else:
        if spec.rotary is not None:
            rotate(both, angles.tables[spec.rotary])
        if block.qk_norm is not None and spec.qk_norm_last:
            both.copy_(block.qk_norm(both))
        if spec.stores:
            fresh = projected[:, heads * head_dim :]
    if angles.scales is not None:
        queries = queries * angles.scales
    return cache.attend(block, queries, fresh)

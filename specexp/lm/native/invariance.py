"""Checks that a token's logits have the same bits whatever is fed with it: other rows, a tree, rows of a batch.

The reference feeds a path of tokens one by one after a prefix. Each comparison feeds tokens of it in another way and
counts the rows whose bits differ. `require` does so when a model is loaded for `numerics: invariant`; a certificate
does so on prompts of its own, on any model.

Shapes: N tokens of a path, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from specexp.errors import ModelError
from specexp.lm.model import Branches, Feed, Session
from specexp.lm.native.native_forward import NativeForward

ROWS, TREES = tuple(range(2, 17)), (24, 64, 160)  # tokens that are fed together: as a chain, and as a tree
FEW_ROWS, FEW_TREES = (2, 3, 9, 16), (24,)
PREFIX, PATH = 56, 16  # tokens; a block of attention ends within the path
DIRECTLY = 4  # tokens of the path that are fed alone, without a recording
CHAIN, TREE, NEIGHBOURS, PIECE, DIRECT = "rows", "a tree", "neighbours in a batch", "a piece", "a recording"
Array = Any


class Fed(Protocol):
    """The part of a `Model` that is compared."""

    @property
    def context(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def ids(self, tokens: Sequence[int]) -> Array: ...

    def sessions(self, count: int, capacity: int = 0) -> Sequence[Session]: ...

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]: ...


class CheckedModel(Fed, Protocol):
    """A loaded model, of which more is known."""

    name: str
    native: NativeForward | None
    why_not_native: str | None
    recomputed_at: int | None


@dataclass(frozen=True, slots=True)
class RowComparison:
    """How many of `num` logits rows differ from the reference in any bit, and by how much at most."""

    what: str
    size: int  # tokens fed together
    num: int
    num_differing: int
    gap: float


def require(model: CheckedModel) -> None:
    """Raise ModelError unless an invariant forward computes the model and its bits are the same on this machine."""
    why = _refusal(model)
    if why is None and (differing := [each for each in compare(model) if each.num_differing]):
        why = f"with the libraries of this machine its logits depend on {told(differing)}"
    if why is not None:
        raise ModelError(f"numerics is invariant, but model '{model.name}' cannot be: {why}; set numerics to fastest.")


def _refusal(model: CheckedModel) -> str | None:
    if model.native is None:
        return f"it does not run on the native forward ({model.why_not_native})"
    if any(block.experts_per_token for block in model.native.spec.blocks):
        return "the products of its experts depend on which tokens are fed together"
    if model.recomputed_at is not None:
        return "its rotary angles change with the length"
    return None


def told(differing: Sequence[RowComparison]) -> str:
    """What logits depend on, as in `rows (3 to 16; by up to 1e-05)`."""
    words = []
    for what in dict.fromkeys(each.what for each in differing):
        some = [each for each in differing if each.what == what]
        sizes, gap = sorted({each.size for each in some}), max(each.gap for each in some)
        many = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 2 else " and ".join(map(str, sizes))
        words.append(f"{what} ({many} tokens; by up to {gap:.2g})")
    return ", ".join(words)


@torch.inference_mode()
def compare(
    model: Fed, ids: Sequence[int] | None = None, rows: Sequence[int] = FEW_ROWS, trees: Sequence[int] = FEW_TREES
) -> Iterator[RowComparison]:
    """Compare the path that ends `ids` (default: some ids) in each way, as far as the context allows."""
    rng = random.Random(0)
    given = [rng.randrange(model.vocab_size) for _ in range(PREFIX + PATH)] if ids is None else list(ids)
    given = given[: model.context - 1]
    path = given[-min(PATH, len(given) // 2) :]
    prefix = given[: len(given) - len(path)]
    if not path:
        return
    capacity = min(model.context, len(given) + max((*trees, PATH)))
    (session,) = model.sessions(1, capacity)
    session.feed(model.ids(prefix), 0)
    expected = torch.cat([session.feed(model.ids([token]), 1)[0] for token in path])

    def compared(what: str, size: int, logits: Array, reference: Array) -> RowComparison:
        same = (logits == reference).all(1)
        gap = (logits - reference).nan_to_num(0.0).abs().max()  # of two infinite ones: those that are suppressed
        return RowComparison(what, size, len(same), int((~same).sum()), float(gap))

    for size in rows:
        if size <= len(path):
            session.truncate(len(prefix))
            logits, _ = session.feed(model.ids(path[:size]), size)
            yield compared(CHAIN, size, logits, expected[:size])
    session.truncate(0)
    logits, _ = session.feed(model.ids([*prefix, *path]), len(path))
    yield compared(PIECE, len(given), logits, expected)
    for size in trees:
        if len(path) < size <= model.context - len(prefix):
            nodes, branches, places = _tree(model, rng, path, len(prefix), size)
            session.truncate(len(prefix))
            logits, _ = session.feed(model.ids(nodes), size, False, branches)
            yield compared(TREE, size, logits[places], expected)
    del session
    yield from _in_batch(model, capacity, rng, prefix, path, expected, compared)


def _in_batch(
    model: Fed, capacity: int, rng: random.Random, prefix: Sequence[int], path: Sequence[int], expected: Array,
    compared: Any,
) -> Iterator[RowComparison]:  # fmt: skip
    """Feed the path alone without a recording, and then beside rows of other lengths."""
    others = model.sessions(3, capacity)
    own, size = others[1], len(path)
    own.feed(model.ids(prefix), 0)
    logits = torch.cat([own.feed(model.ids([token]), 1)[0] for token in path[:DIRECTLY]])
    yield compared(DIRECT, 1, logits, expected[:DIRECTLY])
    for session, length in zip(others[::2], (3, 11), strict=True):
        session.feed(model.ids([rng.randrange(model.vocab_size) for _ in range(min(length, model.context // 2))]), 0)
    for num in sorted({1, size}):
        own.truncate(len(prefix))
        feeds = [Feed(others[0], model.ids(path[:1]), 1), Feed(own, model.ids(path[:num]), num),
                 Feed(others[2], model.ids(path[: max(1, size // 2)]), 1)]  # fmt: skip
        logits, _ = model.feed(feeds)[1]
        yield compared(NEIGHBOURS, sum(len(feed.tokens) for feed in feeds), logits, expected[:num])
        for session in others[::2]:
            session.truncate(1)


def _tree(
    model: Fed, rng: random.Random, path: Sequence[int], base: int, size: int
) -> tuple[list[int], Branches, list[int]]:
    """A random tree of `size` nodes in which `path` is one path; its nodes are in slots of no order but that parents
    come first. Returns the nodes, their branches, and the places of the path."""
    at = [0, *sorted(rng.sample(range(1, size), len(path) - 1))]  # places of the path
    place = {node: depth for depth, node in enumerate(at)}
    nodes: list[int] = []
    ancestors: list[list[int]] = []
    for node in range(size):
        if node in place:
            depth = place[node]
            parent = at[depth - 1] if depth else -1
            nodes.append(path[depth])
        else:
            parent = rng.randrange(-1, node)
            while parent >= 0 and len(ancestors[parent]) >= len(path):  # no deeper than the path
                parent = rng.randrange(-1, node)
            nodes.append(rng.randrange(model.vocab_size))
        ancestors.append([*(ancestors[parent] if parent >= 0 else []), node])
    return nodes, Branches(base, [len(each) - 1 for each in ancestors], ancestors), at

"""Checks that a loaded model gives the same logits with a cache, and in a tree, as in one forward without a cache; and
that the native forward gives those of the module's own.

`model_config.py` refuses the families that are known to differ by their config; this module measures the others, once,
on a few tokens: six small forwards, two for the native forward (four if it has two sets of rotary angles), and eight
for a recurrent state. A single row may differ by more than rounding, since a mixture of experts may choose another
expert at a near tie. The check therefore compares the median row with the rounding of the model's dtype.

Shapes: P tokens of a prefix, N of a path, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from specexp.errors import ModelError, first_line
from specexp.lm.hf.carried_state import install
from specexp.lm.hf.recurrent_state import BY_ONE, CARRIED, SEVERAL, Continuation, HFState
from specexp.lm.model import Branches, Session
from specexp.lm.out_of_memory import is_exhausted

PREFIX, PATH = 24, 4
# The largest difference that rounding explains, as a fraction of the largest logit. Activations of int8 are as coarse
# as bfloat16, whatever the dtype of the other weights.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.0075, torch.bfloat16: 0.03}
COARSEST = 0.03
AS_MUCH = 4  # factor on that limit for a cache; and factor on the cached chain's difference as the limit for a tree


class Loaded(Protocol):
    """The part of `HFModel` that this module uses."""

    module: Any
    vocab_size: int
    context: int
    suppressed: Sequence[int]

    def ids(self, tokens: Sequence[int]) -> Tensor: ...

    def sessions(self, count: int, capacity: int = 0) -> Sequence[Session]: ...


def check_cache(model: Loaded, name: str) -> None:
    """Raise ModelError if a chain after cached tokens gets other logits than in one forward without a cache."""
    result = _measured(model, name, "tokens after cached ones", _chain_gap)
    if result is not None and result[0] > result[1]:
        raise ModelError(
            f"model '{name}' ({model.module.config.model_type}) gives other logits with a KV cache than without one:"
            f" they differ by {result[0]:.2g}, of which rounding explains {result[1]:.2g}. Use another model: every"
            " method needs the cache."
        )


def check_trees(model: Loaded, name: str) -> None:
    """Raise ModelError if the nodes of a tree get other logits than the same paths fed as chains."""
    result = _measured(model, name, "a token tree", _tree_gap)
    if result is not None and result[0] > result[1]:
        raise ModelError(
            f"model '{name}' ({model.module.config.model_type}) scores a token tree differently than its paths one by"
            f" one: logits differ by {result[0]:.2g}, of which rounding explains {result[1]:.2g}. Its layers do not"
            " place tokens by their positions alone: use a chain method (speculative, lookup)."
        )


def native_fault(
    model: Loaded, session: Callable[[], Session], turned: AbstractContextManager[None] | None = None
) -> str | None:
    """The reason why the native forward, on which `session` runs, cannot stand in for the module's; None if it can.

    Both score one short prompt, the module within `turned`: what is wrong in a description shows in the logits of every
    family.
    """
    ids = model.ids(_tokens(model)[0][: model.context])
    with torch.inference_mode(), turned or nullcontext():
        reference = model.module(input_ids=ids[None], use_cache=False).logits[0, :, : model.vocab_size].float()
    if bool(reference.isnan().any()):
        return None  # the run reports it
    reference = reference.clone()
    reference[:, list(model.suppressed)] = float("-inf")
    try:
        logits, _ = session().feed(ids, ids.shape[0])
    except Exception as error:  # a module of another version may have another form
        if is_exhausted(error):
            raise
        return f"the native forward failed on it ({type(error).__name__}: {first_line(error)})"
    gap, limit = (
        _gap(logits.nan_to_num(float("inf"), float("inf"), float("-inf")), reference),
        AS_MUCH * _rounding(model, reference),
    )
    if gap <= limit:
        return None
    return f"the native forward gives it other logits (by {gap:.2g}, of which rounding explains {limit:.2g})"


def continuation(model: Any) -> Continuation:
    """How a model with a recurrent state continues from it: by several tokens if that gives what one forward gives.

    Some families' modules ignore the state, or fail, when they are given several tokens after it. In a coarse dtype
    that could pass for rounding. So what continues token by token must not be much closer to the one forward, and where
    the state can be carried into the layers, only that is tried.
    """
    prefix, path, _ = _tokens(model)
    if model.context < PREFIX + PATH:
        return BY_ONE
    whole, _ = HFState(model, BY_ONE).advance(model.ids([*prefix, *path]), 0, PATH, False)

    def gap(how: Continuation) -> float:
        state = HFState(model, how)
        state.advance(model.ids(prefix), 0, 0, False)
        return _gap(state.advance(model.ids(path), PREFIX, PATH, False)[0], whole)

    rounding = _rounding(model, whole)
    how = CARRIED if install(model.module) else SEVERAL
    try:
        limit = AS_MUCH * min(rounding, max(gap(BY_ONE), rounding / 8))
        return how if gap(how) <= limit else BY_ONE
    except Exception as error:  # a module may fail in any way
        if is_exhausted(error):
            raise
        return BY_ONE


class TreeCheck:
    """Runs `check_trees` of one model once, unless it fails."""

    def __init__(self) -> None:
        self.passed = False

    def run(self, model: Loaded, name: str) -> None:
        """Raises ModelError as `check_trees` does."""
        self.passed = True  # set before the measurement, which feeds a tree and so calls this check
        try:
            check_trees(model, name)
        except BaseException:
            self.passed = False
            raise


Gaps = tuple[float, float]  # the measured difference and the largest one that rounding explains


def _measured(model: Loaded, name: str, what: str, measure: Callable[[Loaded], Gaps]) -> Gaps | None:
    """Measure; None if the context is too short for it, or if the logits are NaN, which a run reports itself."""
    if model.context < PREFIX + PATH or model.vocab_size < 2:
        return None
    try:
        result = measure(model)
    except Exception as error:  # another architecture may fail in any way
        if is_exhausted(error):
            raise
        words = first_line(error)
        raise ModelError(
            f"model '{name}' ({model.module.config.model_type}) cannot score {what}: {type(error).__name__}: {words}"
        ) from error
    return None if any(value != value for value in result) else result


def _chain_gap(model: Loaded) -> Gaps:
    prefix, path, _ = _tokens(model)
    session = model.sessions(2)[0]
    plain, _ = session.feed(model.ids([*prefix, *path]), PATH)
    session.truncate(0)
    cached = _behind(model, session, prefix, path)
    return _gap(cached, plain), AS_MUCH * _rounding(model, plain)


def _tree_gap(model: Loaded) -> Gaps:
    """Feed two paths after one prefix as a tree, their nodes interleaved: all but the first have slot != position.

    Then keep one path in the cache and score its last token as well.
    """
    prefix, one, other = _tokens(model)
    session = model.sessions(2)[0]
    plain = []
    for path in (one, other):
        plain.append(session.feed(model.ids([*prefix, *path]), PATH)[0])
        session.truncate(0)
    noise = _gap(_behind(model, session, prefix, other), plain[1])
    session.truncate(PREFIX)
    nodes = [token for pair in zip(one, other, strict=True) for token in pair]
    depths = [i // 2 for i in range(len(nodes))]
    ancestors = [list(range(i % 2, i + 1, 2)) for i in range(len(nodes))]
    tree, _ = session.feed(model.ids(nodes), len(nodes), False, Branches(PREFIX, depths, ancestors))
    session.truncate(PREFIX, [PREFIX + 2 * depth + 1 for depth in range(PATH - 1)])
    last, _ = session.feed(model.ids(other[-1:]), 1)
    paths = _gap(torch.cat([tree[::2], tree[1::2]]), torch.cat(plain))
    return max(paths, _gap(last, plain[1][-1:])), max(AS_MUCH * noise, _rounding(model, plain[1]))


def _behind(model: Loaded, session: Session, prefix: Sequence[int], path: Sequence[int]) -> Tensor:
    """Logits of a path that is fed after its cached prefix."""
    session.feed(model.ids(prefix), 0)
    logits: Tensor = session.feed(model.ids(path), PATH)[0]
    return logits


def _tokens(model: Loaded) -> tuple[list[int], list[int], list[int]]:
    """A prefix and two paths that follow it."""
    ids = [(11 + 7 * i + i * i) % model.vocab_size for i in range(PREFIX + 2 * PATH)]
    return ids[:PREFIX], ids[PREFIX:-PATH], ids[-PATH:]


def _gap(rows: Tensor, others: Tensor) -> float:
    """The median over rows of the largest difference. Suppressed ids are minus infinity on both sides."""
    differences = (rows - others).masked_fill(torch.isneginf(others) & torch.isneginf(rows), 0.0)
    return float(median(differences.abs().amax(dim=1).tolist()))


def _rounding(model: Loaded, rows: Tensor) -> float:
    largest = float(rows.masked_fill(torch.isneginf(rows), 0.0).abs().max())
    quantization = getattr(model.module.config, "quantization_config", None)
    # bitsandbytes packs 4-bit weights for CPUs with AVX-512 BF16, and multiplies them in bfloat16 whatever the dtype.
    packed = any(
        getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False)
        for weight in model.module.parameters()
    )
    coarse = getattr(quantization, "load_in_8bit", False) or packed
    return largest * (COARSEST if coarse else ROUNDING.get(model.module.dtype, COARSEST))

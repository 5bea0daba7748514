"""The exhaustive oracle on a method's own decoder, at a feasible size: numpy models of two or three tokens.

The decoder is the one that decodes on the user's models, built from the same settings. They are made smaller where the
rng would have too many possible outcomes: draft lengths to 4, windows with them, trees to 12 nodes on 3 levels, top-k
to 2; matches may be of one token. A judge reads hidden states of its own pair; a judge of random weights replaces it
and reads the toy's hidden states, with the same features and threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specexp.certify.oracle import output_distribution
from specexp.certify.reference_distribution import gap, sequence_distribution
from specexp.config import MethodConfig
from specexp.decoding.protocol import Role
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.errors import first_line
from specexp.judge import features
from specexp.judge.judge import Judge
from specexp.judge.network import LAYERS, NODES, TREES, Network
from specexp.lm.model import Model
from specexp.lm.runtime import SAME
from specexp.lm.toy import HIDDEN, ToyModel
from specexp.methods import BuildContext, decoder_for

EXACT = 1e-12
# Seeds of the toy pairs: many where nothing is drawn at random and each has a single output.
SEEDS, GREEDY_SEEDS = range(3, 5), range(3, 19)
EOS, PROMPT, DRAFT_NOISE = 0, [1, 1], 0.8
TOP_K = 2  # the largest value that removes any of three tokens
_WIDTH = 5  # of a toy judge's hidden layer
# What a decoder with a bug may raise under the oracle, which asserts its own rules.
BREAKS = (AssertionError, ArithmeticError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Size:
    """A method with small settings, the toy's vocabulary, and the number of tokens of an output."""

    method: MethodConfig
    vocab: int
    length: int

    def __str__(self) -> str:
        tree, gamma = self.method.tree, self.method.gamma
        shape = f"gamma {gamma}, " if gamma else ""
        if self.method.auto_gamma:
            shape = f"gamma auto up to {gamma}, "
        if tree is not None:
            shape = f"{tree.tree_budget} nodes on {tree.max_depth} levels, "
        return f"{shape}{self.vocab} tokens, {self.length} long"


@dataclass(frozen=True, slots=True)
class ToyResult:
    """The largest gap, where it was, and how many outputs were compared; `broken` is the error the decoder raised."""

    gap: float
    worst: str
    sizes: tuple[str, ...]
    num_outputs: int
    broken: str = ""


def sizes(method: MethodConfig) -> list[Size]:
    """The sizes of a method's settings that the oracle can examine in about a second."""
    if method.tree is not None:
        tree = method.tree
        small = replace(
            tree,
            tree_budget=min(tree.tree_budget, 12),
            max_depth=min(tree.max_depth, 3),
            parallel_branches=min(tree.parallel_branches, 4),
        )
        return [Size(replace(method, tree=small), vocab, length) for vocab, length in ((3, 4), (2, 6))]
    if not method.gamma:
        return [Size(method, 3, 5)]
    method = replace(method, min_match=1)  # few of these short texts repeat more, and nothing would be proposed
    result = [Size(_up_to(2, method), 3, 5)]
    if method.gamma > 2:
        longer = _up_to(4, method)
        result.append(Size(longer, 2, longer.gamma + 3))
    return result


def _up_to(most: int, method: MethodConfig) -> MethodConfig:
    """The method with drafts of at most `most` tokens, into which a window still fits."""
    gamma = min(method.gamma, most)
    window = min(method.accept_window, gamma - 1)
    return replace(method, gamma=gamma, max_gamma=min(method.max_gamma, most), accept_window=window)


def examine(
    method: MethodConfig, warp: Warp, judge: Judge | None, tick: Callable[[], None], vocabulary: str = SAME
) -> ToyResult:
    """Compare with the target's own distribution, on several toy pairs; call `tick` after each.

    `vocabulary` decides how drafts are verified; the toy's draft has the target's tokens.
    """
    small = replace(warp, top_k=min(warp.top_k, TOP_K))
    worst, where, outputs = 0.0, "", 0
    ran = tuple(str(size) for size in sizes(method))
    for size, seed in _runs(method, warp):
        sampling: dict[str, Any] = {"temperature": small.temperature, "top_k": small.top_k, "top_p": small.top_p}
        models = _toy_pair(size.vocab, seed)
        judges = {} if judge is None else {method.judge: toy_judge(judge, method.threshold, seed)}
        decoder = decoder_for(size.method, BuildContext(small, judges, (EOS,), vocabulary=vocabulary))
        try:
            got = output_distribution(lambda pair=models: Engine(pair, [EOS]), decoder, PROMPT, size.length)  # type: ignore[misc]
        except BREAKS as error:
            words = first_line(error, "")
            return ToyResult(worst, f"{size}", ran, outputs, f"{type(error).__name__}: {words}")
        expected = sequence_distribution(models["target"], PROMPT, size.length, EOS, **sampling)
        outputs += len(expected)
        result = gap(got, expected)
        if math.isnan(result):
            return ToyResult(worst, f"{size}", ran, outputs, "its probabilities are not numbers")
        if result > worst:
            worst, where = result, f"{size}"
        tick()
    return ToyResult(worst, where, ran, outputs)


def num_runs(method: MethodConfig, warp: Warp) -> int:
    """How often `examine` calls `tick`."""
    return len(list(_runs(method, warp)))


def _runs(method: MethodConfig, warp: Warp) -> Iterator[tuple[Size, int]]:
    for size in sizes(method):
        for seed in GREEDY_SEEDS if warp.greedy else SEEDS:
            yield size, seed


def _toy_pair(vocab: int, seed: int) -> dict[Role, Model]:
    return {"target": ToyModel(vocab, seed), "draft": ToyModel(vocab, seed, draft_noise=DRAFT_NOISE)}


def toy_judge(judge: Judge, threshold: float | None, seed: int) -> Judge:
    """A judge of the toy's hidden states that accepts about two in three mismatches at this threshold.

    The weights of the real judge fit no other models. Kind, features and calibrated threshold are the real judge's.
    """
    bar = judge.facts.threshold if threshold is None else threshold
    mode = features.mode(judge.facts.features)
    size = mode.size({"target": HIDDEN, "draft": HIDDEN})
    numbers = np.random.default_rng([seed, size])
    sure = min(max(bar, 1e-34), 0.9)
    middle = math.log(sure / (1 - sure)) - 1.0
    if judge.facts.kind == TREES:
        return Judge(_toy_trees(numbers, size, middle), replace(judge.facts, num_features=size))
    arrays = {"mean": np.zeros(size), "scale": np.ones(size)}
    width = size
    for layer in range(1, LAYERS[judge.facts.kind]):
        arrays |= {
            f"weight_{layer}": numbers.normal(size=(_WIDTH, width)),
            f"bias_{layer}": numbers.normal(size=_WIDTH),
        }
        width = _WIDTH
    last = LAYERS[judge.facts.kind]
    weights = numbers.normal(size=(1, width))
    arrays |= {f"weight_{last}": weights, f"bias_{last}": np.array([middle])}
    network = Network(judge.facts.kind, {name: array.astype(np.float32) for name, array in arrays.items()})
    return Judge(network, replace(judge.facts, num_features=size))


def _toy_trees(numbers: np.random.Generator, size: int, middle: float) -> Network:
    """Trees of one test each, whose leaves move the log-odds up or down from `middle`."""
    shape = (2 * size, 3)
    own = np.zeros(shape, np.int32) + np.arange(3)
    values = numbers.normal(size=(2 * size, 1)) * np.array([0, 1, -1])  # one leaf up, the other as far down
    arrays = {
        "feature": np.tile(np.repeat(np.arange(size), 2)[:, None], 3), "bound": numbers.normal(size=shape) / 2,
        "left": np.where(own == 0, 1, own), "right": np.where(own == 0, 2, own), "value": values,
        "bias": np.array([middle]), "depth": np.array([1]), "size": np.array([size]),
    }  # fmt: skip
    dtypes = {**NODES, "bias": "float32", "depth": "int32", "size": "int32"}
    return Network(TREES, {name: array.astype(dtypes[name]) for name, array in arrays.items()})

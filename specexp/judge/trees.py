"""Trains gradient-boosted trees (scikit-learn's HistGradientBoostingClassifier) and stores them as arrays: no pickle.

Trees need no standardised features. The `validation` split decides how many there are, by its loss, as for the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

from specexp.judge.network import NODES, TREES, Network

SAME = 1e-5  # how far probabilities may be from scikit-learn's, which are of 64 bits


@dataclass(frozen=True, slots=True)
class TreesRecipe:
    """Hyperparameters of the trees."""

    most_trees: int = 200
    learning_rate: float = 0.1
    leaves: int = 15
    samples_in_leaf: int = 10
    l2: float = 1.0
    bins: int = 63  # of a feature's values
    patience: int = 20  # trees without a lower validation loss; so many are boosted at a time
    seed: int = 0


def fit(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    log: Callable[[dict[str, float], int], None],
    recipe: TreesRecipe,
) -> tuple[HistGradientBoostingClassifier, int, float]:
    """Fit on x[N, F], y[N]; return the model, how many of its trees to keep, and their validation ROC-AUC."""
    model = HistGradientBoostingClassifier(
        learning_rate=recipe.learning_rate, max_iter=1, max_leaf_nodes=recipe.leaves, max_bins=recipe.bins,
        min_samples_leaf=recipe.samples_in_leaf, l2_regularization=recipe.l2, early_stopping=False,
        warm_start=True, random_state=recipe.seed,
    )  # fmt: skip
    best, kept, auc, tried = float("inf"), 1, 0.5, 0
    while tried - kept < recipe.patience and tried < recipe.most_trees:
        model.set_params(max_iter=min(tried + recipe.patience, recipe.most_trees)).fit(*train)
        for number, p in enumerate(model.staged_predict_proba(validation[0]), 1):
            if number <= tried:
                continue
            loss, area = float(log_loss(validation[1], p[:, 1])), float(roc_auc_score(validation[1], p[:, 1]))
            log({"judge/validation_loss": loss, "judge/validation_roc_auc": area}, number - 1)
            if loss < best:
                best, kept, auc = loss, number, area
        tried = model.max_iter
    return model, kept, auc


def network_of(model: HistGradientBoostingClassifier, num_trees: int, num_features: int) -> Network:
    """Return the first trees of a model as a network.

    A bound is rounded down to 32 bits: no feature, which has 32 bits, then falls on the other side.
    """
    trees = [stage[0].nodes for stage in model._predictors[:num_trees]]
    width = max(map(len, trees))
    shape = (len(trees), width)
    arrays: dict[str, np.ndarray] = {name: np.zeros(shape, dtype) for name, dtype in NODES.items()}
    for row, nodes in enumerate(trees):
        own = np.arange(len(nodes))
        leaf = nodes["is_leaf"].astype(bool)
        arrays["feature"][row, : len(nodes)] = np.where(leaf, 0, nodes["feature_idx"])
        arrays["bound"][row, : len(nodes)] = np.where(leaf, 0, _rounded_down(nodes["num_threshold"]))
        for side in ("left", "right"):
            arrays[side][row, : len(nodes)] = np.where(leaf, own, nodes[side])
        arrays["value"][row, : len(nodes)] = np.where(leaf, nodes["value"], 0)
    arrays["bias"] = np.array([np.ravel(model._baseline_prediction)[0]], np.float32)
    arrays["depth"] = np.array([max(int(nodes["depth"].max()) for nodes in trees)], np.int32)
    arrays["size"] = np.array([num_features], np.int32)
    return Network(TREES, arrays)


def settings_of(recipe: TreesRecipe, num_trees: int) -> dict[str, Any]:
    """The parameters to log."""
    return {"kind": TREES, "trees": num_trees, **asdict(recipe)}


def _rounded_down(bounds: np.ndarray) -> np.ndarray:
    """bounds[M] of 64 bits -> the largest of 32 bits that are not above them."""
    near: np.ndarray = np.clip(bounds, -np.finfo(np.float32).max, np.finfo(np.float32).max).astype(np.float32)
    result: np.ndarray = np.where(near > bounds, np.nextafter(near, np.float32(-np.inf)), near)
    return result

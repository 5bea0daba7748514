"""Trains judges on a label set: the AutoJudge MLP (torch), logistic regression and boosted trees (scikit-learn).

They are fitted to the `train` split only, MLP and regression to standardised features; the `validation` split decides
when the MLP stops, which C the regression uses and how many trees there are. calibration.py sets the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from specexp.errors import JudgeError
from specexp.judge.features import Mode
from specexp.judge.labels import LabelSet
from specexp.judge.mining_yield import what_is_missing
from specexp.judge.network import TREES, Network
from specexp.judge.shards.matrices import is_too_large, scaler_of, standardised
from specexp.judge.trees import SAME, TreesRecipe, fit, network_of, settings_of

C_GRID = tuple(10.0**-i for i in range(8))  # as in the paper
Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True, slots=True)
class MlpRecipe:
    """Hyperparameters of the MLP."""

    hidden: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 256
    epochs: int = 200
    patience: int = 15  # epochs without a lower validation loss
    dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with its validation ROC-AUC and training settings."""

    network: Network
    validation_auc: float
    settings: dict[str, float | int | str]


def check(labels: LabelSet, mode: Mode, kinds: Collection[str] = ()) -> None:
    """Raise JudgeError unless every split has what training, calibration and the report need, and fits these kinds."""
    labels.check(mode)
    if missing := what_is_missing(labels):
        raise JudgeError(missing)
    rows = sum(label.split == "train" and label.important is not None for label in labels.labels)
    if TREES in kinds and is_too_large(rows, labels.width(mode)):
        raise JudgeError(
            f"{4 * rows * labels.width(mode) / 2**30:.1f} GB of features '{mode.name}' are too many for trees, which"
            " scikit-learn grows in memory; train kinds mlp and logistic, or features of fewer parts."
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """Standardised features and labels of the two splits used in training; `raw` are the features before that."""

    scaler: StandardScaler
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    raw: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, labels: LabelSet, mode: Mode) -> Splits:
        """Select both splits. Raises JudgeError if a split is empty or holds one kind of mismatch only."""
        check(labels, mode)
        result = {split: labels.select(mode, split)[:2] for split in ("train", "validation")}
        scaler = scaler_of(result["train"][0])
        (x, important), (x_validation, important_validation) = result.values()
        train = standardised(scaler, x), important
        validation = standardised(scaler, x_validation), important_validation
        return cls(scaler, train, validation, (x, x_validation))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": _float32(self.scaler.mean_), "scale": _float32(self.scaler.scale_)}


def train_logistic(splits: Splits, log: Log) -> Trained:
    """Fit one regression per C; return the best by validation ROC-AUC, and of equals the most regularised one."""
    best: tuple[float, float, LogisticRegression] | None = None
    for step, c in enumerate(C_GRID):
        model = LogisticRegression(C=c, max_iter=2000).fit(*splits.train)
        auc = float(roc_auc_score(splits.validation[1], model.decision_function(splits.validation[0])))
        log({"judge/validation_roc_auc": auc}, step)
        if best is None or auc >= best[0]:
            best = auc, c, model
    assert best is not None
    auc, c, model = best
    arrays = {**splits.arrays(), "weight_1": _float32(model.coef_), "bias_1": _float32(model.intercept_)}
    return Trained(Network("logistic", arrays), auc, {"kind": "logistic", "C": c})


def train_mlp(splits: Splits, log: Log, recipe: MlpRecipe | None = None) -> Trained:
    """Train with binary cross-entropy and AdamW; keep the weights of the epoch with the lowest validation loss.

    The criterion is the loss, not the ROC-AUC: with a few hundred mismatches, the ROC-AUC reaches 1 long before the
    probabilities are meaningful.
    """
    import torch
    from torch import nn

    recipe = recipe or MlpRecipe()
    generator = torch.Generator().manual_seed(recipe.seed)
    # Features stay where they are, in memory or in a mapped file: a batch's rows are read when it is taken.
    x, x_validation = (torch.from_numpy(np.asarray(x, np.float32)) for x, _ in (splits.train, splits.validation))
    y, y_validation = (torch.tensor(kind, dtype=torch.float32) for _, kind in (splits.train, splits.validation))
    loss_of = nn.functional.binary_cross_entropy_with_logits
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = nn.Sequential(
            nn.Linear(x.shape[1], recipe.hidden), nn.ReLU(), nn.Dropout(recipe.dropout), nn.Linear(recipe.hidden, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        best, auc, kept, since = float("inf"), 0.0, {}, 0
        for epoch in range(recipe.epochs):
            model.train()
            order = torch.randperm(len(x), generator=generator)
            for rows in torch.split(order, recipe.batch_size):
                loss = loss_of(model(x[rows])[:, 0], y[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            model.eval()
            with torch.no_grad():
                logits = model(x_validation)[:, 0]
            result = float(loss_of(logits, y_validation))
            area = float(roc_auc_score(splits.validation[1], logits.numpy()))
            log(
                {"judge/validation_loss": result, "judge/validation_roc_auc": area, "judge/train_loss": loss.item()},
                epoch,
            )
            since += 1
            if result < best:
                best, auc, since = result, area, 0
                kept = {key: value.clone() for key, value in model.state_dict().items()}
            if since >= recipe.patience:
                break
    names = {"0.weight": "weight_1", "0.bias": "bias_1", "3.weight": "weight_2", "3.bias": "bias_2"}
    arrays = {**splits.arrays(), **{names[key]: _float32(value.numpy()) for key, value in kept.items()}}
    settings: dict[str, float | int | str] = {"kind": "mlp", "epochs_run": epoch + 1, **asdict(recipe)}
    return Trained(Network("mlp", arrays), auc, settings)


def train_trees(splits: Splits, log: Log, recipe: TreesRecipe | None = None) -> Trained:
    """Boost trees; keep as many as have the lowest validation loss."""
    recipe = recipe or TreesRecipe()
    x, x_validation = splits.raw
    model, number, auc = fit((x, splits.train[1]), (x_validation, splits.validation[1]), log, recipe)
    network = network_of(model, number, x.shape[1])
    *_, expected = (p[:, 1] for p, _ in zip(model.staged_predict_proba(x), range(number), strict=False))
    if np.abs(network(x) - expected).max() > SAME:
        raise JudgeError("this release of scikit-learn stores trees otherwise; train kinds mlp and logistic.")
    return Trained(network, auc, settings_of(recipe, number))


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)

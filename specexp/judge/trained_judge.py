"""Trains the judges of one label set, calibrates and compares them. Writes a folder; does not use MLflow."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specexp.judge import calibration, features, figures
from specexp.judge.features import Mode
from specexp.judge.judge import Facts, Judge
from specexp.judge.labels import Label, LabelSet
from specexp.judge.network import TREES
from specexp.judge.shards.matrices import by_batch
from specexp.judge.training import Log, MlpRecipe, Splits, Trained, train_logistic, train_mlp, train_trees
from specexp.judge.trees import TreesRecipe
from specexp.storage.files import writing

IDENTITY = ("target", "draft", "tokenizer", "target_name", "draft_name", "target_revision", "draft_revision", "dtype")
SWEEP = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)  # recalls whose thresholds are listed in addition to the requested one
DRAWN = 6  # most judges in a figure


@dataclass(frozen=True, slots=True)
class TrainedJudge:
    """A trained judge with its settings and its metrics on the test split."""

    judge: Judge
    validation_auc: float
    settings: Mapping[str, float | int | str]
    metrics: Mapping[str, float]
    p: np.ndarray  # of the test split's rows


def train(kind: str, labels: LabelSet, mode: Mode, recall: float, seed: int, log: Log) -> TrainedJudge:
    """Train one kind, calibrate it to `recall`, and evaluate it once on the test split. Raises JudgeError."""
    splits = Splits.of(labels, mode)
    trained: Trained
    if kind == TREES:
        trained = train_trees(splits, log, TreesRecipe(seed=seed))
    else:
        trained = train_logistic(splits, log) if kind == "logistic" else train_mlp(splits, log, MlpRecipe(seed=seed))
    x, important, _ = labels.select(mode, "calibration")
    threshold = calibration.threshold_for(recall, by_batch(trained.network, x), important)
    x_test, important_test, _ = labels.select(mode, "test")
    p = by_batch(trained.network, x_test)
    result = calibration.report(threshold, p, important_test)
    identity = labels.manifest["identity"]
    facts = Facts(
        **{key: identity[key] for key in IDENTITY}, chat_template=identity.get("chat_template"),
        features=mode.name, feature_version=features.VERSION, num_features=trained.network.num_features,
        task=labels.manifest["task"], kind=kind, threshold=threshold, requested_recall=recall, recall=result["recall"],
        labels=labels.hash, answer_version=labels.answer_version,
    )  # fmt: skip
    metrics = {f"judge/{key}": value for key, value in result.items()}
    metrics |= {
        "judge/threshold": threshold,
        "judge/best_validation_roc_auc": trained.validation_auc,
        "judge/recall_margin": calibration.recall_margin(recall, int(important.sum()), int(important_test.sum())),
    }
    return TrainedJudge(Judge(trained.network, facts), trained.validation_auc, trained.settings, metrics, p)


def better(candidate: Judge, champion: Judge, labels: LabelSet) -> tuple[bool, str]:
    """Return whether a judge beats the champion on the test split, by ROC-AUC, then Brier score; and the reason."""
    same = ("target", "draft", "tokenizer")
    other = [key for key in same if getattr(candidate.facts, key) != getattr(champion.facts, key)]
    if other:
        return False, f"the champion is for another {' and '.join(other)}; register this one under its own name"
    if champion.facts.feature_version != features.VERSION:
        return True, f"the champion's features are of version {champion.facts.feature_version}"
    if not labels.stores(features.mode(champion.facts.features)):
        return False, (
            f"these labels do not store the champion's features, {champion.facts.features}: they were mined by an"
            " earlier version; mine them again, or register this one under its own name"
        )
    result = []
    for judge in (candidate, champion):
        x, important, _ = labels.select(features.mode(judge.facts.features), "test")
        result.append(calibration.report(judge.facts.threshold, by_batch(judge.network, x), important))
    candidate_scores, champion_scores = ((metrics["roc_auc"], -metrics["brier"]) for metrics in result)
    says = f"test ROC-AUC {candidate_scores[0]:.4f} against the champion's {champion_scores[0]:.4f} on the same labels"
    if candidate_scores[0] == champion_scores[0]:
        says += f", Brier score {-candidate_scores[1]:.4f} against {-champion_scores[1]:.4f}"
    return candidate_scores > champion_scores, says


def class_of(text: str) -> str:
    """Return the class of a token: digit, word, sign, space or end. Special tokens decode to nothing and are `end`."""
    bare = text.strip()
    if not bare:
        return "end" if not text else "space"
    if any(c.isdigit() for c in bare):
        return "digit"
    return "word" if any(c.isalpha() for c in bare) else "sign"


def token_classes(labels: Sequence[Label], p: np.ndarray, threshold: float) -> list[dict[str, float | int | str]]:
    """Return, for each class of the target's token, how many mismatches there are, are important, and are accepted."""
    rows = []
    classes = np.array([class_of(label.target_text) for label in labels])
    important = np.array([bool(label.important) for label in labels])
    for name in ("digit", "sign", "word", "space", "end"):
        in_class = classes == name
        if in_class.any():
            rows.append({
                "class": name, "mismatches": int(in_class.sum()), "important": float(important[in_class].mean()),
                "accepted": float((p[in_class] < threshold).mean()),
                "important_accepted": int(((p < threshold) & important & in_class).sum()),
            })  # fmt: skip
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV."""
    with writing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write(folder: Path, candidates: Mapping[str, TrainedJudge], chosen: str, labels: LabelSet) -> list[Path]:
    """Write the chosen judge to `folder`, every judge to a subfolder, figures and tables; return the files to show.

    The figures have the best ones of many.
    """
    best = candidates[chosen]
    mode = features.mode(best.judge.facts.features)
    _, important, rows = labels.select(mode, "test")
    best.judge.save(folder)  # first, because the judge's files mark the folder as written by this package
    for kind, candidate in candidates.items():
        candidate.judge.save(folder / kind)
    order = sorted(candidates, key=lambda name: (name != chosen, -candidates[name].validation_auc))[:DRAWN]
    drawn = {name: each for name, each in candidates.items() if name in order}
    paths = figures.draw(folder, {name: (c.judge.facts.threshold, c.p) for name, c in drawn.items()}, important)
    write_table(folder / "token_classes.csv", token_classes(rows, best.p, best.judge.facts.threshold))
    num_prompts = max(1, len({label.prompt_id for label in rows}))
    x, marks, _ = labels.select(mode, "calibration")
    sweep = calibration.sweep(by_batch(best.judge.network, x), marks, SWEEP)
    for row in sweep:
        row |= {"test_recall": calibration.recall_at(row["threshold"], best.p, important)}
        row |= {"test_accepted": calibration.accepted_at(row["threshold"], best.p)}
        row |= {"test_important_accepted_per_prompt": float((best.p[important] < row["threshold"]).sum()) / num_prompts}
    write_table(folder / "threshold_sweep.csv", sweep)
    return [*paths, folder / "token_classes.csv", folder / "threshold_sweep.csv"]

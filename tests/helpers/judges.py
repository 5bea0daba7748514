"""Label sets and judges made up for tests, of any quality and for any pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.networks import network_arrays
from specexp import config
from specexp.answers import rules as answers
from specexp.judge import features
from specexp.judge.features import Mode
from specexp.judge.judge import Facts, Judge
from specexp.judge.labels import Label, LabelSet
from specexp.judge.network import Network
from specexp.judge.splits import split_of
from specexp.pair.loading import identity, load_pair

TINY_HIDDEN = {"target": 5, "draft": 3}


def label_set(folder: Path, num_prompts: int = 120, noise: float = 0.3, seed: int = 0, **identity_of: str) -> LabelSet:
    """Mismatches; the first feature of every part is their importance plus noise."""
    rng = np.random.default_rng(seed)
    labels, parts = [], {part: [] for part in features.PARTS}  # type: ignore[var-annotated]
    for number in range(num_prompts):
        for position in range(4):
            important = bool(rng.random() < 0.3)
            prompt = f"made-up-{number}"
            text = "7" if important else " word"
            labels.append(
                Label(
                    prompt, position, 1, 2, text, " other", important, "4", "5" if important else "4", split_of(prompt)
                )
            )
            for part in features.PARTS:
                row = rng.standard_normal(1 if part in features.SCALARS else TINY_HIDDEN[part.split("_")[0]])
                row[0] = important + noise * rng.standard_normal()
                parts[part].append(row.astype(np.float32))
    who = {"target": "t" * 16, "draft": "d" * 16, "tokenizer": "v" * 64, "target_name": "a", "draft_name": "b",
           "target_revision": "", "draft_revision": "", "dtype": "float32", **identity_of}  # fmt: skip
    manifest: dict[str, Any] = {
        "identity": who, "task": "arith", "settings": {"pair": "made-up"}, "num_prompts": num_prompts,
        "hidden_sizes": TINY_HIDDEN, "answer_version": answers.VERSION,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    LabelSet(labels, {part: np.stack(rows) for part, rows in parts.items()}, manifest).write(folder)
    return LabelSet.read(folder)


def random_network(kind: str, num_features: int, seed: int = 0) -> Network:
    """A network with random weights."""
    if kind == "trees":
        return Network(kind, network_arrays(kind, num_features, seed))
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {"mean": draw(num_features), "scale": np.abs(draw(num_features)) + 0.5}
    sizes = [num_features, 8, 1] if kind == "mlp" else [num_features, 1]
    for layer in range(1, len(sizes)):
        arrays[f"weight_{layer}"] = draw(sizes[layer], sizes[layer - 1]) / sizes[layer - 1] ** 0.5
        arrays[f"bias_{layer}"] = draw(sizes[layer])
    return Network(kind, arrays)


def judge_for(experiment: str, mode: Mode, kind: str = "mlp", **facts: Any) -> Judge:
    """A judge of random weights that fits an experiment's pair."""
    resolved = config.resolve(experiment)
    pair = load_pair(resolved, {"target", "draft"})
    hidden = {role: pair.models[role].facts()["hidden_size"] for role in ("target", "draft")}
    who = {key: value for key, value in identity(pair, resolved).items() if key in Facts.__dataclass_fields__}
    num = mode.size(hidden)
    given = {"threshold": 0.5, "kind": kind, **facts}
    made = Facts(
        **{
            **who,
            "features": mode.name,
            "feature_version": features.VERSION,
            "answer_version": answers.VERSION,
            "num_features": num,
            **given,
        }
    )
    return Judge(random_network(kind, num), made)

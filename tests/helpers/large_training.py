"""Trains a judge on a made-up label set of any size.

`python -m helpers.large_training write FOLDER ROWS` makes the set, features in blocks of rows, and
`python -m helpers.large_training KIND FOLDER MOST` trains on it, where a matrix of more than MOST bytes is in a scratch
file. That prints, as JSON, the peak of the process's memory that no file backs, in MB, and the judge's ROC-AUC on the
test split.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from helpers.judges import label_set
from specexp.judge import features, labels
from specexp.judge.labels import Label, LabelSet
from specexp.judge.shards import feature_files, matrices
from specexp.judge.splits import split_of
from specexp.judge.trained_judge import train

WIDTH = 256  # of each model's hidden state
MODE = features.mode("both")
BLOCK = 5_000


def unbacked() -> float:
    """Resident memory that no file backs, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def blocks(important: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for start in range(0, len(important), BLOCK):
        part = important[start : start + BLOCK]
        made = {name: rng.standard_normal((len(part), WIDTH), np.float32) for name in MODE.parts}
        for each in made.values():
            each[:, 0] += 2 * part
        yield made


def write(folder: Path, rows: int) -> None:
    """Write a label set of so many rows, four a prompt."""
    important = np.random.default_rng(1).random(rows) < 0.3
    own = [
        Label(f"p{i // 4}", i % 4, 1, 2, "7", "8", bool(important[i]), "4", "5", split_of(f"p{i // 4}"))
        for i in range(rows)
    ]
    like = label_set(folder / "small", 8).manifest
    folder.mkdir(parents=True, exist_ok=True)
    feature_files.MOST_BYTES = 2**24
    labels.write_set(folder, own, blocks(important), {name: like[name] for name in like if name != "files"})


def main(kind: str, folder: str, number: str) -> None:
    if kind == "write":
        write(Path(folder), int(number))
        return
    matrices.MOST_BYTES = int(number)
    made = LabelSet.read(Path(folder))
    peak, ended = [unbacked()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], unbacked())

    watcher = threading.Thread(target=watch)
    watcher.start()
    trained = train(kind, made, MODE, 0.9, 0, lambda metrics, step: None)
    ended.set()
    watcher.join()
    print(json.dumps({"megabytes": peak[0], "roc_auc": trained.metrics["judge/roc_auc"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])

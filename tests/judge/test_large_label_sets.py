"""Label sets beyond memory: features in shards and scratch files give the judge of memory, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import save

from helpers.judges import label_set
from specexp.errors import JudgeError
from specexp.judge import features, labels, training
from specexp.judge.labels import LabelSet, files_of
from specexp.judge.shards import feature_files, matrices
from specexp.judge.trained_judge import train

MODE = features.mode("both")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, row groups and batches of a few rows."""
    monkeypatch.setattr(feature_files, "BLOCK", 7)
    monkeypatch.setattr(labels, "ROW_GROUP", 20)
    monkeypatch.setattr(matrices, "ROWS", 16)


def copy(source: LabelSet, folder: Path) -> LabelSet:
    folder.mkdir()
    source.write(folder)
    return LabelSet.read(folder)


def test_a_small_set_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    made = label_set(tmp_path / "made")
    again = copy(made, tmp_path / "again")
    whole = {part: np.concatenate(list(feature_files.blocks_of(rows))) for part, rows in made.features.items()}
    assert (tmp_path / "again" / "features.safetensors").read_bytes() == save(whole)
    assert again.hash == made.hash
    assert sorted(files_of(tmp_path / "again")) == sorted(path.name for path in (tmp_path / "again").iterdir())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_a_judge_of_shards_and_scratch_files_is_the_judge_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = label_set(tmp_path / "made")
    in_memory = train(kind, made, MODE, 0.9, 0, lambda metrics, step: None)
    monkeypatch.setattr(feature_files, "MOST_BYTES", 1000)
    large = copy(made, tmp_path / "large")
    assert len(files_of(tmp_path / "large")) > 5
    assert pyarrow.parquet.ParquetFile(tmp_path / "large" / "labels.parquet").num_row_groups > 1
    monkeypatch.setattr(matrices, "MOST_BYTES", 0)
    x, important, rows = large.select(MODE, "train")
    assert matrices.is_mapped(x)
    expected = made.select(MODE, "train")
    assert np.array_equal(x, expected[0])
    assert np.array_equal(important, expected[1])
    assert rows == expected[2]
    out_of_core = train(kind, large, MODE, 0.9, 0, lambda metrics, step: None)
    for name, array in in_memory.judge.network.arrays.items():
        assert np.array_equal(out_of_core.judge.network.arrays[name], array), name
    assert np.array_equal(out_of_core.p, in_memory.p)
    assert out_of_core.metrics == in_memory.metrics
    assert out_of_core.judge.facts.threshold == in_memory.judge.facts.threshold


@pytest.mark.usefixtures("small")
def test_features_are_standardised_by_all_rows() -> None:
    x = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    assert len(list(matrices.batches(x))) > 3
    whole = matrices.standardised(matrices.scaler_of(x), x)
    assert np.allclose(whole, (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-5)


@pytest.mark.usefixtures("small")
def test_shards_are_hashed_and_may_be_removed_once_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = label_set(tmp_path / "made")
    monkeypatch.setattr(feature_files, "MOST_BYTES", 1000)
    large = copy(made, tmp_path / "large")
    second = tmp_path / "large" / "features-0002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(JudgeError, match=r"features-0002\.safetensors' does not have the hash in its manifest"):
        LabelSet.read(tmp_path / "large")
    second.unlink()
    with pytest.raises(JudgeError, match=r"cannot be read: .*No such file"):
        LabelSet.read(tmp_path / "large")
    second.write_bytes(whole)
    again = LabelSet.read(tmp_path / "large")
    for path in (tmp_path / "large").iterdir():
        path.unlink()
    assert np.array_equal(again.select(MODE, "test")[0], made.select(MODE, "test")[0])
    assert again.hash == large.hash


def test_trees_that_do_not_fit_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = label_set(tmp_path / "made")
    training.check(made, MODE, ("mlp", "trees"))
    monkeypatch.setattr(matrices, "MOST_BYTES", 0)
    training.check(made, MODE, ("mlp", "logistic"))
    with pytest.raises(
        JudgeError, match=r"GB of features 'both' are too many for trees.*; train kinds mlp and logistic"
    ):
        training.check(made, MODE, ("mlp", "trees"))


def test_a_scratch_file_ends_with_its_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "MOST_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = matrices.matrix(3, 2)
    x[:] = 5
    assert matrices.is_mapped(x)
    assert x.sum() == 30
    assert not list(tmp_path.iterdir())


def blocks() -> Iterator[dict[str, Any]]:
    yield {"a": np.arange(6, dtype=np.float16).reshape(3, 2)}
    yield {"a": np.arange(6, 8, dtype=np.float16).reshape(1, 2)}


def test_shards_hold_whole_blocks_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "MOST_BYTES", 1)
    names = feature_files.write_shards(tmp_path / "f.safetensors", blocks())
    assert names == ["f.safetensors", "f-0002.safetensors"]
    stored = feature_files.StoredFeatures([tmp_path / name for name in names])
    assert stored["a"].shape == (4, 2)
    assert np.concatenate(list(stored["a"].blocks())).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    out = np.zeros((2, 4), np.float32)
    feature_files.gathered([stored["a"], stored["a"]], [1, 3], out)
    assert out.tolist() == [[2, 3, 2, 3], [6, 7, 6, 7]]
    with pytest.raises(KeyError):
        stored["b"]

"""A label set: the result of mining, as files in standard formats.

labels.parquet          one row per tested mismatch (see `Label`)
features.safetensors    one matrix per part of judge/features.py, with the same rows as labels.parquet; the rows of a
                        large set continue in features-0002.safetensors, ... (judge/shards)
manifest.json           hashes of the models, tokenizer and data it was mined with, settings, counts

Splits are by prompt (see splits.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors.numpy import load_file, save

from specexp.answers.rules import UNRECORDED
from specexp.errors import JudgeError, first_line
from specexp.judge.features import PARTS, Mode
from specexp.judge.shards.feature_files import StoredFeatures, StoredPart, blocks_of, gathered, write_shards
from specexp.judge.shards.matrices import matrix
from specexp.judge.splits import filled
from specexp.storage.files import write_whole, writing

LABELS, FEATURES, MANIFEST = "labels.parquet", "features.safetensors", "manifest.json"
ROW_GROUP = 65_536  # rows of labels.parquet


@dataclass(frozen=True, slots=True)
class Label:
    """One tested mismatch. `position` counts the response's tokens from 0.

    `important` is None if the swapped continuation did not end within the limit: the mismatch is stored with no label.
    """

    prompt_id: str
    position: int
    target_token: int
    draft_token: int
    target_text: str
    draft_text: str
    important: bool | None
    answer_before: str
    answer_after: str | None
    split: str


_TYPES = {"position": pyarrow.int32(), "target_token": pyarrow.int32(), "draft_token": pyarrow.int32(),
          "important": pyarrow.bool_()}  # fmt: skip
SCHEMA = pyarrow.schema([(field.name, _TYPES.get(field.name, pyarrow.string())) for field in fields(Label)])


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels and, for each part, features[N, H] with one row per label."""

    labels: list[Label]
    features: Mapping[str, np.ndarray | StoredPart]
    manifest: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write the files, each atomically and the manifest last: a folder with a manifest is complete."""
        parts = [blocks_of(rows) for rows in self.features.values()]
        blocks = (dict(zip(self.features, each, strict=True)) for each in zip(*parts, strict=True))
        write_set(folder, self.labels, blocks, self.manifest)

    @classmethod
    def read(cls, folder: Path) -> LabelSet:
        """Read a finished label set. Raises JudgeError that says what is missing or does not match."""
        missing = [name for name in (MANIFEST, LABELS, FEATURES) if not (folder / name).is_file()]
        if missing:
            raise JudgeError(f"'{folder}' is not a finished label set: {missing[0]} is missing; run collect_labels.")
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for name in (LABELS, FEATURES, *manifest["files"]):
                if _hash(folder / name) != manifest["files"][name]:
                    raise JudgeError(f"'{folder / name}' does not have the hash in its manifest; mine the set again.")
            rows = [Label(**row) for row in _rows(folder / LABELS)]
            shards = [folder / name for name in manifest["files"] if name != LABELS]
            result = load_file(folder / FEATURES) if len(shards) == 1 else StoredFeatures(shards)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise JudgeError(f"the label set in '{folder}' cannot be read: {error}") from error
        # A set written by an earlier version may have a split that prompts of other splits can fill.
        return cls(filled(rows), result, manifest)

    @property
    def hash(self) -> str:
        """Return the hash that identifies this set: the SHA-256 of its files' hashes."""
        return hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()

    @property
    def answer_version(self) -> int:
        """Return the version of the rule that read the answers."""
        result = self.manifest.get("answer_version")
        return result if isinstance(result, int) else UNRECORDED

    def select(self, mode: Mode, split: str) -> tuple[np.ndarray, np.ndarray, list[Label]]:
        """Return features[N, F] float32, important[N] bool and the labels of one split, without the undecided ones.

        Features that are too large for memory are in a scratch file, which ends with the array."""
        rows = [i for i, label in enumerate(self.labels) if label.split == split and label.important is not None]
        self.check(mode)
        labels = [self.labels[i] for i in rows]
        parts = [self.features[part] for part in mode.parts]
        x = matrix(len(rows), self.width(mode))
        gathered(parts, rows, x)
        return x, np.array([bool(label.important) for label in labels]), labels

    def width(self, mode: Mode) -> int:
        """Return the number of features."""
        return sum(self.features[part].shape[1] for part in mode.parts)

    def stores(self, mode: Mode) -> bool:
        """True if the set has the parts of these features: one of an earlier version has no scalars."""
        return all(part in self.features for part in mode.parts)

    def check(self, mode: Mode) -> None:
        """Raise JudgeError if the set does not store what the features consist of."""
        if missing := [part for part in mode.parts if part not in self.features]:
            raise JudgeError(
                f"the labels were mined by an earlier version and do not store {', '.join(missing)}, which features"
                f" '{mode.name}' need; mine them again with collect_labels."
            )


def write_set(
    folder: Path, labels: Sequence[Label], blocks: Iterator[Mapping[str, np.ndarray]], manifest: Mapping[str, Any]
) -> None:
    """Write a label set whose features come in blocks of rows, which are not held together."""
    columns = {field.name: [getattr(label, field.name) for label in labels] for field in fields(Label)}
    table = pyarrow.table(columns, schema=SCHEMA)
    with writing(folder / LABELS) as partial:
        pyarrow.parquet.write_table(table, partial, compression="zstd", row_group_size=ROW_GROUP)
    names = [LABELS, *write_shards(folder / FEATURES, blocks)]
    hashes = {name: _hash(folder / name) for name in names}
    write_whole(folder / MANIFEST, json.dumps({**manifest, "files": hashes}, indent=2) + "\n")


def files_of(folder: Path) -> list[str]:
    """Return the names of a finished set's files."""
    return [*json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"], MANIFEST]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, one row group after another."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def pack(labels: Sequence[Label], features: Mapping[str, np.ndarray], counts: Mapping[str, Any]) -> bytes:
    """Return the results of one prompt as one safetensors file, with labels and counts in its header."""
    facts = {"labels": json.dumps([asdict(label) for label in labels]), "counts": json.dumps(dict(counts))}
    arrays = {part: np.ascontiguousarray(features[part]) for part in PARTS if part in features}
    return bytes(save(arrays, metadata={**facts, "checksum": _checksum(facts, arrays)}))


def unpack(path: Path) -> tuple[list[Label], dict[str, np.ndarray], dict[str, Any]]:
    """Read a file written from `pack`; earlier versions wrote no checksum. Raises JudgeError if the file is broken."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = dict(file.metadata())
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        result = facts.pop("checksum", None)
        if result is not None and result != _checksum(facts, arrays):
            raise ValueError("it does not match its checksum")
        return [Label(**row) for row in json.loads(facts["labels"])], arrays, json.loads(facts["counts"])
    except Exception as error:  # the library raises various errors for a truncated or edited file
        said = first_line(error)
        raise JudgeError(f"{path} cannot be read: {said}. Remove it to mine its prompt again.") from error


def _checksum(facts: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the checksum of the content of one prompt's file."""
    result = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(arrays):
        result.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        result.update(arrays[name].tobytes())
    return result.hexdigest()

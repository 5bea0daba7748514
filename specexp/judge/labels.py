"""A label set: the result of mining, as files in standard formats.

labels.parquet          one row per tested mismatch (see `Label`)
features.safetensors    one matrix per part of judge/features.py, with the same rows as labels.parquet
manifest.json           hashes of the models, tokenizer and data it was mined with, settings, counts

Splits are by prompt (see splits.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from specexp.judge.splits import filled
from specexp.storage.files import write_whole, writing

LABELS, FEATURES, MANIFEST = "labels.parquet", "features.safetensors", "manifest.json"


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
    features: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write the three files, each atomically and the manifest last: a folder with a manifest is complete."""
        columns = {field.name: [getattr(label, field.name) for label in self.labels] for field in fields(Label)}
        table = pyarrow.table(columns, schema=SCHEMA)
        with writing(folder / LABELS) as partial:
            pyarrow.parquet.write_table(table, partial, compression="zstd")
        arrays = {part: np.ascontiguousarray(rows) for part, rows in self.features.items()}
        write_whole(folder / FEATURES, save(arrays))
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (LABELS, FEATURES)}
        write_whole(folder / MANIFEST, json.dumps({**self.manifest, "files": hashes}, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> LabelSet:
        """Read a finished label set. Raises JudgeError that says what is missing or does not match."""
        missing = [name for name in (MANIFEST, LABELS, FEATURES) if not (folder / name).is_file()]
        if missing:
            raise JudgeError(f"'{folder}' is not a finished label set: {missing[0]} is missing; run collect_labels.")
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for name in (LABELS, FEATURES):
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != manifest["files"][name]:
                    raise JudgeError(f"'{folder / name}' does not have the hash in its manifest; mine the set again.")
            rows = pyarrow.parquet.read_table(folder / LABELS).to_pylist()
            result = load_file(folder / FEATURES)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise JudgeError(f"the label set in '{folder}' cannot be read: {error}") from error
        # A set written by an earlier version may have a split that prompts of other splits can fill.
        return cls(filled([Label(**row) for row in rows]), result, manifest)

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
        """Return features[N, F] float32, important[N] bool and the labels of one split, without the undecided ones."""
        rows = [i for i, label in enumerate(self.labels) if label.split == split and label.important is not None]
        self.check(mode)
        labels = [self.labels[i] for i in rows]
        x = np.concatenate([self.features[part][rows].astype(np.float32) for part in mode.parts], axis=1)
        return x, np.array([bool(label.important) for label in labels]), labels

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

"""Feature matrices in safetensors shards: `features.safetensors`, and when that is full `features-0002.safetensors`.

All parts of a row are in one shard, and rows continue from shard to shard. A small set has the first file only. Neither
writing nor reading holds more than one shard: rows are read from the mapped files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from specexp.storage.files import write_whole
from specexp.storage.numbered_files import numbered

MOST_BYTES = 256 * 2**20  # of features, after which the next shard is begun
BLOCK = 8_192  # rows that are read at a time

Array = np.ndarray[Any, Any]


def write_shards(path: Path, blocks: Iterator[Mapping[str, Array]]) -> list[str]:
    """Write blocks of rows, each with all parts, into shards, each atomically; return the files' names."""
    names: list[str] = []
    waiting: list[Mapping[str, Array]] = []

    def flush() -> None:
        file = numbered(path, len(names) + 1)
        arrays = {part: np.ascontiguousarray(np.concatenate([each[part] for each in waiting])) for part in waiting[0]}
        write_whole(file, save(arrays))
        names.append(file.name)
        waiting.clear()

    size = 0
    for block in blocks:
        waiting.append(block)
        size += sum(array.nbytes for array in block.values())
        if size >= MOST_BYTES:
            flush()
            size = 0
    if waiting or not names:
        flush()
    return names


class StoredFeatures(Mapping[str, "StoredPart"]):
    """The parts of a label set's features, in the shards that were mapped when this was made: they may be removed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._open = ExitStack()
        self.shards = [self._open.enter_context(safe_open(path, framework="numpy")) for path in paths]
        self._parts = list(self.shards[0].keys())
        self.sizes = [int(shard.get_slice(self._parts[0]).get_shape()[0]) for shard in self.shards]

    def __getitem__(self, part: str) -> StoredPart:
        if part not in self._parts:
            raise KeyError(part)
        return StoredPart(self, part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class StoredPart:
    """One part's matrix[N, H]."""

    def __init__(self, features: StoredFeatures, part: str) -> None:
        self._features, self._part = features, part

    @property
    def shape(self) -> tuple[int, int]:
        width = self._features.shards[0].get_slice(self._part).get_shape()[1]
        return sum(self._features.sizes), int(width)

    def blocks(self) -> Iterator[Array]:
        """Yield the matrix in blocks of rows."""
        for shard, size in zip(self._features.shards, self._features.sizes, strict=True):
            rows = shard.get_slice(self._part)
            for start in range(0, size, BLOCK):
                yield rows[start : min(start + BLOCK, size)]


def blocks_of(matrix: Array | StoredPart) -> Iterator[Array]:
    """Yield a matrix in blocks of rows, from memory or from its shards."""
    if isinstance(matrix, StoredPart):
        yield from matrix.blocks()
    else:
        for start in range(0, len(matrix), BLOCK):
            yield matrix[start : start + BLOCK]


def gathered(parts: Sequence[Array | StoredPart], rows: Sequence[int], out: Array) -> None:
    """Write the given rows, in ascending order, of these parts side by side into out[N, F], as float32."""
    chosen = np.asarray(rows, dtype=np.int64)
    start = done = 0
    for each in zip(*map(blocks_of, parts), strict=True):
        end = start + len(each[0])
        inside = chosen[(chosen >= start) & (chosen < end)] - start
        column = 0
        for block in each:
            out[done : done + len(inside), column : column + block.shape[1]] = block[inside]
            column += block.shape[1]
        start, done = end, done + len(inside)

"""Progress of mining: tokens of responses that were tried, since prompts mined together finish together, and files."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class SearchProgress:
    """Advances a progress bar by tokens. Its total is the length of the started responses, plus their mean length for
    each of the others."""

    def __init__(self, bar: Any, num_prompts: int) -> None:
        self._bar, self._num_prompts = bar, num_prompts
        self._tried, self._lengths = array("i"), array("i")  # by prompt; of those that have not begun, 0
        self._known = self._num_begun = 0

    def update(self, place: int, tried: int, length: int) -> None:
        """Note that `tried` tokens of this prompt's response of `length` tokens have been tried."""
        if (more := place + 1 - len(self._tried)) > 0:
            for each in (self._tried, self._lengths):
                each.frombytes(bytes(more * each.itemsize))
        before, known = self._tried[place], self._lengths[place]
        self._num_begun += not known
        self._tried[place], self._lengths[place] = tried, length
        self._known += length - known
        mean = self._known / self._num_begun
        self._bar.total = round(self._known + mean * (self._num_prompts - self._num_begun))
        self._bar.update(tried - before)


class PromptFiles(Mapping[int, Path]):
    """The files with the results of these prompts, by index, in ascending order; paths are made when asked for."""

    def __init__(self, folder: Path, indices: range | array[int]) -> None:
        self._folder, self._indices = folder, indices

    def __getitem__(self, index: int) -> Path:
        place = bisect_left(self._indices, index)
        if place == len(self._indices) or self._indices[place] != index:
            raise KeyError(index)
        return self._folder / f"{index:06d}.safetensors"

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def parted(self) -> tuple[PromptFiles, PromptFiles]:
        """Return those that exist now, and those that do not."""
        there, missing = array("q"), array("q")
        for index, path in self.items():
            (there if path.exists() else missing).append(index)
        return PromptFiles(self._folder, there), PromptFiles(self._folder, missing)

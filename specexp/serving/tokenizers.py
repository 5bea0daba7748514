"""Tokenizers for several threads: one is not safe for two threads at a time, and a long prompt takes seconds.

Copies are made as they are needed. However many long prompts there are, one tokenizer stays free for short ones.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from queue import Empty, LifoQueue

from specexp.api import LoadedPair
from specexp.config import Experiment
from specexp.pair.tokenization import Text

MOST = 4  # tokenizers
LONG = 1 << 16  # characters; prompts of this length or more are long


class Texts:
    """Lends a text, or a copy of it, to one thread at a time."""

    def __init__(self, text: Text, most: int = MOST) -> None:
        self._free: LifoQueue[Text] = LifoQueue()
        self._free.put(text)
        self._lock = threading.Lock()  # guards the fields below
        self._model = text  # never lent, so that it can be copied at any time
        self._left = most - 1
        try:
            self._model = copy.deepcopy(text)
        except Exception:  # a custom tokenizer that cannot be copied: threads take turns with it
            self._left = 0
        self._long = threading.Semaphore(max(1, self._left))

    @contextmanager
    def lend(self, size: int = 0) -> Iterator[Text]:
        """A text for this thread alone, to encode `size` characters."""
        with self._long if size >= LONG else nullcontext():
            text = self._take()
            try:
                yield text
            finally:
                self._free.put(text)

    def _take(self) -> Text:
        try:
            return self._free.get_nowait()
        except Empty:
            return self._another() or self._free.get()

    def _another(self) -> Text | None:
        with self._lock:
            if not self._left:
                return None
            self._left -= 1
            return copy.deepcopy(self._model)


def share(pair: LoadedPair, experiment: Experiment) -> Texts:
    """Make a pair ready for several threads; returns its tokenizers."""
    pair.judge_of(experiment.methods[0])  # before the first call of any thread
    texts = Texts(pair.text)
    with suppress(Exception):  # of a custom tokenizer that cannot be copied
        pair.spelled_by = copy.deepcopy(pair.text)
    pair.stop_of(replace(experiment, stop=("\n",)))  # makes its table before the first call of any thread
    return texts

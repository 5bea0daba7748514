"""The common types of tasks: examples of one or more turns, and the interface that reads answers from texts."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from specexp.errors import ModelError, PromptError
from specexp.sequences.lazy import LazySequence, RecentItems
from specexp.sequences.names import NameNumbers, first_twice

Message = dict[str, str]  # role: system, user or assistant; content
MOST_KEPT = 8 << 20  # bytes of examples that are in memory: all of a small run


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation's user turns. `answer` is the gold answer to the last one, in the form that `extract` returns.

    Before them come the `system` prompt of its own, if it has one, `shots`, which are solved examples, and `context`,
    the exchanges that the conversation began with: both are pairs (question, answer).
    """

    prompt_id: str
    turns: tuple[str, ...]
    answer: str | None = None
    category: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    context: tuple[tuple[str, str], ...] = ()
    system: str = ""

    @property
    def size(self) -> int:
        """About how many bytes it takes, without `shots`, which all of them share."""
        texts = [self.prompt_id, *self.turns, self.system, *(text for pair in self.context for text in pair)]
        return 600 + sum(map(len, texts))

    def messages(self, replies: Sequence[str] = ()) -> list[Message]:
        """Return the messages at turn len(replies), where `replies` are the assistant's earlier answers."""
        result: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        asked = self.turns[: len(replies) + 1]
        for question, answer in [*self.shots, *self.context, *zip(asked, replies, strict=False)]:
            result += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*result, {"role": "user", "content": asked[-1]}]


class Generated(Protocol):
    """A problem that is made from its index."""

    @property
    def index(self) -> int: ...


class Examples(LazySequence[Example]):
    """Examples that are made when they are asked for. `twice` is the first id that `checked` has met again."""

    twice: str | None = None
    _numbers: NameNumbers | None = None

    def place_of(self, prompt_id: str) -> int:
        """Return the index of an example. Raises KeyError. The first call looks at all of them."""
        if self._numbers is None:
            self._numbers = NameNumbers()
            for example in self:
                self._numbers.number(example.prompt_id)
        place = self._numbers.find(prompt_id)
        if place is None:
            raise KeyError(prompt_id)
        return place

    def _of(self, places: range | array[int]) -> Self:
        result = super()._of(places)
        result._numbers = None
        return result


def prompt_id_of(example: Example) -> str:
    return example.prompt_id


def place_of(examples: Sequence[Example], prompt_id: str) -> int:
    """Return the index of the example with this id. Raises KeyError."""
    if isinstance(examples, Examples):
        return examples.place_of(prompt_id)
    places = (place for place, example in enumerate(examples) if example.prompt_id == prompt_id)
    if (place := next(places, None)) is None:
        raise KeyError(prompt_id)
    return place


def checked(items: Sequence[Any], make: Callable[[Any], Example]) -> Examples:
    """Return the example that `make` makes of each item. Each is made once now: what it raises is told first."""
    recent = recent_examples(lambda place: make(items[place]))

    def made() -> Iterator[str]:
        for place, item in enumerate(items):
            example = make(item)
            recent.put(place, example)
            yield example.prompt_id

    names = made()
    twice = first_twice(names)
    deque(names, maxlen=0)  # the rest, where a name came twice
    result = Examples(recent, len(items))
    result.twice = twice
    return result


def generated(stream: Iterable[Generated], make: Callable[[int], Any], example: Callable[[Any], Example]) -> Examples:
    """Return the examples of a stream of problems. `make` makes the problem of an index again."""
    recent, indices = recent_examples(lambda index: example(make(index))), array("q")
    for problem in stream:
        indices.append(problem.index)
        recent.put(problem.index, example(problem))
    return Examples(recent, indices)


def recent_examples(make: Callable[[int], Example]) -> RecentItems[Example]:
    """Return `make`, which remembers what it made last."""
    return RecentItems(make, lambda example: example.size, MOST_KEPT)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where a task's examples came from, with the fields of an MLflow dataset."""

    name: str
    source: str
    digest: str  # SHA-256
    num_rows: int


class Comparator(Protocol):
    """Says when two answers of a task are equal; its answers are texts, as `Task.extract` returns them."""

    @property
    def name(self) -> str: ...

    def equal(self, answer: str, other: str, example: Example) -> bool:
        """Return whether `answer` says the same as `other`, the gold answer or that of another output to `example`."""
        ...


class Task(Protocol):
    """A source of examples. Its answers are read from generated text alone."""

    @property
    def name(self) -> str: ...

    @property
    def comparator(self) -> Comparator:
        """What an answer is compared by, with the gold answer and with other answers."""
        ...

    def examples(self, limit: int) -> Sequence[Example]:
        """Return `limit` examples, always the same ones: a larger limit keeps those of a smaller one.

        They may be made when they are asked for (`Examples`).
        """
        ...

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        """Return the answer in a generated text; `finished` is True if the text ended by itself.

        `gold`, if given, decides which kind of answer is read; its value has no influence.
        """
        ...

    def dataset(self) -> Dataset:
        """Describe what `examples` reads."""
        ...


@contextmanager
def naming(example: Example) -> Iterator[None]:
    """Within the context, what is raised about a prompt names it."""
    try:
        yield
    except (PromptError, ModelError) as error:
        raise type(error)(f"prompt '{example.prompt_id}': {error}") from None

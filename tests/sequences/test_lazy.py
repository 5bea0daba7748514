"""Sequences whose items are made when they are asked for: as lists, but for what they hold."""

from __future__ import annotations

import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from specexp.errors import TaskError
from specexp.sequences.file_lines import FileLines
from specexp.sequences.lazy import LazySequence, RecentItems, at, lazily
from specexp.sequences.names import NameNumbers, first_of_each, first_twice
from specexp.sequences.token_ids import TokenIds, length_at, lengths_of, longest_of, of_median_length

SQUARES = LazySequence(lambda place: place**2, 10)
PICKED = LazySequence(lambda place: place**2, array("q", [7, 2, 2, 5]))


@pytest.mark.parametrize("lazy,items", [(SQUARES, [i**2 for i in range(10)]), (PICKED, [49, 4, 4, 25])])
def test_it_is_read_as_a_list_is(lazy: LazySequence[int], items: list[int]) -> None:
    assert (len(lazy), list(lazy), list(reversed(lazy))) == (len(items), items, items[::-1])
    assert [lazy[index] for index in range(-len(items), len(items))] == items + items
    for start in (None, 0, 1, -2, 99):
        for stop in (None, 0, 3, -1, 99):
            for step in (None, 2, -1):
                assert lazy[start:stop:step] == items[start:stop:step]
    assert lazy[1:][1:] == items[2:]
    assert lazy.at([2, 0, 2]) == at(items, [2, 0, 2]) == [items[2], items[0], items[2]]
    assert lazy[2:].at([1, 0]) == [items[3], items[2]]
    assert (4 in lazy, 3 in lazy, lazy.index(4), lazy.count(4)) == (True, False, items.index(4), items.count(4))
    for index in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            lazy[index]
    assert lazy == items
    assert items == lazy
    assert lazy != [*items, 0]
    assert lazy != items[:-1]
    assert lazy != "text"
    assert not lazy[:0]
    assert list(lazily(str, lazy)) == [str(item) for item in items]


def test_an_index_error_of_what_makes_an_item_does_not_end_the_sequence() -> None:
    with pytest.raises(IndexError, match="list index"):
        list(LazySequence([3, 4].__getitem__, 3))


def test_a_whole_pass_is_faster_where_that_is_known_and_parts_are_made_one_by_one() -> None:
    lazy = LazySequence(lambda place: place, 4, lambda: iter("abcd"))
    assert list(lazy) == list("abcd")
    assert (list(lazy[:2]), list(lazy.at([3]))) == ([0, 1], [3])


def test_items_that_were_used_last_are_kept_up_to_a_size() -> None:
    made: list[int] = []

    def make(place: int) -> str:
        made.append(place)
        return "x" * place

    recent = RecentItems(make, len, 10)
    assert [recent(4), recent(5), recent(4)] == ["xxxx", "xxxxx", "xxxx"]
    assert made == [4, 5], "the last one was kept"
    recent(2)  # 11 are too much: 5 was used first
    assert [recent(4), recent(2), recent(5)] == ["xxxx", "xx", "xxxxx"]
    assert made == [4, 5, 2, 5]
    recent(11)
    recent(5)
    recent(11)
    assert made == [4, 5, 2, 5, 11, 11], "too large to be kept, and nothing gave way to it"
    recent.put(1, "y")
    assert recent(1) == "y"
    recent.put(1, "z")
    assert recent(1) == "y"
    recent.clear()
    assert recent(1) == "x"


def test_kept_items_take_no_more_when_they_are_put_again() -> None:
    recent = RecentItems(lambda place: "x" * 4, len, 10)
    for _ in range(5):
        recent.put(0, "aaaa")
        recent.put(1, "bbbb")
    assert (recent(0), recent(1)) == ("aaaa", "bbbb")


def encoder(asked: list[int]) -> Callable[[int], list[int]]:
    def encode(index: int) -> list[int]:
        asked.append(index)
        return [index] * (3 + index * 7 % 5)

    return encode


def test_token_ids_are_encoded_once_where_they_are_few_and_again_where_they_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    expected = [encoder([])(index) for index in range(20)]
    few = TokenIds(encoder(asked), 20)
    assert (few, asked) == (expected, [*range(20)])
    assert type(few[3]) is list
    few[3].append(9)
    assert few[3] == expected[3], "what is returned is the caller's"
    monkeypatch.setattr("specexp.sequences.token_ids.MOST_TOKENS", 12)
    many = TokenIds(encoder(asked), 20)
    asked.clear()
    assert many[4:9] == expected[4:9]
    assert asked == [4, 5, 6, 7, 8]
    asked.clear()
    assert many.lengths == [len(ids) for ids in expected]
    assert many[3:].at([2, 0]).lengths == [len(expected[5]), len(expected[3])]
    assert not asked, "lengths are known"


def test_what_is_refused_is_refused_in_order_before_anything_is_used() -> None:
    def check(index: int, ids: list[int]) -> None:
        assert ids == encoder([])(index)
        if index >= 2:
            raise TaskError(f"prompt {index} is too long")

    asked: list[int] = []
    with pytest.raises(TaskError, match="prompt 2 is too long"):
        TokenIds(encoder(asked), 20, check)
    assert asked == [0, 1, 2]


def test_lengths_of_lists_and_of_what_is_encoded_are_alike() -> None:
    lists = [[0] * size for size in (4, 9, 2, 9, 4, 1)]
    lazy = TokenIds(lambda index: list(lists[index]), 6)
    for prompts in (lists, lazy):
        assert list(lengths_of(prompts)) == [4, 9, 2, 9, 4, 1]
        assert [length_at(prompts, index) for index in (1, -1)] == [9, 1]
        assert longest_of(prompts) == 1, "the first of the longest"
        by_length = sorted(range(6), key=lambda index: len(lists[index]))
        assert of_median_length(prompts) == by_length[3] == 4
        assert of_median_length(prompts[:3]) == 0


def test_lines_stay_in_their_file(tmp_path: Path) -> None:
    path, other = tmp_path / "rows.jsonl", tmp_path / "other"
    content = ["erste ä\n", "\n", "second", "x" * 100]
    path.write_text("".join(content), encoding="utf-8")
    with path.open("rb") as file:
        lines = FileLines(file, "the file", TaskError)
        offset = 0
        for line in content:
            lines.add(offset, line.encode())
            offset += len(line.encode())
    expected = [line.encode() for line in content]
    assert [lines[index] for index in (0, 1, 2, 3, -1)] == [*expected, expected[-1]]
    other.write_text("nothing of it")
    other.replace(path)
    assert [lines[index] for index in range(len(lines))] == expected, "another file has its name"


@pytest.mark.parametrize("after", ["erste b\nsecond", "erste", ""])
def test_a_line_that_was_written_over_is_told(tmp_path: Path, after: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("erste a\nsecond")
    with path.open("rb") as file:
        lines = FileLines(file, "data 'rows.jsonl'", TaskError)
        lines.add(0, b"erste a\n")
    path.write_text(after)  # the same file, not another one of its name
    with pytest.raises(TaskError, match=r"data 'rows.jsonl' has been written over since it was read; put it back"):
        lines[0]


def test_names_that_come_twice_and_first_items_of_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specexp.sequences.names._RECENT", 4)
    names = [f"name {i}" for i in range(50)]
    numbers = NameNumbers()
    assert first_twice(names, numbers) is None
    assert [numbers.find(name) for name in names] == [*range(50)]
    assert numbers.find("another") is None
    for place in (0, 20, 49):
        assert first_twice([*names, names[place], names[3]]) == names[place]
    assert first_twice(["a", "a"]) == "a"
    stream = iter([3, 3, 1, 3, 1, 2, 5, 4])
    assert list(first_of_each(stream, lambda item: item, 3)) == [3, 1, 2]
    assert next(stream) == 4, "one more was looked at, and none after it"
    assert list(first_of_each([1, 2], lambda item: item, 0)) == []
    assert list(first_of_each([7, 9, 12], lambda item: item % 5, 5)) == [7, 9]


def test_names_that_share_most_of_their_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specexp.sequences.names._RECENT", 4)
    digests = "specexp.sequences.names._digest"
    monkeypatch.setattr(digests, lambda name: bytes(8) + int(name).to_bytes(4, "little"))
    names = [str(i) for i in range(20)]
    numbers = NameNumbers()
    assert first_twice(names, numbers) is None
    assert [numbers.find(name) for name in names] == [*range(20)]
    assert numbers.find("20") is None


def test_a_sequence_holds_no_items() -> None:
    def bytes_of(number: int) -> int:
        tracemalloc.start()
        try:
            ids = TokenIds(lambda index: [index % 90_000] * 40, number)
            assert len(ids[1]) == 40
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    few, many = bytes_of(300), bytes_of(1_300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specexp.sequences.token_ids.MOST_TOKENS", 40 * 100)
        assert bytes_of(1_300) - bytes_of(300) < 10 * 1_000
    assert many - few > 160 * 1_000, "kept, they are"

"""Records rotate into numbered files: a resume loses and doubles nothing, whatever moment the process was killed at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from specexp.errors import OutputError
from specexp.sequences.names import NameNumbers
from specexp.storage import numbered_files
from specexp.storage import records as storage
from specexp.storage.numbered_files import existing, numbered
from specexp.storage.record_places import RecordPlaces
from specexp.storage.records import RecordFile


def record(index: int) -> Any:
    return {
        "prompt_id": f"prompt {index} ä", "turn": index % 2, "label": "baseline", "repeat": 0, "settings_hash": "h",
        "token_ids": [3, 1, index], "text": "ß" * (index % 5), "seconds": 0.1,
    }  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few records."""
    monkeypatch.setattr(numbered_files, "MOST_BYTES", 500)


def written(path: Path, number: int) -> list[Any]:
    file, result = RecordFile(path, "h"), [record(index) for index in range(number)]
    for each in result[len(file.records) :]:
        file.append(each)
    file.close()
    return result


@pytest.mark.usefixtures("small")
def test_records_continue_in_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    expected = written(path, 20)
    names = [each.name for each in existing(path)]
    assert names[:3] == ["records.jsonl", "records-0002.jsonl", "records-0003.jsonl"]
    assert len(names) > 3
    assert all(each.stat().st_size >= 500 for each in existing(path)[:-1])
    assert list(RecordFile(path, "h").records) == expected


def test_a_small_run_has_the_one_file_that_it_always_had(tmp_path: Path) -> None:
    written(tmp_path / "records.jsonl", 20)
    assert [each.name for each in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kept", [100, 6])
def test_after_a_kill_at_any_byte_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bytes of all files are cut everywhere around the ends of files and lines, with or without the next file."""
    monkeypatch.setattr(storage, "KEPT", kept)
    (tmp_path / "whole").mkdir()
    expected = written(tmp_path / "whole" / "records.jsonl", 12)
    whole = existing(tmp_path / "whole" / "records.jsonl")
    for last in range(1, len(whole) + 1):
        content = whole[last - 1].read_bytes()
        ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
        cuts = {0, 1, *(end + shift for end in ends for shift in (-40, -1, 0, 1) if end + shift <= len(content))}
        for cut in cuts:
            folder = tmp_path / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for place in range(1, last):
                shutil.copy(whole[place - 1], folder)
            numbered(folder / "records.jsonl", last).write_bytes(content[:cut])
            again = RecordFile(folder / "records.jsonl", "h")
            num_whole = sum(each.read_bytes().count(b"\n") for each in existing(folder / "records.jsonl"))
            assert len(again.records) == num_whole
            again.repair()
            for each in expected[num_whole:]:
                again.append(each)
            again.close()
            result = RecordFile(folder / "records.jsonl", "h")
            assert list(result.records) == expected
            again_written = [each.read_bytes() for each in existing(folder / "records.jsonl")]
            assert again_written == [each.read_bytes() for each in whole]
            result.close()
    capsys.readouterr()


@pytest.mark.usefixtures("small")
def test_records_that_are_not_in_memory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "KEPT", 5)
    path = tmp_path / "records.jsonl"
    expected = written(path, 30)
    file = RecordFile(path, "h")
    assert file.records[3] == expected[3]
    assert file.records[-1] == expected[-1]
    assert file.records[2:5] == expected[2:5]
    for each in reversed(expected):
        assert file.find(storage.key_of(each)) == each
        assert storage.key_of(each) in file.done
    for wrong in (("prompt 1 ä", 0, "baseline", 0), ("prompt 99 ä", 1, "baseline", 0), ("prompt 1 ä", 1, "other", 0)):
        assert wrong not in file.done
        with pytest.raises(KeyError):
            file.find(wrong)
    file.append(record(30))
    assert file.find(storage.key_of(record(30))) == record(30)
    assert list(file.records) == [*expected, record(30)]
    file.close()


@pytest.mark.usefixtures("small")
def test_files_that_were_taken_away_or_cut_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    written(path, 20)
    second = numbered(path, 2)
    content = second.read_bytes()
    second.write_bytes(content[:-5])
    with pytest.raises(OutputError, match=r"records-0002\.jsonl, line 3 is cut off, and another file follows"):
        RecordFile(path, "h")
    second.unlink()
    with pytest.raises(OutputError, match=r"records-0002\.jsonl' is missing, and 'records-0"):
        RecordFile(path, "h")
    second.write_bytes(content)
    third = numbered(path, 3)
    third.write_bytes(content.splitlines(keepends=True)[0] + third.read_bytes())
    with pytest.raises(OutputError, match=r"records-0003\.jsonl, line 1 is a record that an earlier line has already"):
        RecordFile(path, "h")


def test_names_keep_their_numbers_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specexp.sequences.names._RECENT", 7)
    names = [f"name {i % 40} ä" for i in range(60)]
    numbers = NameNumbers()
    assert [numbers.number(name) for name in names] == [i % 40 for i in range(60)]
    assert [numbers.find(name) for name in names] == [i % 40 for i in range(60)]
    assert numbers.find("other") is None
    assert len(numbers) == 40


def test_names_whose_hashes_begin_alike_are_told_apart_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 64 bits, by which names are sorted, are of two values here; the other 32 differ."""
    digest = lambda name: (int(name) % 2).to_bytes(8, "little") + int(name).to_bytes(4, "little")  # noqa: E731
    monkeypatch.setattr("specexp.sequences.names._digest", digest)
    monkeypatch.setattr("specexp.sequences.names._RECENT", 7)
    numbers, names = NameNumbers(), [str(i) for i in range(30)]
    assert [numbers.number(name) for name in [*names, *names]] == [*range(30), *range(30)]
    assert [numbers.find(name) for name in names] == [*range(30)]
    assert numbers.find("30") is None


def test_names_are_sorted_in_by_a_part_of_those_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, each is sorted in about as often: the work grows with their number, not its square."""
    monkeypatch.setattr("specexp.sequences.names._RECENT", 2)
    monkeypatch.setattr("specexp.sequences.names._PART", 4)
    sizes, sort_in = [], NameNumbers._sort_in
    monkeypatch.setattr(NameNumbers, "_sort_in", lambda self: (sizes.append(len(self)), sort_in(self)))
    numbers = NameNumbers()
    assert [numbers.number(str(i)) for i in range(60)] == list(range(60))
    assert sizes == [2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 41, 51]


def test_places_hold_a_key_once() -> None:
    places = RecordPlaces()
    assert places.add(("b", 0, "x", 1), (1, 0))
    assert places.add(("a", 0, "x", 1), (3, 2**40 + 7))
    assert not places.add(("b", 0, "x", 1), (2, 5))
    assert places.find(("a", 0, "x", 1)) == (3, 2**40 + 7)
    assert places.find(("b", 0, "x", 1)) == (1, 0)
    assert places.find(("b", 1, "x", 1)) is None
    assert len(places) == 2

"""Our own files: a broken one is named with what is wrong in it, and one that cannot be written is one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.full_disk import small_files
from specexp.errors import OutputError
from specexp.storage.files import (
    CHECKSUM,
    checksum,
    is_unwritable,
    make_folder,
    misfit,
    read_json,
    write_json,
    write_whole,
    writing,
)
from specexp.storage.journal import Journal
from specexp.storage.records import RecordFile

RECORD = {
    "prompt_id": "ä", "turn": 0, "label": "baseline", "repeat": 0, "settings_hash": "h", "token_ids": [3, 1, 4],
    "text": "ß", "seconds": 0.1,
}  # fmt: skip
BROKEN = {
    b'{"a": 1': "a.json, line 1: not JSON (Expecting ',' delimiter); the file was cut off or changed by hand. Mend it.",
    b'{\n"a": }': "a.json, line 2: not JSON (Expecting value)",
    b"": "a.json, line 1: not JSON",
    b"\0" * 20: "a.json, line 1: not JSON",
    b'{\n"a": "\xff"}': "a.json, line 2: not UTF-8 text; the file was changed. Mend it.",
    b"[" * 100_000: "a.json: not JSON that can be read",
    b"[1]": "a.json was changed by hand: the file is a list, not an object. Mend it.",
    b"null": "a.json was changed by hand: the file is null, not an object.",
    b'{"b": 1}': "a.json was changed by hand: the file lacks 'a'.",
    b'{"a": {"x": "1"}}': 'a.json was changed by hand: a.x is "1", not a whole number.',
    b'{"a": {"x": true}}': "a.json was changed by hand: a.x is true, not a whole number.",
}


@pytest.mark.parametrize("content", BROKEN, ids=lambda c: repr(c[:12]))
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(OutputError) as caught:
        read_json(path, {"a": {str: int}}, "Mend it.")
    assert BROKEN[content] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_written_is_read_and_what_is_missing_is_nothing(tmp_path: Path) -> None:
    value = {"a": {"x": 1}, "more": [None, "ü"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", {"a": {str: int}}) == value
    assert read_json(tmp_path / "b.json") is None


@pytest.mark.parametrize(
    "value,shape,fault",
    [
        (1, float, ""), (1.5, int, "the file is 1.5, not a whole number"), (False, float, "the file is false, not a"),
        ({"1": 2.0}, {int: float}, ""), ({"x": 2.0}, {int: float}, "the file has 'x' where a whole number must be"),
        ([{"p": ""}, {"p": 3}], [{"p": str}], "[1].p is 3, not a text"), ({}, {"a?": str}, ""),
        ({"a": 3}, {"a?": str}, "a is 3, not a text"), (None, ({"a": str}, type(None)), ""),
        ({"a": 1}, ({"a": str}, type(None)), "a is 1, not a text"), ({"x": {"y": []}}, {str: {}}, ""),
    ],
)  # fmt: skip
def test_shapes(value: Any, shape: Any, fault: str) -> None:
    message = misfit(value, shape)
    assert message.startswith(fault)
    assert bool(message) == bool(fault)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_what_cannot_be_written_is_named_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=f"a.json' cannot be written: {os.strerror(number)}. What was written"):
        write_json(path, {})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    (tmp_path / "a.json.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        write_whole(tmp_path / "a.json", "text")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Not a directory"):
        make_folder(tmp_path / "file" / "below")


def test_errors_of_libraries_that_write_are_told_from_others(tmp_path: Path) -> None:
    def write(error: Exception) -> None:
        with writing(tmp_path / "a"):
            raise error

    for said in ("I/O error: No space left on device (os error 28)", "PytorchStreamWriter failed writing file data/0"):
        with pytest.raises(OutputError, match="cannot be written"):
            write(RuntimeError(said))
    with pytest.raises(RuntimeError, match="shapes differ"):
        write(RuntimeError("shapes differ"))
    assert not is_unwritable(FileNotFoundError(errno.ENOENT, "No such file"))


def test_records_that_found_no_room_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "records.jsonl"
    file = RecordFile(path, "h")
    file.append(RECORD)
    with small_files(path.stat().st_size + 20), pytest.raises(OutputError, match="cannot be written: File too"):
        file.append({**RECORD, "turn": 1})
    file.close()
    assert [record["turn"] for record in file.records] == [0]
    again = RecordFile(path, "h")
    again.repair()
    assert "line 2 is cut off; it is dropped and computed again" in capsys.readouterr().err
    again.append({**RECORD, "turn": 1})
    again.close()
    assert RecordFile(path, "h").records == [RECORD, {**RECORD, "turn": 1}]


def lines(*records: dict[str, Any], checked: bool = True) -> bytes:
    written = [{**record, CHECKSUM: checksum(record)} if checked else record for record in records]
    return "".join(json.dumps(record) + "\n" for record in written).encode()


SECOND = {**RECORD, "turn": 1}
EDITED = {
    "a token id": (lines(RECORD, SECOND).replace(b"[3, 1, 4]", b"[3, 2, 4]", 1), "line 1 does not fit its checksum"),
    "a second": (lines(RECORD) + lines(SECOND).replace(b"0.1", b"0.2"), "line 2 does not fit its checksum"),
    "no checksum": (lines(RECORD) + lines(SECOND, checked=False), "line 2 has no checksum, which lines before it have"),
    "a line twice": (lines(RECORD, SECOND, RECORD), "line 3 is a record that an earlier line has already"),
    "zeros": (lines(RECORD) + b"\0\0\n" + lines(SECOND), "line 2 is not a record (JSONDecodeError"),
    "a type": (lines({**RECORD, "token_ids": "314"}, checked=False), 'line 1 is not a record (token_ids is "314", n'),
    "deep": (b"[" * 100_000 + b"\n", "line 1 is not a record (RecursionError"),
    "a list": (b"[1]\n", "line 1 is not a record (the file is a list, not an object)"),
}


@pytest.mark.parametrize("what", EDITED)
def test_an_edited_record_is_named(tmp_path: Path, what: str) -> None:
    content, message = EDITED[what]
    (tmp_path / "records.jsonl").write_bytes(content)
    with pytest.raises(OutputError) as caught:
        RecordFile(tmp_path / "records.jsonl", "h")
    assert message in str(caught.value)


def test_records_of_a_version_without_checksums_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(lines(RECORD, SECOND, checked=False))
    file = RecordFile(path, "h")
    file.repair()
    assert "note: 2 records of" in capsys.readouterr().err
    file.append({**RECORD, "turn": 2})
    file.close()
    assert [record["turn"] for record in RecordFile(path, "h").records] == [0, 1, 2]
    assert [CHECKSUM in json.loads(line) for line in path.read_text().splitlines()] == [False, False, True]


def test_a_checksum_does_not_depend_on_how_a_line_is_laid_out(tmp_path: Path) -> None:
    laid_out = json.dumps(dict(reversed(json.loads(lines(RECORD)).items())), ensure_ascii=False, separators=(",", ":"))
    (tmp_path / "records.jsonl").write_text(laid_out + "\n", encoding="utf-8")
    assert RecordFile(tmp_path / "records.jsonl", "h").records == [RECORD]


def test_a_journals_edited_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    with Journal.open(path, {"a": 1}) as journal:
        assert journal.unit(("x", 1), lambda: 0.5) == 0.5
    with Journal.open(path, {"a": 1}) as journal:
        assert journal.unit(("x", 1), lambda: 0.7) == 0.5
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(OutputError, match=r"line 2 cannot be read \(ValueError: it does not fit"):
        Journal.open(path, {"a": 1}).__enter__()

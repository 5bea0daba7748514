"""The records of an evaluation: one JSON line per prompt and setting, from which all results are computed.

Records hold integers, ids, texts and seconds. `metrics/summary.py` computes ratios from sums of them. They are in
records.jsonl and, once that is full, in further files (`numbered_files.py`).

Each line ends with a checksum of the rest of it. Lines without one come from a version that wrote none: in a resumed
file they may come first, but never after a line with one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from specexp.errors import OutputError
from specexp.storage.files import CHECKSUM, checksum, misfit, unwritable
from specexp.storage.numbered_files import LineWriter, existing, reading
from specexp.storage.record_places import Key, RecordPlaces
from specexp.storage.stored_lines import ChosenLines, StoredLines

SCHEMA_VERSION = 2  # of records; version 1 wrote none


class TreeShape(TypedDict):
    """One round's tree, in integers.

    The target verified `num_nodes` nodes on `depth` levels. The draft grew them in `num_draft_calls` forwards of at
    most `max_active` nodes, and expanded `num_expanded` in total, with the root. It proposed `num_candidates`, of which
    `pruned_by_...` were pruned, by reason. `path` holds the accepted nodes by their index, and `ranks` the rank of each
    among its siblings, by the draft; where a judge may choose among nodes, `judged` is 1 for each that it chose.
    """

    num_nodes: int
    depth: int
    num_draft_calls: int
    max_active: int
    num_expanded: int
    num_candidates: int
    pruned_by_threshold: int
    pruned_by_log_prob: int
    pruned_by_budget: int
    num_accepted: int
    path: list[int]
    ranks: list[int]
    judged: NotRequired[list[int]]


class Record(TypedDict):
    """One output: a turn of a prompt, decoded with one setting. docs/records.md explains each field."""

    schema_version: NotRequired[int]
    prompt_id: str
    turn: int
    category: str
    paired: bool
    method: str
    preset: str
    label: str
    repeat: int
    seed: int
    text: str
    answer: str | None
    gold: str | None
    correct: bool | None
    token_ids: list[int]
    finish_reason: str
    num_rounds: int
    num_drafted: int
    num_accepted: int
    num_judged: int
    num_cut: int
    num_forced: NotRequired[int]
    num_full: int
    num_tested: int
    overlap: float
    num_target_calls: int
    num_target_positions: int
    num_draft_calls: int
    num_draft_positions: int
    accepted_histogram: list[int]
    drafted_before_end: NotRequired[list[int]]
    accepted_before_end: NotRequired[list[int]]
    num_judged_before_end: NotRequired[int]
    trees: list[TreeShape]
    proposers: NotRequired[dict[str, dict[str, int]]]
    seconds: float
    prefill_seconds: float
    time_to_first_token: float
    settings_hash: str
    num_tokens: NotRequired[int]
    served: NotRequired[dict[str, Any]]
    environment: NotRequired[str]
    checksum: NotRequired[str]


# Names of a record's numbers, for sums over records.
Count = Literal[
    "num_rounds", "num_drafted", "num_accepted", "num_judged", "num_cut", "num_full", "num_tested", "num_target_calls",
    "num_target_positions", "num_draft_calls", "num_draft_positions",
]  # fmt: skip
Seconds = Literal["seconds", "prefill_seconds", "time_to_first_token"]
Summed = Literal[Count, Seconds, "overlap"]
# The fields that every record of any version must have; the checksum covers the rest.
SHAPE = {
    "prompt_id": str, "turn": int, "label": str, "repeat": int, "settings_hash": str, "schema_version?": int,
    "method?": str, "text?": str, "token_ids?": [int], "seconds?": float, "prefill_seconds?": float,
}  # fmt: skip
KEPT = 10_000  # records that are held in memory
_WAY_OUT = (
    "Put back the line as it was written, or take it out, and it is computed again; or start again in another output"
    " folder."
)


def num_tokens(record: Record) -> int:
    """Return how many tokens an output has; a served engine may count them without giving their ids."""
    return record.get("num_tokens", len(record["token_ids"]))


def same_output(one: Record, other: Record) -> bool:
    """True if two outputs are equal: by their ids, or by their texts where an engine gave no ids."""
    if any("num_tokens" in each and not each["token_ids"] for each in (one, other)):
        return one["text"] == other["text"]
    return one["token_ids"] == other["token_ids"]


def line_of(record: Record) -> str:
    """Return the line that a file has of a record, without its end: a process that writes no file can make it."""
    return json.dumps({**record, CHECKSUM: checksum(record)}, ensure_ascii=False)


def key_of(record: Record) -> Key:
    return record["prompt_id"], record["turn"], record["label"], record["repeat"]


def finder(records: Iterable[Record]) -> Callable[[Key], Record]:
    """Return what finds one of these records by its key; it raises KeyError if there is none."""
    if isinstance(records, StoredLines | ChosenLines):
        return records.find
    return {key_of(record): record for record in records}.__getitem__


class RecordFile:
    """The records of one configuration, in `records.jsonl` and the files after it: those that exist, and new ones.

    Reading does not change the files; `repair` removes a last line that was not written completely. Up to `KEPT`
    records are in memory; with more of them, only their places are.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._settings = settings
        self._good = 0  # bytes of whole lines in the last file
        self._num_lines = 0  # whole lines in the last file
        self._num_unchecked = 0  # lines without a checksum
        self._places = RecordPlaces()
        self._kept: list[Record] = []
        self._by_key: dict[Key, Record] = {}
        self._stored = StoredLines(path, self._places, record_in, key_of)
        for record in self._read():
            self._keep(record)
        self._writer: LineWriter | None = None

    @property
    def records(self) -> Sequence[Record]:
        """All records in the order of the files. If they are not in memory, each pass over them reads the files."""
        return self._kept if self._all_kept else self._stored

    @property
    def done(self) -> Container[Key]:
        """The keys of all records, for `in`."""
        return self._by_key.keys() if self._all_kept else self._places

    def find(self, key: Key) -> Record:
        """Return the record with this key; raises KeyError if there is none."""
        return self._by_key[key] if self._all_kept else self._stored.find(key)

    def repair(self) -> None:
        """Truncate the last file after its last whole line and report records without checksum; needs the folder's
        lock."""
        if self._num_unchecked:
            print(
                f"note: {self._num_unchecked} records of {self._path} have no checksum: a version that wrote none made"
                " them. They are taken as they are.",
                file=sys.stderr,
            )
        paths = existing(self._path)
        if paths and self._good < paths[-1].stat().st_size:
            where = f"{paths[-1]}, line {self._num_lines + 1}"
            print(f"warning: {where} is cut off; it is dropped and computed again.", file=sys.stderr)
            try:
                with paths[-1].open("rb+") as file:
                    file.truncate(self._good)
            except OSError as error:
                raise unwritable(paths[-1], error) from error

    def append(self, record: Record) -> None:
        """Append one record, which is in a file when this returns. Raises OutputError."""
        self._append(record, line_of(record))

    def append_line(self, line: str) -> None:
        """Append the record that `line_of` made this line of. Raises OutputError."""
        self._append(record_in(line), line)

    def _append(self, record: Record, line: str) -> None:
        if self._writer is None:
            self._writer = LineWriter(self._path)
        self._places.add(key_of(record), self._writer.append(line))
        self._keep(record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._stored.close()

    @property
    def _all_kept(self) -> bool:
        return len(self._kept) == len(self._places)

    def _keep(self, record: Record) -> None:
        if len(self._places) <= KEPT:
            self._kept.append(record)
            self._by_key[key_of(record)] = record
        else:
            self._kept, self._by_key = [], {}

    def _read(self) -> Iterator[Record]:
        checked = False  # True once a line had a checksum
        paths = existing(self._path)
        for number, path in enumerate(paths, 1):
            self._good, self._num_lines = 0, 0
            with reading(path), path.open("rb") as lines:
                for line in lines:
                    where = f"{path}, line {self._num_lines + 1}"
                    if not line.endswith(b"\n"):
                        if number < len(paths):
                            raise OutputError(f"{where} is cut off, and another file follows. {_WAY_OUT}")
                        return
                    record = _parsed(line, where)
                    checked = _check(record, where, checked)
                    self._num_unchecked += not checked
                    if record["settings_hash"] != self._settings:
                        raise OutputError(
                            f"{where} belongs to configuration {record['settings_hash']}, this one is"
                            f" {self._settings}; resume with the settings it was started with, or name another output"
                            " folder."
                        )
                    if not self._places.add(key_of(record), (number, self._good)):
                        raise OutputError(
                            f"{where} is a record that an earlier line has already; take one of them out."
                        )
                    self._good += len(line)
                    self._num_lines += 1
                    yield record


def record_in(line: str | bytes) -> Record:
    """Read a line whose checksum was verified when the file was opened, or that was made in this run."""
    record: Record = json.loads(line)
    record.pop("checksum", None)
    return record


def _parsed(line: bytes, where: str) -> Record:
    """Read one line, with its checksum. Raises OutputError."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError) as error:
        fault = f"{type(error).__name__}: {error}"
    else:
        fault = misfit(result, SHAPE)
        if not fault and (version := result.get("schema_version", 1)) > SCHEMA_VERSION:
            raise OutputError(
                f"{where} is a record of schema version {version}, and this specexp reads up to {SCHEMA_VERSION};"
                " install the version that wrote it, or name another output folder."
            )
        if not fault:
            return cast(Record, result)
    raise OutputError(f"{where} is not a record ({fault}); the file was changed by hand. {_WAY_OUT}")


def _check(record: Record, where: str, checked: bool) -> bool:
    """Verify the checksum of a record and remove it; returns True if there was one. Raises OutputError."""
    if CHECKSUM not in record:
        if checked:
            raise OutputError(
                f"{where} has no checksum, which lines before it have; it was changed by hand. {_WAY_OUT}"
            )
        return False
    if record.pop("checksum") != checksum(record):
        raise OutputError(f"{where} does not fit its checksum; it was changed by hand. {_WAY_OUT}")
    return True

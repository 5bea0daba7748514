"""An output folder that version 0.1 wrote, before records had a schema version: it is read, resumed and uploaded.

`tests/data/folder_0_1` is what that version left of a small evaluation while no tracking store answered; its figures
and pages are cut short.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.cli_runner import comparison_runs, evaluate, flat_runs, records
from helpers.uploads import upload
from specexp.errors import OutputError
from specexp.storage.records import SCHEMA_VERSION, RecordFile

OLD = Path(__file__).resolve().parents[1] / "data" / "folder_0_1"
SETTINGS = ["--experiment", "toy_quick", "--limit", "2", "--max-new-tokens", "8", "--gamma", "2",
            "--methods", "baseline,speculative,specexec"]  # fmt: skip
HASH = json.loads((OLD / "config.json").read_text())["settings_hash"]


@pytest.fixture
def folder(workplace: Path) -> Path:
    return Path(shutil.copytree(OLD, workplace / "found" / "old"))


def test_its_records_are_read(folder: Path) -> None:
    read = RecordFile(folder / "records.jsonl", HASH).records
    assert len(read) == 6
    assert not any("schema_version" in record for record in read)


def test_it_is_uploaded(folder: Path) -> None:
    result = upload("--output", str(folder))
    assert result.exit_code == 0, result.output
    summary = json.loads((folder / "summary.json").read_text())
    runs = flat_runs()
    assert runs.keys() == summary.keys() == {"baseline", "speculative_k2", "specexec_k2"}
    for label, run in runs.items():
        assert run.data.metrics["accept/mean_length"] == pytest.approx(summary[label]["accept/mean_length"])
    (comparison,) = comparison_runs()
    assert comparison.info.status == "FINISHED"


def test_it_is_resumed(folder: Path) -> None:
    """As after a kill at the last record; what is made now has a version."""
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    (folder / "upload.json").unlink()
    result = evaluate(*SETTINGS, "--output", str(folder), "--resume", "true")
    assert result.exit_code == 0, result.output
    read = records(folder)
    assert [record["token_ids"] for record in read] == [json.loads(line)["token_ids"] for line in lines]
    assert [record.get("schema_version") for record in read] == [None] * 5 + [SCHEMA_VERSION]


def test_records_of_a_later_version_are_refused_by_name(folder: Path) -> None:
    path = folder / "records.jsonl"
    record = json.loads(path.read_text().splitlines()[0])
    del record["checksum"]
    path.write_text(json.dumps({**record, "schema_version": SCHEMA_VERSION + 1}) + "\n")
    with pytest.raises(OutputError, match=f"schema version {SCHEMA_VERSION + 1}, and this specexp reads up to"):
        RecordFile(path, HASH)

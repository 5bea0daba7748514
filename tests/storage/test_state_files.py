"""Folders whose files were cut off, changed by hand or lead elsewhere, and full disks: one line, exit code 2."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from entrypoints.main import _noted
from entrypoints.train_pair import command as train_pair
from helpers.cli_runner import evaluate, flat_runs, invoke, records, runs
from helpers.full_disk import small_files
from helpers.uploads import DEAD, TOY, failing, upload
from specexp.errors import JudgeError, OutputError
from specexp.judge.features import PARTS
from specexp.judge.labels import Label, pack, unpack
from specexp.storage.files import CHECKSUM
from specexp.storage.run_folder import SHAPES, OutputFolder

RESUMED = [*TOY, "--output", "out", "--resume"]
STATES = ("config", "mlflow", "costs", "shares", "memory", "environments", "data", "upload")
BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: b"\0" * len(content),
    "no text": lambda content: content[:20] + b"\xff" + content[20:],
    "a list": lambda content: b"[" + content.strip() + b"]\n",
}


def one_line(result: Any, *messages: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("error: "))
    for message in messages:
        assert message in line


def test_a_resume_names_the_file_that_is_broken_and_the_way_out(workplace: Path) -> None:
    with failing(behind=1):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    before = runs()
    for state in STATES:
        path = workplace / "out" / f"{state}.json"
        whole = path.read_bytes()
        for what, breaks in BREAKS.items():
            path.write_bytes(breaks(whole))
            one_line(evaluate(*RESUMED), f"error: out/{state}.json", "Put it back as it was, or ")
            assert path.read_bytes() == breaks(whole), f"{what}: it was changed"
        path.write_bytes(whole)
    assert [run.info.run_id for run in runs()] == [run.info.run_id for run in before]
    for state in STATES:  # the way out is one
        (workplace / "out" / f"{state}.json").unlink()
    assert evaluate(*RESUMED).exit_code == 0
    assert {f"{state}.json" for state in STATES} <= {path.name for path in (workplace / "out").iterdir()}
    assert sorted(flat_runs()) == ["baseline", "speculative_k3"]


@pytest.mark.slow
def test_an_upload_names_the_file_that_is_broken(workplace: Path) -> None:
    with failing(behind=1):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    for state in ("upload", "mlflow"):
        path = workplace / "out" / f"{state}.json"
        whole = path.read_bytes()
        for breaks in BREAKS.values():
            path.write_bytes(breaks(whole))
            one_line(upload(), f"error: out/{state}.json")
        path.write_bytes(whole)
    assert upload().exit_code == 0


@pytest.mark.slow
def test_an_edited_record_is_named_and_not_counted(workplace: Path) -> None:
    result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 0, result.output
    path = workplace / "out" / "records.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    record = json.loads(whole[2])
    assert CHECKSUM in record
    record["token_ids"][0] += 1
    path.write_text("".join([*whole[:2], json.dumps(record) + "\n", *whole[3:]]))
    one_line(evaluate(*RESUMED), "error: out/records.jsonl, line 3 does not fit its checksum; it was changed by hand.")
    path.write_text("".join([*whole[:2], *whole[3:]]))  # taken out, as the message says
    result = evaluate(*RESUMED)
    assert result.exit_code == 0, result.output
    assert len(records(workplace / "out")) == len(whole)


class Settings:
    hash = "h"

    def as_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("name", SHAPES)
def test_every_file_that_a_resume_reads_is_looked_at_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"settings_hash": "h"}')
    (tmp_path / name).write_text('"text"')
    with pytest.raises(OutputError, match=f'{name} was changed by hand: the file is "text", not a'):
        OutputFolder(tmp_path, Settings(), resume=True)


def full(*arguments: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_a_full_disk_keeps_the_records_and_is_gone_on_from(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", full)
        result = evaluate(*TOY, "--output", "out")
    one_line(
        result, "error: 'out/figures/", ".png' cannot be written: No space left on device. What was written before"
    )
    assert len(records(workplace / "out")) == 4
    assert [run.info.status for run in runs()] == ["FAILED"]
    for name in ("summary.json", "report.html", "upload.json"):  # and on a real device that is full
        (workplace / "out" / f"{name}.partial").symlink_to("/dev/full")
        one_line(evaluate(*RESUMED), f"error: 'out/{name}' cannot be written: No space left on device.")
    assert evaluate(*RESUMED).exit_code == 0
    assert sorted(flat_runs()) == ["baseline", "speculative_k3"]


def test_a_limit_of_the_system_is_one_line_too(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with small_files(12_000):  # pages and figures have more
        result = evaluate(*TOY, "--output", "out")
    one_line(result, "error: 'out/", "cannot be written: File too large. What was written before stays;")
    assert len(records(workplace / "out")) == 4


def test_a_disk_that_fills_where_no_file_is_ours_is_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.evaluation import preparation

    monkeypatch.setattr(preparation, "prepare", full)
    one_line(evaluate(*TOY, "--output", "out"), "error: 'a file' cannot be written: No space left on device.")


LABEL = Label("a", 3, 1, 2, "x", "y", True, "1", "2", "train")


def test_findings_that_were_cut_off_or_changed_are_named(tmp_path: Path) -> None:
    arrays = {PARTS[0]: np.arange(6, dtype=np.float32).reshape(1, 6)}
    whole = pack([LABEL], arrays, {"num_mined": 1})
    path = tmp_path / "000000.safetensors"
    path.write_bytes(whole)
    labels, features, counts = unpack(path)
    assert (labels, counts) == ([LABEL], {"num_mined": 1})
    assert (features[PARTS[0]] == arrays[PARTS[0]]).all()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for broken in (whole[:-4], b"", bytes(flipped), whole.replace(b'num_mined\\": 1', b'num_mined\\": 2')):
        path.write_bytes(broken)
        with pytest.raises(JudgeError, match=r"000000.safetensors cannot be read: .*Remove it to mine its prompt"):
            unpack(path)


def test_a_broken_note_of_the_judge_is_named(tmp_path: Path) -> None:
    note = tmp_path / "address.txt"
    note.write_text("models:/autojudge/3")
    assert _noted(note) == "models:/autojudge/3"
    for content in (b"", b"\0\0\0", b"models:/a/1\nmodels:/a/2", b"\xff"):
        note.write_bytes(content)
        with pytest.raises(OutputError, match=r"address.txt .*remove it, and the judge is trained again"):
            _noted(note)


@pytest.mark.parametrize("name", ["checkpoint.pt", "mlflow.json"])
def test_a_training_names_what_is_broken_before_it_begins(workplace: Path, name: str) -> None:
    path = workplace / "work" / "draft" / name
    path.parent.mkdir(parents=True)
    for content in (b"", b"\0" * 100, b"PK\x03\x04 and so on"):
        path.write_bytes(content)
        one_line(
            invoke(train_pair, "--models", "draft", "--work", "work", "--output", "zoo"), f"work/draft/{name}", "emove"
        )
    assert sorted(p.name for p in path.parent.iterdir()) == [name]
    assert not runs()


OUTSIDE: dict[str, Callable[[Path], str]] = {
    "absolute": lambda outside: str(outside),
    "upwards": lambda outside: f"../{outside.name}",
    "upwards from within": lambda outside: f"figures/../../{outside.name}",
    "by a link": lambda outside: "link.txt",
    "by a link to a folder": lambda outside: f"linked/{outside.name}",
    "by a link to itself": lambda outside: "loop.txt",
}  # fmt: skip


def test_an_upload_sends_nothing_from_outside_its_folder(workplace: Path) -> None:
    with failing(behind=0):
        result = evaluate(*TOY, "--output", "out")
        assert result.exit_code == 3, result.output
    outside = workplace / "secret.txt"
    outside.write_text("nobody's business")
    out = workplace / "out"
    (out / "link.txt").symlink_to(outside)
    (out / "linked").symlink_to(workplace)
    (out / "loop.txt").symlink_to("loop.txt")
    whole = json.loads((out / "upload.json").read_text())
    for what, path in OUTSIDE.items():
        for sheet in ("main", "flat"):
            plan = json.loads(json.dumps(whole))
            files = plan["main"]["files"] if sheet == "main" else plan["flat"][0]["files"]
            files.append({"path": path(outside), "to": "", "only": {}})
            (out / "upload.json").write_text(json.dumps(plan))
            one_line(upload(), f"names '{path(outside)}', which is outside the folder: nothing was sent.")
            assert not runs(), what
    plan = json.loads(json.dumps(whole))
    plan["main"]["files"][0]["to"] = "../elsewhere"
    (out / "upload.json").write_text(json.dumps(plan))
    one_line(upload(), "to '../elsewhere', which is not a folder inside the run's own.")
    assert not runs()
    plan["main"]["files"][0]["to"] = ""
    plan["experiment"] = {"LD_PRELOAD": "x"}
    (out / "upload.json").write_text(json.dumps(plan))
    assert upload().exit_code == 0
    assert "LD_PRELOAD" not in os.environ
    shutil.copytree(out, workplace / "elsewhere", symlinks=True)
    (workplace / "story").mkdir()
    (workplace / "story" / "evaluation").symlink_to(workplace / "elsewhere")
    one_line(upload("--output", "story"), "'story/evaluation', which is outside the folder")


@pytest.mark.slow
def test_links_inside_a_folder_and_to_a_folder_are_as_good_as_files(workplace: Path) -> None:
    with failing(behind=1):
        assert evaluate(*TOY, "--output", "out").exit_code == 3
    (workplace / "out" / "report.html").rename(workplace / "out" / "moved.html")
    (workplace / "out" / "report.html").symlink_to("moved.html")
    (workplace / "linked").symlink_to("out")
    assert upload("--output", "linked").exit_code == 0

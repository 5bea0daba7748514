"""An exception that nothing foresaw ends every command in one line that names a file with the traceback; code 70."""

from __future__ import annotations

import errno
import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import Result

from entrypoints import __main__ as entry
from helpers.cli_runner import invoke
from specexp import bugs

ROOT = Path(__file__).resolve().parents[2]
# What each command calls, and the least that it must be given.
WORK = {
    "advise": ("advise", []),
    "benchmark": ("benchmark", []),
    "calibrate_rule": ("calibrate_rule", []),
    "certify": ("certify", []),
    "collect_labels": ("collect_labels", []),
    "evaluate": ("evaluate", []),
    "generate": ("generate", ["x"]),
    "judge_report": ("judge_report", []),
    "log_decoder": ("log_decoder", []),
    "main": ("main", []),
    "presets": ("overview", []),
    "serve": ("serve", []),
    "speed_check": ("speed_check", []),
    "train_drafter": ("train_drafter", []),
    "train_judge": ("train_judge", []),
    "train_pair": ("train_pair", []),
    "upload": ("upload", ["--output", "x"]),
    "validate": ("validate", []),
}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def boom(*arguments: object, **more: object) -> None:
    raise KeyError("no such thing\nat http://me:secret@host/")


def is_told(result: Result, scratch: Path) -> str:
    """The traceback in the one file that was written."""
    assert result.exit_code == bugs.EXIT_CODE, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: this is a bug in specexp: KeyError: 'no such thing")
    (path,) = scratch.iterdir()
    assert f"The traceback is in '{path}'; please report it." in line
    assert path.suffix == ".txt"
    return path.read_text()


def test_every_command_is_listed_here() -> None:
    assert WORK.keys() == entry.COMMANDS.keys()


@pytest.mark.parametrize("through", ["the group", "its module"])
@pytest.mark.parametrize("name", WORK)
def test_what_nothing_foresaw_is_said_to_be_a_bug(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, name: str, through: str
) -> None:
    module = importlib.import_module(f"entrypoints.{name}")
    function, arguments = WORK[name]
    monkeypatch.setattr(module, function, boom)
    command = [name, *arguments] if through == "the group" else arguments
    result = invoke(entry.cli if through == "the group" else module.command, *command)
    trace = is_told(result, scratch)
    assert "in boom" in trace
    assert "Python 3" in trace
    assert "secret" not in trace + result.output


@pytest.mark.parametrize("command", [["-m", "entrypoints", "presets"], ["-m", "entrypoints.presets"]], ids=" ".join)
def test_a_process_ends_with_the_code_and_shows_the_traceback_if_asked(tmp_path: Path, command: list[str]) -> None:
    code = (
        "import runpy, sys\nfrom specexp import config\n"
        "def boom(*_): raise ZeroDivisionError('never seen')\n"
        "config.preset_names = boom\n"
        f"sys.argv = {command[1:]!r}\n"
        f"runpy.run_module({command[1]!r}, run_name='__main__', alter_sys=True)\n"
    )
    for show in ("", "1"):
        environment = {**os.environ, "TMPDIR": str(tmp_path), bugs.SHOW: show}
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert out.returncode == bugs.EXIT_CODE, out.stderr
        assert ("Traceback" in out.stderr) == bool(show)
        assert "error: this is a bug in specexp: ZeroDivisionError: never seen. The traceback is in '" in out.stderr
    assert len(list(tmp_path.iterdir())) == 2


def test_where_no_file_can_be_written_the_line_says_how_to_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    line = bugs.report(ValueError(""))
    assert re.fullmatch(
        r"this is a bug in specexp: ValueError\. Its traceback could not be written \(No such file or directory\); set"
        r" SPECEXP_TRACEBACK=1 to see it; please report it\.",
        line,
    )


def test_a_reader_that_is_gone_is_no_bug(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    module = importlib.import_module("entrypoints.presets")
    monkeypatch.setattr(module, "overview", gone)
    result = invoke(module.command)
    assert result.exit_code == 1
    assert "bug" not in result.output
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    "error,code,words",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "Lower limit"),
        (AssertionError("1 != 2"), 70, "bug"),
    ],
    ids=["an interruption", "no memory", "a broken identity"],
)
def test_other_ends_are_what_they_were(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def end(*arguments: object) -> None:
        raise error

    module = importlib.import_module("entrypoints.validate")
    monkeypatch.setattr(module, "validate", end)
    result = invoke(module.command)
    assert result.exit_code == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1

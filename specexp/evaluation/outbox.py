"""The way from an output folder to the tracking store: all is written into the folder first, and sent from there.

    upload.json   what the runs are to hold (`sheets.Plan`)
    mlflow.json   their ids in the store, as they are made, and whether all was sent

A store that does not answer stops no work. What could not be sent goes later, by the same code, as often as it takes:
runs are found by key, metrics keep the time they were taken at, files replace themselves.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from specexp import sheets, store, tracking
from specexp.errors import OutputError, StoreError, Unsent
from specexp.evaluation.output import read_json, write_json
from specexp.sheets import File, Input, Mark, Plan, Sheet

PLAN, STATE = "upload.json", "mlflow.json"
EXPERIMENT = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True, slots=True)
class Sent:
    """What is in the store: where its charts are, how many runs it took, and how many others were marked."""

    run_id: str
    address: str
    num_runs: int
    num_marked: int

    @property
    def charts(self) -> str:
        """A line that says where the charts are."""
        how = "" if store.address().startswith("http") else " (after `make ui`)"
        return f"charts{how}: {self.address}"


class Outbox:
    """The main run of one folder, and the flat ones beside it. Raises StoreError for a store that refuses."""

    def __init__(self, path: Path, key: str, name: str, tags: Mapping[str, str]) -> None:
        self.path = path
        self._key, self._name, self._tags = key, name, dict(tags)
        self._silence = store.reach()

    @property
    def is_sent(self) -> bool:
        """Whether the store has it all from an earlier attempt. What `mlflow run` makes a run for is done again."""
        if tracking.attached() or self._silence is not None or not (self.path / PLAN).exists():
            return False
        with self._telling():
            return tracking.find(self._key, finished=True) is not None

    @contextmanager
    def open(self, timed: bool = True) -> Iterator[None]:
        """Meanwhile the main run stands open in the store; FAILED if the block is left by an exception.

        Unless the work is `timed`, MLflow samples what the machine does: timings would be disturbed.
        """
        self._note(self._key, os.environ.get("MLFLOW_RUN_ID"))
        silence = self._silence
        if silence is None:
            try:
                with store.telling(StoreError):
                    self._note(self._key, _begin(self._key, self._name, self._tags, timed).info.run_id)
            except StoreError as error:
                silence = str(error)
        if silence is not None:
            print(
                f"note: the tracking store at {store.address()} does not answer ({silence}). The work goes on all the"
                f" same: everything is written to '{self.path}', and sent at the end if the store answers then.",
                file=sys.stderr,
            )
        try:
            yield
        except BaseException:
            _end("FAILED")
            raise
        _end("FINISHED")

    def main(
        self,
        metrics: Mapping[str, float],
        files: Sequence[Path],
        inputs: Sequence[Input],
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Sheet:
        """The sheet of the main run; files in a folder below `path` go to one of the same name."""
        where = [file.relative_to(self.path) for file in files]
        return Sheet(
            self._key, self._name, {**self._tags, **(tags or {})}, sheets.logged(params or {}), dict(metrics),
            [File(str(file), "" if file.parent == Path() else str(file.parent)) for file in where], inputs,
            sheets.now(),
        )  # fmt: skip

    def send(self, main: Sheet, flat: Sequence[Sheet] = (), marks: Sequence[Mark] = ()) -> Sent:
        """Write down what all runs are to hold, and send it; the main run is made if it was not. Raises Unsent."""
        experiment = {name: os.environ[name] for name in EXPERIMENT if os.environ.get(name)}
        write_json(self.path / PLAN, Plan(main, flat, marks, experiment).as_dict())
        self._note(self._key, os.environ.get("MLFLOW_RUN_ID"))
        with self._telling():
            return _sent_or_ended(self.path)

    def add(self, files: Sequence[Path], marks: Sequence[Mark] = ()) -> Sent:
        """Further files of the main run, or newer ones, and newer marks, once all is sent."""
        new = self.put_down(files, marks)
        with self._telling():
            return _sent_or_ended(self.path, new)

    def put_down(self, files: Sequence[Path], marks: Sequence[Mark] = ()) -> Sequence[File]:
        """Write down further files of the main run, to be sent with what has not been sent yet."""
        plan = _plan(self.path)
        new = self.main({}, files, ()).files
        main = replace(plan.main, files=[*(file for file in plan.main.files if file not in new), *new])
        write_json(self.path / PLAN, replace(plan, main=main, marks=marks).as_dict())
        return new

    def _note(self, key: str, run_id: str | None) -> None:
        if run_id is not None:
            _note(self.path, {key: run_id}, False)

    def _telling(self) -> AbstractContextManager[None]:
        return store.telling(lambda words: Unsent(unsent(self.path, words)))


def unsent(path: Path, words: str) -> str:
    """What is on disk, and the way on."""
    command = shlex.join(["python", "-m", "entrypoints", "upload", "--output", str(path)])
    return (
        f"the runs of '{path}' are not all in the tracking store at {store.address()}: {words}. Nothing is lost:"
        f" everything is in '{path}', what the runs are to hold in {PLAN} there. When the store answers: {command}"
    )


def folders(path: Path) -> list[Path]:
    """What has something to send: the folder itself, or those that `main` has made in it."""
    if (path / PLAN).exists():
        return [path]
    return sorted(found.parent for found in path.glob(f"*/{PLAN}")) or [path]


def upload(path: Path) -> Sent | None:
    """Send what a folder has to send; None where the store has it all. Raises Unsent, OutputError."""
    plan = _plan(path)
    for name, value in plan.experiment.items():
        if not any(os.environ.get(each) for each in EXPERIMENT):
            os.environ[name] = value
    silence = store.reach()
    if silence is not None:
        raise Unsent(unsent(path, silence))
    with store.telling(lambda words: Unsent(unsent(path, words))):
        if _state(path).get("sent") and tracking.find(plan.main.key, finished=True):
            return None
        return _sent_or_ended(path)


def _sent_or_ended(path: Path, only: Sequence[File] | None = None) -> Sent:
    """Send; a main run that was made here does not stand open if that fails."""
    try:
        return send(path, only)
    except BaseException:
        _end("FAILED")
        raise


def send(path: Path, only: Sequence[File] | None = None) -> Sent:
    """Send a folder's plan, or of its runs these files of the main one only. Raises what the store raises."""
    plan, ids = _plan(path), _state(path).get("runs", {})
    _check_files(path, plan)
    main = plan.main
    found = store.patiently(lambda: tracking.known(ids.get(main.key), main.key))
    if found is None or found.info.run_id == os.environ.get("MLFLOW_RUN_ID"):  # one that nobody has begun
        found = store.patiently(lambda: _begin(main.key, main.name, main.tags, True))
    _note(path, {main.key: found.info.run_id}, False)
    if only is not None:
        store.patiently(lambda: tracking.put(found.info.run_id, only, path))
    else:
        for sheet in plan.flat:
            _send_flat(path, sheet, ids.get(sheet.key), found.info.experiment_id)
        store.patiently(lambda: tracking.fill(found.info.run_id, main, path))
    num_marked = sum(store.patiently(partial(tracking.mark, mark)) for mark in plan.marks)
    tracking.end("FINISHED")
    _note(path, {}, True)
    address = tracking.chart_address(found.info.run_id)
    return Sent(found.info.run_id, address, 1 + len(plan.flat), num_marked)


def _send_flat(path: Path, sheet: Sheet, known: str | None, experiment: str) -> None:
    """Make the run of this sheet, or finish it if it was begun; leave a finished one alone."""
    run = store.patiently(lambda: tracking.known(known, sheet.key) or tracking.make(sheet, experiment))
    _note(path, {sheet.key: run.info.run_id}, False)
    if run.info.status != "FINISHED":
        store.patiently(lambda: tracking.fill(run.info.run_id, sheet, path))


def _begin(key: str, name: str, tags: Mapping[str, str], timed: bool) -> Any:
    asked = timed or "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING" in os.environ
    return tracking.begin(key, name, tags, None if asked else True)


def _end(status: str) -> None:
    """End the main run, if the store lets us: it may be why we end."""
    with suppress(StoreError), store.telling(StoreError):
        tracking.end(status)


def _plan(path: Path) -> Plan:
    found = read_json(path / PLAN)
    if found is None:
        raise OutputError(
            f"'{path}' has no {PLAN}: what was begun there has not come to its end. Go on with the command that made"
            " it and --resume; it sends what it has."
        )
    try:
        return Plan.parse(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path / PLAN} was changed by hand ({type(error).__name__}: {error}).") from error


def _check_files(path: Path, plan: Plan) -> None:
    names = {file.path for sheet in (plan.main, *plan.flat) for file in sheet.files}
    gone = sorted(name for name in names if not (path / name).is_file())
    if gone:
        raise OutputError(f"'{path}' lacks {', '.join(gone)}, which {PLAN} there names; put back what was removed.")


def _state(path: Path) -> dict[str, dict[str, str]]:
    return read_json(path / STATE) or {}


def _note(path: Path, ids: Mapping[str, str], sent: bool) -> None:
    """Run ids as they get known, in the store that they are in."""
    state = _state(path)
    runs = {**state.get("runs", {}), **ids}
    write_json(path / STATE, {**state, "runs": runs, "sent": sent, "store": store.address()})

"""Sends an output folder's runs to the tracking store: everything is written into the folder first and sent from there.

    upload.json   the contents of the runs (`run_plan.UploadPlan`)
    mlflow.json   their ids in the store, saved as they are created, and whether everything was sent

A store that does not answer does not stop the work. The same code sends the rest later and can be repeated: runs are
found by key, metrics keep the time at which they were measured, and files replace their earlier versions.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from specexp import signals
from specexp.errors import OutputError, StoreError, Unsent
from specexp.storage import run_plan
from specexp.storage.files import write_json
from specexp.storage.run_folder import PLAN, STATE, read_json, uid_of
from specexp.storage.run_plan import File, Input, RunSpec, RunUpdate, UploadPlan
from specexp.tracking import backend, client, search, system_metrics

EXPERIMENT = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of sending: the main run's id, the charts' URL, the number of runs sent and of other runs updated."""

    run_id: str
    address: str
    num_runs: int
    num_updated: int

    @property
    def charts(self) -> str:
        """One line with the URL of the charts."""
        command = "make ui" if Path("MLproject").exists() else "mlflow ui"
        how = "" if backend.address().startswith("http") else f" (after `{command}`)"
        return f"charts{how}: {self.address}"


class Outbox:
    """Sends the main run of one folder and its method runs.

    `unreachable` is the result of `backend.unreachable_reason`, which is called before anything is loaded or decoded.
    The main run's key is `scope/kind`; the default scope is the folder's unique id, which is
    created when the key is first used.
    """

    def __init__(
        self, path: Path, kind: str, name: str, tags: Mapping[str, str], unreachable: str | None, scope: str = ""
    ) -> None:
        self.path = path
        self._kind, self._name, self._tags, self._scope = kind, name, dict(tags), scope
        self._unreachable = unreachable
        self.metrics_run: tuple[str, str] | None = None  # of `system_metrics.logged_run`

    @cached_property
    def _key(self) -> str:
        return f"{self._scope or uid_of(self.path)}/{self._kind}"

    @property
    def is_sent(self) -> bool:
        """True if an earlier attempt sent everything; always False under `mlflow run`, whose new run must be filled."""
        if client.attached() or self._unreachable is not None or not (self.path / PLAN).exists():
            return False
        with self._as_unsent():
            return search.find(self._key, finished=True) is not None

    @contextmanager
    def open(self, timed: bool = True) -> Iterator[None]:
        """Keep the main run open in the store within the context; it ends as FAILED if the block raises an exception.

        MLflow logs system metrics unless the work is `timed`, since that would disturb the timings. Raises StoreError
        if the store refuses the run.
        """
        self._note(self._key, os.environ.get("MLFLOW_RUN_ID"))
        try:
            unreachable = self._unreachable or self._begun(timed)
            if unreachable is not None:
                print(
                    f"note: the tracking store at {backend.address()} does not answer ({unreachable}). The work goes on"
                    f" all the same: everything is written to '{self.path}', and sent at the end if the store answers"
                    " then.",
                    file=sys.stderr,
                )
            yield
        except BaseException:
            client.close((self._key,))
            raise
        with suppress(StoreError), backend.translate_errors(StoreError):
            client.end("FINISHED")

    def _begun(self, timed: bool) -> str | None:
        """Begin the main run; returns the reason if the store does not answer, or else None."""
        try:
            with backend.quiet(), signals.held():
                run = _begin(self._key, self._name, self._tags, timed)
                self._note(self._key, run.info.run_id)
                self.metrics_run = system_metrics.logged_run(run.info.run_id, timed)
        except Exception as error:
            if not backend.is_of_store(error):
                raise
            if backend.is_refusal(error):
                raise StoreError(
                    f"the tracking store at {backend.address()} takes no run: {backend.words(error)}. Fix that, or"
                    " name another store in MLFLOW_TRACKING_URI."
                ) from error
            return backend.words(error)
        return None

    def main(
        self,
        metrics: Mapping[str, float],
        files: Sequence[Path],
        inputs: Sequence[Input],
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> RunSpec:
        """The spec of the main run; files in a subfolder of `path` go to an artifact folder of the same name."""
        where = [file.relative_to(self.path) for file in files]
        return RunSpec(
            self._key, self._name, {**self._tags, **(tags or {})}, run_plan.logged(params or {}), dict(metrics),
            [File(str(file), "" if file.parent == Path() else str(file.parent)) for file in where], inputs,
            run_plan.now(),
        )  # fmt: skip

    def send(self, main: RunSpec, method_runs: Sequence[RunSpec] = (), updates: Sequence[RunUpdate] = ()) -> Sent:
        """Save the contents of all runs and send them; creates the main run if necessary. Raises Unsent."""
        experiment = {name: os.environ[name] for name in EXPERIMENT if os.environ.get(name)}
        write_json(self.path / PLAN, UploadPlan(main, method_runs, updates, experiment).as_dict())
        self._note(self._key, os.environ.get("MLFLOW_RUN_ID"))
        with self._as_unsent():
            return _sent_or_ended(self.path)

    def add(self, files: Sequence[Path], updates: Sequence[RunUpdate] = ()) -> Sent:
        """Send further or newer files of the main run, and newer updates, after everything else was sent."""
        new = self.add_to_plan(files, updates)
        with self._as_unsent():
            return _sent_or_ended(self.path, new)

    def add_to_plan(self, files: Sequence[Path], updates: Sequence[RunUpdate] = ()) -> Sequence[File]:
        """Add further files of the main run to the saved plan, to be sent with the rest."""
        plan = _plan(self.path)
        new = self.main({}, files, ()).files
        main = replace(plan.main, files=[*(file for file in plan.main.files if file not in new), *new])
        write_json(self.path / PLAN, replace(plan, main=main, updates=updates).as_dict())
        return new

    def _note(self, key: str, run_id: str | None) -> None:
        if run_id is not None:
            _note(self.path, {key: run_id}, False)

    def _as_unsent(self) -> AbstractContextManager[None]:
        return backend.translate_errors(lambda words: Unsent(unsent(self.path, words)))


def unsent(path: Path, words: str) -> str:
    """The message for runs that were not sent: what is on disk, and the command that sends it."""
    command = shlex.join(["python", "-m", "specexp", "upload", "--output", str(path)])
    return (
        f"the runs of '{path}' are not all in the tracking store at {backend.address()}: {words}. Nothing is lost:"
        f" everything is in '{path}', what the runs are to hold in {PLAN} there. When the store answers: {command}"
    )


def folders(path: Path) -> list[Path]:
    """The folders with a plan to send: `path` itself, or the folders that `main` made in it. Raises OutputError."""
    if (path / PLAN).exists():
        return [path]
    with_plans = sorted(plan.parent for plan in path.glob(f"*/{PLAN}"))
    for folder in with_plans:
        _check_inside(path, folder.name, f"'{folder}'")
    return with_plans or [path]


def upload(path: Path) -> Sent | None:
    """Send a folder's plan; None if the store has everything already. Raises StoreError, Unsent, OutputError."""
    plan = _plan(path)
    _check_files(path, _files(plan))
    if not any(os.environ.get(name) for name in EXPERIMENT):
        os.environ.update({name: plan.experiment[name] for name in EXPERIMENT if name in plan.experiment})
    unreachable = backend.unreachable_reason()
    if unreachable is not None:
        raise Unsent(unsent(path, unreachable))
    with backend.translate_errors(lambda words: Unsent(unsent(path, words))):
        if _state(path).get("sent") and search.find(plan.main.key, finished=True):
            return None
        return _sent_or_ended(path)


def _sent_or_ended(path: Path, only: Sequence[File] | None = None) -> Sent:
    """Send, and close the folder's open runs if that fails or is interrupted."""
    try:
        return send(path, only)
    except BaseException:
        plan = _plan(path)
        client.close({plan.main.key, *(spec.key for spec in plan.method_runs)})
        raise


def send(path: Path, only: Sequence[File] | None = None) -> Sent:
    """Send a folder's plan, or with `only` just these files of its main run. Raises the store's exceptions."""
    plan, ids = _plan(path), _state(path).get("runs", {})
    _check_files(path, _files(plan) if only is None else only)
    main = plan.main
    with signals.held():
        result = backend.with_retries(lambda: search.known(ids.get(main.key), main.key))
        if result is None or result.info.run_id == os.environ.get("MLFLOW_RUN_ID"):  # of `mlflow run`, not begun yet
            result = backend.with_retries(lambda: _begin(main.key, main.name, main.tags, True))
        _note(path, {main.key: result.info.run_id}, False)
    if only is not None:
        backend.with_retries(lambda: client.put(result.info.run_id, only, path))
    else:
        for spec in plan.method_runs:
            _send_method_run(path, spec, ids.get(spec.key), result.info.experiment_id)
        backend.with_retries(lambda: client.fill(result.info.run_id, main, path))
    num_updated = sum(backend.with_retries(partial(client.update_runs, each)) for each in plan.updates)
    client.end("FINISHED")
    _note(path, {}, True)
    address = client.chart_address(result.info.run_id)
    return Sent(result.info.run_id, address, 1 + len(plan.method_runs), num_updated)


def _send_method_run(path: Path, spec: RunSpec, known: str | None, experiment: str) -> None:
    """Create the run of this spec, or complete it if it was begun; a finished one is left unchanged."""
    with signals.held():
        run = backend.with_retries(lambda: search.known(known, spec.key) or client.make(spec, experiment))
        _note(path, {spec.key: run.info.run_id}, False)
    if run.info.status != "FINISHED":
        backend.with_retries(lambda: client.delete_doubles(spec.key, {run.info.run_id}))
        backend.with_retries(lambda: client.fill(run.info.run_id, spec, path))


def _begin(key: str, name: str, tags: Mapping[str, str], timed: bool) -> Any:
    return client.begin(key, name, tags, system_metrics.asked_of_mlflow(timed))


def _plan(path: Path) -> UploadPlan:
    result = read_json(path / PLAN)
    if result is None:
        raise OutputError(
            f"'{path}' has no {PLAN}: the command that made it did not finish. Run it again with --resume;"
            " it then sends what it has."
        )
    try:
        return UploadPlan.parse(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path / PLAN} was changed by hand ({type(error).__name__}: {error}).") from error


def _files(plan: UploadPlan) -> list[File]:
    return [file for spec in (plan.main, *plan.method_runs) for file in spec.files]


def _check_files(path: Path, files: Sequence[File]) -> None:
    """Raise OutputError for files that are missing or outside the folder: only files of this folder are sent."""
    for file in files:
        _check_inside(path, file.path, f"{path / PLAN} names '{file.path}'")
        to = PurePosixPath(file.to)
        if to.is_absolute() or ".." in to.parts:
            raise OutputError(
                f"{path / PLAN} sends '{file.path}' to '{file.to}', which is not a folder inside the run's own."
            )
    gone = sorted({file.path for file in files if not (path / file.path).is_file()})
    if gone:
        raise OutputError(f"'{path}' lacks {', '.join(gone)}, which {PLAN} there names; put back what was removed.")


def _check_inside(path: Path, name: str, said: str) -> None:
    """Raise OutputError for a path that leads out of the folder: absolute, by `..`, or by a link."""
    inner = Path(name)
    try:
        outside = inner.is_absolute() or ".." in inner.parts or not (path / inner).resolve().is_relative_to(
            path.resolve())  # fmt: skip
    except (OSError, ValueError, RuntimeError):  # a link to itself, or an invalid file name
        outside = True
    if outside:
        raise OutputError(
            f"{said}, which is outside the folder: nothing was sent. Put back {PLAN} and the files as they were."
        )


def _state(path: Path) -> dict[str, Any]:
    return read_json(path / STATE) or {}


def _note(path: Path, ids: Mapping[str, str], sent: bool) -> None:
    """Save run ids, whether everything was sent, and the store's address. Raises OutputError."""
    state = _state(path)
    runs = {**state.get("runs", {}), **ids}
    write_json(path / STATE, {**state, "runs": runs, "sent": sent, "store": backend.address()})

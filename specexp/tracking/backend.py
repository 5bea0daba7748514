"""The tracking store as something that may not answer: which failures are its own, in what words, how long one waits.

A store is a server over HTTP, a database or a folder, and nobody asks which, but for two things of SQLite: its tables
are made by one process at a time, and a locked database is asked again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from specexp import signals
from specexp.addresses import TRACKING, mask
from specexp.errors import StoreError, Unsent, first_line

T = TypeVar("T")
TRIES = 5  # of what collides; for a locked database, MLflow itself waits 20 seconds at each
_LOUD = ("urllib3.connectionpool", "mlflow.store.db.utils", "mlflow.system_metrics")
# Of what a store's client raises, besides MLflow's own exceptions and those of the system.
_CLIENTS = ("sqlalchemy", "urllib3", "requests", "botocore", "boto3", "google", "azure")
# Two processes that log the same dataset at once both find it missing, and one of them is told so, by any database.
_RACE = re.compile(r"IntegrityError|UniqueViolation|Duplicate entry")
_REFUSED = re.compile(r"error code 4(?!08|29)\d\d ")
_RUN, _EXPERIMENT, _EXPERIMENT_NAME = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
_LONGEST_NAME = 500  # of an experiment, as MLflow has it
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # codes of ids that are unknown, or no ids at all
_LAST_TIMEOUT = 5  # seconds a server has to answer the last requests of a command that is ended


def address() -> str:
    """Where the store is, without credentials."""
    return mask(mlflow.get_tracking_uri())


def connection_error() -> str | None:
    """Why the store does not answer, in a few words; None where it does. Makes the tables of a new database.

    Raises StoreError for an address that is none, and where the store answers and refuses.
    """
    return _silence(lambda: MlflowClient().search_experiments(max_results=1))


def ready() -> str | None:
    """As `connection_error`; and looks at the experiment and the run that the environment names, before anything is
    done for them.

    Raises StoreError where the store has no such experiment or run, or only a deleted one.
    """
    return connection_error() or _silence(_check_destination)


def _silence(work: Callable[[], object]) -> str | None:
    try:
        with quiet(), _alone():
            with_retries(work)
    except Exception as error:
        if not is_of_store(error):
            raise
        if is_silence(error):
            return words(error)
        raise StoreError(
            f"the tracking store at {address()} cannot be used: {words(error)}. Mend it, or name another one in"
            f" {TRACKING}."
        ) from error
    return None


def _check_destination() -> None:
    """Raises StoreError unless runs can be made where MLflow's variables say, or in the default experiment."""
    client, run_id = MlflowClient(), os.environ.get(_RUN, "")
    if run_id:
        run = _if_there(lambda: client.get_run(run_id))
        if run is None:
            raise StoreError(
                f"{_RUN} is '{run_id}', and the tracking store at {address()} has no such run; unset it, or name a run"
                " of this store."
            )
        if run.info.lifecycle_stage != "active":
            raise StoreError(
                f"{_RUN} is '{run_id}', which is deleted in the tracking store at {address()}; restore it (mlflow runs"
                f" restore --run-id {run_id}), or unset {_RUN}."
            )
        _check_active(_if_there(lambda: client.get_experiment(run.info.experiment_id)), f"{_RUN} is of")
    _check_experiment(client, os.environ.get(_EXPERIMENT_NAME), os.environ.get(_EXPERIMENT) or None)


def _check_experiment(client: MlflowClient, name: str | None, number: str | None) -> None:
    if name is not None and not 0 < len(name) <= _LONGEST_NAME:
        said = f"has {len(name)} characters" if name else "is empty"
        raise StoreError(f"{_EXPERIMENT_NAME} {said}; it must have 1 to {_LONGEST_NAME}, or be unset.")
    by_name = None if name is None else client.get_experiment_by_name(name)
    _check_active(by_name, f"{_EXPERIMENT_NAME} names")
    if number is not None:
        by_number = _if_there(lambda: client.get_experiment(number))
        if by_number is None:
            raise StoreError(
                f"{_EXPERIMENT} is '{number}', and the tracking store at {address()} has no such experiment; unset it,"
                f" or name one in {_EXPERIMENT_NAME}, which is made where it is missing."
            )
        _check_active(by_number, f"{_EXPERIMENT} names")
        if by_name is not None and by_name.experiment_id != by_number.experiment_id:
            raise StoreError(
                f"{_EXPERIMENT} is '{number}', but {_EXPERIMENT_NAME} '{name}' is experiment {by_name.experiment_id} in"
                f" the tracking store at {address()}; unset one of them."
            )
    elif name is None:
        _check_active(_if_there(lambda: client.get_experiment("0")), "runs go to")


def _check_active(experiment: Any, how: str) -> None:
    """Raises StoreError for a deleted experiment; None is one that the store has yet to make."""
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise StoreError(
            f"{how} experiment '{experiment.name}' ({experiment.experiment_id}), which is deleted in the tracking store"
            f" at {address()}; restore it (mlflow experiments restore --experiment-id {experiment.experiment_id}), or"
            f" name another one in {_EXPERIMENT_NAME}."
        )


def _if_there(ask: Callable[[], T]) -> T | None:
    """What the store has, or None where it has no such thing."""
    try:
        return ask()
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


@contextmanager
def translate_errors(tell: Callable[[str], Exception]) -> Iterator[None]:
    """Inside, a failure of the store becomes what `tell` makes of its words."""
    try:
        with quiet():
            yield
    except Exception as error:
        if not is_of_store(error):
            raise
        raise tell(words(error)) from error


@contextmanager
def require_store(why: str, way_on: str) -> Iterator[None]:
    """Inside is what goes on in the store alone. Raises StoreError where it does not answer, Unsent where it fails."""
    unreachable = ready()
    if unreachable is not None:
        raise StoreError(
            f"the tracking store at {address()} does not answer ({unreachable}), and {why}; start it, or name another"
            f" one in {TRACKING}."
        )
    with translate_errors(lambda said: Unsent(f"the tracking store at {address()} failed: {said}. {way_on}")):
        yield


def with_retries(work: Callable[[], T]) -> T:
    """Do `work`, which may be done twice, again where others were faster, or hold a SQLite database.

    Signals wait for its end: the store may do what is asked whether or not its answer is awaited.
    """
    for number in range(1, TRIES):
        try:
            with signals.held():
                return work()
        except MlflowException as error:
            locked = error.error_code == "TEMPORARILY_UNAVAILABLE" and _is_sqlite()
            if not locked and not _RACE.search(str(error)):
                raise
            time.sleep(0.1 * number)
    with signals.held():
        return work()


def is_of_store(error: BaseException) -> bool:
    """Whether the store, or the way to it, has failed, and not this program."""
    return isinstance(error, MlflowException | OSError) or type(error).__module__.split(".")[0] in _CLIENTS


def words(error: BaseException) -> str:
    """What has failed, in one line without credentials: what the system says, or else the error itself."""
    inner: BaseException | None = error
    found = ""
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            found = inner.strerror
        inner = inner.__cause__ or inner.__context__
    first = first_line(error)
    return mask(found or first)[:300].rstrip(". ")


def is_silence(error: BaseException) -> bool:
    """Whether a later try may find the store as it should be: no answer, or a server that is broken just now."""
    if mlflow.get_tracking_uri().startswith("http"):
        status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
        refused = 400 <= status < 500 and status not in (408, 429)  # which ask for another try
        return not refused and _REFUSED.search(f"{error} ") is None
    return bool(isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE")


def is_refusal(error: BaseException) -> bool:
    """Whether the store has answered, and says no: a later try would hear the same."""
    if mlflow.get_tracking_uri().startswith("http"):
        return not is_silence(error)
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    return 400 <= status < 500 and status not in (408, 429)


@contextmanager
def briefly() -> Iterator[None]:
    """Inside, nothing is waited for that takes long: for the last requests of a command that is ended."""
    asked = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(_LAST_TIMEOUT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        with signals.limited(2 * _LAST_TIMEOUT):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_sqlite() -> bool:
    return bool(mlflow.get_tracking_uri().startswith("sqlite:"))


@contextmanager
def _alone() -> Iterator[None]:
    """Inside, no other process of this machine is here for the same SQLite database: MLflow makes its tables unguarded.

    The folder of the database is the lock, so that no file is left behind.
    """
    folder = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///").split("?")[0]).absolute().parent
    if not _is_sqlite() or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, clients do not tell of every try, nor show a traceback of what is about to be told in one line."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

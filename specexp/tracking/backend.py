"""Failures of the tracking store: recognizes and words its errors, retries requests, and limits how long they take.

A store is an HTTP server, a database or a folder. Only SQLite gets special treatment beyond error codes: one process at
a time creates its tables, and requests to a locked database are retried.
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
TRIES = 5  # attempts of a request that collides; with a locked database, MLflow itself waits 20 seconds in each
_LOUD = ("urllib3.connectionpool", "mlflow.store.db.utils", "mlflow.system_metrics")
# Packages whose exceptions a store's client may raise, besides MLflow's own exceptions and OSError.
_CLIENTS = ("sqlalchemy", "urllib3", "requests", "botocore", "boto3", "google", "azure")
# Two processes that log the same dataset at once both insert it, and every database rejects the second insert.
_RACE = re.compile(r"IntegrityError|UniqueViolation|Duplicate entry")
_REFUSED = re.compile(r"error code 4(?!08|29)\d\d ")
_RUN, _EXPERIMENT, _EXPERIMENT_NAME = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
_LONGEST_NAME = 500  # MLflow's limit for experiment names, in characters
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # error codes for unknown or malformed ids
_LAST_TIMEOUT = 5  # timeout, in seconds, of the last requests of a command that is ended


def address() -> str:
    """The tracking URI without credentials."""
    return mask(mlflow.get_tracking_uri())


def connection_error() -> str | None:
    """The reason why the store does not answer, in a few words; None if it answers. Creates a new database's tables.

    Raises StoreError for an invalid address, and if the store answers with a refusal.
    """
    return _unavailable_reason(lambda: MlflowClient().search_experiments(max_results=1))


def unreachable_reason() -> str | None:
    """Like `connection_error`, but also checks the experiment and the run that the environment names, before any work
    is done for them.

    Raises StoreError if the store has no such experiment or run, or only a deleted one.
    """
    return connection_error() or _unavailable_reason(_check_destination)


def _unavailable_reason(work: Callable[[], object]) -> str | None:
    try:
        with quiet(), _alone():
            with_retries(work)
    except Exception as error:
        if not is_of_store(error):
            raise
        if is_unavailable(error):
            return words(error)
        raise StoreError(
            f"the tracking store at {address()} cannot be used: {words(error)}. Fix it, or name another one in"
            f" {TRACKING}."
        ) from error
    return None


def _check_destination() -> None:
    """Raise StoreError unless runs can be created where MLflow's variables say, or in the default experiment."""
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
    """Raise StoreError for a deleted experiment; None means one that MLflow has yet to create."""
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise StoreError(
            f"{how} experiment '{experiment.name}' ({experiment.experiment_id}), which is deleted in the tracking store"
            f" at {address()}; restore it (mlflow experiments restore --experiment-id {experiment.experiment_id}), or"
            f" name another one in {_EXPERIMENT_NAME}."
        )


def _if_there(ask: Callable[[], T]) -> T | None:
    """The result of `ask`, or None if the store has no such entity."""
    try:
        return ask()
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise


@contextmanager
def translate_errors(make_error: Callable[[str], Exception]) -> Iterator[None]:
    """Within the context, a failure of the store becomes the exception that `make_error` returns for its message."""
    try:
        with quiet():
            yield
    except Exception as error:
        if not is_of_store(error):
            raise
        raise make_error(words(error)) from error


@contextmanager
def require_store(why: str, next_step: str) -> Iterator[None]:
    """Context for work that needs the store. Raises StoreError if the store does not answer, Unsent if it fails."""
    unreachable = unreachable_reason()
    if unreachable is not None:
        raise StoreError(
            f"the tracking store at {address()} does not answer ({unreachable}), and {why}; start it, or name another"
            f" one in {TRACKING}."
        )
    with translate_errors(lambda said: Unsent(f"the tracking store at {address()} failed: {said}. {next_step}")):
        yield


def with_retries(work: Callable[[], T]) -> T:
    """Do `work`, which must be idempotent, and retry it if another process won a race or locks a SQLite database.

    Signals are held until it ends: the store may carry out a request even if nobody waits for its answer.
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
    """True if the error comes from the store or the connection to it, and not from this program."""
    return isinstance(error, MlflowException | OSError) or type(error).__module__.split(".")[0] in _CLIENTS


def words(error: BaseException) -> str:
    """The reason of an error in one line without credentials: an inner OSError's `strerror`, or else the message."""
    inner: BaseException | None = error
    result = ""
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            result = inner.strerror
        inner = inner.__cause__ or inner.__context__
    first = first_line(error)
    return mask(result or first)[:300].rstrip(". ")


def is_unavailable(error: BaseException) -> bool:
    """True if a later attempt may succeed: the store gave no answer, or the server has a temporary fault.

    An error of a database may be neither this nor a refusal: a disk that is full, for example.
    """
    if mlflow.get_tracking_uri().startswith("http"):
        status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
        refused = 400 <= status < 500 and status not in (408, 429)  # both codes ask for a retry
        return not refused and _REFUSED.search(f"{error} ") is None
    return bool(isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE")


def is_refusal(error: BaseException) -> bool:
    """True if the store answered with a refusal, which a later attempt would get again."""
    if mlflow.get_tracking_uri().startswith("http"):
        return not is_unavailable(error)
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    return 400 <= status < 500 and status not in (408, 429)


@contextmanager
def briefly() -> Iterator[None]:
    """Within the context, requests have short timeouts and no retries: for the last requests of a command that ends."""
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
    """Lock a SQLite database against other processes of this machine, since MLflow creates its tables without a lock.

    The lock is on the folder of the database, so that no lock file remains.
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
    """Within the context, client libraries log neither retries nor tracebacks: the error is reported in one line."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

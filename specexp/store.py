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
from typing import TypeVar

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from specexp.errors import StoreError, Unsent

T = TypeVar("T")
TRIES = 5  # of what collides; for a locked database, MLflow itself waits 20 seconds at each
_LOUD = ("urllib3.connectionpool", "mlflow.store.db.utils", "mlflow.system_metrics")
# Of what a store's client raises, besides MLflow's own exceptions and those of the system.
_CLIENTS = ("sqlalchemy", "urllib3", "requests", "botocore", "boto3", "google", "azure")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
# Two processes that log the same dataset at once both find it missing, and one of them is told so, by any database.
_RACE = re.compile(r"IntegrityError|UniqueViolation|Duplicate entry")
_REFUSED = re.compile(r"error code 4(?!08|29)\d\d ")


def address() -> str:
    """Where the store is, without credentials."""
    return _CREDENTIALS.sub("//", mlflow.get_tracking_uri())


def reach() -> str | None:
    """Why the store does not answer, in a few words; None where it does. Makes the tables of a new database.

    Raises StoreError for an address that is none, and where the store answers and refuses.
    """
    try:
        with quiet(), _alone():
            patiently(lambda: MlflowClient().search_experiments(max_results=1))
    except Exception as error:
        if not is_of_store(error):
            raise
        if is_silence(error):
            return words(error)
        raise StoreError(
            f"the tracking store at {address()} cannot be used: {words(error)}. Mend it, or name another one in"
            " MLFLOW_TRACKING_URI."
        ) from error
    return None


@contextmanager
def telling(tell: Callable[[str], Exception]) -> Iterator[None]:
    """Inside, a failure of the store becomes what `tell` makes of its words."""
    try:
        with quiet():
            yield
    except Exception as error:
        if not is_of_store(error):
            raise
        raise tell(words(error)) from error


@contextmanager
def wanted(why: str, way_on: str) -> Iterator[None]:
    """Inside is what goes on in the store alone. Raises StoreError where it does not answer, Unsent where it fails."""
    silence = reach()
    if silence is not None:
        raise StoreError(
            f"the tracking store at {address()} does not answer ({silence}), and {why}; start it, or name another one"
            " in MLFLOW_TRACKING_URI."
        )
    with telling(lambda said: Unsent(f"the tracking store at {address()} failed: {said}. {way_on}")):
        yield


def patiently(work: Callable[[], T]) -> T:
    """Do `work`, which may be done twice, again where others were faster, or hold a SQLite database."""
    for number in range(1, TRIES):
        try:
            return work()
        except MlflowException as error:
            locked = error.error_code == "TEMPORARILY_UNAVAILABLE" and _is_sqlite()
            if not locked and not _RACE.search(str(error)):
                raise
            time.sleep(0.1 * number)
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
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _CREDENTIALS.sub("//", found or first)[:300].rstrip(". ")


def is_silence(error: BaseException) -> bool:
    """Whether a later try may find the store as it should be: no answer, or a server that is broken just now."""
    if mlflow.get_tracking_uri().startswith("http"):
        status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
        refused = 400 <= status < 500 and status not in (408, 429)  # which ask for another try
        return not refused and _REFUSED.search(f"{error} ") is None
    return bool(isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE")


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

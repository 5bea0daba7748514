"""Workers as Ray's actors: the only module that imports Ray.

An actor is one process, which loads its job once and then does units in the order in which they arrive. A unit whose
actor dies comes back as `Died`; Ray restarts nothing by itself and repeats no call.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import exceptions

from specexp.errors import SpecexpError, WorkerError, first_line
from specexp.workers.dispatch import Died, Event, Finished, LoadedWork, Started, WorkerJob
from specexp.workers.node_metrics import NodeRun, NodeWatch, names_of
from specexp.workers.settings import AUTO, LOCAL, WorkerSettings

SHUTDOWN = 5.0  # seconds that workers may take to end
CLIENT_PORT, KNOCK = 10001, 10.0  # Ray's default, and seconds that a cluster may take to answer
# How often Ray's client asks the head for a server of its own, which a busy head may not have ready in Ray's 30 s.
ATTEMPTS = 3
PATIENCE = 600.0  # seconds that the first worker may take to start, its models included
FEW = 32  # calls, of which one result is taken at a time: looking for others switches threads
# Variables that a worker takes over from the command.
HANDED_DOWN = (
    "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "GOMP_SPINCOUNT",
)  # fmt: skip
NODE = "ray_node"  # key of a worker's facts: the id of its node
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray tells nobody that it is used
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_AT_EXIT = "Fix that, or set workers to 0."


@dataclass(frozen=True, slots=True)
class Raised:
    """What a job raised, to be raised by the driver."""

    error: SpecexpError


class WorkerActor:
    """The process of one worker. `variables` are set before anything heavy is imported."""

    def __init__(self, job: WorkerJob, folder: str, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        if Path(folder).is_dir():
            os.chdir(folder)  # so that relative paths are those of the command
        self._job = job
        self._loaded: LoadedWork | None = None

    def load(self) -> Mapping[str, Any] | Raised:
        """Load the job, and return its facts."""
        try:
            self._loaded = self._job.load()
            return {**self._loaded.facts(), NODE: ray.get_runtime_context().get_node_id()}
        except SpecexpError as error:
            return Raised(error)

    def do(self, unit: bytes) -> bytes:
        """Do a pickled unit; returns its pickled result, or what was raised. Ray passes bytes on as they are."""
        assert self._loaded is not None, "a unit that came before the job was loaded"
        try:
            return pickle.dumps(self._loaded.do(pickle.loads(unit)))
        except SpecexpError as error:
            return pickle.dumps(Raised(error))

    def log_node(self, run: NodeRun, node: str) -> None:
        """Log this machine's system metrics to a run, until it ends."""
        from specexp.tracking.system_metrics import log_node

        log_node(run.run_id, run.store, node)

    def ended(self) -> None:
        """Nothing: an answer says that this process still runs."""


@dataclass(slots=True)
class RayPool:
    """Actors of a cluster that this process is connected to."""

    settings: WorkerSettings
    job: Any  # a reference to the job in Ray's store
    variables: Mapping[str, str]
    _actors: dict[int, Any] = field(default_factory=dict)
    _calls: dict[Any, tuple[int, bool]] = field(default_factory=dict)  # (worker, whether it is loading) by reference
    _order: dict[int, deque[Any]] = field(default_factory=dict)  # a worker's calls, oldest first
    _num_started: int = 0
    _any_loaded: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _watch: NodeWatch = field(default_factory=NodeWatch)
    _run: NodeRun | None = None

    def start(self) -> int:
        worker, self._num_started = self._num_started, self._num_started + 1
        how = ray.remote(WorkerActor).options(
            num_cpus=self.settings.cpus, num_gpus=self.settings.gpus, max_restarts=0, max_task_retries=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self._actors[worker] = actor = how.remote(self.job, os.getcwd(), dict(self.variables))
        self._order[worker] = deque()
        self._called(worker, actor.load.remote(), True)
        return worker

    def submit(self, worker: int, unit: Any) -> None:
        self._called(worker, self._actors[worker].do.remote(pickle.dumps(unit)), False)

    def events(self, seconds: float) -> Sequence[Event]:
        heads = [calls[0] for calls in self._order.values() if calls]
        ready, _ = ray.wait(heads, num_returns=1, timeout=seconds) if heads else ([], [])
        if ready and len(heads) > FEW:  # and whatever else has come; a call that waits for nothing costs more than one
            ready, _ = ray.wait(heads, num_returns=len(heads), timeout=0)
        if not ready and not self._any_loaded and time.monotonic() - self._begun > PATIENCE:
            raise WorkerError(f"no worker has started within {PATIENCE:.0f} seconds: {self._lacking()}. {_AT_EXIT}")
        return [event for call in ready for event in self._events_of(call)]

    def log_nodes(self, run: NodeRun) -> None:
        """Have one worker on each node log the node's system metrics to this run; also on nodes that come later."""
        self._run = run
        for worker in self._watch.chosen:
            self._log(worker)

    def close(self) -> None:
        """End every worker at once, and wait until they have ended, for `SHUTDOWN` seconds at most."""
        for actor in self._actors.values():
            with suppress(Exception):
                ray.kill(actor, no_restart=True)
        try:
            left = _still_running(list(self._actors.values()))
        except Exception:  # of a cluster that is gone, as are its workers
            left = 0
        self._actors.clear()
        if left:
            print(f"warning: {left} workers have not ended within {SHUTDOWN:g} seconds.", file=sys.stderr)

    def _log(self, worker: int | None) -> None:
        """Tell a worker, if there is one, to log its node's system metrics to the run, if there is one."""
        if worker is None or self._run is None:
            return
        hosts = {each["NodeID"]: each["NodeManagerHostname"] for each in ray.nodes()}
        node = self._watch.node_of(worker)
        if self._run.is_reached_from_elsewhere or hosts.get(node) == platform.node():
            self._actors[worker].log_node.remote(self._run, names_of(hosts).get(node, node))

    def _called(self, worker: int, call: Any, loading: bool) -> None:
        self._calls[call] = worker, loading
        self._order[worker].append(call)

    def _events_of(self, call: Any) -> Iterator[Event]:
        worker, loading = self._calls.pop(call)
        try:
            result = ray.get(call) if loading else pickle.loads(ray.get(call))
        except exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except exceptions.RayError as error:
            self._forget(worker)
            yield Died(worker, first_line(error), blamed=not getattr(error, "preempted", False))
            return
        if isinstance(result, Raised):
            raise result.error
        self._order[worker].popleft()
        if loading:
            self._any_loaded = True
            if self._watch.started(worker, result[NODE]):
                self._log(worker)
            yield Started(worker, result)
        else:
            yield Finished(worker, result)

    def _forget(self, worker: int) -> None:
        """End what is left of a worker, and drop its calls."""
        for call in self._order.pop(worker):
            self._calls.pop(call, None)
        with suppress(Exception):
            ray.kill(self._actors.pop(worker), no_restart=True)
        self._log(self._watch.died(worker))

    def _lacking(self) -> str:
        total = ray.cluster_resources()
        return (
            f"each takes {self.settings.cpus:g} CPUs and {self.settings.gpus:g} GPUs, and the cluster has"
            f" {total.get('CPU', 0):g} and {total.get('GPU', 0):g}"
        )


@contextmanager
def connected(settings: WorkerSettings, job: WorkerJob) -> Iterator[RayPool]:
    """Connect to the cluster, or start one on this machine; at the end its workers are ended. Raises WorkerError."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        _connect(settings)
    finally:  # Ray sets handlers of its own
        for number, handler in before.items():
            signal.signal(number, handler)
    pool = None
    try:
        _check(settings)
        variables = {name: os.environ[name] for name in HANDED_DOWN if name in os.environ}
        variables["OMP_NUM_THREADS"] = str(settings.threads)
        pool = RayPool(settings, ray.put(job), variables)
        yield pool
    finally:
        if pool is not None:
            pool.close()
        ray.shutdown()


def _still_running(actors: list[Any]) -> int:
    """Wait until all of these have ended, at most for `SHUTDOWN` seconds; returns how many have not."""
    until = time.monotonic() + SHUTDOWN
    while actors and (seconds := until - time.monotonic()) > 0:
        calls = {actor.ended.remote(): actor for actor in actors}
        ready, waiting = ray.wait(list(calls), num_returns=len(calls), timeout=seconds)
        actors = [calls[call] for call in waiting]
        for call in ready:
            try:
                ray.get(call)
                actors.append(calls[call])  # it has not noticed yet
            except exceptions.RayError:
                pass
        time.sleep(0.02)
    return len(actors)


def _connect(settings: WorkerSettings) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if settings.ray == AUTO:
            with suppress(ConnectionError):
                ray.init(address="auto", **quiet)
                return
        if settings.ray in (AUTO, LOCAL):
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _join(settings.ray, quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, exceptions.RayError) as error:
        raise WorkerError(f"ray is {settings.ray}, which cannot be reached: {first_line(error)}. {_AT_EXIT}") from error


def _join(address: str, quiet: dict[str, Any]) -> None:
    """Connect to a cluster that runs, whose head may be too busy to start a client's server at first."""
    for left in reversed(range(ATTEMPTS)):
        _knock(address)
        try:
            ray.init(address=address, **quiet)
            return
        except ConnectionAbortedError:
            if not left:
                raise
        print(f"note: {address} has no server for this client yet; asking again.", file=sys.stderr)


def _knock(address: str) -> None:
    """Raise OSError if nothing listens there: Ray would try for minutes."""
    parts = urlsplit(f"//{address.removeprefix('ray://')}")
    socket.create_connection((parts.hostname or "", parts.port or CLIENT_PORT), KNOCK).close()


def _check(settings: WorkerSettings) -> None:
    """Raise WorkerError for more than this machine has; a cluster may still grow, so it gets a note alone."""
    total = ray.cluster_resources()
    for name, each in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        if each * settings.number <= total.get(name, 0) + 1e-6:
            continue
        words = f"{settings.number} workers of {each:g} {name}s need {each * settings.number:g}, and"
        if settings.ray == LOCAL or (settings.ray == AUTO and len(ray.nodes()) == 1):
            raise WorkerError(
                f"{words} this machine has {total.get(name, 0):g}; lower workers or {name.lower()}s_per_worker."
            )
        print(
            f"note: {words} the cluster has {total.get(name, 0):g}: the others start when there are more.",
            file=sys.stderr,
        )

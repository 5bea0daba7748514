"""Opens a crew of workers for a job; Ray is imported only then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from specexp.workers.dispatch import Crew, WorkerJob
from specexp.workers.settings import WorkerSettings


@contextmanager
def crew(settings: WorkerSettings, job: WorkerJob) -> Iterator[Crew]:
    """Start the workers of this job; they end with the context. Raises WorkerError."""
    from specexp.workers import ray_cluster

    with ray_cluster.connected(settings, job) as pool:
        yield Crew(pool, settings.number)

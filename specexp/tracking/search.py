"""Finds runs in the tracking store by key or by tags: the newest, or the finished ones."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

KEY = "specexp.key"  # tag that identifies one run of one output folder
MOST = 200  # limit of a search for runs with one key, or for open runs


def find(key: str, finished: bool = False) -> str | None:
    """Id of the newest run with this key, in any experiment of the store; None if there is none, or not `finished`."""
    run = newest_of(MlflowClient(), key)
    return None if run is None or (finished and run.info.status != "FINISHED") else str(run.info.run_id)


def search_runs(client: MlflowClient, query: str, most: int) -> list[Run]:
    """At most `most` runs that match the query, in any experiment of the store, the newest first."""
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    return list(client.search_runs(experiments, query, max_results=most, order_by=["start_time DESC"]))


def all_of(client: MlflowClient, key: str, most: int) -> list[Run]:
    return search_runs(client, f"tags.`{KEY}` = '{key}'", most)


def newest_of(client: MlflowClient, key: str) -> Run | None:
    return next(iter(all_of(client, key, 1)), None)


def known(run_id: str | None, key: str) -> Run | None:
    """The run with this id, if this store has it and it has no other key, or else the newest run with the key."""
    client = MlflowClient()
    if is_active(client, run_id):
        run = client.get_run(run_id)
        if run.data.tags.get(KEY, key) == key:  # a run from `mlflow run` has no key before it is begun
            return run
    return newest_of(client, key)


def newest(tags: Mapping[str, str]) -> str | None:
    """Id of the newest finished run with these tags, in any experiment of the store."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    result = client.search_runs(
        experiments, f"{wanted} and attributes.status = 'FINISHED'", max_results=1, order_by=["start_time DESC"]
    )
    return str(result[0].info.run_id) if result else None


def finished(tags: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Id and parameters of every finished run with these tags, in any experiment of the store."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    result: list[tuple[str, dict[str, str]]] = []
    token = None
    while True:
        page = client.search_runs(experiments, f"{wanted} and attributes.status = 'FINISHED'", page_token=token)
        result += [(str(run.info.run_id), dict(run.data.params)) for run in page]
        token = page.token
        if not token:
            return result


def is_active(client: MlflowClient, run_id: str | None) -> bool:
    """True if this store has the run, and it is not deleted."""
    try:
        return run_id is not None and client.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.MlflowException:
        return False  # the id is from another store

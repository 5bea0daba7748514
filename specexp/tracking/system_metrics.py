"""Whether MLflow logs system metrics to a run, and those of another machine, under its own name, to the same run."""

from __future__ import annotations

import logging
import os

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics import set_system_metrics_node_id
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


def asked_of_mlflow(timed: bool) -> bool | None:
    """What a run is begun with: `timed` work leaves it to MLflow's own settings (None), other work has them logged
    unless a variable decides."""
    return None if timed or MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.name in os.environ else True


def logged_run(run_id: str, timed: bool) -> tuple[str, str] | None:
    """The run and the address of its store, if MLflow logs this machine's system metrics to it."""
    asked = asked_of_mlflow(timed)
    logs = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() if asked is None else asked
    return (run_id, mlflow.get_tracking_uri()) if logs else None


def log_node(run_id: str, store: str, node: str) -> None:
    """Log `system/NODE/...` to this run of this store until it ends, every so many seconds as MLflow's variables say.

    A store that does not answer, and a run that has ended, end the logging.
    """
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    set_system_metrics_node_id(node)
    SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=store).start()

"""A worker's job for a real cluster, which needs no model: some units kill the process that does them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp.errors import ModelError
from specexp.workers.dispatch import LoadedWork


@dataclass(frozen=True)
class FatalJob:
    """Squares numbers; `fatal` kills its worker, and `refused` is an error that ends the run."""

    fatal: int
    refused: int = -1

    def load(self) -> LoadedWork:
        return self

    def facts(self) -> Mapping[str, Any]:
        return {"run": os.environ.get("MLFLOW_RUN_ID")}

    def do(self, unit: int) -> int:
        if unit == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == self.refused:
            raise ModelError(f"no room for {unit}.")
        return unit**2

"""A worker's job for a real cluster, which needs no model: some units kill the process that does them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp.workers.dispatch import LoadedWork


@dataclass(frozen=True)
class FatalJob:
    """Squares numbers; `fatal` kills its worker."""

    fatal: int

    def load(self) -> LoadedWork:
        return self

    def facts(self) -> Mapping[str, Any]:
        return {"run": os.environ.get("MLFLOW_RUN_ID")}

    def do(self, unit: int) -> int:
        if unit == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return unit**2

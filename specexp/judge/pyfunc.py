"""The judge as an MLflow model: features in, probabilities out. MLflow runs this file on logging and on loading.

It needs numpy, safetensors and array-api-compat, not the rest of this package: network.py is logged with it.
"""

import json
from pathlib import Path

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext
from safetensors.numpy import load_file

try:
    from network import Network  # type: ignore[import-not-found]  # next to this file in the unpacked model
except ModuleNotFoundError:
    from specexp.judge.network import Network


class ServedJudge(PythonModel):  # type: ignore[misc]
    """`predict(features[N, F]) -> probabilities[N]` that each mismatch is important."""

    def load_context(self, context: PythonModelContext) -> None:
        folder = Path(context.artifacts["judge"])
        facts = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        self._network = Network(facts["kind"], load_file(folder / "judge.safetensors"))

    # MLflow would read type hints as a schema; the schema in force is the signature that was logged.
    def predict(self, context, model_input: np.ndarray, params=None):  # type: ignore[no-untyped-def]
        features = np.asarray(model_input, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self._network.num_features:
            raise mlflow.MlflowException.invalid_parameter_value(
                f"features must be [N, {self._network.num_features}], got {list(features.shape)}."
            )
        return np.asarray(self._network(features))


mlflow.models.set_model(ServedJudge())

"""A decoder as an MLflow model: prompts in, texts and counts out. MLflow runs this file when it logs and when it loads.

The rest of this package is logged with it as the model's code; the weights stay where `decoder.json` says they are. In
`mlflow models serve`, requests for what the decoder does not offer are refused, which MLflow would let pass.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc import PythonModel, PythonModelContext, scoring_server
from pandas import DataFrame

from specexp.api import Output
from specexp.errors import RequestError, SpecexpError, first_line
from specexp.serving import requests
from specexp.serving.decoder_spec import MAX_BATCH_SIZE, ServedDecoder

SERVER = "mlflow.pyfunc.scoring_server.app"  # loaded in a server's process, which serves this model and no other
JSON = "application/json"


class Served(PythonModel):  # type: ignore[misc]
    """`predict(prompts) -> text, num_tokens, target_calls, tokens_per_call, finish_reason` of each.

    `model_config` of `mlflow.pyfunc.load_model` may hold `rows`, the prompts decoded together, and `device`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        settings = dict(context.model_config or {})
        rows, device = settings.get("rows", MAX_BATCH_SIZE), settings.get("device", "")
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise mlflow.MlflowException.invalid_parameter_value(f"rows is {rows!r}; it must be a whole number >= 1.")
        try:
            self._decoder = ServedDecoder(Path(context.artifacts["decoder"]), rows, str(device))
        except SpecexpError as error:
            raise mlflow.MlflowException(str(error)) from error
        if SERVER in sys.modules:
            insist(self._decoder.most_bytes)

    # MLflow would read type hints as a schema; the signature that was logged is the one that counts.
    def predict(self, context, model_input: DataFrame, params=None):  # type: ignore[no-untyped-def]
        try:
            prompts = requests.prompts_of(_cells(model_input))
            result = self._decoder.decode(prompts, params)
        except RequestError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        except Exception as error:
            raise _failed(error) from error
        return DataFrame([{"text": out.text, **_counts(out)} for out in result])

    # As for `predict`.
    def predict_stream(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Yield the text of one prompt in pieces, `{"text": ...}`, and at last its counts, without a text."""
        try:
            prompts = requests.prompts_of(_cells(model_input))
            if len(prompts) > 1:
                raise RequestError(f"{len(prompts)} prompts are given; one is streamed at a time: send one.")
            for piece in self._decoder.stream(prompts[0], params):
                yield {"text": piece} if isinstance(piece, str) else _counts(piece)
        except RequestError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        except Exception as error:
            raise _failed(error) from error


def _counts(out: Output) -> dict[str, Any]:
    """What is said of an output beside its text."""
    return {
        "num_tokens": len(out.token_ids),
        "target_calls": out.counts["num_target_calls"],
        "tokens_per_call": out.tokens_per_call,
        "finish_reason": out.finish_reason,
    }


def _failed(error: Exception) -> mlflow.MlflowException:
    """An error of decoding, which MLflow would blame the request for."""
    words = first_line(error, "")
    return mlflow.MlflowException(f"decoding failed: {type(error).__name__}: {words}", error_code=INTERNAL_ERROR)


def _cells(given: Any) -> list[object]:
    """The prompts of a DataFrame, or, without MLflow's schema, of a list or a mapping."""
    if isinstance(given, DataFrame):
        if requests.COLUMN not in given:
            raise RequestError(f"column {requests.COLUMN} is missing.")
        return list(given[requests.COLUMN])
    if isinstance(given, Mapping):
        return requests.cells(dict(given))
    return requests.cells(given if isinstance(given, str) else list(given))


def insist(most_bytes: int = requests.LONGEST_BODY) -> None:
    """Make this process's scoring server read bodies of at most `most_bytes` with `requests.canonical`."""
    inner = scoring_server.invocations

    def invocations(data: Any, content_type: str | None, model: Any, input_schema: Any) -> Any:
        kind = (content_type or "").split(";")[0].strip().lower()
        if kind != JSON:
            got = f"got {content_type}" if content_type else "there is none"
            return scoring_server.InvocationsResponse(f"The content type must be {JSON}; {got}.", 415, "text/plain")
        try:
            body = requests.canonical(data, most_bytes)
        except RequestError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        return inner(body, content_type, model, input_schema)

    scoring_server.invocations = invocations


mlflow.models.set_model(Served())

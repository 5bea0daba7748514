"""Defines what a request to a served decoder may hold, and refuses all else, which MLflow would drop or turn into text.

MLflow's scoring server ignores columns, parameters and keys that no signature names, and turns numbers and nulls into
text before a model gets them. So this module reads the body, and passes it on in one form.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from specexp import config, reading
from specexp.config import Experiment
from specexp.config.single import checked_prompt
from specexp.errors import ConfigError, PromptError, RequestError, unknown

COLUMN = "prompt"
PARAMETERS = ("max_new_tokens", "min_new_tokens", "ignore_eos", "stop", "temperature", "top_k", "top_p", "seed")
FORMATS = ("dataframe_records", "dataframe_split", "inputs", "instances")
MOST_PROMPTS = 256  # of one request
LONGEST_BODY = 64 << 20  # bytes
SMALL_BODY = 1 << 16  # bytes that any body may have, however small the longest prompt
_LIKE = '{"dataframe_records": [{"prompt": "..."}], "params": {"temperature": 0.7}}'


def canonical(data: bytes | str, most_bytes: int = LONGEST_BODY) -> dict[str, Any]:
    """A request's body as `{"dataframe_split": ..., "params": ...}`. Raises RequestError.

    A body of more than `most_bytes` is not read.
    """
    if len(data) > most_bytes:
        raise RequestError(
            f"the body has {len(data)} bytes; this decoder takes at most {most_bytes}: send shorter prompts, or fewer"
            " in a request."
        )
    body = _read(data)
    if COLUMN in body:
        given = cells(body[COLUMN])
        params = {key: value for key, value in body.items() if key != COLUMN}
    else:
        formats = [name for name in FORMATS if name in body]
        if len(formats) != 1:
            result = f"{' and '.join(formats)} together" if formats else f"{', '.join(map(repr, body)) or 'nothing'}"
            raise RequestError(f"prompts are taken in one of {', '.join(FORMATS)} or prompt, got {result}.")
        if strays := [key for key in body if key not in (*FORMATS, "params")]:
            raise RequestError(
                f"unknown key '{strays[0]}' next to '{formats[0]}'; parameters belong in params, as in {_LIKE}."
            )
        params = {} if body.get("params") is None else body["params"]
        if not isinstance(params, dict):
            raise RequestError(f"params must be an object, got {_named(params)}.")
        given = _split(body[formats[0]]) if formats[0] == "dataframe_split" else cells(body[formats[0]])
    for key in params:
        if key not in PARAMETERS:
            raise RequestError(unknown("parameter", key, PARAMETERS))
    stop = params.pop("stop", None)
    if stop is not None:
        params["stop"] = _stop(stop)
    rows = [[prompt] for prompt in prompts_of(given)]
    return {"dataframe_split": {"columns": [COLUMN], "data": rows}, "params": params}


def prompts_of(given: Sequence[object]) -> list[str]:
    """The prompts, one text each; a list of texts in place of one text counts as several. Raises RequestError."""
    flat: list[object] = []
    for cell in given:
        flat += cell if isinstance(cell, list) else [cell]
    if not flat:
        raise RequestError("no prompt is given; give one at least.")
    if len(flat) > MOST_PROMPTS:
        raise RequestError(f"{len(flat)} prompts are given; a request may have {MOST_PROMPTS}: send several.")
    result = []
    for number, cell in enumerate(flat, 1):
        if not isinstance(cell, str):
            raise RequestError(f"prompt {number} is {_named(cell)}; it must be text.")
        with numbered(number, len(flat)):
            result.append(checked_prompt(cell))
    return result


@contextmanager
def numbered(number: int, count: int) -> Iterator[None]:
    """Inside, a PromptError becomes a RequestError that says which of `count` prompts it is about."""
    try:
        yield
    except PromptError as error:
        raise RequestError(f"prompt {number}: {error}" if count > 1 else str(error)) from None


def settings(experiment: Experiment, params: Mapping[str, Any] | None, most_new_tokens: int) -> Experiment:
    """The experiment with a request's parameters; None is unset. Raises RequestError with every fault."""
    given = dict(params or {})
    stop = given.pop("stop", None)
    faults = [unknown("parameter", key, PARAMETERS) for key in given if key not in PARAMETERS]
    for key, value in given.items():
        if isinstance(value, str):
            kind = "true or false" if key == "ignore_eos" else "a number"
            faults.append(f"{key} is {value!r}; it must be {kind}.")
    given = {key: value for key, value in given.items() if key in PARAMETERS and not isinstance(value, str)}
    none = isinstance(stop, list) and not stop
    if not none:
        given["stop"] = stop
    length = given.get("max_new_tokens")
    if isinstance(length, int) and length > most_new_tokens:
        faults.append(f"max_new_tokens is {length}; this decoder emits at most {most_new_tokens}.")
        del given["max_new_tokens"]
    try:
        asked = config.adjusted(experiment, given)
    except ConfigError as error:
        raise RequestError("\n".join([*faults, *error.faults])) from None
    if length is None and asked.max_new_tokens > most_new_tokens:
        faults.append(f"max_new_tokens is {asked.max_new_tokens}; this decoder emits at most {most_new_tokens}.")
    if faults:
        raise RequestError("\n".join(faults))
    return replace(asked, stop=()) if none else asked


def _stop(value: object) -> list[str]:
    """Stop strings as a list, which is what MLflow's signature says; a request may give a single text."""
    result = [value] if isinstance(value, str) else value
    if not isinstance(result, list) or not all(isinstance(each, str) for each in result):
        raise RequestError(f"stop is {_named(value)}; it must be a text, or a list of texts.")
    return result


def _read(data: bytes | str) -> dict[str, Any]:
    if isinstance(data, bytes):
        data = reading.decode(data, "the body", RequestError, ".")
    body = reading.parse_json(data, "the body", RequestError, f"; send an object such as {_LIKE}", True)
    if not isinstance(body, dict):
        raise RequestError(f"the body must be an object such as {_LIKE}, got {_named(body)}.")
    return body


def cells(value: object) -> list[object]:
    """The prompts in `"a"`, `["a", "b"]`, `[{"prompt": "a"}, ...]` or `{"prompt": ...}`."""
    if isinstance(value, dict):
        return cells(_column(value))
    if not isinstance(value, list):
        return [value]
    return [_column(row) if isinstance(row, dict) else row for row in value]


def _split(value: object) -> list[object]:
    """The prompts in `{"columns": ["prompt"], "data": [["a"], ["b"]]}`."""
    if not isinstance(value, dict):
        raise RequestError(f"dataframe_split must be an object with columns and data, got {_named(value)}.")
    _known(value.keys(), ("columns", "data", "index"), "key")
    columns, data = value.get("columns"), value.get("data")
    if not isinstance(columns, list) or not isinstance(data, list):
        raise RequestError("dataframe_split needs the lists columns and data.")
    _known([str(column) for column in columns], (COLUMN,), "column")
    if columns != [COLUMN] or not all(isinstance(row, list) and len(row) == 1 for row in data):
        raise RequestError(f"dataframe_split needs one column, {COLUMN}, and rows of one text each.")
    return [row[0] for row in data]


def _column(row: Mapping[str, object]) -> object:
    _known(row.keys(), (COLUMN,), "column")
    if COLUMN not in row:
        raise RequestError(f"column {COLUMN} is missing.")
    return row[COLUMN]


def _known(given: Collection[str], known: Sequence[str], kind: str) -> None:
    for name in given:
        if name not in known:
            raise RequestError(unknown(kind, name, known))


def _named(value: object) -> str:
    """A value as a message shows it."""
    if value is None or value != value:
        return "null"
    kinds: dict[type, str] = {bool: "true or false", dict: "an object", list: "a list", str: "text"}
    return kinds.get(type(value), f"{value!r:.40}")

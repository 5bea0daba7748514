"""Tasks `lm_eval:NAME` of lm-evaluation-harness that generate text: its documents, solved examples, strings that end an
output, filters, and its metric exact_match as equality of answers.

An answer is a filtered text after what the metric ignores is taken out: two answers are the same text if the metric
calls them equal. `lm_eval:NAME@FILTER` takes another filter than the first one. The harness is imported here alone, and
only if such a task is named.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.errors import TaskError, first_line, unknown
from specexp.tasks.defaults import HARNESS, OF_HARNESS
from specexp.tasks.example import Dataset, Example
from specexp.tasks.source import DataConfig

METRIC = "exact_match"
FEWSHOT_SEED = 1234  # the harness's own, which chooses solved examples
MISSING = "lm-evaluation-harness, which is not installed; pip install 'specexp[lm-eval]'."
NO_MATCH = "[invalid]"  # what its regex filters return by default
_IGNORES = ("regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers")


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """The harness's metric, with what it ignores, in the order in which it does."""

    regexes: tuple[str, ...] = ()
    case: bool = False
    punctuation: bool = False
    numbers: bool = False
    name: str = f"lm_eval {METRIC}"

    def canonical(self, text: str) -> str:
        """The text that the metric compares."""
        for regex in self.regexes:
            text = re.sub(regex, "", text)
        text = text.lower() if self.case else text
        dropped = (string.punctuation if self.punctuation else "") + (string.digits if self.numbers else "")
        return text.translate(str.maketrans("", "", dropped)).rstrip("\0")  # numpy drops NULs at the end

    def equal(self, answer: str, other: str, example: object) -> bool:
        return self.canonical(answer) == self.canonical(other)


class HarnessTask:
    """One task. The constructor reads its rows, and raises TaskError if it is none that can be evaluated here."""

    def __init__(self, name: str, data: DataConfig, shots: int = 0) -> None:
        self.name = name
        self._called, _, wanted = name.removeprefix(HARNESS).partition("@")
        self._task = _read(name, self._called, data.source)
        self._config = self._task.config
        self.comparator = self._metric()
        self._filter, self._fallbacks = self._chosen_filter(wanted)
        self._shots = shots or self._config.num_fewshot or 0
        self._check_filter()
        self._settings: Mapping[str, Any] = self._config.generation_kwargs or {}
        until = self._settings.get("until") or ()
        self.stop = tuple(dict.fromkeys(filter(None, [until] if isinstance(until, str) else until)))

    def examples(self, limit: int) -> list[Example]:
        self._task.set_fewshot_seed(FEWSHOT_SEED)
        try:
            return [self._example(number, doc) for number, doc in self._docs(limit)]
        except TaskError:
            raise
        except Exception as error:  # templates and functions of the task
            raise TaskError(f"task '{self.name}': a prompt cannot be made: {first_line(error)}") from error

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        """The filtered answer, in the form that the metric compares; an unfinished text is read as well."""
        result = self._filtered(text)
        return None if result is None or result in self._fallbacks else self.comparator.canonical(result)

    def dataset(self) -> Dataset:
        docs = [doc for _, doc in self._docs(None)]
        what = [self._filter.name, self._shots, self._settings, self._config.metric_list, *docs]
        digest = hashlib.sha256(json.dumps(what, default=str, sort_keys=True).encode()).hexdigest()
        rows = "/".join(filter(None, (self._task.DATASET_PATH, self._task.DATASET_NAME)))
        return Dataset(self.name, f"{self.name} version {self._task.VERSION} ({rows})", digest, len(docs))

    @property
    def notes(self) -> list[str]:
        """What the harness says of outputs that only the user's settings decide here."""
        result = [f"answers of {self.name} are read by its filter {self._filter.name}."]
        if self.stop:
            result.append(f"outputs end at the strings of {self.name}, unless stop is given: {json.dumps(self.stop)}.")
        given = (self._settings.get(key) for key in ("max_gen_toks", "max_new_tokens", "max_tokens"))
        length = next((value for value in given if value), OF_HARNESS.max_new_tokens)
        if length != OF_HARNESS.max_new_tokens:
            result.append(f"the harness ends outputs of {self.name} at {length} tokens; here max_new_tokens says it.")
        if self._settings.get("do_sample"):
            temperature = self._settings.get("temperature", 0.0)
            result.append(f"the harness samples {self.name} at temperature {temperature}; here temperature says it.")
        return result

    def _docs(self, limit: int | None) -> list[tuple[int, Any]]:
        return list(self._task.doc_iterator(rank=0, limit=limit, world_size=1))

    def _example(self, number: int, doc: Any) -> Example:
        prompt = self._task.fewshot_context(doc, num_fewshot=self._shots, gen_prefix=self._task.doc_to_prefix(doc))
        gold = self._task.doc_to_target(doc)
        if self._config.doc_to_choice is not None:
            gold = self._task.doc_to_choice(doc)[gold]
        if isinstance(gold, list) or not isinstance(prompt, str):
            raise TaskError(f"task '{self.name}' has several right answers or prompts for a question; choose another.")
        return Example(f"{self._called}-{number}", (prompt,), self.comparator.canonical(str(gold)))

    def _metric(self) -> ExactMatch:
        """The metric's settings. Raises TaskError if the task has another one, or scores answers in its own way."""
        listed = self._config.metric_list or [{"metric": METRIC}]
        own = next((each for each in listed if each["metric"] == METRIC), None)
        if self._config.process_results is not None or own is None or own.get("hf_evaluate"):
            names = ", ".join(str(getattr(each["metric"], "__name__", each["metric"])) for each in listed)
            raise TaskError(
                f"task '{self.name}' is scored by {names} in its own way; evaluate takes tasks with the harness's"
                f" {METRIC}: choose one, or run it by python -m specexp.lm_eval."
            )
        regexes, case, punctuation, numbers = (own.get(key) for key in _IGNORES)
        return ExactMatch(tuple(regexes or ()), bool(case), bool(punctuation), bool(numbers))

    def _chosen_filter(self, wanted: str) -> tuple[Any, set[str]]:
        """The pipeline of this name, or the first one, and what its steps return where nothing matches."""
        from lm_eval.filters import build_filter_ensemble

        listed = self._config.filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]
        known = {str(each["name"]): each["filter"] for each in listed}
        name = wanted or next(iter(known))
        if name not in known:
            raise TaskError(f"task '{self.name}': {unknown('filter', wanted, known)}")
        steps = [
            (step["function"], {key: value for key, value in step.items() if key != "function"}) for step in known[name]
        ]
        fallbacks = {str(given.get("fallback", NO_MATCH)) for _, given in steps}
        return build_filter_ensemble(name, [[function, given] for function, given in steps]), fallbacks

    def _check_filter(self) -> None:
        try:
            self._filtered("a text")
        except Exception as error:
            raise TaskError(
                f"task '{self.name}': its filter {self._filter.name} reads more than an output"
                f" ({type(error).__name__}: {first_line(error)}); choose another filter or task."
            ) from error

    def _filtered(self, text: str) -> str | None:
        from lm_eval.api.instance import Instance

        instance = Instance("generate_until", {}, (text, {}), 0, resps=[text])
        self._filter.apply([instance])
        result = instance.filtered_resps[self._filter.name]
        result = result[0] if isinstance(result, list | tuple) and result else result
        return None if result is None or result == [] else str(result)


def _read(name: str, called: str, folder: str) -> Any:
    """The harness's task with its rows: of its own tasks, or of the YAML files in a folder. Raises TaskError."""
    try:
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml
    except ModuleNotFoundError as error:
        own = str(error.name).partition(".")[0] == "lm_eval"
        missing = MISSING if own else f"the package '{error.name}', which is not installed."
        raise TaskError(f"task '{name}' needs {missing}") from None
    if folder and not Path(folder).is_dir():
        raise TaskError(f"data is '{folder}', but with task '{name}' it must be a folder of the harness's YAML files.")
    manager = TaskManager(include_path=folder or None, include_defaults=not folder)
    if called not in manager.all_tasks:
        close = difflib.get_close_matches(called, manager.all_tasks, n=1)
        hint = f", did you mean '{close[0]}'?" if close else "."
        where = f"the folder '{folder}' has" if folder else "`lm_eval ls tasks` lists"
        raise TaskError(f"unknown task '{name}'{hint} Name one that {where}.")
    if called not in manager.all_subtasks:
        raise TaskError(f"task '{name}' is a group of tasks; name one of them.")
    path = manager.task_index[called].yaml_path
    settings = load_yaml(path, resolve_func=False) if path else {}
    kind = settings.get("output_type", "generate_until")
    if kind != "generate_until" or settings.get("doc_to_image") or settings.get("doc_to_audio"):
        what = f"asks for {kind}" if kind != "generate_until" else "is not of text alone"
        raise TaskError(
            f"task '{name}' {what}; evaluate takes tasks of generate_until: choose one, or run it by python -m"
            " specexp.lm_eval."
        )
    try:
        task = manager.load(called)["tasks"][called]
    except Exception as error:  # of `datasets`, of the network, or of the task's own code
        raise TaskError(f"task '{name}' cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not hasattr(task, "doc_to_prefix") or getattr(task, "OUTPUT_TYPE", "") != "generate_until":
        raise TaskError(f"task '{name}' is made by code of its own; run it by python -m specexp.lm_eval.")
    return task

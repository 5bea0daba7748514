"""All errors that specexp raises on purpose, in one hierarchy.

    SpecexpError                 something the user can fix; the entry points print it and exit with its `exit_code`, 2
    ├── ConfigError              a setting, a preset or a combination of them is wrong (all faults at once)
    ├── ModelError               a model or tokenizer cannot be loaded, or cannot do what a method needs
    ├── TaskError                a data set, a split or a prompt is wrong
    ├── PromptError              one prompt is empty, or does not fit the model's context
    ├── RequestError             a request to a served decoder is malformed
    ├── JudgeError               a judge or its labels are missing, broken, or made for another pair
    ├── WorkerError              workers cannot be started, or their cluster is gone
    ├── EngineError              a served engine refuses, fails, or answers what cannot be read
    ├── OutputError              an output folder exists already, or belongs to another configuration
    └── StoreError               the tracking store refuses, or does not answer although it is required
        └── Unsent               the work is done and on disk, but its runs are not in the store: exit code 3

A programming error (inconsistent counts, a crop beyond the cache) is an AssertionError, not one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 100  # maximum number of characters of a value in a message


class SpecexpError(Exception):
    """Base class of all errors that the user can fix: the message names the value, the rule and the remedy."""

    exit_code = 2


class ConfigError(SpecexpError):
    """Settings are wrong. `faults` holds one line per fault; the message shows all of them."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class ModelError(SpecexpError):
    """A model or tokenizer cannot be loaded or used."""


class TaskError(SpecexpError):
    """A task's data is missing or malformed."""


class PromptError(SpecexpError):
    """A prompt cannot be decoded: it is empty, or longer than the model's context."""


class RequestError(SpecexpError):
    """A request to a served decoder cannot be read, or asks for an unsupported feature."""


class JudgeError(SpecexpError):
    """A judge, or the labels it is trained on, cannot be used."""


class EngineError(SpecexpError):
    """A served engine cannot be reached, refuses a request, or answers something else than its interface says."""


class WorkerError(SpecexpError):
    """Workers cannot be started, or the cluster that they run on cannot be reached."""


class OutputError(SpecexpError):
    """An output folder cannot be used as requested."""


class StoreError(SpecexpError):
    """The tracking store cannot be used."""


class Unsent(StoreError):
    """The runs are in the output folder, but not, or not completely, in the store: they remain to be uploaded."""

    exit_code = 3


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name: `unknown task 'arit', did you mean 'arith'? known: arith, gsm8k`."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f", did you mean '{close[0]}'?" if close else "."
    given = str(name) if str(name).isprintable() and len(str(name)) <= _SHOWN else shown(str(name))[1:-1]
    return f"unknown {kind} '{given}'{hint} Known: {', '.join(names) or 'none'}."


def shown(value: object) -> str:
    """A value as text for a message: its repr, shortened in the middle if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}...{text[-10:]}"


def first_line(error: BaseException, otherwise: str | None = None) -> str:
    """The first line of an exception's message; without one, `otherwise`, which defaults to its type's name.

    A line that ends with a colon says nothing yet: the last line comes with it, which of a traceback is the reason.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__ if otherwise is None else otherwise
    return lines[0] if len(lines) == 1 or not lines[0].endswith(":") else f"{lines[0]} {lines[-1].strip()}"

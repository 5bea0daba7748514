"""Parsers that read values of settings from YAML or from text.

Flags arrive as text, since MLflow passes text. A parser raises ValueError with the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from specexp.answers.rules import check_pattern
from specexp.config.experiment import (
    CALIBRATED,
    PROPOSERS,
)
from specexp.decoding.rules import is_greedy
from specexp.errors import shown, unknown
from specexp.lm.configs.layer_ranges import HOW, layer_indices
from specexp.tasks.defaults import HARNESS, NO_EXECUTION, SANDBOX, is_known
from specexp.tasks.source import DataConfig

MOST = (1 << 63) - 1  # largest whole number: what arrays and databases hold
MOST_NODES = 1 << 16  # of a tree
MOST_GAMMA = 64  # of gamma auto
MOST_TOGETHER = 1 << 12  # prompts of a batch
MOST_REPEATS = 10_000
MOST_TOY_TOKENS = 1 << 12  # the toy's table has a row and a column for each
# Tasks, and the source of their rows unless `data` sets it; None is for tasks that generate their own.
MUST_BE_GIVEN = DataConfig("")
TASK_SOURCES: dict[str, DataConfig | None] = {
    "arith": None,
    "arith_code": None,
    "gsm8k": DataConfig("openai/gsm8k", "main", "test"),
    "long_prompts": None,
    "math": DataConfig("HuggingFaceH4/MATH-500", split="test"),
    "mmlu_pro": DataConfig("TIGER-Lab/MMLU-Pro", split="test"),
    "humaneval": DataConfig("openai/openai_humaneval", split="test"),
    "livecodebench": DataConfig(
        "https://huggingface.co/datasets/livecodebench/code_generation_lite/resolve/main/test6.jsonl"
    ),
    "mbpp": DataConfig("google-research-datasets/mbpp", "full", "test"),
    "mtbench": DataConfig("HuggingFaceH4/mt_bench_prompts", split="train"),
    "prompts": MUST_BE_GIVEN,
    "spec_bench": DataConfig(
        "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
    ),
    "speed_bench": MUST_BE_GIVEN,  # its licence forbids handing it on
    "toy": None,
}
SEVERAL_TURNS = ("mtbench", "spec_bench", "speed_bench")
WITH_TRAINING_ROWS = ("gsm8k", "mbpp")  # tasks whose source has a split `train` beside `test`
HISTORIES = ("baseline", "own")
EXECUTIONS = (NO_EXECUTION, SANDBOX)
RULES_OF_CHAINS = ("token", "block")
MEMORIES = ("prompt", "run")
AUTO_GAMMA = "auto"
OF_TARGET = "target"  # a draft's temperature
LONGEST_PATTERN = 1000


def whole(least: int, rule: str, most: float = MOST) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"it must be a whole number {rule}.")
        if number > most:
            raise ValueError(
                f"it must be a whole number {rule}." if "at most" in rule else f"it must be at most {most:,}."
            )
        return number

    return parse


def real(good: Callable[[float], bool], rule: str) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not good(number):
            raise ValueError(f"it must be a number {rule}.")
        return number

    return parse


def several(what: str, most: int = MOST) -> Callable[[Any], tuple[int, ...]]:
    """A parser of one whole number, or several: each is a setting."""

    def parse(value: Any) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        number = whole(1, ">= 1, or several separated by commas", most)
        if not parts:
            raise ValueError(f"it must have at least one {what}.")
        result = tuple(number(part.strip() if isinstance(part, str) else part) for part in parts)
        if len(set(result)) < len(result):
            raise ValueError(f"it must list each {what} only once.")
        return result

    return parse


def lengths(value: Any) -> tuple[int | str, ...]:
    """One draft length, or several: each is a setting. `auto` adapts it."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    number = whole(1, f">= 1 or '{AUTO_GAMMA}', or several separated by commas")
    texts = [part.strip() if isinstance(part, str) else part for part in parts]
    if not texts:
        raise ValueError("it must have at least one length.")
    result = tuple(text if text == AUTO_GAMMA else number(text) for text in texts)
    if len(set(result)) < len(result):
        raise ValueError("it must list each length only once.")
    return result


def thresholds(value: Any) -> tuple[float | str, ...]:
    """One threshold, or several: each is a setting. `calibrated` is the judge's own."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    number = real(lambda x: 0 <= x < math.inf, ">= 0, or 'calibrated'; several are separated by commas")
    texts = [part.strip() if isinstance(part, str) else part for part in parts]
    if not texts or len({str(text) for text in texts}) < len(texts):
        raise ValueError("it must have at least one threshold, and list each only once.")
    return tuple(text if text == CALIBRATED else number(text) for text in texts)


def reals(good: Callable[[float], bool], rule: str, what: str = "number") -> Callable[[Any], tuple[float, ...]]:
    """A parser of one number, or several: each is a setting."""
    number = real(good, f"{rule}, or a list of several")

    def parse(value: Any) -> tuple[float, ...]:
        result = tuple(number(part) for part in (value if isinstance(value, list) else [value]))
        if not result or len(set(result)) < len(result):
            raise ValueError(f"it must have at least one {what}, and list each only once.")
        return result

    return parse


probabilities = reals(lambda x: 0 <= x < 1, "in [0, 1) (0 = off)", "probability")  # below which drafts stop


def dials(good: Callable[[float], bool], rule: str) -> Callable[[Any], tuple[float, ...]]:
    """A parser of one number, or several separated by commas: each is a setting."""
    number = real(good, f"{rule}; several are separated by commas")

    def parse(value: Any) -> tuple[float, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        result = tuple(number(part.strip() if isinstance(part, str) else part) for part in parts)
        if not result or len(set(result)) < len(result):
            raise ValueError("it must have at least one number, and list each only once.")
        return result

    return parse


def names(value: Any) -> tuple[str, ...]:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts) or not all(parts):
        raise ValueError("it must be one or more preset names separated by commas.")
    return tuple(part.strip() for part in parts)


def one_of(kind: str, known: Collection[str]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(unknown(kind, value, known))
        return str(value)

    return parse


def task_name(value: Any) -> str:
    """One of the tasks, or `lm_eval:NAME`, which only the harness knows."""
    if is_known(value):
        return text(value)
    raise ValueError(unknown("task", value, (*TASK_SOURCES, f"{HARNESS}NAME")))


def choices(kind: str, known: Collection[str]) -> Callable[[Any], tuple[str, ...]]:
    """A parser of one of these names, or several: each is a setting."""
    one = one_of(kind, known)

    def parse(value: Any) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        result = tuple(one(part.strip() if isinstance(part, str) else part) for part in parts)
        if not result or len(set(result)) < len(result):
            raise ValueError(f"it must have at least one {kind}, and list each only once.")
        return result

    return parse


def layers(value: Any) -> str:
    """Layers of the target, as `layer_ranges` names them."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"it must be {HOW}.")
    result = str(value).replace(" ", "")
    layer_indices(result)
    return result


def proposers(value: Any) -> str:
    """Names of proposers in their order, as text."""
    result = choices("proposer", PROPOSERS)(value)
    if "draft" in result[:-1]:
        raise ValueError("it must have draft last, which always has something to say.")
    return ",".join(result)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be a name.")
    if "\0" in value:
        raise ValueError("it holds a NUL character, which no name has.")
    return value


def pattern(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_PATTERN:
        raise ValueError(f"it must be a regular expression of at most {LONGEST_PATTERN} characters.")
    check_pattern(value)
    return value


def switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false.")
    return value


def flag(value: Any) -> bool:
    """A switch that commands take, too: flags are text."""
    known = {"true": True, "false": False}
    return switch(known.get(value.lower(), value) if isinstance(value, str) else value)


def mapping(kind: str, value: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """A mapping's values, parsed; ValueError lists everything wrong with them."""
    faults, result = [], {}
    for key, part in value.items():
        if key not in parsers:
            faults.append(unknown(f"{kind} setting", key, parsers))
            continue
        try:
            result[key] = parsers[key](part)
        except ValueError as error:
            faults.append(f"{key} is {shown(part)}: {error}")
    if faults:
        raise ValueError(" ".join(faults))
    return result


def data_settings(value: Any) -> DataConfig:
    if isinstance(value, str) and value:
        return DataConfig(text(value))
    if not isinstance(value, dict) or not value.get("source"):
        raise ValueError("it must be a file, a folder, an address, a hub id, or a mapping with 'source'.")
    return DataConfig(**mapping("data", value, dict.fromkeys(("source", "subset", "split", "revision"), text)))


def toy_settings(value: Any) -> dict[str, Any]:
    """`{vocab_size: 24, draft_noise: 0.5, seed: 0}`, or vocab_size=24,draft_noise=0.5 as text."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",")]
        value = {key.strip(): text.strip() for key, _, text in parts}
        if len(value) < len(parts):
            raise ValueError("it must give each of vocab_size, draft_noise and seed at most once.")
    if not isinstance(value, dict):
        raise ValueError("it must be a mapping of vocab_size, draft_noise and seed.")
    return mapping(
        "toy",
        value,
        {
            "vocab_size": whole(2, ">= 2", MOST_TOY_TOKENS),
            "draft_noise": real(lambda x: 0 <= x <= 1e6, "in [0, 1000000] (0 = the target itself)"),
            "seed": whole(0, ">= 0", math.inf),
        },
    )


def temperature(value: Any, rule: str = ">= 0 (0 = greedy)") -> float:
    """0 for every temperature that is greedy, so that all code agrees on whether tokens are drawn."""
    number = real(lambda x: 0 <= x < math.inf, rule)(value)
    return 0.0 if is_greedy(number) else number


def temperatures(value: Any) -> tuple[float | None, ...]:
    """One temperature, or several: each is a setting. `target` is the target's own, None."""
    parts = value if isinstance(value, list) else [value]
    rule = f">= 0 (0 = greedy), '{OF_TARGET}', or a list of several"
    result = tuple(None if part == OF_TARGET else temperature(part, rule) for part in parts)
    if not result or len(set(result)) < len(result):
        raise ValueError("it must have at least one temperature, and list each only once.")
    return result

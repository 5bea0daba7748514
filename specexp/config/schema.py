"""The table of settings: parser, meaning and default of each. Commands, presets and files use this table.

`method_specs` says which settings each method takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from specexp.config.parsers import (
    HISTORIES,
    MOST_NODES,
    MOST_REPEATS,
    MOST_TOGETHER,
    TASKS,
    data_settings,
    model_settings,
    names,
    one_of,
    pattern,
    probabilities,
    real,
    several,
    shots,
    switch,
    temperature,
    text,
    thresholds,
    toy_settings,
    whole,
)
from specexp.decoding.rules import MOST_TOP_K
from specexp.lm.runtime import CHAT_TEMPLATES
from specexp.tasks.answers import RULES


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `help` is a sentence; `default` is text, "" where the preset of an experiment or method has it."""

    parse: Callable[[Any], Any]
    help: str
    default: str = ""
    in_files_only: bool = False  # not an option of any command


SETTINGS: dict[str, Setting] = {
    "pair": Setting(text, "Name the preset of the models."),
    "target": Setting(model_settings, "Give the target model: a folder or a hub id."),
    "draft": Setting(model_settings, "Give the draft model: a folder or a hub id."),
    "toy": Setting(toy_settings, "Set the toy pair: vocab_size=24,draft_noise=0.5,seed=0."),
    "chat_template": Setting(
        one_of("chat_template", CHAT_TEMPLATES),
        "Put prompts in the target tokenizer's chat template: auto, none or own.", "auto",
    ),
    "task": Setting(one_of("task", TASKS), f"Choose where prompts and answers come from: {', '.join(TASKS)}."),
    "data": Setting(data_settings, "Give the task's rows: a file, a folder, an address or a hub id."),
    "shots": Setting(shots, "Set how many solved examples precede a problem of gsm8k: 0 or 8.", "0"),
    "history": Setting(
        one_of("history", HISTORIES),
        "Choose the answers that second turns follow: baseline (the same for every method) or own.", "baseline",
    ),
    "answer_rule": Setting(
        one_of("answer rule", RULES), f"Choose how answers of task prompts are read: {', '.join(RULES)}.", "auto"
    ),
    "answer_pattern": Setting(
        pattern, "Give a regular expression whose last match, or its group, is the answer of task prompts."
    ),
    "methods": Setting(names, "Name method presets, separated by commas."),
    "gamma": Setting(several("length"), "Set the draft length, or several separated by commas."),
    "tree_budget": Setting(
        several("budget", MOST_NODES), "Set the nodes of a tree, or several numbers separated by commas."
    ),
    "temperature": Setting(temperature, "Set the temperature; 0 is greedy.", "0"),
    "top_k": Setting(
        whole(0, f">= 0 (0 = off) and at most {MOST_TOP_K}, more than any vocabulary has", MOST_TOP_K),
        "Sample from the k likeliest tokens; 0 is off.", "0",
    ),
    "top_p": Setting(
        real(lambda x: 0 < x <= 1, "in (0, 1] (1 = off)"),
        "Sample from the smallest set of tokens that has this mass; 1 is off.", "1",
    ),
    "max_new_tokens": Setting(whole(1, ">= 1"), "Set the most tokens to emit for a prompt."),
    "limit": Setting(whole(1, ">= 1"), "Set how many prompts are decoded."),
    "seed": Setting(whole(0, ">= 0", math.inf), "Set the seed of every draw.", "0"),  # which is hashed
    "repeats": Setting(
        whole(1, ">= 1", MOST_REPEATS), "Set how often each setting runs, with seeds seed, seed + 1, ...", "1"
    ),
    "batch": Setting(
        whole(1, ">= 1", MOST_TOGETHER),
        "Set how many prompts are decoded together; speeds are then those of a batch, and named so.", "1",
    ),
    "judge": Setting(
        text, "Give the judge of autojudge: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME or a folder."
    ),
    "threshold": Setting(
        thresholds, "Set the judge's threshold, or several separated by commas; 'calibrated' is its own.", "calibrated"
    ),
    "accept_k": Setting(several("K"), "Set K of topk, or several separated by commas."),
    "bonus": Setting(
        switch, "Draw one more token from the target after a fully accepted chain.", "true", in_files_only=True
    ),
    "max_ngram": Setting(
        several("run"), "Set the longest run of last tokens that lookup looks for.", "3", in_files_only=True
    ),
    "min_draft_probability": Setting(
        probabilities, "End a draft after a token that the draft gave less than this; 0 is off.", "0",
        in_files_only=True,
    ),
    "max_depth": Setting(whole(1, ">= 1"), "Set the levels of a tree.", in_files_only=True),
    "parallel_branches": Setting(
        whole(1, ">= 1", MOST_NODES), "Set how many nodes one draft forward expands.", "4", in_files_only=True
    ),
    "branch_width": Setting(
        whole(1, ">= 1", MOST_NODES), "Set how many children a node proposes.", in_files_only=True
    ),
    "branch_prune_threshold": Setting(
        real(lambda x: 0 <= x <= 1, "in [0, 1] (0 = off)"),
        "Keep a child only with this share of its best sibling's probability.", "0", in_files_only=True,
    ),
    "min_log_prob": Setting(
        real(lambda x: -math.inf < x <= 0, "<= 0"), "Set the lowest log-probability of a path under the draft.",
        in_files_only=True,
    ),
}  # fmt: skip
ALIASES = {"judge.threshold": "threshold"}
TREE_SHAPE = (
    "tree_budget", "max_depth", "parallel_branches", "branch_width", "branch_prune_threshold", "min_log_prob",
)  # fmt: skip


def help_texts(settings: Iterable[str]) -> dict[str, str]:
    """The `--help` text of each of these settings, with its default where it is the same everywhere."""
    return {name: SETTINGS[name].help + _default(SETTINGS[name].default) for name in settings}


def option_names() -> tuple[str, ...]:
    """The settings that `evaluate` takes as options, in the order of the table."""
    return tuple(name for name, setting in SETTINGS.items() if not setting.in_files_only)


def _default(default: str) -> str:
    return f" Default: {default}." if default else ""

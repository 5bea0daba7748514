"""The table of settings: parser, meaning, default and takers of each. Commands, presets, files and docs use this table.

`method_specs` says which settings each method takes, and `specexp.config.tables` writes the tables of the documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from specexp.config.experiment import MAX_GAMMA
from specexp.config.load_settings import LOAD
from specexp.config.models import NUMERIC, model_settings
from specexp.config.parsers import (
    EXECUTIONS,
    HISTORIES,
    MEMORIES,
    MOST_GAMMA,
    MOST_NODES,
    MOST_REPEATS,
    MOST_TOGETHER,
    RULES_OF_CHAINS,
    TASK_SOURCES,
    choices,
    data_settings,
    lengths,
    names,
    one_of,
    probabilities,
    proposers,
    real,
    reals,
    several,
    switch,
    task_name,
    temperature,
    temperatures,
    text,
    thresholds,
    toy_settings,
    whole,
)
from specexp.config.request_settings import ENDINGS, PRECEDING, THINKING
from specexp.config.rule_settings import ANSWER_SETTINGS, RULE_SETTINGS
from specexp.config.setting import Option, Setting, but
from specexp.decoding.rules import MOST_TOP_K
from specexp.engines.served_methods import parse_served
from specexp.lm.runtime import CHAT_TEMPLATES
from specexp.tasks.defaults import DEFAULTS
from specexp.tasks.long_prompts import CHARACTERS, DEFAULT_TOKENS, FEWEST_TOKENS, MOST_TOKENS

OF_EXPERIMENT = "the experiment's"
OF_METHOD = "the method preset's"
OF_TASK = "the experiment's, or with another `task` the task's"
MINING = ("evaluate", "collect_labels")
MOST = but("benchmark", "collect_labels", "train_drafter")  # these fix methods and sampling

OPTIONS: dict[str, Option] = {
    "experiment": Option(
        "Name the experiment preset.", "a preset's name", otherwise="`arith_quick`; of `main` `arith_judge`",
        more="Among them are `arith_quick` (20 prompts), `arith_compare` (200), `arith_judge` (every method),"
        " `arith_judge_sweep`, `arith_trees`, `arith_offload` (the target's layers on disk), `toy_quick` (no torch),"
        " and well-known pairs on GSM8K, MT-Bench and Spec-Bench.",
    ),
    "config": Option(
        "Give a YAML file of settings, which override the experiment's.", "a file", otherwise="none",
        more="It can also hold the parts of `target` and `draft`, and the settings that only files take.",
    ),
    "output": Option(
        "Write to this folder. Default: a new one in runs/.", "a folder", otherwise="a new one in `runs/`",
        more="That of `evaluate` is `runs/<experiment>-<hash>`.", commands=but("generate"),
    ),
    "resume": Option(
        "Continue in the output folder after an interruption.", "true or false", "false", commands=but("generate"),
    ),
}  # fmt: skip
SETTINGS: dict[str, Setting] = {
    "pair": Setting(text, "Name the preset of the models.", otherwise=OF_EXPERIMENT),
    "target": Setting(
        model_settings, "Give the target model: a folder or a hub id.", otherwise="the pair's",
        more="A mapping has the [settings of a model](#models).",
    ),
    "draft": Setting(
        model_settings, "Give the draft model: a folder or a hub id.", otherwise="the pair's",
        more="A mapping as for `target`.",
    ),
    "toy": Setting(
        toy_settings, "Set the toy pair: vocab_size=24,draft_noise=0.5,seed=0.", otherwise="the pair's",
        more="For the pair `toy` only.", commands=MOST,
    ),
    "chat_template": Setting(
        one_of("chat_template", CHAT_TEMPLATES),
        "Put prompts in the target tokenizer's chat template: auto, none or own.", "auto",
        more="[Chat templates](#chat-templates) explains the three.",
    ),
    "task": Setting(
        task_name, f"Choose where prompts and answers come from: {', '.join(TASK_SOURCES)}.",
        otherwise=OF_EXPERIMENT,
        more="With a task that is not the experiment's, runs and folders have the task's name. `lm_eval:NAME` is a task"
        " of lm-evaluation-harness, for `evaluate` ([details](lm-eval.md#its-tasks-in-evaluate)).",
        commands=but("generate"),
    ),
    "data": Setting(
        data_settings, "Give the task's rows: a file, a folder, an address or a hub id.", otherwise="the task's own",
        more="A file is JSONL, CSV or Parquet ([below](#tasks-and-data)).", commands=but("generate"),
    ),
    **PRECEDING,
    "history": Setting(
        one_of("history", HISTORIES),
        "Choose the answers that second turns follow: baseline (the same for every method) or own.", "baseline",
        more="`baseline` follows the baseline's first answer; runs with `own` are tagged unpaired.",
        commands=("evaluate",),
    ),
    **ANSWER_SETTINGS,
    "execute": Setting(
        one_of("execution", EXECUTIONS), "Say where programs of outputs may run: none or sandbox.", "none",
        more="Tasks whose answers are programs need `sandbox` ([programs](sandbox.md)).", commands=MINING,
    ),
    "methods": Setting(
        names, "Name method presets, separated by commas.", otherwise=OF_EXPERIMENT, commands=("evaluate",)
    ),
    "gamma": Setting(
        lengths, "Set the draft length, or several separated by commas; auto ends each draft where it pays.",
        otherwise=OF_METHOD, more="Each length is a separate setting; for a tree it is the depth."
        " [Drafts that adapt](methods.md#drafts-that-adapt) is about `auto`.",
        of_one="Set the draft length; auto ends each draft where it pays.",
        commands=but("collect_labels", "train_drafter"),
    ),
    "tree_budget": Setting(
        several("budget", MOST_NODES), "Set how many nodes a tree keeps, or several numbers separated by commas.",
        otherwise="`parallel_branches` x depth", more="Each number is a separate setting.",
        of_one="Set how many nodes a tree keeps.", commands=MOST,
    ),
    "temperature": Setting(
        temperature, "Set the temperature; 0 is greedy.", "0",
        more="Below 1e-5 it counts as 0. `top_k` and `top_p` are applied after it, in this order, to both models.",
        commands=MOST,
    ),
    "top_k": Setting(
        whole(0, f">= 0 (0 = off) and at most {MOST_TOP_K}, more than any vocabulary has", MOST_TOP_K),
        "Sample from the k likeliest tokens; 0 is off.", "0", commands=MOST,
    ),
    "top_p": Setting(
        real(lambda x: 0 < x <= 1, "in (0, 1] (1 = off)"),
        "Sample from the smallest set of tokens that has this mass; 1 is off.", "1", commands=MOST,
    ),
    "max_new_tokens": Setting(
        whole(1, ">= 1"), "Set the maximum number of tokens to emit for a prompt.", otherwise=OF_TASK,
        more="Fewer are emitted where the context ends: `finish_reason` is then `context`. The tasks' defaults are "
        + ", ".join(f"`{task}` {its.max_new_tokens}" for task, its in DEFAULTS.items()) + ".",
    ),
    **ENDINGS,
    **THINKING,
    "limit": Setting(
        whole(1, ">= 1"), "Set how many prompts are decoded.", otherwise=OF_TASK,
        more="They are the first ones, or for a task with categories (`math`, `mmlu_pro`, `mtbench`, `spec_bench`,"
        " `speed_bench`) a stratified sample with a fixed seed, which `report.html` describes. The tasks' defaults are "
        + ", ".join(f"`{task}` {its.limit}" for task, its in DEFAULTS.items()) + ".",
        commands=but("generate"),
    ),
    "prompt_tokens": Setting(
        whole(FEWEST_TOKENS, f">= {FEWEST_TOKENS} and at most {MOST_TOKENS}", MOST_TOKENS),
        "Set about how many tokens a prompt of long_prompts has.", str(DEFAULT_TOKENS),
        more=f"Texts are made of {CHARACTERS:g} characters for each: tokenizers differ.", commands=(),
    ),
    "seed": Setting(
        whole(0, ">= 0", math.inf), "Set the seed of every draw.", "0", commands=but("collect_labels")
    ),  # it is hashed, so no number is too large
    "repeats": Setting(
        whole(1, ">= 1", MOST_REPEATS), "Set how often each setting runs, with seeds seed, seed + 1, ...", "1",
        commands=("evaluate", "benchmark", "advise"),
    ),
    "batch": Setting(
        whole(1, ">= 1", MOST_TOGETHER),
        "Set how many prompts are decoded together; speeds are then reported as those of a batch.", "1",
        more="Answers and counts do not depend on it ([metrics](metrics.md)).",
        commands=but("advise", "generate"),
    ),
    **NUMERIC,
    "judge": Setting(
        text, "Give the judge of autojudge: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME or a folder.",
        otherwise="`models:/autojudge@champion`",
        more="Given without `methods`, it adds `autojudge` to the experiment's.", commands=MOST,
    ),
    "threshold": Setting(
        thresholds, "Set the judge's threshold, or several separated by commas; 'calibrated' is its own.", "calibrated",
        more="A mismatch is accepted if p(important) is below it.",
        of_one="Set the judge's threshold; 'calibrated' is its own.", commands=MOST,
    ),
    "accept_k": Setting(
        several("K"), "Set K of topk, or several separated by commas.", otherwise="2, the preset's",
        of_one="Set K of topk.", commands=("evaluate", "certify", "generate"),
    ),
    **RULE_SETTINGS,
    "rule": Setting(
        choices("rule", RULES_OF_CHAINS), "Verify a chain token by token, or as a block: token or block.", "token",
        more="Several are separate settings. [Block verification](methods.md#block-verification) has the details.",
        commands=("evaluate", "certify", "generate"),
    ),
    "engine": Setting(
        parse_served, "Give the served engines that methods name as engine:NAME.", otherwise="none", commands=(),
        more="[Served engines](served_engines.md) has its parts.",
    ),
    **LOAD,
    "bonus": Setting(
        switch, "Draw one more token from the target after a fully accepted chain.", "true", commands=()
    ),
    "max_gamma": Setting(
        whole(1, f">= 1 and at most {MOST_GAMMA}", MOST_GAMMA), "Set the longest draft of gamma auto.", str(MAX_GAMMA),
        commands=(), more="On CUDA, recordings are made for drafts of this length.",
    ),
    "max_ngram": Setting(
        several("length"), "Set how many of the last tokens lookup searches for at most.", "3", commands=()
    ),
    "proposers": Setting(
        proposers, "Name who takes turns in `chained`: some of suffix, lookup and draft, draft last.",
        "suffix,draft", more="Each round is drafted by the first that has something to say.", commands=(),
    ),
    "min_match": Setting(
        several("length"), "Set how many of the last tokens must have occurred before, at least.", "1", commands=(),
        more="Fewer do not make suffix decoding or lookup propose.",
    ),
    "suffix_factor": Setting(
        reals(lambda x: 0 < x <= MOST_NODES, f"> 0 and at most {MOST_NODES}"),
        "Set how many tokens suffix decoding drafts at most for each one that matches.", "1", commands=(),
        more="Several values are separate settings.",
    ),
    "suffix_min_probability": Setting(
        probabilities, "End a draft of suffix decoding where it is less likely than this by what was seen.", "0.1",
        more="It is the product of how often each token followed, as a share. Several values are separate settings.",
        commands=(),
    ),
    "suffix_memory": Setting(
        choices("memory", MEMORIES), "Choose what suffix decoding remembers: this prompt and its output, or the outputs"
        " of earlier prompts of the run, too: prompt or run.", "prompt", commands=(),
        more="`run` is for `evaluate`: outputs of the same setting and repeat; other commands decode each prompt by"
        " itself. Several values are separate settings.",
    ),
    "min_draft_probability": Setting(
        probabilities, "End a draft after a token whose draft probability is below this; 0 is off.", "0",
        more="[Chains](methods.md#chains) has the details. One value is read from the device for each draft step, in"
        " CUDA graphs for each round.",
        commands=(),
    ),
    "draft_temperature": Setting(
        temperatures, "Draw drafts at this temperature; 0 takes the draft's likeliest token.",
        "target", commands=(),
        more="Several values are separate settings. [Chains](methods.md#chains) has the details.",
    ),
    "max_depth": Setting(
        whole(1, ">= 1"), "Set the levels of a tree.", otherwise="`gamma`",
        more="A round makes at most that many draft forwards.", commands=(),
    ),
    "parallel_branches": Setting(
        whole(1, ">= 1", MOST_NODES), "Set how many nodes one draft forward expands.", "4", commands=()
    ),
    "branch_width": Setting(
        whole(1, ">= 1", MOST_NODES), "Set how many children a node proposes.", otherwise="`parallel_branches`",
        commands=(),
    ),
    "branch_prune_threshold": Setting(
        real(lambda x: 0 <= x <= 1, "in [0, 1] (0 = off)"),
        "Drop a child whose probability is below this share of its best sibling's.", "0", commands=(),
    ),
    "min_log_prob": Setting(
        real(lambda x: -math.inf < x <= 0, "<= 0"), "Set the lowest log-probability of a path under the draft.",
        otherwise="off", commands=(),
    ),
}  # fmt: skip
ALIASES = {"judge.threshold": "threshold"}
TREE_SHAPE = (
    "tree_budget", "max_depth", "parallel_branches", "branch_width", "branch_prune_threshold", "min_log_prob",
)  # fmt: skip


def help_texts(settings: Iterable[str], one: bool = False) -> dict[str, str]:
    """The `--help` text of each of these settings, with its default where it is the same everywhere.

    With `one`, those of a command that takes one value of each.
    """
    return {name: _text(SETTINGS[name], one) for name in settings}


def option_names(command: str = "evaluate") -> tuple[str, ...]:
    """The settings that this command takes as options, in the order of the table."""
    return tuple(name for name, setting in SETTINGS.items() if command in setting.commands)


def _text(setting: Setting, one: bool) -> str:
    said = setting.of_one if one and setting.of_one else setting.help
    return f"{said} Default: {setting.default}." if setting.default else said

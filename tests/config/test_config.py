"""Settings: three layers, and every fault at once, each with its value, its rule and a way out."""

from __future__ import annotations

import importlib
import re
from dataclasses import MISSING, asdict, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from entrypoints.evaluate import SETTINGS as EVALUATE
from specexp import config
from specexp.benchmark.shapes import SHAPES
from specexp.certify.certificate_config import FEWEST_SAMPLES, SAMPLES
from specexp.config import models
from specexp.config.command_options import COMMAND_OPTIONS
from specexp.config.experiment import LATER, MethodConfig, settings_hash
from specexp.config.models import MODEL_SETTINGS
from specexp.config.schema import OPTIONS, SETTINGS, help_texts, option_names
from specexp.config.setting import COMMANDS_WITH_SETTINGS, Option, Setting
from specexp.errors import ConfigError
from specexp.lm.runtime import ModelConfig, ToyConfig
from specexp.method_specs import BUILT_IN, specs, takers
from specexp.methods import BUILDERS
from specexp.tasks.source import DataConfig
from specexp.tasks.task import TASKS

ROOT = Path(__file__).resolve().parents[2]


def faults(name: str = "arith_quick", **flags: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.resolve(name, flags)
    return caught.value.faults


@pytest.mark.parametrize("name", config.preset_names("experiments"))
def test_every_shipped_experiment_resolves(name: str) -> None:
    experiment = config.resolve(name)
    assert experiment.name == name
    assert experiment.methods


@pytest.mark.parametrize("kind", ["experiments", "methods", "models"])
def test_every_preset_says_what_it_is_for(kind: str) -> None:
    for name in config.preset_names(kind):
        assert (config.PRESETS / kind / f"{name}.yaml").read_text().startswith("# ")


def test_every_method_is_a_preset_of_its_own_name_and_can_be_built() -> None:
    assert set(specs()) == set(BUILDERS)
    assert set(specs()) <= set(config.preset_names("methods"))
    assert set(config.TASK_SOURCES) == set(TASKS)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("limit: 7\nseed: 3\ngamma: [2, 4]\n")
    got = config.resolve("arith_quick", {"config": str(file), "seed": "5", "top_k": ""})
    assert (got.limit, got.seed, got.top_k, got.max_new_tokens) == (7, 5, 0, 160)
    assert [m.label for m in got.methods] == ["baseline", "draft_only", "speculative_k2", "speculative_k4"]


def test_the_hash_names_the_configuration() -> None:
    plain = config.resolve("arith_quick")
    assert plain.hash == config.resolve("arith_quick", {"seed": "0"}).hash
    assert plain.hash != config.resolve("arith_quick", {"seed": "1"}).hash


def test_all_faults_are_reported_at_once() -> None:
    reported = faults(
        gamma="0", temperature="-1", methods="baseline,specultive", top_p="2", limit="x", judge="models:/a/1"
    )
    assert reported == [
        "gamma is '0'; it must be a whole number >= 1 or 'auto', or several separated by commas.",
        "temperature is '-1'; it must be a number >= 0 (0 = greedy).",
        "top_p is '2'; it must be a number in (0, 1] (1 = off).",
        "limit is 'x'; it must be a whole number >= 1.",
        f"unknown method 'specultive', did you mean 'speculative'? Known: {', '.join(config.preset_names('methods'))}.",
        "judge is given, but no selected method uses it; leave it out, or add autojudge or autojudge_tree.",
    ]


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"gamma": "-3"}, "gamma is '-3'; it must be a whole number >= 1"),
        ({"gamma": "4,x"}, "gamma is '4,x'"),
        ({"gamma": "2,x"}, "gamma is '2,x'"),
        ({"gamma": "2, 2"}, "it must list each length only once."),
        ({"methods": " , "}, "methods is ' , '; it must be one or more preset names"),
        ({"temperature": "nan"}, "temperature is 'nan'"),
        ({"max_new_tokens": "0"}, "max_new_tokens is '0'"),
        ({"repeats": "1.5"}, "repeats is '1.5'"),
        ({"methods": "baseline,baseline"}, "method 'baseline' is named 2 times"),
        ({"config": "/no/such.yaml"}, "config file '/no/such.yaml' cannot be read: No such file"),
    ],
)
def test_one_bad_flag(flags: dict[str, str], message: str) -> None:
    reported = faults(**flags)
    assert len(reported) == 1
    assert message in reported[0]


@pytest.mark.parametrize(
    "text,message",
    [
        ("limt: 3\n", "unknown setting 'limt', did you mean 'limit'?"),
        ("limit: [1\n", "not valid YAML"),
        ("limit:\t3\n", "not valid YAML"),
        ("- a\n", "must be a mapping"),
        ("", "is empty; give it settings"),
        ("limit: 2\nlimit: 3\n", "'limit' is given twice"),
        ("methods: ''\n", "methods is ''; it must be one or more preset names"),
        ("limit: true\n", "limit is True; it must be a whole number >= 1."),
        ("temperature: warm\n", "temperature is 'warm'; it must be a number"),
        ("pair: none\n", "unknown pair 'none'"),
        ("target: {model: x, dtype: float8}\n", "unknown dtype 'float8'"),
        ("gamma: []\n", "gamma is []; it must have at least one length."),
        ("target: {model: x, quantization: int4}\n", "quantization is 'int4': unknown quantization 'int4'"),
        (
            "target: {model: x, compute_dtype: float32}\n",
            "target: compute_dtype is float32, but quantization is none; compute_dtype needs quantization nf4 or fp4",
        ),
        ("target: {model: x, trust_remote_code: 1}\n", "trust_remote_code is 1: it must be true or false."),
        ("target: {modl: x}\n", "unknown model setting 'modl', did you mean 'model'?"),
        ("task: prompts\n", "task 'prompts' reads its prompts from a file; set data to that file."),
        (
            "pair: toy\ntask: toy\nmethods: [baseline]\nshots: 8\n",
            "shots is 8, but task 'toy' has no solved examples of its own",
        ),
        ("task: gsm8k\nshots: 5\n", "shots is 5, but gsm8k has 8 solved examples of its own; set it to 8"),
        ("history: own\n", "history is given, but task 'arith' has one turn only; leave it out."),
        ("task: mtbench\nhistory: mine\n", "unknown history 'mine'"),
        (
            "task: mtbench\nmethods: speculative\n",
            "second turns of task 'mtbench' follow the baseline's answers; add baseline",
        ),
        ("task: gsm8k\ndata: {sorce: x}\n", "it must be a file, a folder, an address, a hub id, or a mapping"),
        ("task: gsm8k\ndata: {source: x, splt: test}\n", "unknown data setting 'splt', did you mean 'split'?"),
        ("toy: {vocab_size: 9}\n", "toy is given, but pair 'embedded' is not a toy pair; leave toy out"),
        ("pair: toy\ntarget: ./mine\n", "target: pair 'toy' has no model to replace; leave it out, or name another"),
        ("pair: toy\ntoy: {vocab_size: 1}\n", "vocab_size is 1: it must be a whole number >= 2."),
        ("pair: toy\ntoy: {noise: 1}\n", "unknown toy setting 'noise'"),
        ("data: x.jsonl\n", "data is given, but task 'arith' reads no file; leave it out."),
        ("task: [arith]\n", "task is ['arith']; unknown task"),
        ("[limit]: 3\n", "cannot be a key"),
        ("seed: 2024-13-01\n", "not valid YAML"),
        ("judge.threshold: 0\nthreshold: 1\nmethods: autojudge\n", "are the same setting; give one of them."),
        ("task: arit\n", "unknown task 'arit', did you mean 'arith'?"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    reported = faults(config=str(file))
    assert len(reported) == 1
    assert message in reported[0]
    assert str(file) in reported[0] or re.search("compute_dtype|pair|data|shots|history|methods", reported[0])


def test_settings_may_be_written_as_yaml_reads_them_oddly(tmp_path: Path) -> None:
    """YAML reads 1e-1 as text, and a flag is always text."""
    file = tmp_path / "mine.yaml"
    file.write_text("temperature: 1e-1\npair: toy\ntask: toy\ntoy: {draft_noise: 1e-3}\n")
    got = config.resolve("arith_quick", {"config": str(file), "toy": "vocab_size=30,seed=2"})
    assert got.temperature == 0.1
    assert got.toy == ToyConfig(30, 1e-3, 2), "what a flag leaves out stays as the file has it"


def test_a_judge_without_methods_brings_autojudge_along() -> None:
    got = config.resolve("arith_quick", {"judge": "./mine"})
    assert [m.label for m in got.methods] == ["baseline", "draft_only", "speculative", "autojudge"]
    assert got.methods[-1].judge == "./mine"
    assert len(config.resolve("arith_judge", {"judge": "./mine"}).methods) == 6


def test_another_model_keeps_where_it_runs_but_not_the_revision_of_the_first(tmp_path: Path) -> None:
    got = config.resolve("gsm8k_llama_8b_1b", {"target": "./mine"})
    assert (got.target.model, got.target.revision) == ("./mine", "")
    assert (got.target.device, got.target.dtype, got.target.chat_template) == ("cuda:0", "bfloat16", "own")
    assert got.draft.revision


def test_a_task_knows_where_its_rows_are_and_data_may_say_otherwise() -> None:
    assert config.resolve("gsm8k_llama_8b_1b").data == DataConfig("openai/gsm8k", "main", "test")
    assert config.resolve("gsm8k_llama_8b_1b", {"data": "mine.jsonl"}).data == DataConfig("mine.jsonl")


def test_an_unknown_experiment_comes_with_a_suggestion_and_with_the_other_faults(tmp_path: Path) -> None:
    reported = faults("arith_quik", gamma="0", config=str(tmp_path / "none.yaml"))
    assert "did you mean 'arith_quick'?" in reported[0]
    assert ["config file" in reported[1], reported[2].startswith("gamma is '0'")] == [True, True]
    assert len(reported) == 3


def test_a_model_is_changed_part_by_part(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("target: {quantization: nf4}\n")
    got = config.resolve("arith_quick", {"config": str(file), "target": "./mine"})
    assert (got.target.model, got.target.quantization) == ("./mine", "nf4")


def test_labels_are_mined_where_no_evaluation_looks(tmp_path: Path) -> None:
    mined = config.resolve_mining("gsm8k_llama_8b_1b", {}).experiment
    assert (mined.data, mined.limit) == (DataConfig("openai/gsm8k", "main", "train"), config.MINED_PROMPTS)
    file = tmp_path / "mine.yaml"
    file.write_text("task: gsm8k\ndata: {source: openai/gsm8k, revision: abc}\nlimit: 50\n")
    mined = config.resolve_mining("arith_quick", {"config": str(file)}).experiment
    assert (mined.data, mined.limit) == (DataConfig("openai/gsm8k", "main", "train", "abc"), 50)
    own = config.resolve_mining("arith_quick", {"task": "gsm8k", "data": "x.jsonl", "skip": "7"})
    assert (own.experiment.data, own.skip) == (DataConfig("x.jsonl"), 7)


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"limit: \xff\n")
    assert faults(config=str(file)) == [f"{file}: not UTF-8 text (byte 7); save it as UTF-8."]


def test_the_table_of_settings_says_the_defaults_that_hold() -> None:
    experiment = config.resolve("arith_quick", {"methods": "speculative"})
    for name, setting in SETTINGS.items():
        assert setting.help[0].isupper(), f"{name}: a help text is a sentence"
        assert setting.help.endswith("."), f"{name}: a help text is a sentence"
        if name in (
            "toy",
            "batch",
            "repeats",
            "seed",
            "history",
            "shots",
            "answer_rule",
            "temperature",
            "top_k",
            "top_p",
        ):
            value = getattr(experiment, name)
            assert setting.default == (
                "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            )
    assert SETTINGS["bonus"].default == str(experiment.methods[0].bonus).lower()
    assert SETTINGS["parallel_branches"].default == str(config.TreeConfig(1, 1).parallel_branches)
    assert SETTINGS["branch_prune_threshold"].default == f"{config.TreeConfig(1, 1).branch_prune_threshold:g}"
    assert SETTINGS["max_ngram"].default == str(config.MAX_NGRAM)
    assert SETTINGS["threshold"].default == config.CALIBRATED


@pytest.mark.slow
def test_a_files_compute_dtype_goes_with_its_presets_quantization(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_nf4(path: Path) -> dict[str, Any]:
        pair = read(path)
        return {**pair, "target": {"model": "x", "quantization": "nf4"}} if path.name == "llama_8b_1b.yaml" else pair

    read = models.load_yaml
    monkeypatch.setattr(models, "load_yaml", with_nf4)
    (workplace / "given.yaml").write_text("pair: llama_8b_1b\ntarget: {compute_dtype: bfloat16}\n")
    target = config.resolve("arith_quick", {"config": "given.yaml"}).target
    assert (target.quantization, target.compute_dtype) == ("nf4", "bfloat16")


def test_the_table_of_single_commands_options_says_what_holds() -> None:
    assert COMMAND_OPTIONS["certify"]["samples"].otherwise.startswith(f"{SAMPLES:,};")
    assert COMMAND_OPTIONS["certify"]["samples"].value == f"a whole number >= {FEWEST_SAMPLES}"
    shape = COMMAND_OPTIONS["speed_check"]["shape"]
    assert shape.value == ", ".join(f"`{name}`" for name in SHAPES)
    assert shape.help == f"Choose the models' shape: {', '.join(SHAPES)}."


@pytest.mark.parametrize("name", COMMAND_OPTIONS)
def test_a_commands_own_options_are_those_of_the_table(name: str) -> None:
    command = importlib.import_module(f"entrypoints.{name}").command
    options = {param.name or "": param for param in command.params if isinstance(param, click.Option)}
    shared = (
        {*SETTINGS, *OPTIONS}
        if name not in ("calibrate_rule", "judge_report", "train_judge", "train_pair", "speed_check", "upload")
        else set()
    )
    for option, told in COMMAND_OPTIONS[name].items():
        assert (options[option].help or "").startswith(told.help)
        assert ("" if (default := options[option].default) is None else str(default).lower()) == told.default
    assert options.keys() - shared <= COMMAND_OPTIONS[name].keys()


def test_the_table_of_a_models_settings_says_the_defaults_that_hold() -> None:
    given = {field.name: field.default for field in fields(ModelConfig)}
    assert list(MODEL_SETTINGS) == list(given)
    for name, setting in MODEL_SETTINGS.items():
        unset = given[name] in (MISSING, None)
        assert setting.default == ("" if unset else str(given[name]).replace("False", "false")), name


OWN_OPTIONS = [(f"{name} {option}", told) for name, own in COMMAND_OPTIONS.items() for option, told in own.items()]
ENTRIES = [*SETTINGS.items(), *MODEL_SETTINGS.items(), *OPTIONS.items(), *OWN_OPTIONS]


@pytest.mark.parametrize("entry", ENTRIES, ids=itemgetter(0))
def test_every_entry_says_what_it_may_be_and_its_default_once(entry: tuple[str, Setting | Option]) -> None:
    _, told = entry
    assert told.value
    assert bool(told.default) != bool(told.otherwise)
    assert told.help[0].isupper()
    assert told.help.endswith(".")
    assert set(told.commands) <= set(COMMANDS_WITH_SETTINGS)


# Settings whose meaning is another in a command, which therefore has a text of its own.
OTHER_MEANING = {
    "advise": {"draft", "gamma", "tree_budget", "limit", "repeats", "judge"},
    "benchmark": {"gamma", "limit", "repeats", "batch"},
    "certify": {"limit", "batch"},
    "collect_labels": {"task", "max_new_tokens", "limit", "batch"},
    "log_decoder": {"max_new_tokens"},
    "train_drafter": {"task", "max_new_tokens", "limit", "seed", "batch"},
}


@pytest.mark.parametrize("name", [*COMMANDS_WITH_SETTINGS, "main", "log_decoder"])
def test_a_command_takes_its_settings_and_their_texts_from_the_table(name: str) -> None:
    alike = {"main": "evaluate", "log_decoder": "generate"}.get(name, name)
    options = {
        param.name or "": param
        for param in importlib.import_module(f"entrypoints.{name}").command.params
        if isinstance(param, click.Option)
    }
    own = COMMAND_OPTIONS.get(name, {})  # such as certify's engine, an address
    assert [option for option in options if option in SETTINGS and option not in own] == list(option_names(alike))
    texts = help_texts(option_names(alike), one=alike in ("certify", "generate"))
    other = {option for option, text in texts.items() if options[option].help != text}
    assert other == OTHER_MEANING.get(name, set())
    for option, told in OPTIONS.items():
        assert (option in options) == (alike in told.commands), option
        if option in options:
            assert options[option].help == told.help
            assert not told.default or str(options[option].default).lower() == told.default


def test_commands_and_mlproject_take_the_options_of_the_table() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    given = list(project["entry_points"]["evaluate"]["parameters"])
    assert [name for name in given if name in SETTINGS] == list(option_names())
    assert list(EVALUATE) == [*option_names(), "config"]


# For every setting of a method, a value that is not its default.
VALUES: dict[str, float | str] = {
    "gamma": 3, "bonus": False, "judge": "a-folder", "threshold": 0.25, "accept_k": 5, "max_ngram": 2,
    "min_draft_probability": 0.3, "tree_budget": 9, "max_depth": 2, "parallel_branches": 3, "branch_width": 2,
    "branch_prune_threshold": 0.125, "min_log_prob": -4.5, "draft_temperature": 0.5, "rule": "block",
    "suffix_factor": 3, "suffix_min_probability": 0.25, "suffix_memory": "run", "min_match": 2,
    "proposers": "lookup,draft", "max_gamma": 5, "accept_margin": 0.2, "accept_epsilon": 0.4, "accept_delta": 0.7,
    "accept_entropy": 0.3, "accept_window": 2, "accept_distance": 0.6, "distance": "tv",
}  # fmt: skip


@pytest.mark.parametrize("method,setting", [(each.name, setting) for each in BUILT_IN for setting in each.settings])
def test_a_setting_of_a_method_reaches_its_config(method: str, setting: str, workplace: Path) -> None:
    given = {"methods": method, setting: VALUES[setting], "temperature": 0 if method == "fly" else 1}
    if method == "autojudge":
        given["judge"] = VALUES["judge"]
    if setting == "max_ngram" and method == "chained":
        given |= {"proposers": VALUES["proposers"], "min_match": 1}
    if setting == "max_gamma":
        given["gamma"] = "auto"
    if method == "fly" and setting in ("gamma", "max_gamma"):
        given["accept_window"] = 2
    (workplace / "given.yaml").write_text(yaml.safe_dump(given))
    (resolved,) = config.resolve("arith_quick", {"config": "given.yaml"}).methods
    reached = {**asdict(resolved), **(asdict(resolved.tree) if resolved.tree else {})}
    assert reached["max_depth" if resolved.tree and setting == "gamma" else setting] == VALUES[setting]


def test_several_values_of_a_chains_settings_are_separate_settings(workplace: Path) -> None:
    (workplace / "given.yaml").write_text("gamma: [2, 4]\ndraft_temperature: [0, 0.5]\nmethods: [speculative]\n")
    methods = config.resolve("arith_quick", {"config": "given.yaml", "rule": "token,block", "temperature": "1"}).methods
    labels = [f"speculative_k{k}_dt{t}{rule}" for k in (2, 4) for t in ("0", "0.5") for rule in ("", "_block")]
    assert [method.label for method in methods] == labels
    assert [(m.gamma, m.draft_temperature, m.rule) for m in methods[:3]] == [
        (2, 0.0, "token"), (2, 0.0, "block"), (2, 0.5, "token")
    ]  # fmt: skip
    (one,) = config.resolve("arith_quick", {"methods": "lookup", "rule": "block"}).methods
    assert (one.label, one.rule) == ("lookup", "block")


@pytest.mark.parametrize(
    "flags,words",
    [
        ({"rule": "blocks"}, "rule is 'blocks'; unknown rule 'blocks', did you mean 'block'? Known: block, token."),
        ({"rule": "block,block"}, "rule is 'block,block'; it must have at least one rule, and list each only once."),
        ({"rule": "block", "methods": "baseline,topk"}, "rule is given, but no selected method uses it"),
        (
            {"draft_temperature": 0.5},
            "draft_temperature is 0.5, but temperature is 0: nothing is drawn; leave it out.",
        ),
        ({"draft_temperature": -1, "temperature": 1}, "draft_temperature is -1; it must be a number >= 0 (0 = greedy)"),
    ],
)
def test_rules_and_draft_temperatures_that_make_no_sense_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", {"methods": "speculative", **flags})
    assert words in str(error.value)


def test_dials_of_rules_without_training_are_separate_settings(workplace: Path) -> None:
    dials = {"methods": "typical,relaxed,entropy,fuzzy", "accept_epsilon": "0.1, 1", "accept_margin": "0,0.5"}
    methods = config.resolve("arith_quick", {**dials, "accept_entropy": "0.2"}).methods
    assert [(m.label, m.dial, m.rule_is_off) for m in methods] == [
        ("typical_e0.1", 0.1, False), ("typical_e1", 1.0, True), ("relaxed_m0", 0.0, True),
        ("relaxed_m0.5", 0.5, False), ("entropy", 0.2, False), ("fuzzy", 0.1, False),
    ]  # fmt: skip
    (workplace / "given.yaml").write_text("gamma: [4, 9]\naccept_window: [1, 2]\nmethods: [fly]\n")
    methods = config.resolve("arith_quick", {"config": "given.yaml", "accept_entropy": "0.5,1"}).methods
    labels = [f"fly_k{k}_h{h}_w{w}" for k in (4, 9) for h in ("0.5", "1") for w in (1, 2)]
    assert [method.label for method in methods] == labels
    (workplace / "given.yaml").write_text("distance: [js, kl, tv]\naccept_delta: [0.3, 2]\nmethods: [fuzzy, typical]\n")
    methods = config.resolve("arith_quick", {"config": "given.yaml"}).methods
    assert [method.label for method in methods] == [
        *(f"fuzzy_{d}" for d in ("js", "kl", "tv")),
        "typical_d0.3",
        "typical_d2",
    ]
    methods = config.resolve("arith_quick", {"methods": "topk,relaxed", "gamma": "4"}).methods
    assert [method.label for method in methods] == ["topk_k4", "topk_k4_m0.1"]
    # A delta of its own is a condition at every epsilon.
    (workplace / "given.yaml").write_text("accept_delta: 0.3\nmethods: [typical]\n")
    (one,) = config.resolve("arith_quick", {"config": "given.yaml", "accept_epsilon": "1"}).methods
    assert not one.rule_is_off


@pytest.mark.parametrize(
    "flags,words",
    [
        (
            {"methods": "baseline,fly", "temperature": 0.7},
            "method 'fly' is defined at temperature 0 alone, but temperature is 0.7; set it to 0, or leave",
        ),
        (
            {"methods": "fly", "gamma": "6,16"},
            "accept_window is 6, but gamma of fly_k6 is 6: no window would fit in a draft; set a greater gamma.",
        ),
        ({"methods": "typical", "accept_epsilon": "0"}, "it must be a number in (0, 1] (1 = nothing more)"),
        (
            {"methods": "entropy", "accept_entropy": "0.1,0.1"},
            "it must have at least one number, and list each only once.",
        ),
        (
            {"methods": "fuzzy", "accept_distance": "-1"},
            "it must be a number >= 0 and at most 1000000 (0 = nothing more)",
        ),
        ({"methods": "topk", "accept_margin": "2"}, "it must be a number in [0, 1] (0 = nothing more)"),
        ({"methods": "topk", "accept_entropy": "0.5"}, "leave it out, or add entropy or fly or entropy_tree."),
        ({"methods": "typical", "accept_k": "2"}, "leave it out, or add topk or topk_tree."),
    ],
)
def test_rules_without_training_that_make_no_sense_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", flags)
    assert words in str(error.value)


def test_a_method_for_temperature_0_is_refused_where_a_request_raises_it() -> None:
    fly = config.resolve("arith_quick", {"methods": "fly"})
    with pytest.raises(ConfigError, match="method 'fly' is defined at temperature 0 alone, but temperature is 1"):
        config.adjusted(fly, {"temperature": 1})
    assert config.adjusted(fly, {"temperature": 0, "seed": 3}).seed == 3


@pytest.mark.parametrize(
    "proposers,setting,add",
    [
        ("lookup,draft", "suffix_factor", "suffix"),
        ("lookup,draft", "suffix_memory", "suffix"),
        ("suffix,draft", "max_ngram", "lookup"),
        ("suffix", "draft_temperature", "draft"),
        ("suffix,lookup", "min_draft_probability", "draft"),
        ("draft", "min_match", "suffix or lookup"),
    ],
)
def test_a_setting_of_a_proposer_without_a_turn_is_refused(
    proposers: str, setting: str, add: str, workplace: Path
) -> None:
    given = {"proposers": proposers, setting: VALUES[setting]}
    (workplace / "given.yaml").write_text(yaml.safe_dump(given))
    flags = {"config": "given.yaml", "methods": "chained", "temperature": 1}
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", flags)
    assert error.value.faults == [
        f"{setting} is given, but proposers is {proposers}, which does not use it; leave it out, or add {add}."
    ]
    # Beside a method that uses it, it is that one's alone.
    other = next(name for name in ("suffix", "lookup", "speculative") if name in takers()[setting])
    alone, chained = config.resolve("arith_quick", {**flags, "methods": f"{other},chained"}).methods
    assert getattr(alone, setting) == VALUES[setting]
    assert getattr(chained, setting) == getattr(MethodConfig("", "", ""), setting)
    settings = {"methods": "chained", **given}
    with pytest.raises(ConfigError, match=f"{setting} is given, but proposers is {proposers}"):
        config.adjusted(config.resolve("arith_quick"), settings)


def test_adjusted_settings_are_checked_as_resolved_ones_are() -> None:
    greedy, warm = config.resolve("arith_quick"), config.resolve("arith_quick", {"temperature": 1})
    asked = {"methods": "speculative", "draft_temperature": 0.5}
    with pytest.raises(ConfigError, match=r"draft_temperature is 0\.5, but temperature is 0: nothing is drawn"):
        config.adjusted(greedy, asked)
    with pytest.raises(ConfigError, match=r"draft_temperature is 0\.5, but temperature is 0: nothing is drawn"):
        config.adjusted(warm, {**asked, "temperature": 0})
    (method,) = config.adjusted(greedy, {**asked, "temperature": 1}).methods
    assert method.draft_temperature == 0.5
    assert config.adjusted(warm, asked).methods == (method,)
    with pytest.raises(ConfigError, match="min_match is 4, but max_ngram of lookup is 3"):
        config.adjusted(greedy, {"methods": "lookup", "min_match": 4})


def test_a_later_setting_at_its_default_leaves_the_hash_as_it_was() -> None:
    plain = config.resolve("arith_quick")
    without = plain.as_dict()
    for method in without["methods"]:
        for setting in LATER:
            del method[setting]
    assert settings_hash(without) == plain.hash
    assert config.resolve("arith_quick", {"methods": "baseline,speculative", "rule": "block"}).hash != plain.hash


def test_a_presets_value_is_the_same_setting_as_one_that_is_given(workplace: Path) -> None:
    (workplace / "given.yaml").write_text("suffix_factor: 1\n")
    given = config.resolve("arith_quick", {"methods": "suffix", "config": "given.yaml"})
    assert given.hash == config.resolve("arith_quick", {"methods": "suffix"}).hash


def test_labels_tell_a_presets_rule_and_two_probabilities_apart(workplace: Path) -> None:
    methods = config.resolve("arith_quick", {"methods": "speculative,speculative_block", "gamma": "4"}).methods
    assert [method.label for method in methods] == ["speculative_k4", "speculative_k4_block"]
    methods = config.resolve("arith_argmax", {"methods": "speculative,speculative_argmax", "gamma": "4,8"}).methods
    labels = ["speculative_k4", "speculative_k8", "speculative_k4_dt0", "speculative_k8_dt0"]
    assert [method.label for method in methods] == labels
    (workplace / "given.yaml").write_text("min_draft_probability: [0, 0.3]\nsuffix_min_probability: [0.1, 0.3]\n")
    methods = config.resolve("arith_quick", {"methods": "chained", "config": "given.yaml"}).methods
    assert [m.label for m in methods] == ["chained_s0.1", "chained_s0.3", "chained_p0.3_s0.1", "chained_p0.3_s0.3"]


def test_a_draft_length_that_adapts_is_a_setting_like_others(workplace: Path) -> None:
    methods = config.resolve("arith_quick", {"methods": "speculative,topk", "gamma": "4,auto"}).methods
    assert [(m.label, m.gamma, m.auto_gamma) for m in methods] == [
        ("speculative_k4", 4, False), ("speculative_kauto", 16, True), ("topk_k4", 4, False), ("topk_kauto", 16, True)
    ]  # fmt: skip
    (workplace / "given.yaml").write_text("gamma: auto\nmax_gamma: 6\nmethods: [chained]\n")
    (chained,) = config.resolve("arith_quick", {"config": "given.yaml"}).methods
    assert (chained.label, chained.gamma, chained.max_gamma) == ("chained_kauto", 6, 6)
    (preset,) = config.resolve("arith_quick", {"methods": "speculative_auto"}).methods
    assert (preset.label, preset.gamma, preset.auto_gamma) == ("speculative_auto", 16, True)


@pytest.mark.parametrize(
    "given,words",
    [
        (
            {"methods": "speculative,lookup", "gamma": "auto"},
            "gamma is auto, which is for chains of a draft model, not for lookup; give numbers, or leave lookup out",
        ),
        ({"methods": "specexec", "gamma": "4,auto"}, "gamma is auto, which is for chains of a draft model, not for"),
        ({"methods": "suffix", "gamma": "auto"}, "not for suffix; give numbers"),
        ({"gamma": "auto,auto"}, "it must list each length only once."),
        ({"gamma": "often"}, "gamma is 'often'; it must be a whole number >= 1 or 'auto', or several separated by"),
        ({"max_gamma": 4}, "max_gamma is given, but no gamma is auto; leave it out, or set gamma to it."),
        ({"gamma": "auto", "max_gamma": 65}, "max_gamma is 65; it must be a whole number >= 1 and at most 64."),
        (
            {"methods": "chained", "gamma": "auto", "proposers": "suffix"},
            "gamma is auto, but proposers of chained_kauto has no draft, whose chains it is for; give a number",
        ),
    ],
)
def test_lengths_that_cannot_adapt_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve("arith_quick", {"methods": "speculative", **given})
    assert words in str(error.value)


def test_a_match_that_lookup_cannot_find_is_refused(workplace: Path) -> None:
    (workplace / "given.yaml").write_text("min_match: 4\n")
    with pytest.raises(ConfigError, match="min_match is 4, but max_ngram of lookup is 3: nothing would be found"):
        config.resolve("arith_quick", {"methods": "lookup", "config": "given.yaml"})

"""Everything that ships: parsed, cross-checked, and its prompt rendered."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from specexp import config
from specexp.decoding.rules import Warp
from specexp.judge.judge import Facts, Judge
from specexp.judge.network import Network
from specexp.lm.hf.loading import load_tokenizer
from specexp.lm.runtime import ModelConfig
from specexp.method_specs import specs, takers
from specexp.methods import BuildContext, decoder_for, main_role, roles_of
from specexp.pair.chat_template import TODAY
from specexp.pair.tokenization import TokenizerText, ToyText
from specexp.tasks.source import DataConfig
from specexp.tasks.task import task

SHAPES = {"mean": 2, "scale": 2, "weight_1": (1, 2), "bias_1": 1}
ARRAYS = {name: np.ones(shape, dtype=np.float32) for name, shape in SHAPES.items()}
JUDGE = Judge(Network("logistic", ARRAYS), Facts("", "", "", "both", 1, 2))
OF_TREES = Judge(JUDGE.network, Facts("", "", "", "target", 1, 2))
DATA = Path(__file__).resolve().parents[1] / "data"
HEADER = ("Command:", "Hardware:", "Result:")
METHODS = ("speculative_block", "speculative_auto", "speculative_argmax", "suffix", "chained")


@pytest.mark.parametrize("name", config.preset_names("experiments"))
def test_an_experiment_resolves_and_its_prompts_are_rendered(name: str) -> None:
    experiment = config.resolve(name)
    data = DATA / f"{experiment.task}.jsonl"
    chosen = task(experiment.task, DataConfig(str(data)) if data.exists() else experiment.data, experiment.shots)
    for example in chosen.examples(3):
        messages = example.messages(["A reply."] * (len(example.turns) - 1))
        if experiment.toy is not None:
            text = ToyText(experiment.toy.vocab_size)
            assert len(text.encode(messages)) == len(example.turns[0])
            continue
        tokenizer = load_tokenizer(ModelConfig("zoo:target"))
        tokenizer.chat_template = (
            "{{ strftime_now('%Y') }}|{{ date_string }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
            "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        rendered = TokenizerText(tokenizer, chat=experiment.target.chat_template == "own")
        decoded = tokenizer.decode(rendered.encode(messages))
        assert all(turn in decoded for turn in example.turns)
        assert decoded.count("The final answer is") >= 2 * bool(experiment.shots)
        if rendered.chat:
            assert decoded.startswith(f"{TODAY}|{TODAY}<user>"), "a prompt may not change with the day"
            assert decoded.endswith("<assistant>")
    for method in experiment.methods:
        warp = Warp(experiment.temperature, experiment.top_k, experiment.top_p)
        decoder = decoder_for(method, BuildContext(warp, {method.judge: OF_TREES if method.tree else JUDGE}))
        assert decoder.models[0] == main_role(method), "prompts are checked against another model's context"
        assert set(decoder.models) == roles_of(method)


@pytest.mark.parametrize("name", config.preset_names("templates"))
def test_a_template_is_a_settings_file_that_names_everything_its_method_has(name: str) -> None:
    path = config.PRESETS / "templates" / f"{name}.yaml"
    resolved = config.resolve("arith_quick", {"config": str(path)})
    method = name.removeprefix("template_")
    assert method in {resolved_method.method for resolved_method in resolved.methods}
    settings = yaml.safe_load(path.read_text())
    method_settings = {key for key, names in takers().items() if method in names}
    assert method_settings <= settings.keys(), "a template leaves none of its method's settings out"
    header = path.read_text()
    wanted = {
        "autojudge": [
            "accept/judged_rate", "judge/recall", "judge/roc_auc", "judge/pr_auc", "judge/brier", "judge/recall_margin",
            "judge/accepted_unimportant", "labels/important_share", "labels/mismatches_per_prompt", "kinds", "skip",
        ],
        "specexec": [
            "tree/depth_i", "tree/cache_hit_rate", "tree/effective_parallelism", "tree/max_active_branches",
            "pruned_by_log_prob", "calls/target_per_token", "speed/speedup",
        ],
    }  # fmt: skip
    for metric in wanted[method]:
        assert metric in header
    for part in HEADER:
        assert part in header


@pytest.mark.parametrize("name", config.preset_names("models"))
def test_a_pair_names_its_files_exactly_and_shares_its_settings(name: str) -> None:
    experiment = config.resolve("arith_quick", {"pair": name, "methods": "baseline,speculative"})
    for model in (experiment.target, experiment.draft):
        local = model.model.startswith(("zoo:", "toy:"))
        assert local or len(model.revision) == 40, "a hub's model is named with its revision"
        assert local or model.chat_template == "own"
        head = model.eagle3 or model.dflash
        assert not head or head.startswith("zoo:") or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", head)
    assert (experiment.target.device == "cpu") == (name.startswith("embedded") or name == "toy")


@pytest.mark.parametrize("kind", ["experiments", "models", "methods"])
def test_a_header_says_how_to_run_it_on_what_and_what_comes_out(kind: str) -> None:
    for name in config.preset_names(kind):
        header = [x.lstrip("# ") for x in config.preset_text(kind, name).splitlines() if x.startswith("#")]
        for part in HEADER if kind == "experiments" else HEADER[:2]:
            assert any(line.startswith(part) for line in header), f"{name}: no {part}"
        command = next(line for line in header if line.startswith("Command:"))
        if kind == "methods":
            methods = command.rsplit("methods=", 1)[1].split()[0]
            assert config.resolve("arith_quick", {"methods": methods}).methods
            continue
        experiment = command.rsplit("experiment=", 1)[1]
        assert experiment in config.preset_names("experiments")
        if kind == "experiments":
            assert experiment == name
        else:
            assert config.resolve(experiment).pair == name


def test_every_preset_of_a_method_has_only_settings_of_that_method() -> None:
    for name in config.preset_names("methods"):
        preset = yaml.safe_load(config.preset_text("methods", name))
        resolved = config.resolve("arith_quick", {"methods": name}).methods
        if "methods" in preset:
            assert [method.label for method in resolved] == preset["methods"]
            continue
        assert preset.pop("method") in specs()
        budgets = preset.get("tree_budget", [])
        assert [method.label for method in resolved] == ([f"{name}_b{budget}" for budget in budgets] or [name])
        for key in preset:
            assert resolved[0].method in takers()[key], f"{name}: {key} is no setting of this method"


def test_every_draft_and_rule_of_today_has_a_preset() -> None:
    drafts = {kind: set[str]() for kind in ("eagle3", "mtp", "dflash", "layers", "vocabulary")}
    for name in config.preset_names("models"):
        draft = config.resolve("arith_quick", {"pair": name, "methods": "speculative"}).draft
        for kind in drafts:
            drafts[kind].add(str(getattr(draft, kind)))
    assert all(len(values) > 1 for values in drafts.values()), drafts
    assert {"auto", "text"} <= drafts["vocabulary"]
    assert len(drafts["eagle3"] - {""}) == 2, "the embedded target's and one of the hub"
    methods = config.resolve("arith_quick", {"methods": ",".join(METHODS)}).methods
    assert {method.method for method in methods} == {"speculative", "suffix", "chained"}
    assert "block" in {method.rule for method in methods}
    assert 0 in {method.draft_temperature for method in methods}
    assert any(method.auto_gamma for method in methods)
    sampled = config.resolve("arith_argmax")
    assert sampled.temperature == 1
    assert [method.draft_temperature == 0 for method in sampled.methods] == [False, False, True]

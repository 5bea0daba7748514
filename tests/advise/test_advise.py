"""`advise`: on a pair whose calls cost what a test says, and from the command line on the toy pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from entrypoints import validate
from entrypoints.advise import resolve
from helpers.advice import SMALL, TOY, advise, advised, measured, predicted
from helpers.cli_runner import evaluate, records, refused, runs
from helpers.fake_clock import Clock, ClockedToy, prepared_toy
from helpers.judges import judge_for
from specexp import config
from specexp.advise.advice import Advice, measure
from specexp.advise.advice_figure import draw_advice
from specexp.advise.advice_report import as_json, metrics, table
from specexp.advise.advice_text import notes, recommendation, sweep
from specexp.advise.candidates import Candidate, spread, to_probe, validated
from specexp.advise.choice import PredictedCandidate
from specexp.advise.recommended import recommended
from specexp.evaluation import preparation
from specexp.judge import features
from specexp.lm.runtime import ToyConfig


def test_with_costs_that_hold_what_is_predicted_is_what_is_measured() -> None:
    advice = advised(methods="speculative,specexec", gamma="1,2,3,4,5,6,8,12", tree_budget="4,8,16", max_depth="4")
    assert len(advice.checked) == 11
    assert measured(advice) == pytest.approx(predicted(advice), rel=1e-9)
    overhead = advice.forecast.overheads["speculative"]
    assert overhead.per_round == pytest.approx(0.4), "both caches are cut once a round"
    assert overhead.per_drafted == pytest.approx(0, abs=1e-9)
    assert advice.forecast.plain_seconds > 1
    for label, prediction in advice.forecast.predicted.items():
        gamma = int(label.rpartition("_k")[2]) if "_k" in label else 0
        if gamma:  # c = 0.1 and v(n) = 1 + 0.04 (n - 1): no overhead is in it
            assert prediction.attainable == pytest.approx(prediction.mean_length / (0.1 * gamma + 1 + 0.04 * gamma))
        assert prediction.mean_length == pytest.approx(advice.checked[label].mean_length)
    assert {prediction.lengths for prediction in advice.forecast.predicted.values()} == {"simulated", "counted"}


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize(("draft_step", "noise"), [(0.02, 0.1), (0.1, 0.4), (0.3, 0.3)])
def test_the_best_of_a_full_sweep_is_recommended(draft_step: float, noise: float) -> None:
    advice = advised(draft_step, noise, methods="speculative,specexec", gamma=",".join(map(str, range(1, 17))),
                     tree_budget="4,16", max_depth="4")  # fmt: skip
    gains = measured(advice)
    assert max(gains.values()) > 1.05
    assert advice.best == max(gains, key=gains.__getitem__) == max(predicted(advice), key=predicted(advice).__getitem__)
    swept = sweep(advice)
    assert (swept.best_measured, swept.best_predicted) == (advice.best, advice.best)
    assert swept.short_measured == swept.short_predicted == 0
    assert swept.ratio.value == 1


def test_what_a_sweep_runs_besides_the_best_three_is_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    def poorest(options: list[PredictedCandidate]) -> list[PredictedCandidate]:
        return sorted(options, key=lambda option: option.predicted)[:3]

    monkeypatch.setattr("specexp.advise.advice.worth_checking", poorest)
    advice = advised(methods="speculative", gamma="1,2,3,4,5,6,8")
    assert len(advice.checked) == 7
    assert advice.best in advice.best_three
    assert sweep(advice).short_measured > 0.05


def test_the_best_draft_length_depends_on_what_a_draft_costs() -> None:
    few: Any = {"gamma": "1,2,3,5,8,12", "eos_ids": (), "max_new_tokens": "60", "limit": "3", "repeats": "1"}
    best = [advised(step, 0.4, sweep=False, **few).best for step in (0.005, 0.1, 0.25)]
    assert best == ["speculative_k8", "speculative_k3", "speculative_k2"]


def test_trees_are_recommended_where_they_pay() -> None:
    advice = advised(0.02, 0.9, 0.001, methods="speculative,specexec", gamma="1,2,4,8", tree_budget="4,16,32",
                     max_depth="5", parallel_branches="6")  # fmt: skip
    assert advice.best is not None
    assert advice.best.startswith("specexec")
    assert advice.best == max(measured(advice), key=measured(advice).__getitem__)


def test_a_draft_that_is_the_target_is_not_recommended() -> None:
    advice = advised(draft_step=1.0, noise=0.0, per_token=0.0, gamma="1,2,4,8,16")
    assert advice.alpha == 1
    assert all(prediction.mean_length > 1.8 for prediction in advice.forecast.predicted.values())
    assert advice.best is None
    assert recommendation(advice).startswith("Do not speculate:")
    assert any("The draft is the target itself" in note for note in notes(advice))
    assert as_json(advice)["recommended"] == "baseline"


def test_a_draft_of_noise_is_not_recommended() -> None:
    advice = advised(draft_step=0.1, noise=50.0, gamma="1,2,4,8")
    assert advice.alpha < 0.2
    assert advice.best is None
    assert any(f"alpha {advice.alpha:.3f}" in note for note in notes(advice))
    assert not any("target itself" in note for note in notes(advice))


def test_a_sweep_says_how_far_a_poor_recommendation_is_from_the_best() -> None:
    advice = advised(methods="speculative", gamma="1,2,3,4,5,6,8,12")
    worst = min(measured(advice), key=measured(advice).__getitem__)
    swept = sweep(replace(advice, best=worst))
    expected = measured(advice)[worst] / max(measured(advice).values())
    assert swept.short_measured == pytest.approx(1 - expected)
    assert swept.short_predicted == pytest.approx(1 - expected)
    nothing = sweep(replace(advice, best=None))
    assert nothing.short_measured == pytest.approx(1 - 1 / max(measured(advice).values()))


def test_a_prediction_outside_the_measured_interval_is_pointed_out() -> None:
    advice = advised(gamma="2,4,8")
    assert not any("outside" in note for note in notes(advice))
    label = advice.best_three[0]
    wrong = replace(advice.forecast.predicted[label], speedup=9.87)
    off = replace(advice, forecast=replace(advice.forecast, predicted={**advice.forecast.predicted, label: wrong}))
    assert any(f"{label}: predicted 9.87x, which is outside" in note for note in notes(off))


@pytest.mark.slow
def test_sampled_chains_are_expected_and_trees_counted() -> None:
    advice = advised(methods="speculative,specexec", gamma="1,4", tree_budget="8", max_depth="4", temperature="0.8",
                     limit="6", max_new_tokens="60", eos_ids=())  # fmt: skip
    predictions = advice.forecast.predicted
    assert {label: each.lengths for label, each in predictions.items()} == {
        "speculative_k1": "expected",
        "speculative_k4": "expected",
        "specexec_b8": "counted",
    }
    assert predictions["specexec_b8"].mean_length == advice.checked["specexec_b8"].mean_length
    for label in ("speculative_k1", "speculative_k4"):  # 360 tokens each; see test_prediction for a bound
        assert predictions[label].mean_length == pytest.approx(advice.checked[label].mean_length, rel=0.1)
    assert 0.5 < advice.alpha < 1


def test_more_budgets_than_are_counted_lie_between() -> None:
    advice = advised(methods="specexec", tree_budget="2,3,4,6,8,12,16", max_depth="4", sweep=False)
    lengths = {label: prediction.lengths for label, prediction in advice.forecast.predicted.items()}
    assert sorted(lengths.values()) == ["counted"] * 5 + ["interpolated"] * 2
    means = [advice.forecast.predicted[f"specexec_b{n}"].mean_length for n in (2, 3, 4, 6, 8, 12, 16)]
    assert means == sorted(means)
    assert any("between counted ones" in note for note in notes(advice))


def judged(threshold: str, **flags: Any) -> Advice:
    judge = judge_for("toy_quick", features.mode("both"), threshold=0.5)
    clock = Clock()
    models = {role: ClockedToy(clock, cost, 0.01, draft_noise=noise, **TOY)
              for role, cost, noise in (("target", 1.0, 0.0), ("draft", 0.1, 0.5))}  # fmt: skip
    # The judge's pair is the toy's own: only its clock is added.
    given = {
        "methods": "speculative,autojudge",
        "gamma": "2,4,8",
        "judge": "j",
        "threshold": threshold,
        "eos_ids": (),
        **flags,
    }
    return measure(prepared_toy(models, {"j": judge}, **given), True, clock)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_lossy_candidate_is_weighed_with_its_own_step_and_said_to_be_lossy() -> None:
    advice = judged("0.5,1.5", max_new_tokens="60")
    assert advice.candidates[-1].setting.feed_last_token
    kinds = {c.kind for c in advice.candidates}
    assert kinds == {"speculative", "autojudge, threshold 0.5", "autojudge, threshold 1.5"}
    predictions = advice.forecast.predicted
    assert predictions["autojudge_k8_t1.5"].mean_length > predictions["autojudge_k8_t0.5"].mean_length
    assert predictions["autojudge_k8_t1.5"].mean_length > 5
    for label in ("autojudge_k4_t1.5", "autojudge_k8_t1.5"):
        assert measured(advice)[label] == pytest.approx(predicted(advice)[label], rel=0.05)
    # The toy's answers cannot be checked: beyond what the judge was calibrated to nothing is recommended.
    assert advice.checked["autojudge_k8_t1.5"].speedup.value > advice.checked["speculative_k8"].speedup.value
    assert advice.best is not None
    assert not advice.best.endswith("_t1.5")
    assert any("above what its judge was calibrated to" in note for note in notes(advice))
    assert not sweep(advice).best_measured.endswith("_t1.5")


def test_a_lossy_recommendation_says_what_it_may_cost_and_names_the_lossless_one() -> None:
    advice = judged("calibrated")
    assert advice.best_three != []
    lossy = next(c.label for c in advice.candidates if not c.lossless)
    asked = replace(advice, best=lossy)
    said = " ".join(notes(asked))
    assert "It is lossy, and this task has no answers to check" in said
    assert "The fastest lossless one that ran is speculative_k" in said
    checked = replace(advice.checked[lossy], checked=8, lost=1, gained=1)
    said = " ".join(notes(replace(asked, checked={**advice.checked, lossy: checked})))
    assert "it lost 1 of 8 answers and gained 1; the share of lost answers may be as high as 47 %" in said.replace(
        "%", " %"
    )


def test_what_is_probed_are_the_ends_and_some_between() -> None:
    prepared = prepared_toy(
        methods="speculative,specexec",
        gamma=",".join(map(str, range(1, 17))),
        tree_budget="8,4,32,16,64,128",
        max_depth="3",
    )
    candidates = [Candidate(setting) for setting in prepared.settings[1:]]
    probed = [(c.method, c.size) for c in to_probe(candidates)]
    assert probed == [("speculative", n) for n in (1, 9, 16)] + [("specexec", n) for n in (4, 8, 16, 64, 128)]
    assert [c.size for c in spread(candidates[:2], 3)] == [1, 2]


def test_the_table_ranks_by_prediction_and_keeps_those_that_ran(tmp_path: Path) -> None:
    advice = advised(methods="speculative", gamma=",".join(map(str, range(1, 17))), sweep=False)
    result = as_json(advice)
    lines = table(result).splitlines()
    shown = [line.split()[0] for line in lines[1:14]]
    assert shown[0] == "baseline"
    ranked = sorted(predicted(advice), key=lambda label: -predicted(advice)[label])
    assert shown[1:] == ranked[:12]
    assert "and 4 more that are predicted to be slower" in lines
    assert result["sentence"] in lines
    json.dumps(result)
    draw_advice(tmp_path / "advice.png", result)
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    logged = metrics(advice)
    assert logged["advice/measured_speedup"] == advice.checked[advice.best or ""].speedup.value
    assert all(name.startswith("advice/") for name in logged)


@pytest.mark.at_most(fast=5)
@pytest.mark.parametrize(
    "flags",
    [
        {"methods": "speculative", "gamma": "3", "bonus": False, "top_p": "0.9", "temperature": "0.7"},
        {"methods": "speculative", "gamma": "3", "min_draft_probability": 0.3},
        {"methods": "lookup", "gamma": "3", "max_ngram": 2},
        {"methods": "suffix", "gamma": "3", "min_match": 2, "suffix_factor": 2, "suffix_min_probability": 0.2},
        {"methods": "chained", "gamma": "3", "proposers": "lookup,draft", "min_match": 3},
        {"methods": "speculative", "gamma": "auto", "max_gamma": "7"},
        {"methods": "speculative", "gamma": "3", "temperature": "0.7", "rule": "block"},
        {"methods": "speculative", "gamma": "3", "temperature": "0.7", "draft_temperature": 0},
        {"methods": "specexec", "tree_budget": "6", "max_depth": "3", "parallel_branches": "3", "min_log_prob": "-9.5"},
        {"methods": "autojudge", "gamma": "4", "judge": "j", "threshold": "0.25"},
        {"methods": "autojudge", "gamma": "4", "judge": "j", "threshold": "calibrated"},
    ],
    ids=lambda flags: "-".join(flags)[len("methods-") :],
)
def test_a_recommended_file_resolves_to_what_was_measured(workplace: Path, flags: dict[str, Any]) -> None:
    in_files = ("bonus", "min_draft_probability", "max_ngram", "min_match", "suffix_factor", "suffix_min_probability",
                "proposers", "rule", "draft_temperature")  # fmt: skip
    switch = {name: flags.pop(name) for name in in_files if name in flags}
    (workplace / "mine.yaml").write_text(yaml.safe_dump({"seed": 3, "toy": {"draft_noise": 0.3}, **switch}))
    judges = {"j": judge_for("toy_quick", features.mode("target"))} if "judge" in flags else {}
    experiment = validated(
        config.resolve("toy_quick", {**flags, "config": "mine.yaml", "limit": 1, "repeats": 2}), True
    )
    # The judge was made for the pair of another noise.
    plain = replace(experiment, toy=ToyConfig()) if judges else experiment
    advice = measure(preparation.prepare(plain, judges), sweep=False)
    chosen = advice.candidates[0]
    text = recommended(replace(advice, best=chosen.label), Path("recommended.yaml"))
    (workplace / "recommended.yaml").write_text(text)
    resolved = config.resolve("arith_quick", {"config": "recommended.yaml"})
    same = ("task", "pair", "toy", "target", "draft", "data", "temperature", "top_k", "top_p", "max_new_tokens", "seed")
    assert {name: getattr(resolved, name) for name in same} == {name: getattr(plain, name) for name in same}
    assert resolved.methods[0].method == "baseline"
    expected = replace(chosen.setting.config, label="")
    assert [replace(method, label="") for method in resolved.methods[1:]] == [expected]


def test_models_of_ones_own_stand_in_the_file_in_full() -> None:
    advice = advised(gamma="2", sweep=False)
    given = {
        "target": "a/b",
        "draft": {"model": "c/d", "dtype": "float16", "revision": "abc"},
        "data": "x.jsonl",
        "task": "prompts",
    }
    experiment = config.resolve("arith_quick", given)
    moved = replace(advice, prepared=replace(advice.prepared, experiment=experiment))
    content = yaml.safe_load(recommended(moved, Path("somewhere.yaml")))
    assert content["target"]["model"] == "a/b"
    assert content["draft"] == {
        "model": "c/d", "revision": "abc", "device": "cpu", "dtype": "float16", "quantization": "none",
        "offload": "none", "chat_template": "auto", "trust_remote_code": False,
    }  # fmt: skip
    assert content["data"] == {"source": "x.jsonl"}
    assert "pair" not in content
    experiment = config.resolve("arith_quick", {"draft": "layers:0-3"})
    moved = replace(advice, prepared=replace(advice.prepared, experiment=experiment))
    assert yaml.safe_load(recommended(moved, Path("somewhere.yaml")))["draft"] == {"layers": "0-3"}


def test_it_leaves_numbers_a_figure_a_file_to_run_and_one_run(workplace: Path) -> None:
    result = advise(*SMALL, "--output", "out", "--sweep")
    assert result.exit_code == 0, result.output
    advice = json.loads((workplace / "out/advice.json").read_text())
    stopping = {f"{method}_k{n}{stop}" for method in ("speculative", "chained") for n in (2, 4)
                for stop in ("", "_p0.4")}  # fmt: skip
    labels = {*stopping, "lookup_k2", "lookup_k4", "suffix_k2", "suffix_k4", "specexec_b4"}
    assert {each["label"] for each in advice["candidates"]} == labels
    assert all(
        each["measured"]["speedup"]["low"] <= each["measured"]["speedup"]["high"] for each in advice["candidates"]
    )
    assert advice["sweep"]["best_measured"] in {*labels, "baseline"}
    assert advice["sentence"] in result.output
    assert advice["sweep_sentence"] in result.output
    assert (workplace / "out/advice.png").read_bytes().startswith(b"\x89PNG")
    assert not list(workplace.glob("**/*.partial"))

    [made] = runs()
    assert made.info.status == "FINISHED"
    assert {key: made.data.tags[key] for key in ("method", "group", "pair", "task")} == {
        "method": "advise", "group": "toy_quick", "pair": "toy", "task": "toy",
    }  # fmt: skip
    assert {"advice/speculate", "advice/predicted_speedup", "advice/short_measured"} <= set(made.data.metrics)

    header = (workplace / "out/recommended.yaml").read_text().splitlines()
    assert header[1] == "# Command:  python -m specexp evaluate --config out/recommended.yaml"
    assert any(line.startswith("# Hardware: ") for line in header)
    assert any(line.startswith("# Result:   ") and advice["sentence"] in line for line in header)
    good = CliRunner().invoke(validate.command, ["out/recommended.yaml"])
    assert good.exit_code == 0, good.output
    ran = evaluate("--config", "out/recommended.yaml", "--limit", "2", "--output", "again")
    assert ran.exit_code == 0, ran.output
    methods = {record["label"].partition("_")[0] for record in records(workplace / "again")}
    assert methods == {"baseline"} | ({advice["recommended"].partition("_")[0]} if advice["speculate"] else set())


@pytest.mark.slow
def test_not_to_speculate_is_a_file_that_runs_too(workplace: Path) -> None:
    result = advise(*SMALL, "--tree-budget", "none", "--toy", "draft_noise=50", "--output", "out")
    assert result.exit_code == 0, result.output
    assert "Do not speculate" in result.output
    content = yaml.safe_load((workplace / "out/recommended.yaml").read_text())
    assert content["methods"] == ["baseline"]
    assert "gamma" not in content
    text = (workplace / "out/recommended.yaml").read_text()
    assert "Do not speculate" in text.partition("pair:")[0]
    assert "specexec" not in result.output
    ran = evaluate("--config", "out/recommended.yaml", "--limit", "2", "--output", "again")
    assert ran.exit_code == 0, ran.output
    assert {record["label"] for record in records(workplace / "again")} == {"baseline"}


@pytest.mark.slow
def test_a_judge_brings_autojudge_among_the_candidates(workplace: Path) -> None:
    judge_for("toy_quick", features.mode("both")).save(workplace / "judge")
    result = advise(*SMALL, "--judge", "judge", "--output", "out", "--sweep")
    assert result.exit_code == 0, result.output
    advice = json.loads((workplace / "out/advice.json").read_text())
    assert {each["label"] for each in advice["candidates"] if not each["lossless"]} == {
        "autojudge_k2", "autojudge_k2_p0.4", "autojudge_k4", "autojudge_k4_p0.4",
    }  # fmt: skip
    assert "lossy: " in result.output


def test_candidates_are_the_defaults_unless_they_are_given() -> None:
    asked, *with_all = resolve("arith_quick", {})
    assert with_all == [True, True]
    labels = [method.label for method in asked.methods]
    chains = [f"speculative_k{n}{stop}" for n in range(1, 17) for stop in ("", "_p0.4")]
    lookups = [f"lookup_k{n}" for n in range(1, 17)]
    suffixes = [f"suffix_k{n}" for n in range(1, 17)]
    in_turn = [f"chained_k{n}{stop}" for n in range(1, 17) for stop in ("", "_p0.4")]
    trees = [f"specexec_b{n}" for n in (8, 16, 32, 64, 128)]
    assert labels == [*chains, *lookups, *suffixes, *in_turn, *trees, "speculative_auto"]
    sampled = [method.label for method in resolve("arith_quick", {"temperature": "0.7"})[0].methods]
    more = [f"speculative_k{n}{kind}" for kind in ("_block", "_dt0") for n in range(1, 17)]
    assert sampled == [*labels, *more]
    assert (asked.limit, asked.repeats) == (8, 5)
    asked, with_trees, with_draft = resolve("arith_quick", {"gamma": "2,5", "tree_budget": "None", "limit": "3"})
    assert not with_trees
    assert [method.label for method in validated(asked, with_trees, with_draft).methods] == [
        "baseline", "speculative_k2", "speculative_k2_p0.4", "speculative_k5", "speculative_k5_p0.4", "lookup_k2",
        "lookup_k5", "suffix_k2", "suffix_k5", "chained_k2", "chained_k2_p0.4", "chained_k5", "chained_k5_p0.4",
    ]  # fmt: skip
    asked, with_trees, with_draft = resolve("arith_quick", {"gamma": "2,5", "draft": "None"})
    assert not with_draft
    assert [m.label for m in validated(asked, with_trees, with_draft).methods] == [
        "baseline", "lookup_k2", "lookup_k5", "suffix_k2", "suffix_k5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma", "0"], "gamma is '0'; it must be a whole number >= 1"),
        (["--gamma", "400"], "gamma is 400; with a context of 512 it must be at most 256."),
        (["--tree-budget", "some"], "tree_budget is 'some'; it must be a whole number >= 1"),
        (["--threshold", "0.5"], "threshold is given without a judge; name one with judge, or leave threshold out."),
        (["--judge", "nowhere"], "'nowhere'"),
        (["--sweep", "maybe"], "'maybe' is neither true nor false."),
        (["--target", "./nowhere"], "target: pair 'toy' has no model to replace; leave it out, or name another pair."),
        (
            ["--config", "topk.yaml"],
            "methods has topk; advice weighs speculative, lookup, suffix, chained, ",
        ),
        (["--config", "early.yaml"], "min_draft_probability is [0.4, 1.0]; it must be a number in [0, 1) (0 = off)"),
        (
            ["--config", "chains.yaml", "--draft", "none"],
            "without a draft model lookup and suffix are weighed",
        ),
        (["--judge", "nowhere", "--draft", "none"], "judge is given, but draft is none; name a draft, or leave judge"),
        (["--config", "memory.yaml"], "suffix_memory is run (suffix_k4), but advice decodes each prompt by itself;"),
        (["--config", "batch.yaml"], "batch is 4, but advice is for one prompt at a time; leave it out."),
        (["--config", "trees.yaml", "--tree-budget", "0"], "no candidate is left; give gamma or tree_budget."),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_settings_are_refused(workplace: Path, arguments: list[str], message: str) -> None:
    files = {"topk": "methods: [topk]\ngamma: 4", "early": "min_draft_probability: [0.4, 1.0]", "batch": "batch: 4",
             "memory": "methods: [suffix]\ngamma: 4\nsuffix_memory: run", "trees": "methods: [specexec]",
             "chains": "methods: [speculative]"}  # fmt: skip
    for name, text in files.items():
        (workplace / f"{name}.yaml").write_text(text + "\n")
    result = advise("--experiment", "toy_quick", *arguments)
    if "--sweep" in arguments:  # click's own refusal has a line of usage before it
        assert result.exit_code == 2
        assert message in result.output
        return
    refused(result, message, workplace)


def test_a_folder_that_is_taken_is_left_alone(workplace: Path) -> None:
    (workplace / "out").mkdir()
    (workplace / "out/mine.txt").write_text("mine")
    result = advise(*SMALL, "--output", "out")
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "error: output folder 'out' exists; give resume=true to go on there, or another output."
    ]
    assert [path.name for path in (workplace / "out").iterdir()] == ["mine.txt"]

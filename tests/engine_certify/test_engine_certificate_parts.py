"""The parts of an engine's certificate: distributions, numbers of samples, what follows from what, and settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from entrypoints.certify import command
from helpers.cli_runner import invoke, refused
from specexp.certify import chi_square, reference_distribution
from specexp.engine_certify import bias_power, findings, next_tokens, served_output
from specexp.engine_certify.engine_certificate_config import EngineOptions, resolve
from specexp.engine_certify.findings import Finding
from specexp.engine_certify.next_tokens import NextTokens, Unknowable, Warping
from specexp.engine_certify.sample_check import alternatives_of, explain
from specexp.engine_certify.sampled_places import SampledPlace, SampledTarget
from specexp.engines.stream import Answer
from specexp.errors import ConfigError

LOGITS = np.random.default_rng(2).normal(size=12) * 2
WHOLE = next_tokens.of_logits(LOGITS, ())
URL = "http://host:8000/v1"


@pytest.mark.parametrize("temperature", [0, 0.5, 1, 1.7])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.8)])
def test_weights_are_warped_as_the_reference_does(temperature: float, top_k: int, top_p: float) -> None:
    expected = reference_distribution.warp(LOGITS, temperature, top_k, top_p)
    assert WHOLE.warped(Warping(temperature, top_k, top_p)) == pytest.approx(expected, abs=1e-12)


def test_min_p_and_top_p_before_the_temperature() -> None:
    given = NextTokens(np.log(np.asarray([0.5, 0.3, 0.15, 0.05])))
    assert given.warped(Warping(1.0, min_p=0.4)) == pytest.approx([5 / 8, 3 / 8, 0, 0])
    # The square root of 0.5 is what 0.25 is to 1 at temperature 0.5.
    assert given.warped(Warping(0.5, min_p=0.4)) == pytest.approx([1, 0, 0, 0])
    first = Warping(0.5, top_p=0.65, top_p_first=True)
    assert given.warped(first) == pytest.approx([25 / 34, 9 / 34, 0, 0])
    assert given.warped(Warping(0.5, top_p=0.65)) == pytest.approx([1, 0, 0, 0])
    assert given.margin(Warping(1.0, top_p=0.78)) == pytest.approx(0.02)
    assert given.margin(Warping(1.0, top_k=2)) == pytest.approx(math.log(2))
    assert given.margin(Warping()) == math.inf


def test_what_lies_outside_the_likeliest_tokens_is_pooled() -> None:
    logprobs = WHOLE.logprobs
    known = next_tokens.of_top({int(i): float(logprobs[i]) for i in np.argsort(-logprobs)[:8]})
    p = WHOLE.warped(Warping())
    assert known.rest == pytest.approx(1 - np.sort(p)[-8:].sum())
    at_one = known.warped(Warping())
    assert at_one[at_one > 0] == pytest.approx(p[: len(at_one)][at_one > 0])
    assert at_one.sum() == pytest.approx(1 - known.rest)
    for warping in (Warping(1.3, top_k=4), Warping(1, top_p=0.5), Warping(0.4), Warping(1, min_p=0.3)):
        expected = WHOLE.warped(warping)
        assert known.warped(warping) == pytest.approx(expected[: len(known.logprobs)], abs=next_tokens.TOLERATED)
    few = next_tokens.of_top({int(i): float(logprobs[i]) for i in np.argsort(-logprobs)[:2]})
    for warping in (Warping(1.3), Warping(1, top_k=3), Warping(1, top_p=0.99), Warping(0.9), Warping(1, min_p=0.001)):
        with pytest.raises(Unknowable):
            few.warped(warping)


def test_all_ends_count_as_the_first() -> None:
    merged = next_tokens.of_logits(LOGITS.copy(), (3, 5)).warped(Warping())
    p = WHOLE.warped(Warping())
    assert (merged[3], merged[5]) == (pytest.approx(p[3] + p[5]), 0)


def cells() -> chi_square.Cells:
    table = {(): [0.4, 0.3, 0.2, 0.1], (0,): [0.7, 0.1, 0.1, 0.1]}
    return chi_square.split(lambda prefix: np.asarray(table.get(prefix, [0.25] * 4)), 2, (), 100)


def test_the_announced_samples_find_every_bias_of_that_size() -> None:
    """The planted bias and others, in draws of that many samples: missed once in a thousand at most."""
    tree, level, rng = cells(), 1e-4, np.random.default_rng(0)
    fair = tree.probability()
    needed = bias_power.samples_needed(len(fair), 0.15, level)
    assert bias_power.least_variation(len(fair), needed, level) == pytest.approx(0.15, rel=0.02)
    assert bias_power.samples_needed(len(fair), 0.05, level) == pytest.approx(9 * needed, rel=0.03)
    spread = np.abs(rng.normal(size=len(fair))) * np.where(fair >= np.median(fair), 1, -1)
    spread[spread > 0] /= spread[spread > 0].sum()
    spread[spread < 0] /= -spread[spread < 0].sum()
    biased = np.maximum(fair + 0.15 * spread, 0)
    biased /= biased.sum()
    missed = 0
    for _ in range(60):
        counts = rng.multinomial(needed, fair)
        planted = bias_power.planted(counts, fair, 0.15, rng)
        assert planted.sum() == needed
        missed += chi_square.compare(planted, fair).p >= level
        if chi_square.distance(biased, fair) >= 0.15:
            missed += chi_square.compare(rng.multinomial(needed, biased), fair).p >= level
        assert chi_square.compare(counts, fair).p >= level
    assert missed <= 2


def test_a_bias_is_never_said_to_be_larger_than_it_is() -> None:
    tree, rng = cells(), np.random.default_rng(1)
    fair = tree.probability()
    other = fair.copy()
    order = np.argsort(fair)
    other[order[0]] += 0.1
    other[order[-1]] -= 0.1
    bounds = [bias_power.at_least(tree, rng.multinomial(3000, other), fair, 1e-3) for _ in range(50)]
    assert min(bounds) > 0
    assert max(bounds) <= 0.1


def test_an_explanation_fits_or_does_not() -> None:
    fair, rng = cells().probability(), np.random.default_rng(3)
    counts = rng.multinomial(500, fair)
    assert bias_power.fits(counts, fair, 1e-4)
    certain = np.zeros(len(fair))
    certain[0] = 1
    assert not bias_power.fits(counts, certain, 1e-4)
    assert bias_power.fits((500 * certain).astype(int), certain, 1e-4)
    assert bias_power.samples_to_tell(fair, certain, 1e-5) < 100
    assert bias_power.samples_to_tell(fair, fair, 1e-5) == bias_power.MOST_SAMPLES
    assert bias_power.samples_to_tell(certain, fair, 1e-5) < 20, "a single output that cannot occur tells"


def test_cells_have_the_mass_of_another_distribution() -> None:
    tree = cells()
    assert tree.under(lambda prefix: np.asarray({(): [0.4, 0.3, 0.2, 0.1], (0,): [0.7, 0.1, 0.1, 0.1]}.get(
        prefix, [0.25] * 4))) == pytest.approx(tree.probability())  # fmt: skip
    greedy = tree.under(lambda prefix: np.asarray([1.0, 0, 0, 0]))
    assert greedy.max() == 1
    assert tree.under(lambda prefix: np.asarray([0.5])).sum() == pytest.approx(1), "what is not known is pooled"


def test_holm_corrects_step_by_step() -> None:
    assert chi_square.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert chi_square.holm([0.5, 0.9]) == [1.0, 1.0]


def test_what_follows_from_a_cause_is_no_finding() -> None:
    def names(*found: str) -> list[str]:
        return [each.name for each in findings.causes(Finding(name, "") for name in found)]

    assert names(findings.NOT_PLAIN, findings.TEMPERATURE_IGNORED, findings.SEED_IGNORED) == [
        findings.TEMPERATURE_IGNORED, findings.SEED_IGNORED,
    ]  # fmt: skip
    assert names(findings.NOT_DETERMINISTIC, findings.NOT_DETERMINISTIC) == [findings.NOT_DETERMINISTIC]
    (one,) = findings.causes([Finding("x", "a"), Finding("x", "b", plain_too=True)])
    assert one.plain_too


def test_an_output_has_its_end_however_the_server_writes_it() -> None:
    def tokens(**fields: Any) -> Any:
        return served_output.read(Answer("a", **fields), (9, 7), lambda text: [4, 5]).tokens

    assert tokens(token_ids=[1, 2], finish_reason="stop") == (1, 2, 9)
    assert tokens(token_ids=[1, 7], finish_reason="stop") == (1, 9)
    assert tokens(token_ids=[1, 7, 2], finish_reason="length") == (1, 9, 2)
    assert tokens(finish_reason="length") == (4, 5)
    assert served_output.read(Answer("a", finish_reason="stop"), (9,), None).tokens is None
    stopped = served_output.read(Answer("a", [1], finish_reason="stop"), (9,), None, ("x",))
    assert stopped.tokens == (1,), "a stop string is no EOS"
    output = served_output.read(
        Answer("a", [1], top_logprobs=[{"token_id:3": -0.5}], finish_reason="length",
               server={"usage": {"drafted": 4, "accepted": 2, "target_calls": 3}}), (), None,
    )  # fmt: skip
    assert output.top == ({3: -0.5},)
    assert served_output.ServedOutput.of_json(output.as_json()) == output


def test_alternatives_are_those_that_differ() -> None:
    names = {name for name, _, _ in alternatives_of(Warping(1.0))}
    assert names == {findings.GREEDY_ABOVE, findings.DEFAULTS}
    names = {name for name, _, _ in alternatives_of(Warping(0.5, 3, 0.9, 0.1))}
    assert names == {
        findings.TEMPERATURE_IGNORED, findings.TOP_P_IGNORED, findings.TOP_P_FIRST, findings.TOP_K_IGNORED,
        findings.MIN_P_IGNORED, findings.GREEDY_ABOVE,
    }  # fmt: skip
    defaults = [(warping, words) for name, warping, words in alternatives_of(Warping(0.5, top_p=0.9)) if
                name == findings.DEFAULTS]  # fmt: skip
    assert defaults == [
        (
            Warping(0.5, 40, 0.9, 0.05),
            "it samples with top-k 40 and min-p 0.05 where the request sets none, as llama.cpp does.",
        ),
        (Warping(0.5, 50, 0.9), "it samples with top-k 50 where the request sets none, as transformers does."),
    ]


ENGINE = ["--engine", URL, "--engine-model", "m"]
REFUSED: dict[str, tuple[list[str], str]] = {
    "no model": (["--engine", URL, "--against", "http://other:1"], "engine_model is not given"),
    "nothing to compare with": (ENGINE, "there is nothing to compare the engine with"),
    "no file": (["--engine", "spec"], "engine is 'spec'; give an address such as"),
    "two kinds": ([*ENGINE, "--against", "plain"], "against is 'plain', but engine is an"),
    "a password": (["--engine", "http://me:s3cret@host", "--engine-model", "m"], "it must have no user, password"),
    "the same": ([*ENGINE, "--against", URL], "is the same as one before it"),
    "a method": ([*ENGINE, "--method", "lookup"], "method is 'lookup', but engine is given"),
    "no engine": (["--bias", "0.1"], "bias is given, but engine is not"),
    "bias": ([*ENGINE, "--toy", "seed=1", "--bias", "2"], "bias is '2'; it must be"),
    "samples": ([*ENGINE, "--toy", "seed=1", "--samples", "9"], "samples is '9'; it must"),
    "dtype": ([*ENGINE, "--toy", "seed=1", "--engine-dtype", "fp8"], "unknown engine_dtype"),
    "weights": ([*ENGINE, "--weights", "yes"], "weights is 'yes'; it must be true"),
    "greedy": (
        [*ENGINE, "--toy", "seed=1", "--temperature", "0", "--bias", "0.1"],
        "nothing is sampled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_refused_before_anything_is_asked(workplace: Path, case: str) -> None:
    arguments, message = REFUSED[case]
    result = invoke(command, "--experiment", "toy_quick", "--output", "out", *arguments)
    refused(result, message, workplace)
    assert "s3cret" not in result.output


def test_engines_of_a_file_are_named(workplace: Path) -> None:
    methods = {"plain": {"request": {"speculation": False}}, "spec": None, "other": {"url": "http://x"}}
    Path("mine.yaml").write_text(
        yaml.safe_dump({"engine": {"url": URL, "model": "m", "methods": methods}, "pair": "toy"})
    )
    asked = resolve("toy_quick", EngineOptions("engine:spec", against="plain"), {"config": "mine.yaml"})
    assert (asked.engine.name, asked.against and asked.against.name, asked.weights) == ("spec", "plain", True)
    assert asked.experiment.temperature == 1
    assert asked.experiment.methods[0].method == "baseline"
    with pytest.raises(ConfigError, match="unknown method of the file 'spek', did you mean 'spec'"):
        resolve("toy_quick", EngineOptions("spek"), {"config": "mine.yaml"})
    with pytest.raises(ConfigError, match="which is the engine itself"):
        resolve("toy_quick", EngineOptions("spec", against="spec"), {"config": "mine.yaml"})


def test_settings_of_load_are_not_dropped(workplace: Path) -> None:
    Path("mine.yaml").write_text(
        yaml.safe_dump({"engine": {"url": URL, "model": "m"}, "pair": "toy", "concurrency": [2]})
    )
    with pytest.raises(ConfigError, match="concurrency is given, but only benchmark puts engines under load"):
        resolve("toy_quick", EngineOptions("engine:served"), {"config": "mine.yaml"})


def test_what_outputs_cannot_tell_apart_is_told_together() -> None:
    """Where top-p keeps every token at temperature 1, applying it first is the same as ignoring it."""
    row = NextTokens(np.log([0.4, 0.3, 0.2, 0.1]))
    warping = Warping(0.5, top_p=0.95)
    tree = chi_square.split(lambda prefix: row.warped(warping), 2, (), 100)
    target = SampledTarget(SampledPlace(0, (), lambda prefix: row), warping, tree)
    counts = (1000 * target.under(Warping(0.5))).round().astype(int)
    found = explain([target], [counts], alternatives_of(warping))
    assert found.name == findings.TOP_P_IGNORED
    assert "Or top-p is applied before the temperature" in found.sentence
    assert "Outputs here are the same by all of these." in found.sentence
    counts = (1000 * target.under(Warping(0.0))).round().astype(int)
    assert explain([target], [counts], alternatives_of(warping)).sentence.startswith("it is greedy above")

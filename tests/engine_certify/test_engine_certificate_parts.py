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
from specexp.engine_certify.findings import Finding, explanations_of
from specexp.engine_certify.next_tokens import NextTokens, Unknowable, Warping
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


def test_cells_that_expect_few_outputs_reject_no_true_explanation() -> None:
    """One output of a cell that expects a hundredth of one is no rare event where there are many such cells."""
    p, rng = np.asarray([0.5, 0.494, *[1e-4] * 60]), np.random.default_rng(4)
    assert all(bias_power.fits(rng.multinomial(100, p), p, 1e-4) for _ in range(300))
    counts = np.zeros(63, dtype=int)
    counts[[0, 1, 62]] = 50, 49, 1
    assert not bias_power.fits(counts, np.append(p, 0.0), 1e-4), "a single output that cannot occur rejects"


@pytest.mark.parametrize(
    "other",
    [[0.3, 0.35, 0.349, 0.001], [0.4, 0.3, 0.2, 0.1], [0.33, 0.32, 0.32, 0.03], [1.0, 0.0, 0.0, 0.0],
     [0.2, 0.3, 0.4999, 1e-4]],
)  # fmt: skip
def test_so_many_samples_tell_and_half_as_many_do_not(other: list[float]) -> None:
    """Also where they differ in a leftover cell that is rare: it tells only once it has an output."""
    fair, level, rng = np.asarray([0.334, 0.333, 0.332997, 3e-6]), 1e-4, np.random.default_rng(5)
    number = bias_power.samples_to_tell(fair, np.asarray(other), level)

    def missed(samples: int) -> float:
        draws = [chi_square.compare(rng.multinomial(samples, other), fair).p >= level for _ in range(400)]
        return float(np.mean(draws))

    assert missed(number) <= 0.01
    assert missed(max(1, number // 3)) > 0.01


@pytest.mark.parametrize(
    "true, other", [([0.5, 0.5], [0.4, 0.6]), ([0.5, 0.3, 0.2], [0.5, 0.5, 0.0]), ([0.9, 0.1], [0.5, 0.5])]
)
def test_so_many_samples_make_the_truth_likelier(true: list[float], other: list[float]) -> None:
    p, q, rng = np.asarray(true), np.asarray(other), np.random.default_rng(6)
    number = bias_power.samples_to_prefer(p, q, 1e-4)

    def missed(samples: int) -> float:
        drawn = rng.multinomial(samples, p, size=1000)
        gained = [bias_power.likelihood(counts, p) - bias_power.likelihood(counts, q) for counts in drawn]
        return float(np.mean(np.asarray(gained) < math.log(1e4)))

    assert missed(number) <= 0.005
    assert missed(number // 3) > 0.005
    assert bias_power.samples_to_prefer(p, p, 1e-4) == bias_power.MOST_SAMPLES


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


def test_one_of_several_is_no_finding_where_one_of_them_is_known() -> None:
    def of(*fitting: str) -> Finding:
        return Finding(" or ".join(fitting), "", fitting=fitting)

    def left(*found: Finding) -> list[str]:
        return [each.name for each in findings.causes(found)]

    either = of(findings.TEMPERATURE_IGNORED, findings.TOP_P_IGNORED)
    assert left(either) == ["temperature ignored or top-p ignored"]
    assert left(either, Finding(findings.TOP_P_IGNORED, "")) == [findings.TOP_P_IGNORED]
    first = of(findings.TOP_P_FIRST, findings.TOP_P_IGNORED)
    assert left(Finding(findings.TEMPERATURE_IGNORED, ""), first) == [findings.TEMPERATURE_IGNORED], "it follows"
    assert left(either, Finding(findings.BIASED, "")) == [either.name, findings.BIASED]
    both = of(findings.TEMPERATURE_IGNORED, findings.GREEDY_ABOVE)
    assert left(both, Finding(findings.BIASED, "")) == [both.name], "it follows from whichever it is"


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


def test_explanations_are_those_that_differ() -> None:
    names = {each.name for each in explanations_of(Warping(1.0))}
    assert names == {findings.GREEDY_ABOVE, findings.DEFAULTS}
    names = {each.name for each in explanations_of(Warping(0.5, 3, 0.9, 0.1))}
    assert names == {
        findings.TEMPERATURE_IGNORED, findings.TOP_P_IGNORED, findings.TOP_P_FIRST, findings.TOP_K_IGNORED,
        findings.MIN_P_IGNORED, findings.GREEDY_ABOVE,
    }  # fmt: skip
    asked = Warping(0.5, top_p=0.9)
    defaults = [each for each in explanations_of(asked) if each.name == findings.DEFAULTS]
    assert [(each.sampled(asked), each.sentence) for each in defaults] == [
        (
            Warping(0.5, 40, 0.9, 0.05),
            "it samples with top-k 40 and min-p 0.05 where the request sets none, as llama.cpp does.",
        ),
        (Warping(0.5, 50, 0.9), "it samples with top-k 50 where the request sets none, as transformers does."),
    ]


def test_an_explanation_says_what_is_sampled_wherever_it_is_asked_for() -> None:
    by_name = {each.name: each.sampled for each in explanations_of(Warping(1.0, top_p=0.9))}
    assert by_name[findings.TOP_P_IGNORED](Warping(2.0, 7, 0.5)) == Warping(2.0, 7)
    assert by_name[findings.GREEDY_ABOVE](Warping(2.0)) == Warping(0.0)
    assert by_name[findings.GREEDY_ABOVE](Warping(0.5)) == Warping(0.5), "below where it was seen, it may sample"
    default = {each.sentence: each.sampled for each in explanations_of(Warping(1.0))}
    (llama,) = [sampled for sentence, sampled in default.items() if "llama.cpp" in sentence]
    assert llama(Warping(0.5, top_p=0.7)) == Warping(0.5, 40, 0.7, 0.05), "what a request sets, it obeys"


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

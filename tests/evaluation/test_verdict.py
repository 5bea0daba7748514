"""What a comparison says in words: which setting, how sure, and when not to speculate."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from helpers.comparisons import compared, made_up, record, settings
from specexp import config
from specexp.evaluation.report.comparison import Comparison
from specexp.evaluation.report.formatting import p_equals, plain, points
from specexp.evaluation.report.verdict import answers, speed, verdict

METHODS = "baseline,draft_only,speculative,topk"


def said(comparison: Comparison) -> list[str]:
    return [plain(sentence) for sentence in verdict(comparison)]


def with_seconds(factors: dict[str, float], methods: str = METHODS, num_prompts: int = 40, **more: Any) -> Comparison:
    """Each method's seconds are those of plain decoding times its factor, give or take a little."""
    rng = random.Random(1)
    experiment = replace(config.resolve("arith_quick"), methods=settings(methods), **more)
    by_label = {}
    for method in experiment.methods:
        by_label[method.label] = [
            {**record(rng, method, f"p{i}", 0, True), "correct": True,
             "seconds": factors.get(method.label, 1.0) * rng.uniform(0.9, 1.1)}
            for i in range(num_prompts)
        ]  # fmt: skip
    return compared(experiment, by_label, num_prompts)


def test_the_fastest_lossless_setting_is_named_with_its_gain_and_interval() -> None:
    first, *rest = said(with_seconds({"speculative": 0.5, "topk": 0.4}))
    assert first.startswith("Use speculative, which is lossless: it decodes at 2.0")
    assert "(95 %: 1.9" in first
    assert first.endswith("p < 0.001).")
    (lossy,) = [line for line in rest if line.startswith("Lossy")]
    assert lossy.startswith("Lossy, topk decodes at 2.")
    assert "1.2" in lossy, "what it adds to the lossless one"
    assert lossy.endswith("accuracy 100.0 %, as with plain decoding, on 40 graded prompts.")


def test_where_nothing_gains_one_should_not_speculate() -> None:
    first, *rest = said(with_seconds({"speculative": 1.4, "topk": 1.3}))
    assert first.startswith("Do not speculate: the fastest lossless setting, speculative, decodes at 0.7")
    assert not any("Use" in line for line in rest)
    first = said(with_seconds({"speculative": 1.4, "topk": 0.6}))[0]
    assert first.startswith(
        "Do not speculate, unless other outputs are acceptable: the fastest lossless setting, speculative"
    )


def test_the_draft_alone_is_never_recommended() -> None:
    fast = with_seconds({"draft_only": 0.1, "speculative": 1.2}, "baseline,draft_only,speculative")
    assert said(fast)[0].startswith("Do not speculate: ")


def test_a_gain_that_is_no_more_than_noise_is_called_so() -> None:
    first = said(with_seconds({"speculative": 0.99, "topk": 2.0}))[0]
    assert first.startswith("Perhaps speculative")
    assert "not significant at n = 40 (95 %: " in first
    few = said(with_seconds({"speculative": 0.5, "topk": 2.0}, num_prompts=3))
    assert "not significant at n = 3" in few[0]
    assert "p = 0.25" in few[0]
    assert any(line.startswith("n = 3: with fewer than 6 prompts") for line in few)


def test_settings_that_cannot_be_told_apart_are_named() -> None:
    methods = "baseline,speculative_k4,speculative_k8,specexec"
    close = said(with_seconds({"speculative_k4": 0.5, "speculative_k8": 0.501, "specexec": 0.9}, methods))
    (line,) = [line for line in close if line.startswith("Not significantly slower")]
    assert "speculative_k" in line
    assert "specexec" not in line
    clear = said(with_seconds({"speculative_k4": 0.5, "speculative_k8": 0.7, "specexec": 0.9}, methods))
    assert "Every other lossless setting is slower (p < 0.05 each)." in clear


def test_a_lossy_setting_that_loses_answers_gives_way_to_one_that_does_not() -> None:
    comparison = with_seconds({"speculative": 0.6, "topk_k8_top2": 0.5, "topk_k8_top4": 0.3, "baseline": 1.0},
                         "baseline,speculative,topk_k4,topk")  # fmt: skip
    entries = {entry.label: entry for entry in comparison.entries}
    for r in entries["topk"].records[:10]:
        r["correct"] = False
    records = {entry.label: list(entry.records) for entry in comparison.entries}
    for r in records["topk"]:
        r["seconds"] = 0.2
    for r in records["topk_k4"]:
        r["seconds"] = 0.4
    lossy = [line for line in said(compared(comparison.experiment, records, 40)) if "Lossy" in line]
    assert lossy[0].startswith("Lossy, topk_k4 decodes at ")
    # Alone, the one that loses stands there with its loss.
    del records["topk_k4"]
    alone = replace(comparison.experiment, methods=settings("baseline,speculative,topk"))
    (line,) = [line for line in said(compared(alone, records, 40)) if "Lossy" in line]
    assert "accuracy −25.0 points" in line
    assert ", significant at n = 40 (McNemar p = 0.002)" in line


def test_among_lossy_settings_a_loss_that_is_not_yet_significant_counts_too() -> None:
    comparison = with_seconds({"speculative": 0.6, "topk_k4": 0.5, "topk": 0.4}, "baseline,speculative,topk_k4,topk")
    records = {entry.label: list(entry.records) for entry in comparison.entries}
    for r in records["topk"][:2]:
        r["correct"] = False  # 5 points of 40 prompts, p = 0.5
    (line,) = [line for line in said(compared(comparison.experiment, records, 40)) if "Lossy" in line]
    assert line.startswith("Lossy, topk_k4 decodes at ")
    # Of such settings alone, the fastest.
    del records["topk_k4"]
    alone = replace(comparison.experiment, methods=settings("baseline,speculative,topk"))
    (line,) = [line for line in said(compared(alone, records, 40)) if "Lossy" in line]
    assert "accuracy −5.0 points" in line
    assert "not significant at n = 40 (McNemar p = 0.50)" in line


def test_without_plain_decoding_no_gain_is_told() -> None:
    (line,) = said(made_up(settings("speculative,topk"), 5))
    assert line.startswith("Plain decoding was not run, so the gain is unknown: add baseline to the methods.")
    assert "The fastest setting is topk at " in line


def test_plain_decoding_alone_is_no_comparison() -> None:
    (line,) = said(made_up(settings("baseline"), 5))
    assert line.startswith("No setting here speculates. Plain decoding emits 10 tokens a second")


def test_of_a_batch_the_interval_is_over_prompts_and_decides() -> None:
    fast = said(with_seconds({"speculative": 0.5, "topk": 2.0}, batch=4))[0]
    assert fast.startswith("Use speculative, which is lossless: it decodes at 2.0")
    assert "the speed of plain decoding in batches of 4 (95 %: 1.9" in fast
    assert fast.endswith(", over prompts, which share the steps that were timed).")
    assert "p " not in fast.partition("batches")[2].replace("prompts", "")
    vague = said(with_seconds({"speculative": 0.99, "topk": 2.0}, batch=4))[0]
    assert vague.startswith("Perhaps speculative")
    assert "not significant at n = 40" in vague
    one = said(with_seconds({"speculative": 0.5, "topk": 2.0}, num_prompts=1, batch=4))[0]
    assert one.startswith("Perhaps speculative")
    assert "(one prompt: no interval)" in one


def test_one_prompt_is_no_evidence_for_use() -> None:
    first = said(with_seconds({"speculative": 0.5, "topk": 2.0}, num_prompts=1))[0]
    assert first.startswith("Perhaps speculative")
    assert "(one prompt: no interval)" in first


def test_where_no_test_can_tell_settings_apart_intervals_do() -> None:
    methods = "baseline,speculative_k4,speculative_k8,specexec"
    few = said(with_seconds({"speculative_k4": 0.5, "speculative_k8": 0.501, "specexec": 4.3}, methods, num_prompts=5))
    assert "with fewer than 6 prompts" in " ".join(few).replace("fewer than 6 prompts cannot", "")
    (line,) = [line for line in few if line.startswith("Not significantly slower")]
    assert "speculative_k" in line
    assert "ratio 0." in line
    assert "specexec" not in line, "0.23x, and its interval far from 1"
    clear = said(with_seconds({"speculative_k4": 0.5, "speculative_k8": 0.9, "specexec": 4.3}, methods, num_prompts=5))
    assert "Every other lossless setting is slower (95 % intervals exclude 1; n = 5 is too few for the test)." in clear
    batched = said(with_seconds({"speculative_k4": 0.5, "speculative_k8": 0.9, "specexec": 4.3}, methods, batch=4))
    assert "Every other lossless setting is slower (95 % intervals exclude 1)." in batched


def test_few_prompts_are_said_to_be_too_few_for_the_test_where_the_interval_is_clear() -> None:
    first = said(with_seconds({"speculative": 0.5, "topk": 2.0}, num_prompts=3))[0]
    assert "p = 0.25; fewer than 6 prompts cannot give less than 0.05, but the interval excludes 1)" in first
    vague = said(with_seconds({"speculative": 0.99, "topk": 2.0}, num_prompts=3))[0]
    assert "excludes 1" not in vague


def test_answers_that_do_not_change_have_an_interval_all_the_same() -> None:
    comparison = with_seconds({"speculative": 0.6, "topk": 0.4}, num_prompts=40)
    (line,) = [line for line in said(comparison) if "Lossy" in line]
    assert "no answer changes from right to wrong or back (95 %: −8.8 to +8.8 points): accuracy 100.0 %" in line
    records = {entry.label: list(entry.records) for entry in comparison.entries}
    records["topk"][0]["correct"] = records["baseline"][1]["correct"] = False  # one lost, one gained
    (line,) = [line for line in said(compared(comparison.experiment, records, 40)) if "Lossy" in line]
    assert "accuracy 0.0 points (95 %: " in line
    assert "no answer changes" not in line


def test_ungraded_outputs_are_compared_where_they_can_be() -> None:
    greedy = made_up(settings(METHODS), 8, graded=False)
    topk = greedy.entries[3]
    assert plain(answers(greedy, topk)).startswith("no answers to grade; ")
    sampled = made_up(settings(METHODS), 8, graded=False, temperature=0.7)
    assert "what it costs is not known" in plain(answers(sampled, sampled.entries[3]))
    assert said(sampled)


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_a_handful_of_prompts_is_enough_for_words(num_prompts: int) -> None:
    comparison = made_up(settings(METHODS), num_prompts)
    text = " ".join([*said(comparison), *(plain(speed(comparison, entry)) for entry in comparison.entries[1:])])
    assert "nan" not in text.lower()
    assert "None" not in text
    assert ("no interval" in text) == (num_prompts == 1)


def test_numbers_read_as_they_are() -> None:
    assert [points(x) for x in (0.0, -0.0, -0.0004, 0.012, -0.25)] == ["0.0", "0.0", "0.0", "+1.2", "−25.0"]
    assert [p_equals(x) for x in (1.0, 0.62, 0.0417, 0.0004)] == ["p = 1.00", "p = 0.62", "p = 0.042", "p < 0.001"]

"""One answer to whether a method is lossless, over all methods and settings; and what every method's facts say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.cli_runner import evaluate, flat_runs, run
from helpers.judges import random_network
from specexp.config import MethodConfig
from specexp.decoding.rules import Warp
from specexp.judge.judge import Facts, Judge
from specexp.method_specs import specs
from specexp.methods import effective_threshold, is_lossless

WARPS = {
    "greedy": Warp(), "T = 0.7": Warp(0.7), "T = 0.7, top-k 1": Warp(0.7, top_k=1),
    "T = 1, top-k 2, top-p 0.9": Warp(1.0, 2, 0.9), "top-k 1, greedy": Warp(0.0, 1),
}  # fmt: skip
ONE_HOT = {"greedy", "T = 0.7, top-k 1", "top-k 1, greedy"}


def judge(threshold: float) -> Judge:
    return Judge(random_network("logistic", 2), Facts("", "", "", "both", 1, 2, threshold=threshold))


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("method", ["baseline", "speculative", "lookup", "specexec"])
def test_what_never_accepts_anything_else_is_lossless(method: str, name: str) -> None:
    assert is_lossless(MethodConfig(method, method, method), WARPS[name])


@pytest.mark.parametrize("name", WARPS)
def test_the_draft_alone_never_is(name: str) -> None:
    assert not is_lossless(MethodConfig("draft_only", "draft_only", "x"), WARPS[name])


@pytest.mark.parametrize("accept_k", [1, 2, 5])
@pytest.mark.parametrize("name", WARPS)
def test_top_k_is_where_the_best_token_is_the_whole_distribution(name: str, accept_k: int) -> None:
    method = MethodConfig("topk", "topk", "x", accept_k=accept_k)
    assert is_lossless(method, WARPS[name]) == (accept_k == 1 and name in ONE_HOT)


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("given,own,threshold", [
    (0.0, None, 0.0), (0.0, 0.4, 0.0), (0.3, 0.0, 0.3), (None, 0.0, 0.0), (None, 0.4, 0.4), (None, None, None),
])  # fmt: skip
def test_autojudge_is_at_threshold_0_wherever_that_comes_from(
    name: str, given: float | None, own: float | None, threshold: float | None
) -> None:
    method, made = MethodConfig("autojudge", "autojudge", "x", threshold=given), None if own is None else judge(own)
    assert effective_threshold(method, made) == threshold
    assert is_lossless(method, WARPS[name], made) == (threshold == 0)


@pytest.mark.slow
@pytest.mark.parametrize("accept_k", [1, 2])
def test_report_tag_token_view_and_certificate_agree(workplace: Path, accept_k: int) -> None:
    """Top-K with K = 1 and top-k 1 at a temperature: the target's only token is accepted and no other."""
    settings = ["--experiment", "toy_quick", "--limit", "2", "--temperature", "0.7", "--top-k", "1", "--gamma", "2",
                "--accept-k", str(accept_k)]  # fmt: skip
    assert evaluate(*settings, "--methods", "baseline,topk", "--output", "out").exit_code == 0
    (label,) = flat_runs().keys() - {"baseline"}
    page = json.loads((workplace / "out" / "tokens.json").read_text())
    shown = {method["label"]: method["lossless"] for method in page["methods"]}
    lossless = accept_k == 1
    assert flat_runs()[label].data.tags["lossless"] == str(lossless).lower()
    assert shown[label] == lossless
    certificate = run("certify", *settings, "--method", "topk", "--output", "certificate")
    assert certificate.exit_code == (0 if lossless else 1), certificate.output


def test_every_setting_of_a_method_is_one_that_can_be_given() -> None:
    from specexp.config.schema import SETTINGS

    assert {setting for spec in specs().values() for setting in spec.settings} <= SETTINGS.keys()
    assert all(spec.summary.endswith(".") for spec in specs().values())

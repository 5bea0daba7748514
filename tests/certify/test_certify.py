"""Certificates: every lossless method passes; lossy methods and decoders with a planted bug fail, where it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from mlflow.tracking import MlflowClient

from entrypoints import certify as entry
from helpers.cli_runner import evaluate, flat_runs, invoke, refused, runs
from helpers.judges import judge_for
from specexp.certify import certificate, own_models, sampled
from specexp.decoding import chain, specexec
from specexp.judge import features
from specexp.lm.toy import ToySession

TOY = ["--experiment", "toy_quick", "--limit", "3", "--max-new-tokens", "24", "--output", "out"]
SAMPLED = ["--temperature", "0.8", "--samples", "600"]
ZOO = ["--limit", "2", "--max-new-tokens", "24", "--output", "out"]
ORACLE, PLAIN, EQUAL, INVARIANCE, SAMPLES = certificate.NAMES
OTHERS = dict.fromkeys((INVARIANCE, SAMPLES), "does not apply")  # of greedy decoding on the toy pair


def certify(*arguments: str) -> Result:
    return invoke(entry.command, *arguments)


def written(folder: Path = Path("out")) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return content


def verdicts() -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in written()["checks"]}


def certificate_runs() -> list[Any]:
    return [run for run in runs() if run.data.tags["method"] == "certify"]


LOSSLESS = [
    "baseline",
    "speculative",
    "speculative_auto",
    "speculative_block",
    "lookup",
    "suffix",
    "chained",
    "specexec",
]


@pytest.mark.at_most(slow=4)
@pytest.mark.slow
@pytest.mark.parametrize("method", LOSSLESS)
@pytest.mark.parametrize("sampling", [[], SAMPLED], ids=["greedy", "sampled"])
def test_lossless_methods_pass(workplace: Path, method: str, sampling: list[str]) -> None:
    gamma = {"baseline": [], "speculative_auto": ["--gamma", "auto"]}.get(method, ["--gamma", "3"])
    result = certify("--method", method, *TOY, *sampling, *gamma)
    assert result.exit_code == 0, result.output
    checks = verdicts()
    assert checks.pop(ORACLE) == checks.pop(PLAIN) == "passed"
    same_draws = method == "specexec" or not sampling
    assert checks == {
        EQUAL: "passed" if same_draws and method != "baseline" else "does not apply",
        INVARIANCE: "does not apply",
        SAMPLES: "passed" if sampling else "does not apply",
    }
    metrics = written()["metrics"]
    assert metrics["certificate/lossless"] == 1
    assert metrics["certificate/oracle_gap"] < 1e-12
    if sampling:
        assert metrics["certificate/control_p"] < sampled.LEVEL <= metrics["certificate/chi_square_p"]
    (run,) = certificate_runs()
    # In a run of ten seconds and more MLflow samples the machine.
    logged = {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}
    assert logged == pytest.approx(metrics)
    assert run.data.tags["certificate"] == "lossless"


def test_a_methods_finished_runs_are_tagged_and_others_are_not(workplace: Path) -> None:
    arguments = ["--experiment", "toy_quick", "--limit", "3", "--methods", "baseline,speculative,topk"]
    assert evaluate(*arguments, "--gamma", "2,3", "--output", "evaluated").exit_code == 0
    result = certify("--method", "speculative", "--gamma", "3", *TOY)
    assert "1 finished run of `evaluate` has these settings: tagged certificate = lossless" in result.output
    tagged = {name for name, run in flat_runs().items() if "certificate" in run.data.tags}
    assert tagged == {"speculative_k3"} | {run.info.run_name for run in certificate_runs()}
    assert flat_runs()["speculative_k3"].data.metrics["certificate/lossless"] == 1


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("method,reason", [("topk", "2 likeliest tokens"), ("draft_only", "the draft model alone")])
@pytest.mark.parametrize("sampling", [[], SAMPLED], ids=["greedy", "sampled"])
def test_lossy_methods_fail_and_it_is_said_why(workplace: Path, method: str, reason: str, sampling: list[str]) -> None:
    result = certify("--method", method, *TOY, *sampling, *(["--gamma", "3"] if method == "topk" else []))
    assert result.exit_code == 1, result.output
    assert "NOT LOSSLESS" in result.output
    assert reason in written()["lossy_by_design"]
    checks = verdicts()
    assert checks[ORACLE] == "failed"
    assert checks[SAMPLES if sampling else EQUAL] == "failed"
    assert checks[PLAIN] == "passed", "plain decoding has nothing to do with it"


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_for("arith_quick", features.mode("target"))
    monkeypatch.setattr(entry, "judges_of", lambda resolved: {resolved.methods[-1].judge: judge})


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("threshold,code", [("0.6", 1), ("0", 0)])
def test_autojudge_fails_and_is_lossless_at_threshold_0(
    workplace: Path, judged: None, threshold: str, code: int
) -> None:
    arguments = ["--method", "autojudge", "--judge", "models:/made-up/1", "--threshold", threshold, "--gamma", "4"]
    result = certify(*arguments, *ZOO)
    assert result.exit_code == code, result.output
    if code:
        assert "AutoJudge also accepts mismatches" in written()["lossy_by_design"]
        assert verdicts()[EQUAL] == "failed"
        assert "which is not a near tie" in " ".join(result.output.split())


def planted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, changed: Callable[..., Any]) -> None:
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: changed(real, *arguments))


@pytest.mark.slow
def test_a_residual_that_is_left_out_fails_where_tokens_are_drawn(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rejection the target's row is drawn from as it is: likely tokens, wrong shares."""

    def from_whole_rows(
        verify: Any, p: Any, q: Any, drafted: Any, accepted_anyway: Any, rng: Any, position: int, num_drafted: Any
    ) -> Any:
        class Whole:
            accept_prefix = staticmethod(rng.accept_prefix)
            target_draws = staticmethod(rng.target_draws)

            def sample_next(self, weights: Any, position: int, num_accepted: Any, num_drafted: int) -> Any:
                return rng.sample_next(p[int(num_accepted)], position, num_accepted, num_drafted)

        return verify(p, q, drafted, accepted_anyway, Whole(), position, num_drafted)

    planted(monkeypatch, chain, "verify", from_whole_rows)
    result = certify("--method", "speculative", "--gamma", "3", *TOY, "--temperature", "0.8", "--samples", "800")
    assert result.exit_code == 1, result.output
    assert written()["lossy_by_design"] == ""
    checks = verdicts()
    assert (checks[ORACLE], checks[SAMPLES]) == ("failed", "failed")
    assert "do not follow the target's distribution" in " ".join(result.output.split())


def test_a_bug_that_only_a_persons_own_models_show_fails(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens from 12 on are always accepted: the oracle's models have three."""

    def waves_through(verify: Any, logits: Any, drafted: Any, accepted_anyway: Any, num_drafted: Any) -> Any:
        return verify(logits, drafted, drafted >= 12, num_drafted)

    planted(monkeypatch, chain, "verify_greedy", waves_through)
    result = certify("--method", "speculative", "--gamma", "3", *TOY)
    assert result.exit_code == 1, result.output
    assert verdicts() == {ORACLE: "passed", PLAIN: "passed", EQUAL: "failed", **OTHERS}
    first = next(check for check in written()["checks"] if check["name"] == EQUAL)["details"]["differences"][0]
    assert first["token"] >= 12
    assert first["near_tie"] is False
    assert first["gap"] > 1e-3


def test_plain_decoding_is_checked_against_one_forward_over_the_whole_text(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single tokens behind a long cache come out wrong: no method that is compared with plain decoding would tell."""
    real = ToySession.feed

    def feed(self: ToySession, tokens: Any, rows: int, *more: Any) -> Any:
        logits, states = real(self, tokens, rows, *more)
        return (logits[:, ::-1] if len(tokens) == 1 and self.length > 15 else logits), states

    monkeypatch.setattr(ToySession, "feed", feed)
    result = certify("--method", "baseline", *TOY)
    assert result.exit_code == 1, result.output
    assert verdicts() == {ORACLE: "passed", PLAIN: "failed", EQUAL: "does not apply", **OTHERS}


def test_a_decoder_that_breaks_off_fails(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise IndexError("node 7 of 3")

    monkeypatch.setattr(specexec.SpecExec, "steps", breaks)
    result = certify("--method", "specexec", "--gamma", "3", *TOY)
    assert result.exit_code == 1
    assert "the decoder failed" in result.output
    assert "IndexError: node 7 of 3" in result.output
    assert "Traceback" not in result.output


@pytest.mark.nightly
def test_too_few_samples_to_tell_is_inconclusive_and_says_how_many_would_do(workplace: Path) -> None:
    result = certify("--method", "speculative", "--gamma", "3", *TOY, "--temperature", "0.4", "--samples", "100")
    assert result.exit_code == 1, result.output
    assert written()["verdict"] == "inconclusive"
    number = next(word for word in result.output.replace("\n", " ").split() if word.startswith("samples=")).strip(".")
    enough = ["--samples", number.removeprefix("samples="), "--output", "more"]
    assert certify("--method", "speculative", "--gamma", "3", *TOY[:-2], "--temperature", "0.4", *enough).exit_code == 0


@pytest.mark.slow
def test_an_interrupted_certificate_goes_on_behind_its_checks(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--method", "specexec", "--gamma", "3", *TOY, *SAMPLED]
    with monkeypatch.context() as patch:

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(sampled, "check_samples", dies)
        assert certify(*arguments).exit_code == 130
    assert certify(*arguments).exit_code == 2, "the folder is there: it takes --resume"
    with monkeypatch.context() as patch:
        for module, name in ((certificate, "check_oracle"), (own_models, "check_equality")):
            patch.setattr(module, name, dies)
        assert certify(*arguments, "--resume").exit_code == 0
    assert list(verdicts().values()) == ["passed"] * 3 + ["does not apply", "passed"]
    assert certify(*arguments, "--resume").exit_code == 0
    assert [run.info.status for run in certificate_runs()].count("FINISHED") == 1


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--method", "baseline,topk"], "method is 'baseline,topk'; a certificate covers one method: name one preset."),
        (["--method", "speculative", "--gamma", "2,3"], "a certificate covers one: give one value of gamma"),
        (["--method", "speculativ", "--gamma", ""], "did you mean 'speculative'?"),
        (["--samples", "12", "--temperature", "1"], "samples is '12'; it must be a whole number >= 100."),
        (["--samples", "500"], "samples is 500, but temperature is 0: nothing is sampled; leave it out."),
    ],
)
def test_bad_inputs_are_refused(workplace: Path, arguments: list[str], message: str) -> None:
    refused(certify("--experiment", "toy_quick", "--gamma", "3", *arguments, "--output", "out"), message, workplace)


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("sampling", [[], ["--temperature", "0.7"]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", ["baseline", "speculative", "lookup", "specexec"])
def test_lossless_methods_pass_on_the_embedded_pair(workplace: Path, method: str, sampling: list[str]) -> None:
    result = certify("--method", method, "--limit", "4", "--output", "out", *sampling)
    assert result.exit_code == 0, result.output
    (run,) = certificate_runs()
    files = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert {"certificate.json", "config.json", "environments.json"} <= files

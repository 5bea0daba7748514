"""Whole certificates of an engine without a server, each with one bug that is planted: it is found, and named.

False alarms: all statistical tests of a certificate together reject a right engine with a probability of 1e-4; every
draw here has a fixed seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entrypoints.certify import command
from helpers.cli_runner import invoke, runs
from helpers.toy_engine import ToyEngineClient
from specexp.engine_certify import engine_subject, findings

BASE = ["--experiment", "toy_quick", "--engine-model", "m", "--engine-dtype", "float64", "--output", "out"]
SMALL = ["--limit", "12", "--max-new-tokens", "40"]
WEIGHTS = ["--weights", "true"]
PLAIN = ["--against", "http://none-0/v1"]
# Each bug with its amount, and the names of what must be found, and nothing else.
PLANTED: dict[str, set[str]] = {
    "none": set(),
    "temperature_dropped": {findings.TEMPERATURE_IGNORED},
    "top_p_first": {findings.TOP_P_FIRST},
    "top_p_ignored": {findings.TOP_P_IGNORED},
    "top_k_ignored": {findings.TOP_K_IGNORED},
    "min_p_ignored": {findings.MIN_P_IGNORED},
    "greedy_above-0.7": {findings.GREEDY_ABOVE},
    "bias-0.15": {findings.BIASED},
    "bias-0.2": {findings.BIASED},
    "token_replaced-25": {findings.TOKENS_REPLACED},
    "seed_ignored": {findings.SEED_IGNORED},
    "acceptance_doubled": {findings.COUNTS_FALSE},
    "eos_swallowed": {findings.EOS_SWALLOWED},
    "stop_leaked": {findings.STOP_LEAKED},
    "stop_ignored": {findings.STOP_IGNORED},
    "limit_exceeded": {findings.LIMIT_EXCEEDED},
    "logit_bias_ignored": {findings.BIAS_IGNORED},
    "random_when_greedy": {findings.NOT_PLAIN, findings.NOT_DETERMINISTIC},
}


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> list[ToyEngineClient]:
    made: list[ToyEngineClient] = []

    def client(endpoint: Any) -> ToyEngineClient:
        made.append(ToyEngineClient(endpoint))
        return made[-1]

    monkeypatch.setattr(engine_subject, "EngineClient", client)
    return made


def certify(bug: str, *arguments: str) -> Any:
    return invoke(command, "--engine", f"http://{bug.replace('_', '.')}/v1", *BASE, *SMALL, *arguments)


def written() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path("out/certificate.json").read_text())
    return result


def found() -> set[str]:
    return {each["name"] for each in written()["findings"]}


def examined(bug: str, clients: list[ToyEngineClient], *arguments: str) -> None:
    """Certify an engine with this bug: what is found is the bug, by its name, and nothing else."""
    result = certify(bug, "--samples", "1000", *arguments)
    assert found() == PLANTED[bug], result.output
    assert written()["verdict"] == ("failed" if PLANTED[bug] else "passed"), result.output
    assert result.exit_code == (1 if PLANTED[bug] else 0), result.output
    counted = ("bias", "token", "seed", "acceptance", "eos", "stop_leaked")
    assert clients[0].num_planted > 0 or not bug.startswith(counted)


@pytest.mark.at_most(slow=10)
@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_and_named(workplace: Path, clients: list[ToyEngineClient], bug: str) -> None:
    examined(bug, clients, *PLAIN, *WEIGHTS)


@pytest.mark.nightly
@pytest.mark.parametrize("bug", PLANTED)
def test_so_it_is_with_weights_alone(workplace: Path, clients: list[ToyEngineClient], bug: str) -> None:
    examined(bug, clients, *WEIGHTS)


@pytest.mark.slow
def test_without_an_end_that_is_known_samples_are_inconclusive(workplace: Path) -> None:
    """A sample that ends would else be taken for one that goes on after the token that ended it."""
    result = certify("none", *PLAIN, "--limit", "2", "--samples", "300", "--bias", "0.4")
    assert result.exit_code == 1, result.output
    assert written()["findings"] == []
    verdicts = {check["name"]: check["verdict"] for check in written()["checks"]}
    assert {verdicts[name] for name in ("samples", "temperature", "top-p", "top-k")} == {"inconclusive"}
    assert "it is not known which token ends an output" in " ".join(result.output.split())


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["0.05", "0.1"])
def test_a_small_bias_is_found_with_as_many_samples_as_announced(
    workplace: Path, clients: list[ToyEngineClient], bias: str
) -> None:
    result = certify(f"bias-{bias}", "--bias", bias, *WEIGHTS)
    assert found() == {findings.BIASED}, result.output
    numbers = {check["name"]: check["numbers"] for check in written()["checks"]}["samples"]
    assert numbers["samples"] == numbers["needed"]
    assert f"{numbers['needed']:,} outputs are needed at each of 2 places" in result.output
    assert clients[0].num_planted > 0


@pytest.mark.slow
def test_with_fewer_samples_than_announced_it_is_inconclusive(workplace: Path, clients: list[ToyEngineClient]) -> None:
    result = certify("none", "--bias", "0.05", "--samples", "200", *WEIGHTS)
    assert result.exit_code == 1
    assert written()["verdict"] == "inconclusive"
    (check,) = [each for each in written()["checks"] if each["name"] == "samples"]
    assert check["verdict"] == "inconclusive"
    assert "a bias of 0.05 needs" in check["sentence"]
    assert found() == set()


@pytest.mark.slow
def test_text_alone_is_turned_into_tokens(workplace: Path, clients: list[ToyEngineClient]) -> None:
    """A server that gives no ids, takes no prompts of ids and has no log-probabilities, by the weights."""
    result = certify("none-0-ids", "--samples", "1000", *WEIGHTS)
    assert result.exit_code == 0, result.output
    assert "prompts are sent as text; the server gives text, but no token ids and no log-probabilities" in result.output
    result = certify("bias-0.2-ids", "--samples", "1000", *WEIGHTS, "--output", "biased")
    assert json.loads(Path("biased/certificate.json").read_text())["findings"][0]["name"] == findings.BIASED


@pytest.mark.slow
def test_an_interrupted_certificate_asks_for_the_rest_only(
    workplace: Path, clients: list[ToyEngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [*WEIGHTS, "--samples", "300", "--bias", "0.4"]
    assert certify("none", *whole, "--output", "whole").exit_code == 0
    real, left = ToyEngineClient.ask, iter(range(300))

    def dies(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ToyEngineClient, "ask", dies)
    assert certify("none", *whole).exit_code == 130
    monkeypatch.setattr(ToyEngineClient, "ask", real)
    before = len(Path("out/progress.jsonl").read_text().splitlines())
    assert before > 200
    assert certify("none", *whole, "--resume").exit_code == 0
    both = [json.loads(Path(name, "certificate.json").read_text()) for name in ("out", "whole")]
    assert both[0]["checks"] == both[1]["checks"]
    again = certify("none", *whole, "--resume")
    assert again.exit_code == 0
    assert len([run for run in runs() if run.data.tags.get("certificate") == "passed"]) == 2


def test_a_server_that_fails_under_load_is_examined_without(workplace: Path) -> None:
    """A failed check, not the end of the certificate; what comes next is asked one request at a time."""
    result = certify("cut_off", *PLAIN, "--temperature", "0", "--limit", "2", "--max-new-tokens", "6")
    assert result.exit_code == 1, result.output
    verdicts = {check["name"]: check["verdict"] for check in written()["checks"]}
    assert found() == {findings.FAILS_UNDER_LOAD}, result.output
    assert (verdicts["load"], verdicts["max_tokens"], verdicts["plain endpoint"]) == ("failed", "passed", "passed")
    (load,) = [check for check in written()["checks"] if check["name"] == "load"]
    assert (
        "an answer with 16 requests in flight fails, where the request alone is answered: the stream"
        in load["sentence"]
    )
    assert "engine:against: 32 of 32 answers" in load["sentence"]


def test_a_server_that_dies_of_load_ends_the_certificate(workplace: Path) -> None:
    result = certify("dies_of_load", "--weights", "true", "--temperature", "0", "--limit", "2", "--max-new-tokens", "6")
    assert result.exit_code == 2, result.output
    assert "the stream ended in the middle of the output" in result.output
    assert not Path("out/certificate.json").exists()


def test_a_greedy_certificate_needs_no_samples(workplace: Path) -> None:
    result = certify("none", *PLAIN, "--temperature", "0", "--limit", "2", "--max-new-tokens", "6")
    assert result.exit_code == 0, result.output
    verdicts = {check["name"]: check["verdict"] for check in written()["checks"]}
    assert {verdicts[name] for name in ("samples", "seed", "temperature", "top-p")} == {"does not apply"}
    assert "Certificate: passed" in Path("out/certificate.html").read_text()
    (run,) = runs()
    assert run.data.tags["certificate"] == "passed"
    assert run.data.metrics["certificate/equal_share"] == 1
    assert run.data.params["against.url"] == "http://none-0/v1"

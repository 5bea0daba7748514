"""Certificates of servers of others, on the embedded pair: llama.cpp's own server, and `transformers serve`.

Both compute in float32, so that the weights tell what they must emit. llama.cpp applies the temperature last, unless a
request names another order. `transformers serve` gives text alone, samples only where a request's `generation_config`
says so, and has two faults in every certificate.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrypoints.certify import command
from helpers.clean_runs import clean_runs
from helpers.cli_runner import invoke
from helpers.gguf_file import write
from helpers.llama_server import MODEL, llama_serving
from helpers.transformers_serve import TARGET, transformers_serving
from specexp.engine_certify import findings

ZOO = TARGET.parent
# It accepts stop strings, and leaves them in the text; it accepts logit_bias, and does not look at it.
FAULTS = {findings.STOP_LEAKED, findings.BIAS_IGNORED}
ORDER = {"samplers": ["temperature", "min_p", "top_k", "top_p"]}
SMALL = ["--limit", "3", "--max-new-tokens", "16"]
# Places at which all but min-p, which would take most of the time, are told by about a hundred samples.
QUICK = ("--limit", "6", "--max-new-tokens", "60")
SAMPLED, GREEDY = ("--bias", "0.4"), ("--temperature", "0")
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="openai is not installed; make test-served runs this"
)
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
    reason="xllamacpp or gguf is not installed; make test-served runs this",
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of llama.cpp's server without a draft, and with the embedded pair's."""
    folder = tmp_path_factory.mktemp("llama")
    for name in ("target", "draft"):
        write(ZOO / name, folder / f"{name}.gguf")
    target, draft = folder / "target.gguf", folder / "draft.gguf"
    with llama_serving(folder, target) as plain, llama_serving(folder, target, draft) as drafting:
        yield plain, drafting


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The setting `engine` of transformers' server, which samples."""
    with transformers_serving(tmp_path_factory.mktemp("transformers")) as server:
        eos = json.loads((TARGET / "config.json").read_text())["eos_token_id"]
        sampling = json.dumps({"do_sample": True, "top_k": 0, "eos_token_id": eos})
        yield {"model": server.model, "url": server.url, "request": {"generation_config": sampling}}


def certified(folder: Path, arguments: list[str]) -> tuple[dict[str, Any], str]:
    """The certificate of an engine, and what was printed."""
    result = invoke(command, "--pair", "embedded", "--engine-dtype", "float32", "--output", str(folder), *arguments)
    assert result.exit_code in (0, 1), result.output
    content: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return content, result.output


def of_llama(
    folder: Path, llama: tuple[str, str], *arguments: str, request: dict[str, Any] = ORDER
) -> tuple[dict[str, Any], str]:
    plain, drafting = llama
    methods = {"plain": {"url": plain}, "draft": {"url": drafting}}
    given = {"engine": {"model": MODEL, "request": request, "methods": methods}}
    Path("mine.yaml").write_text(yaml.safe_dump(given))
    own = ["--config", "mine.yaml", "--engine", "draft", "--against", "plain"]
    return certified(folder, [*own, *SMALL, *arguments])


def of_transformers(folder: Path, engine: dict[str, Any], *arguments: str) -> tuple[dict[str, Any], str]:
    Path("mine.yaml").write_text(yaml.safe_dump({"engine": engine}))
    return certified(folder, ["--config", "mine.yaml", "--engine", "served", *SMALL, *arguments])


def verdicts_of(content: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in content["checks"]}


def named(content: dict[str, Any]) -> set[str]:
    return {each["name"] for each in content["findings"]}


@needs_llama
@pytest.mark.slow
def test_llama_cpps_greedy_outputs_are_exact_with_a_draft_model(workplace: Path, llama: tuple[str, str]) -> None:
    """Ids of accepted drafts come too, and its /metrics say how many rounds there were."""
    content, output = of_llama(workplace / "out", llama, *GREEDY)
    assert content["verdict"] == "passed", output
    assert all("the server gives text and token ids" in said for said in content["compared"][:2])
    by_name = {check["name"]: check for check in content["checks"]}
    assert by_name["plain endpoint"]["numbers"]["equal"] == 3
    assert "3 of 3 greedy outputs" in by_name["plain endpoint"]["sentence"]
    assert "by token ids" in by_name["plain endpoint"]["sentence"]
    assert by_name["draft counts"]["verdict"] == "passed"
    assert "by llama.cpp /metrics" in by_name["draft counts"]["sentence"]
    assert by_name["logit_bias"]["verdict"] == by_name["stop strings"]["verdict"] == "passed"


@needs_llama
@pytest.mark.nightly
def test_llama_cpp_passes_with_sampled_drafts(workplace: Path, llama: tuple[str, str]) -> None:
    content, output = of_llama(workplace / "out", llama, *SAMPLED)
    assert named(content) == set(), output
    verdicts = verdicts_of(content)
    assert {verdicts[name] for name in ("samples", "temperature", "top-p", "top-k", "seed")} == {"passed"}, output


@needs_llama
@pytest.mark.nightly
def test_llama_cpps_own_order_is_named_and_is_no_matter_of_speculation(workplace: Path, llama: tuple[str, str]) -> None:
    content, output = of_llama(workplace / "out", llama, *SAMPLED, request={})
    assert named(content) == {findings.TOP_P_FIRST}, output
    assert content["findings"][0]["plain_too"]


@needs_openai
@pytest.mark.nightly
def test_what_transformers_serve_does_not_obey_is_named(workplace: Path, transformers: dict[str, Any]) -> None:
    content, output = of_transformers(workplace / "out", transformers, *SAMPLED)
    assert named(content) == FAULTS, output
    verdicts = verdicts_of(content)
    assert {verdicts[name] for name in ("weights", "repeat", "load", "samples", "temperature", "top-p")} == {"passed"}
    assert {verdicts[name] for name in ("top-k", "min-p")} == {"does not apply"}, "it refuses them"


@needs_openai
@pytest.mark.nightly
def test_transformers_serve_is_greedy_where_no_request_says_otherwise(
    workplace: Path, transformers: dict[str, Any]
) -> None:
    silent = {name: value for name, value in transformers.items() if name != "request"}
    content, output = of_transformers(workplace / "out", silent, *SAMPLED)
    assert named(content) == {*FAULTS, findings.GREEDY_ABOVE}, output


@needs_llama
@pytest.mark.nightly
def test_no_false_alarm_in_clean_runs_of_llama_cpp(
    workplace: Path, llama: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        alarms = clean_runs(
            "llama.cpp's server", lambda path, seed: of_llama(path, llama, *SAMPLED, *QUICK, "--seed", seed)[0]
        )
    assert not alarms


@needs_openai
@pytest.mark.nightly
def test_no_false_alarm_in_clean_runs_of_transformers_serve(
    workplace: Path, transformers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        alarms = clean_runs(
            "transformers serve",
            lambda path, seed: of_transformers(path, transformers, *SAMPLED, "--seed", seed)[0],
            FAULTS,
        )
    assert not alarms

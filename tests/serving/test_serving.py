"""A served decoder: the Python door's tokens for every form of request, a reason for every bad one, its own weights."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from mlflow.pyfunc import scoring_server
from mlflow.tracking import MlflowClient
from pandas import DataFrame

import specexp
from entrypoints import log_decoder
from helpers.cli_runner import tiny
from helpers.judges import judge_for
from helpers.model_folders import build
from helpers.serving_process import BAD, GOOD_FORMS, JSON, one
from specexp.config import single
from specexp.engine import Engine, Generation, Request
from specexp.errors import ModelError, PromptError, RequestError
from specexp.judge import features
from specexp.lm.hf import source
from specexp.pair.tokenization import TokenizerText
from specexp.serving import requests
from specexp.serving.batcher import Batcher
from specexp.serving.decoder_spec import Reference, ServedDecoder, make_decoder_spec
from specexp.serving.tokenizers import LONG, Texts
from specexp.tasks.task import task

PROMPTS = [example.turns[0] for example in task("arith").examples(4)]
SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_k": 5, "seed": 4},
    {"temperature": 1.0, "top_p": 0.8, "max_new_tokens": 12},
    {"min_new_tokens": 150},
    {"max_new_tokens": 90, "ignore_eos": True},
    {"stop": ["\n#### ", "no such"]},
    {"stop": ["is"], "temperature": 1.0, "seed": 3},
]


def log(*arguments: str) -> Result:
    return CliRunner().invoke(log_decoder.command, list(arguments))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """A store with `decoder` version 1, of the embedded pair."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.setattr(sys, "path", [*sys.path])  # MLflow puts a model's code before it
        result = log("--method", "speculative", "--gamma", "4")
        assert result.exit_code == 0, result.output
        assert "serve it: mlflow models serve -m models:/decoder/1 --env-manager local" in result.output
        yield folder


@pytest.fixture(scope="module")
def model(store: Path) -> Any:
    return mlflow.pyfunc.load_model("models:/decoder/1")


@pytest.fixture(scope="module")
def pair() -> specexp.LoadedPair:
    return specexp.load("arith_quick", gamma=4)


def row(out: specexp.Output) -> dict[str, Any]:
    return {
        "text": out.text,
        "num_tokens": len(out.token_ids),
        "target_calls": out.counts["num_target_calls"],
        "tokens_per_call": out.tokens_per_call,
        "finish_reason": out.finish_reason,
    }


@pytest.mark.at_most(fast=3)
@pytest.mark.parametrize("params", SAMPLING, ids=str)
def test_it_answers_as_the_python_door_does(model: Any, pair: specexp.LoadedPair, params: dict[str, Any]) -> None:
    expected = [row(pair.generate(prompt, **params)) for prompt in PROMPTS]
    for given in (DataFrame({"prompt": PROMPTS}), [{"prompt": p} for p in PROMPTS], {"prompt": PROMPTS}):
        answer = model.predict(given, params=params)
        assert answer.to_dict("records") == expected
    assert model.predict({"prompt": PROMPTS[0]}, params=params).to_dict("records") == expected[:1]


@pytest.fixture
def serve(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the scoring server does with a body: (status, answer)."""
    from specexp.serving import pyfunc

    monkeypatch.setattr(scoring_server, "invocations", scoring_server.invocations)  # to have it back afterwards
    pyfunc.insist(model.unwrap_python_model()._decoder.most_bytes)

    def ask(body: bytes, content_type: str | None = JSON) -> tuple[int, str]:
        schema = model.metadata.get_input_schema()
        try:
            response = scoring_server.invocations(body, content_type, model, schema)
        except mlflow.MlflowException as error:
            return error.get_http_status_code(), error.message
        return response.status, response.response

    return ask


@pytest.mark.parametrize(
    "params", [{}, {"stop": ["is", "no such"]}, {"max_new_tokens": 40, "ignore_eos": True}], ids=str
)
def test_a_stream_is_the_answer_in_pieces(model: Any, pair: specexp.LoadedPair, params: dict[str, Any]) -> None:
    expected = row(pair.generate(PROMPTS[0], **params))
    *pieces, last = model.predict_stream({"prompt": PROMPTS[0]}, params=params)
    assert {"text": "".join(piece["text"] for piece in pieces), **last} == expected
    assert len(pieces) > 1
    assert not any(each in expected["text"] for each in params.get("stop", ()))


def test_a_stream_is_of_one_prompt_and_says_what_is_wrong(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mlflow.MlflowException, match="2 prompts are given; one is streamed at a time: send one"):
        list(model.predict_stream({"prompt": PROMPTS[:2]}))
    with pytest.raises(mlflow.MlflowException, match=r"top_p is 2\.0; it must be a number in \(0, 1\]"):
        list(model.predict_stream({"prompt": PROMPTS[0]}, params={"top_p": 2.0}))
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate_all", lambda engine, requests: next(iter(requests)) and iter([1 / 0]))
        with pytest.raises(mlflow.MlflowException, match="decoding failed: ZeroDivisionError"):
            list(model.predict_stream({"prompt": PROMPTS[0]}))
    assert list(model.predict_stream({"prompt": PROMPTS[0]}))[-1]["num_tokens"]


def test_stop_strings_of_a_request_take_the_place_of_the_logged_ones(tmp_path: Path, pair: specexp.LoadedPair) -> None:
    asked = single.resolve("arith_quick", "speculative", {"stop": "is"})
    make_decoder_spec(pair, asked, 512).save(tmp_path)
    decoder = ServedDecoder(tmp_path)
    for params, stop in (
        (None, ["is"]),
        ({"stop": ["gives"]}, ["gives"]),
        ({"stop": []}, None),
        ({"stop": None}, ["is"]),
    ):
        (out,) = decoder.decode(PROMPTS[:1], params)
        assert out.text == pair.generate(PROMPTS[0], stop=stop).text, params


@pytest.mark.parametrize("form", GOOD_FORMS)
def test_every_form_of_a_request_gets_the_same_answer(serve: Any, pair: specexp.LoadedPair, form: str) -> None:
    params = {"temperature": 1, "seed": 7, "max_new_tokens": 20}
    status, answer = serve(json.dumps(GOOD_FORMS[form](PROMPTS[:2], params)).encode())
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == [row(pair.generate(p, **params)) for p in PROMPTS[:2]]


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_refused_with_a_reason(serve: Any, what: str) -> None:
    body, content_type, reason = BAD[what]
    status, answer = serve(body, content_type)
    assert status == (415 if "content type" in what or "charset" in what else 400), answer
    assert reason in answer


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 5e-324}, {"temperature": 1e-300}, {"temperature": 1e308},
        {"temperature": 1.0, "top_k": 2**31 - 1},
        {"temperature": 1.0, "top_p": 5e-324}, {"temperature": 1.0, "seed": 10**30}, {"temperature": -0.0},
        {"temperature": None, "max_new_tokens": 3}, {"max_new_tokens": 512},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_allowed_never_breaks_a_batch(serve: Any, params: dict[str, Any]) -> None:
    status, answer = serve(json.dumps({"prompt": PROMPTS[:2], **params}).encode())
    assert status == 200, answer
    assert [prediction["num_tokens"] > 0 for prediction in json.loads(answer)["predictions"]] == [True, True]


@pytest.mark.parametrize("stop", ["is", ["is"], None], ids=str)
def test_stop_strings_are_a_text_or_several(serve: Any, pair: specexp.LoadedPair, stop: Any) -> None:
    status, answer = serve(one(PROMPTS[0], stop=stop))
    assert status == 200, answer
    assert json.loads(answer)["predictions"] == [row(pair.generate(PROMPTS[0], stop=stop))]


def test_the_least_top_p_is_the_likeliest_token(serve: Any, pair: specexp.LoadedPair) -> None:
    """5e-324 is 0 in float32: a nucleus without any token would be no distribution."""
    status, answer = serve(json.dumps({"prompt": PROMPTS[0], "temperature": 1.0, "top_p": 5e-324}).encode())
    assert status == 200, answer
    assert json.loads(answer)["predictions"][0]["text"] == pair.generate(PROMPTS[0], temperature=0).text


def test_a_long_prompt_is_not_turned_into_tokens(pair: specexp.LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*arguments: object) -> list[int]:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(TokenizerText, "encode", encode)
    with pytest.raises(PromptError, match=r"the prompt has 60000 bytes; the model's context takes at most 6144"):
        pair.generate("é" * 30_000)


@pytest.mark.parametrize(
    "context,longest,most",
    [(512, 12, 6144), (131_072, 256, 2 << 20), (2048, 4, 8192), (8192, 512, 1 << 20), (1 << 30, 128, 8 << 20)],
)
def test_how_long_a_prompt_may_be(context: int, longest: int, most: int) -> None:
    assert single.most_bytes(context, longest) == most


def test_long_prompts_keep_no_short_one_waiting() -> None:
    """However many long prompts are being encoded, a tokenizer is free for others, and none is used by two threads."""
    begun, release = [], threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.busy = threading.Lock()

        def __deepcopy__(self, memo: object) -> Slow:
            return Slow()

        def encode(self, size: int) -> int:
            assert self.busy.acquire(blocking=False), "two threads use one tokenizer"
            begun.append(size)
            if size >= LONG:
                release.wait(60)
            self.busy.release()
            return size

    texts = Texts(Slow())  # type: ignore[arg-type]

    def work(size: int) -> int:
        with texts.lend(size) as text:
            return int(text.encode(size))  # type: ignore[call-overload, arg-type]

    with ThreadPoolExecutor(24) as threads:
        long = [threads.submit(work, LONG + number) for number in range(8)]
        short = [threads.submit(work, number) for number in range(12)]
        try:
            assert [each.result(timeout=60) for each in short] == list(range(12))
            assert not any(each.done() for each in long)
        finally:
            release.set()
        assert [each.result(timeout=60) for each in long] == [LONG + number for number in range(8)]
    assert sum(size >= LONG for size in begun) == 8


def test_a_tokenizer_that_cannot_be_copied_is_lent_to_one_after_another() -> None:
    class Alone:
        def __deepcopy__(self, memo: object) -> Alone:
            raise TypeError("no copies")

    alone = Alone()
    texts = Texts(alone)  # type: ignore[arg-type]
    for _ in range(3):
        with texts.lend() as text:
            assert text is alone


def test_an_error_while_decoding_is_not_called_the_requests_fault(
    serve: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> list[Any]:
        raise RuntimeError("the device is gone\nand more")

    decoder = model.unwrap_python_model()._decoder
    with monkeypatch.context() as patch:
        patch.setattr(decoder._batcher, "decode", broken)
        status, answer = serve(one(PROMPTS[0]))
    assert status == 500
    assert "decoding failed: RuntimeError: the device is gone" in answer
    assert serve(one(PROMPTS[0]))[0] == 200


def test_without_mlflows_checks_it_refuses_all_the_same(model: Any) -> None:
    served = model.unwrap_python_model()
    for given, params, message in (
        (["a", None], {}, "prompt 2 is null; it must be text."),
        ({"prompt": "a", "x": 1}, {}, "unknown column 'x'"),
        (DataFrame({"promt": ["a"]}), {}, "column prompt is missing."),
        (["a"], {"max_new_tokens": "7"}, "max_new_tokens is '7'; it must be a number."),
        (["a"], {"max_new_tokens": 7.0}, "max_new_tokens is 7.0; it must be a whole number >= 1."),
        (["a"], {"n": 1}, "unknown parameter 'n'."),
    ):
        with pytest.raises(mlflow.MlflowException, match=message.replace(".", r"\.")) as error:
            served.predict(None, given, params)
        assert error.value.get_http_status_code() == 400
    assert len(served.predict(None, ["a", "b"], {"max_new_tokens": 3})) == 2
    assert len(served.predict(None, "a", None)) == 1


def test_all_faults_of_the_parameters_are_said_at_once() -> None:
    asked = single.resolve("toy_quick", "baseline", {})
    with pytest.raises(RequestError) as error:
        requests.settings(asked, {"n": 1, "temperature": -1, "top_p": 2}, 100)
    assert [line.split(";")[0].split(",")[0].split(".")[0] for line in str(error.value).splitlines()] == [
        "unknown parameter 'n'", "temperature is -1", "top_p is 2",
    ]  # fmt: skip


def test_the_model_says_what_it_is_and_holds_no_weights(model: Any, tmp_path: Path) -> None:
    signature = model.metadata.signature
    assert str(signature.inputs) == "['prompt': string (required)]"
    assert {spec.name: spec.default for spec in signature.params} == {
        "max_new_tokens": 160, "min_new_tokens": 0, "ignore_eos": False, "stop": [], "temperature": 0.0,
        "top_k": 0, "top_p": 1.0, "seed": 0,
    }  # fmt: skip
    version = MlflowClient().get_model_version("decoder", "1")
    assert version.tags == {
        "method": "speculative_k4", "lossless": "true", "target": "zoo:target", "draft": "zoo:draft",
    }  # fmt: skip
    files = [
        path
        for path in Path(mlflow.artifacts.download_artifacts("models:/decoder/1", dst_path=str(tmp_path))).rglob("*")
        if path.is_file()
    ]
    assert not [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    (reference,) = [path for path in files if path.name == "decoder.json"]
    assert Reference.load(reference.parent).identity["target"] == model.metadata.metadata["target"]
    pins = next(path for path in files if path.name == "requirements.txt").read_text()
    assert f"mlflow=={mlflow.__version__}" in pins
    run = MlflowClient().search_runs(["0"])[0]
    assert (run.info.status, run.data.tags["method"]) == ("FINISHED", "log_decoder")


@pytest.mark.parametrize("method", ["baseline", "draft_only", "lookup", "topk", "specexec"])
def test_every_method_comes_back_from_its_reference(tmp_path: Path, pair: specexp.LoadedPair, method: str) -> None:
    gamma = {} if method in ("baseline", "draft_only") else {"gamma": "3"}
    asked = single.resolve("arith_quick", method, gamma)
    reference = make_decoder_spec(pair, asked, 512)
    reference.save(tmp_path)
    assert Reference.load(tmp_path) == reference
    expected = pair.decode(PROMPTS[0], asked)
    (actual,) = ServedDecoder(tmp_path, max_batch_size=2).decode(PROMPTS[:1])
    assert (actual.token_ids, actual.text) == (expected.token_ids, expected.text)


def test_a_system_prompt_goes_with_the_decoder(tmp_path: Path, pair: specexp.LoadedPair) -> None:
    asked = single.resolve("arith_quick", "speculative", {"system": "Add it up.", "gamma": "4"})
    own = specexp.LoadedPair(asked)
    make_decoder_spec(own, asked, 512).save(tmp_path)
    (out,) = ServedDecoder(tmp_path).decode(PROMPTS[:1])
    assert (
        out.token_ids
        == own.decode(PROMPTS[0], asked).token_ids
        == pair.generate(f"Add it up.\n\n{PROMPTS[0]}").token_ids
    )
    assert out.token_ids != pair.generate(PROMPTS[0]).token_ids


def test_a_judge_goes_with_the_decoder(workplace: Path) -> None:
    judge_for("arith_quick", features.mode("both")).save(workplace / "judge")
    asked = {"judge": str(workplace / "judge"), "gamma": "4"}
    result = log("--method", "autojudge", "--judge", "judge", "--gamma", "4", "--name", "judged")
    assert result.exit_code == 0, result.output
    resolved = single.resolve("arith_quick", "autojudge", asked)
    expected = specexp.LoadedPair(resolved).decode(PROMPTS[0], resolved)
    shutil.rmtree(workplace / "judge")
    answer = mlflow.pyfunc.load_model("models:/judged/1").predict({"prompt": PROMPTS[0]})
    assert answer.to_dict("records") == [row(expected)]
    assert MlflowClient().get_model_version("judged", "1").tags["lossless"] == "false"


def test_models_of_ones_own_are_found_again_and_refused_once_they_are_others(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(workplace / "model")
    result = log("--target", "./model", "--draft", "./model", "--max-new-tokens", "8")
    assert result.exit_code == 0, result.output
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    assert mlflow.pyfunc.load_model("models:/decoder/1").predict({"prompt": "a"}).num_tokens[0] > 0
    build("llama", seed=1, vocab_size=592).save_pretrained(workplace / "model")
    with pytest.raises(mlflow.MlflowException, match=r"the target's weights .* are not what this decoder was logged"):
        mlflow.pyfunc.load_model("models:/decoder/1")
    shutil.rmtree(workplace / "model")
    with pytest.raises(mlflow.MlflowException, match=r"model folder '.*model' does not exist"):
        mlflow.pyfunc.load_model("models:/decoder/1")


def test_the_embedded_pair_is_found_where_it_was(
    tmp_path: Path, pair: specexp.LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_decoder_spec(pair, single.resolve("arith_quick", "speculative", {}), 512).save(tmp_path)
    monkeypatch.setattr(source, "ZOO", tmp_path / "a copy of the code without weights")
    assert ServedDecoder(tmp_path).decode(PROMPTS[:1])[0].text == pair.generate(PROMPTS[0]).text


@pytest.mark.parametrize("damage", [None, "{", '{"experiment": {}}'])
def test_a_broken_reference_is_refused(tmp_path: Path, damage: str | None) -> None:
    if damage is not None:
        (tmp_path / "decoder.json").write_text(damage)
    with pytest.raises(ModelError, match=r"the decoder in '.*' cannot be read"):
        Reference.load(tmp_path)


def test_bad_settings_are_refused_and_nothing_is_made(workplace: Path) -> None:
    for arguments, message in (
        (("--name", "a/b"), "error: name is 'a/b'; it must be a name without / and :."),
        (("--most-new-tokens", "5"), "error: most_new_tokens is '5'; it must be a whole number >= max_new_tokens"),
        (("--method", "compare_all_k4"), "error: method 'compare_all_k4' makes 7 settings here"),
        (("--target", "./nowhere"), "error: model folder './nowhere' does not exist"),
    ):
        result = log(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not MlflowClient().search_runs(["0"])
    assert not MlflowClient().search_registered_models()


def test_rows_and_device_are_settings_of_loading(store: Path) -> None:
    loaded = mlflow.pyfunc.load_model("models:/decoder/1", model_config={"rows": 1, "device": "cpu"})
    assert len(loaded.predict({"prompt": PROMPTS[:2]})) == 2
    with pytest.raises(mlflow.MlflowException, match="rows is 0; it must be a whole number >= 1"):
        mlflow.pyfunc.load_model("models:/decoder/1", model_config={"rows": 0})
    with pytest.raises(mlflow.MlflowException, match="cannot be loaded"):
        mlflow.pyfunc.load_model("models:/decoder/1", model_config={"device": "cuda:7"})


def toy_requests(pair: specexp.LoadedPair, number: int) -> list[Request]:
    """Of several methods, lengths and temperatures."""
    asked = [single.resolve("toy_quick", "baseline", {})]
    asked += [single.resolve("toy_quick", name, {"gamma": "3"}) for name in ("speculative", "specexec", "lookup")]
    return [
        pair.request(f"prompt {i}", replace(asked[i % 4], temperature=i % 3, seed=i, max_new_tokens=5 + i % 20))
        for i in range(number)
    ]


def test_many_threads_get_each_its_own_answer() -> None:
    pair = specexp.load("toy_quick", gamma=3)
    wanted = toy_requests(pair, 60)
    expected = [pair.engine().generate(r.decoder, r.prompt_ids, r.max_new_tokens, r.rng).token_ids for r in wanted]
    batcher = Batcher(lambda: pair.engine(max_batch_size=4))
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda request: batcher.decode([request])[0].token_ids, wanted))
    assert actual == expected
    assert [out.token_ids for out in batcher.decode(wanted)] == expected, "and so does one that asks for all of them"


def test_who_comes_later_joins_those_that_are_being_decoded() -> None:
    pair = specexp.load("toy_quick")
    early, late = toy_requests(pair, 2)
    events: list[str] = []
    threads: list[threading.Thread] = []
    batcher = Batcher(lambda: pair.engine(max_batch_size=2))

    def on_early(tokens: Sequence[int]) -> None:
        events.append("early")
        if not threads:
            later = replace(late, on_tokens=lambda tokens: events.append("late"))
            threads.append(threading.Thread(target=batcher.decode, args=([later],)))
            threads[0].start()
            while not batcher._waiting:  # the queue is filled while this round is under way
                pass

    batcher.decode([replace(early, max_new_tokens=40, on_tokens=on_early)])
    threads[0].join()
    last = len(events) - 1 - events[::-1].index("early")
    assert events.index("late") < last


class Breaking(Engine):
    """Breaks off with the second prompt that it is given."""

    def generate_all(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        taken = iter(requests)
        first = next(taken)
        yield 0, self.generate(first.decoder, first.prompt_ids, first.max_new_tokens, first.rng)
        if next(taken, None) is not None:
            raise RuntimeError("out of memory")


def test_an_error_ends_what_was_being_decoded_and_nothing_else() -> None:
    pair = specexp.load("toy_quick")
    engines = [Breaking(pair._pair.models, pair._pair.eos_ids), pair.engine(max_batch_size=2)]
    batcher = Batcher(lambda: engines.pop(0))
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.decode(toy_requests(pair, 2))
    assert len(batcher.decode(toy_requests(pair, 5))) == 5
    assert not engines, "another engine took over"


def test_an_engine_that_cannot_be_made_fails_the_request() -> None:
    def make() -> Engine:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        Batcher(make).decode(toy_requests(specexp.load("toy_quick"), 1))

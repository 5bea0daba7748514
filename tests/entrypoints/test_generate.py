"""`generate`: the API's tokens, text in whole characters as it is final, and one clear line for bad input."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result

import specexp
from entrypoints import generate
from helpers.cli_runner import invoke
from specexp.engine import Engine
from specexp.lm.hf.source import ZOO
from specexp.pair.detokenizer import Pieces
from specexp.pair.tokenization import TokenizerText
from specexp.tasks.task import task

METHODS = ("baseline", "draft_only", "speculative", "lookup", "topk", "specexec")


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return invoke(generate.command, *arguments, stdin=stdin)


@pytest.fixture(scope="module")
def pair() -> specexp.LoadedPair:
    return specexp.load("arith_quick")


@pytest.fixture(scope="module")
def prompt() -> str:
    return task("arith").examples(1)[0].turns[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_its_tokens_and_text_are_those_of_the_python_door(
    pair: specexp.LoadedPair, prompt: str, method: str, temperature: float
) -> None:
    expected = pair.generate(prompt, method, gamma=4 if method not in ("baseline", "draft_only") else None,
                         temperature=temperature, seed=5, max_new_tokens=40)  # fmt: skip
    asked = ["--method", method, "--temperature", str(temperature), "--seed", "5", "--max-new-tokens", "40"]
    if method not in ("baseline", "draft_only"):
        asked += ["--gamma", "4"]
    shown = run(prompt, *asked)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == expected.text, "the text alone"
    assert shown.stderr.startswith(f"{len(expected.token_ids)} tokens, ")
    assert shown.stderr.endswith(f"finished by {expected.finish_reason}\n")
    assert len(shown.stderr.splitlines()) == 1
    printed = json.loads(run("-", *asked, "--json", stdin=prompt.encode()).stdout)
    assert (printed["text"], printed["token_ids"], printed["finish_reason"]) == (
        expected.text, expected.token_ids, expected.finish_reason,
    )  # fmt: skip
    assert printed["target_calls"] == expected.counts["num_target_calls"]
    assert printed["tokens_per_call"] == expected.tokens_per_call
    drafted = expected.counts["num_drafted"]
    assert printed["accept_rate"] == (expected.counts["num_accepted"] / drafted if drafted else None)


@pytest.mark.parametrize("method", METHODS)
def test_text_comes_round_by_round_and_adds_up(pair: specexp.LoadedPair, prompt: str, method: str) -> None:
    pieces: list[str] = []
    out = pair.generate(prompt, method, on_text=pieces.append)
    assert "".join(pieces) == out.text
    assert 1 < len(pieces) <= out.counts["num_rounds"] + 1
    pieces.clear()
    cut = pair.generate(prompt, method, max_new_tokens=5, on_text=pieces.append)
    assert len(cut.token_ids) == 5
    assert "".join(pieces) == cut.text, "what is cut behind the limit is never shown"


def test_every_round_is_told_once_it_is_final_and_clocks_stand_still(pair: specexp.LoadedPair, prompt: str) -> None:
    now = [0.0]

    def told(tokens: Sequence[int]) -> None:
        rounds.append(list(tokens))
        now[0] += 1000.0

    rounds: list[list[int]] = []
    engine = Engine(pair._pair.models, pair._pair.eos_ids, clock=lambda: now[0])
    request = pair.request(prompt, pair.experiment)
    out = engine.generate(request.decoder, request.prompt_ids, request.max_new_tokens, request.rng, told)
    assert out.finish_reason == "stop"
    assert [token for tokens in rounds for token in tokens] == out.token_ids
    assert len(rounds) == out.num_rounds
    assert out.seconds == 0.0


def test_of_several_rows_each_is_told_its_own(pair: specexp.LoadedPair) -> None:
    heard: list[list[int]] = [[], [], []]
    examples = task("arith").examples(3)
    requests = [
        pair.request(example.turns[0], pair.experiment, on_tokens=heard[i].extend) for i, example in enumerate(examples)
    ]
    for place, out in pair.engine(max_batch_size=2).generate_all(requests):
        assert heard[place] == out.token_ids


class Bytes:
    """A tokenizer of bytes, as byte-level ones are behind their merges: id 256 ends a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"byte {token}"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "raw",
    [
        "naïve – 東京 👩‍👩‍👧 end".encode(),
        b"cut \xf0\x9f\x91",
        b"wrong \xff\xfe then good",
        "\ufffd is a character".encode(),
    ],
    ids=["several bytes", "cut off", "no UTF-8", "the mark itself"],
)
def test_no_piece_ends_within_a_character(raw: bytes, size: int) -> None:
    heard: list[str] = []
    pieces = Pieces(TokenizerText(Bytes(), chat=False), {256}, heard.append)
    ids = [*raw, 256]
    for start in range(0, len(ids), size):
        pieces.add(ids[start : start + size])
    before = list(heard)
    pieces.close()
    assert "".join(heard) == raw.decode("utf-8", errors="replace")
    if raw.startswith("naïve".encode()):
        assert "\ufffd" not in "".join(heard)
        assert before == heard
    if raw.startswith(b"cut"):
        assert "cut ".startswith("".join(before)), "half a character is held back to the end"


def test_pieces_of_a_real_tokenizer_add_up() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ZOO / "target")
    text = "Zoë has 3 €, 東京 and 👩‍👩‍👧.\n\n Then  two   blanks.\n"
    ids = [int(i) for i in tokenizer(text)["input_ids"]]
    door = TokenizerText(tokenizer, chat=False)
    heard: list[str] = []
    pieces = Pieces(door, (), heard.append)
    for token in ids:
        pieces.add([token])
    pieces.close()
    assert "".join(heard) == door.decode(ids)
    assert not any("\ufffd" in piece for piece in heard)


BAD: dict[str, tuple[list[str], bytes | None, str]] = {
    "an empty prompt": ([" \n"], None, "error: the prompt is empty; give it some text."),
    "half a character": (["a\ud800"], None, "error: the prompt holds '\\ud800', half of a character"),
    "no UTF-8": (["-"], b"a\xff", "error: standard input is not UTF-8 text (byte 1); give it as UTF-8."),
    "too long a prompt": (["Mia has 4 apples. " * 200], None, "but the target model's context is 512; shorten it"),
    "several methods": (["x", "--method", "compare_all_k4"], None, "makes 7 settings here (baseline, draft_only,"),
    "several lengths": (["x", "--gamma", "2,4"], None, "makes 2 settings here (speculative_k2, speculative_k4)"),
    "an unknown method": (["x", "--method", "speculativ"], None, "unknown method 'speculativ', did you mean"),
    "a setting nobody takes": (["x", "--accept-k", "2"], None, "accept_k is given, but no selected method uses it"),
    "cold": (["x", "--temperature", "-1"], None, "temperature is '-1'; it must be a number >= 0"),
    "no tokens": (["x", "--max-new-tokens", "0"], None, "max_new_tokens is '0'; it must be a whole number >= 1."),
    "no model": (["x", "--target", "./nowhere"], None, "model folder './nowhere' does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, stdin, message = BAD[what]
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_the_toy_and_experiments_with_other_tasks_take_a_prompt() -> None:
    shown = run("hello", "--experiment", "toy_quick", "--method", "specexec", "--gamma", "2", "--max-new-tokens", "9")
    assert shown.exit_code == 0, shown.output
    expected = specexp.load("toy_quick").generate("hello", "specexec", gamma=2, max_new_tokens=9)
    assert shown.stdout == expected.text
    from specexp.config import single

    for experiment in ("mtbench_llama_8b_1b", "gsm8k_8shot_llama_8b_1b", "gsm8k_judge_llama_8b_1b"):
        assert single.resolve(experiment, "speculative", {"gamma": "3"}).methods[0].gamma == 3


def test_an_interruption_ends_it_in_one_line(monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    pieces: list[str] = []

    def add(self: generate.StreamedText, piece: str) -> None:
        show(self, piece)
        pieces.append(piece)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)

    show = generate.StreamedText.add
    monkeypatch.setattr(generate.StreamedText, "add", add)
    result = run(prompt)
    assert result.exit_code == 130
    assert result.stdout == "".join(pieces)
    assert len(pieces) == 3
    assert result.stderr == f"interrupted after {len(result.stdout)} characters.\n"

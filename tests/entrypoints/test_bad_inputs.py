"""Bad presets, files, models, tokenizers and data: one line each that names the place, exit 2, and nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import evaluate, refused, tiny
from helpers.model_folders import build
from specexp.lm.hf import loading
from specexp.lm.hf.source import ZOO

QUESTION = '{"question_id": 1, "category": "math", "turns": ["a", "b"]}\n'
SETTINGS = {
    "a key misspelt": ("limt: 3\n", "mine.yaml: unknown setting 'limt', did you mean 'limit'?"),
    "a key missing": ("target: {dtype: float32, modell: x}\n", "unknown model setting 'modell', did you mean 'model'?"),
    "a tab": ("limit:\t3\n", "mine.yaml: not valid YAML"),
    "a key twice": ("limit: 3\nlimit: 4\n", "mine.yaml: not valid YAML: 'limit' is given twice"),
    "a list for settings": ("- limit\n", "mine.yaml: must be a mapping of settings to values, got list."),
    "text for a number": ("temperature: cold\n", "mine.yaml: temperature is 'cold'; it must be a number >= 0"),
    "a switch for a number": ("limit: yes\n", "mine.yaml: limit is True; it must be a whole number >= 1."),
    "an unknown pair": ("pair: lama_8b_1b\n", "unknown pair 'lama_8b_1b', did you mean 'llama_8b_1b'?"),
    "an unknown task": ("task: gsm8\n", "mine.yaml: task is 'gsm8'; unknown task 'gsm8', did you mean 'gsm8k'?"),
    "data for a task without": ("data: x.jsonl\n", "data is given, but task 'arith' reads no file; leave it out."),
    "an unknown dtype": ("target: {model: x, dtype: fp8}\n", "dtype is 'fp8': unknown dtype 'fp8'"),
    "arithmetic without nf4": ("target: {model: x, compute_dtype: float32}\n", "compute_dtype needs quantization"),
    "a folder that is not there": ("target: ./nowhere\n", "model folder './nowhere' does not exist; give a folder"),
    "a device that is not there": ("target: {device: 'cuda:0'}\n", "'zoo:target' cannot be loaded (float32 on cuda:0)"),
    "a device that is none": ("target: {device: gpu}\n", "model 'zoo:target' cannot be loaded (float32 on gpu)"),
    "a device without memory": ("target: {device: meta}\n", "device meta holds no weights"),
    "a template that is absent": ("target: {chat_template: own}\n", "the tokenizer of 'zoo:target' has none"),
    "a pair that is the toy's": ("pair: toy\ndraft: ./mine\n", "draft: pair 'toy' has no model to replace"),
}  # fmt: skip


@pytest.mark.parametrize("what", SETTINGS)
def test_bad_settings(workplace: Path, what: str) -> None:
    text, message = SETTINGS[what]
    (workplace / "mine.yaml").write_text(text)
    refused(evaluate("--config", "mine.yaml", "--output", "out"), message, workplace)


DATA = {
    "not JSON": ("mtbench", QUESTION + '{"question_id": 2,\n', "mine.jsonl, line 2: not JSON"),
    "no turns": ("mtbench", QUESTION + '{"question_id": 2, "category": "math"}\n', "mine.jsonl, line 2: 'turns' must"),
    "an empty turn": ("mtbench", '{"category": "math", "turns": ["a", ""]}\n', "line 1: 'turns' must hold texts"),
    "an id twice": ("spec_bench", QUESTION * 2, "mine.jsonl': question 'spec_bench-1' is given twice"),
    "no number": ("gsm8k", '{"question": "a", "answer": "#### many"}\n', "line 1: 'answer' must end with #### and a"),
    "no question": ("gsm8k", '{"problem": "a", "answer": "#### 1"}\n', "line 1: 'question' must be a text"),
    "an empty file": ("gsm8k", "\n", "mine.jsonl: holds no rows; give one JSON object a line."),
    "another key": ("prompts", '{"promt": "a"}\n', "mine.jsonl, line 1: has no 'prompt', but 'promt'."),
}


@pytest.mark.parametrize("what", DATA)
def test_bad_data(workplace: Path, what: str) -> None:
    task, text, message = DATA[what]
    (workplace / "mine.jsonl").write_text(text)
    refused(evaluate("--task", task, "--data", "mine.jsonl", "--output", "out"), message, workplace)


def test_data_that_is_no_text(workplace: Path) -> None:
    (workplace / "mine.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    result = evaluate("--task", "prompts", "--data", "mine.jsonl", "--output", "out")
    refused(result, "mine.jsonl: not UTF-8 text (byte 12); save it as UTF-8.", workplace)


def broken_weights(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return "cannot be loaded (float32 on cpu)"


def no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "cannot be loaded (float32 on cpu)"


def no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "has no config.json; give a folder made by save_pretrained()."


def broken_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "model"


def no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return "has no tokenizer that can be loaded"


def broken_template(folder: Path) -> str:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    return "prompt 'arith-test-0': the chat template cannot render this conversation: no users here"


def template_that_does_not_parse(folder: Path) -> str:
    (folder / "chat_template.jinja").write_text("{% for %}")
    return "prompt 'arith-test-0': the chat template cannot render this conversation"


def encoder(folder: Path) -> str:
    import transformers

    config = transformers.BertConfig(
        vocab_size=592, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    return "(bert) is an encoder: each token attends to later ones"


def too_small(folder: Path) -> str:
    build("llama", vocab_size=500).save_pretrained(folder)
    return "the tokenizer gives ids up to 591, but model"


BREAKERS = [broken_weights, no_weights, no_config, broken_config, no_tokenizer, broken_template,
            template_that_does_not_parse, encoder, too_small]  # fmt: skip


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda b: b.__name__)
def test_bad_models(workplace: Path, breaker: Any) -> None:
    folder = tiny(workplace / "model")
    message = breaker(folder)
    template = "own" if "template" in breaker.__name__ else "none"
    (workplace / "mine.yaml").write_text(f"target: {{model: ./model, chat_template: {template}}}\nlimit: 2\n")
    refused(evaluate("--config", "mine.yaml", "--output", "out"), message, workplace)


def test_a_quantization_without_its_package(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_installed", lambda name: False)
    (workplace / "mine.yaml").write_text("target: {quantization: int8}\n")
    refused(
        evaluate("--config", "mine.yaml", "--output", "out"),
        "quantization int8 needs the package 'bitsandbytes', which is not installed",
        workplace,
    )


def test_an_output_that_is_a_file(workplace: Path) -> None:
    shutil.copy(ZOO / "target" / "config.json", workplace / "taken")
    result = evaluate("--output", "taken")
    assert result.exit_code == 2
    assert result.output.strip() == "error: output 'taken' is not a folder; name another one."

"""Where models come from: GGUF files, adapters, hub ids that cannot be had. A fault is one sentence, before weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest
import torch
import yaml

from helpers import gguf_file
from helpers.cli_runner import evaluate, records
from helpers.model_folders import build
from specexp.errors import ModelError
from specexp.lm.heads import eagle3_config
from specexp.lm.hf import loading, source
from specexp.lm.hf.loading import load_model, load_tokenizer, read_config
from specexp.lm.hf.source import ZOO, Source, hub_place, model_source, tokenizer_source
from specexp.lm.runtime import ModelConfig

# peft reads attributes that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded target as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "target.gguf"
    gguf_file.write(ZOO / "target", path)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder with an adapter for a tiny Llama beside it."""
    from peft import LoraConfig, get_peft_model

    base = build("llama")
    base.save_pretrained(tmp_path / "adapter" / "base")
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "base_model_name_or_path": "base"}))
    return tmp_path / "adapter"


def test_a_gguf_file_has_the_weights_that_it_was_made_of_and_runs_on_the_native_forward(gguf: Path) -> None:
    model, reference = load_model(ModelConfig(str(gguf))), load_model(ModelConfig("zoo:target"))
    ids = torch.tensor([5, 9, 11, 40])
    assert torch.allclose(model.session().feed(ids, 4)[0], reference.session().feed(ids, 4)[0], atol=1e-5)
    assert model.facts()["forward"] == "own"
    assert (model.eos_ids, model.context) == (reference.eos_ids, reference.context)


@pytest.mark.slow
def test_evaluate_takes_a_gguf_file(gguf: Path, workplace: Path) -> None:
    """With the tokenizer of the folder it was made of, its outputs are the folder's."""
    outputs = []
    for number, target in enumerate((str(gguf), "zoo:target")):
        values = {"target": {"model": target, "tokenizer": "zoo:target"}, "draft": "zoo:draft", "limit": 2}
        Path("mine.yaml").write_text(yaml.safe_dump({**values, "task": "arith", "max_new_tokens": 24}))
        result = evaluate("--config", "mine.yaml", "--methods", "baseline,speculative", "--output", f"out{number}")
        assert result.exit_code == 0, result.output
        outputs.append([r["token_ids"] for r in records(workplace / f"out{number}")])
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 4


def test_a_gguf_file_has_its_own_tokenizer(gguf: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(str(gguf)))
    text = "Tom has 12 apples"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_the_config_of_a_gguf_file_is_read_once(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = loading.AutoConfig.from_pretrained
    loading._gguf_config.cache_clear()
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *a, **k: calls.append(a) or read(*a, **k))
    first, second = (read_config(ModelConfig(str(gguf))) for _ in range(2))
    assert len(calls) == 1
    first.vocab_size = 3
    assert second.vocab_size == 592
    gguf.touch()
    read_config(ModelConfig(str(gguf)))
    assert len(calls) == 2, "the file has changed"


@pytest.mark.parametrize(
    "name,expected",
    [
        ("owner/name/file.q8_0.gguf", Source("owner/name", gguf="file.q8_0.gguf")),
        ("owner/name/folder/file.gguf", Source("owner/name", gguf="folder/file.gguf")),
        ("owner/name", Source("owner/name")),
        ("zoo:target", Source(str(ZOO / "target"))),
    ],
)
def test_a_name_says_where_the_files_are(name: str, expected: Source) -> None:
    assert model_source(ModelConfig(name)) == expected


def test_an_adapter_is_merged_into_its_models_weights(adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(adapter / "base"), adapter).eval()
    model = load_model(ModelConfig(str(adapter)))
    ids = torch.tensor([5, 9, 11, 40])
    with torch.inference_mode():
        expected = reference(ids[None]).logits[0]
    actual, _ = model.session().feed(ids, 4)
    assert torch.allclose(actual, expected, atol=1e-4)
    base = load_model(ModelConfig(str(adapter / "base")))
    assert not torch.allclose(actual, base.session().feed(ids, 4)[0], atol=1e-1)
    assert model.fingerprint() != base.fingerprint()
    assert model.facts()["forward"] == "own"
    assert model.name == str(adapter)


def test_an_adapters_folder_may_have_the_tokenizer(adapter: Path) -> None:
    config = ModelConfig(str(adapter))
    assert tokenizer_source(config).place == str(adapter / "base")
    shutil.copy(ZOO / "target" / "tokenizer.json", adapter)
    assert tokenizer_source(config) == Source(str(adapter))
    assert model_source(config) == Source(str(adapter / "base"), adapter=str(adapter))


def _without(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "base_model_name_or_path"}


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no base": (_without, "names no base_model_name_or_path; name the model there."),
    "no text": (lambda values: {**values, "base_model_name_or_path": 3}, "names no base_model_name_or_path"),
    "a list": (lambda values: [values], "names no base_model_name_or_path"),
    "a folder that is gone": (
        lambda values: {**values, "base_model_name_or_path": "./gone"},
        "is for a model that cannot be used: model folder './gone' does not exist",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_adapter_without_a_model_is_refused(adapter: Path, case: str) -> None:
    change, message = BROKEN[case]
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ModelError) as caught:
        model_source(ModelConfig(str(adapter)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_does_not_fit_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"^adapter '.*' cannot be merged: "):
        load_model(ModelConfig(str(adapter)))


@pytest.mark.parametrize("setting,value", [("quantization", "nf4"), ("offload", "cpu")])
def test_what_is_read_as_floats_is_neither_quantized_nor_offloaded(
    adapter: Path, gguf: Path, setting: str, value: str
) -> None:
    for folder, what in ((adapter, "an adapter, which is merged"), (gguf, "a GGUF file")):
        with pytest.raises(ModelError) as caught:
            model_source(ModelConfig(str(folder), **{setting: value}))
        assert f"is {what}" in str(caught.value)
        assert f"and {setting} is {value}: leave {setting} out, or save the model to a folder" in str(caught.value)


def test_a_missing_package_is_named(adapter: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "is_installed", lambda name: name not in ("gguf", "peft"))
    for path, package in ((adapter, "peft"), (gguf, "gguf")):
        with pytest.raises(ModelError, match=rf"needs the package '{package}', .*: pip install 'specexp\[{package}\]'"):
            model_source(ModelConfig(str(path)))


@pytest.mark.parametrize("name", ["./gone.gguf", "gone.gguf", "owner/gone.gguf", "/gone/file.gguf"])
def test_a_gguf_file_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"GGUF file '{name}' does not exist; give a file's path, or a hub id and"):
        model_source(ModelConfig(name))


def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path, workplace: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF but not quite")
    Path("mine.yaml").write_text(yaml.safe_dump({"target": str(tmp_path / "x.gguf"), "draft": "zoo:draft"}))
    result = evaluate("--config", "mine.yaml", "--methods", "baseline", "--output", "out")
    assert result.exit_code == 2, result.output
    assert "x.gguf' has no" in result.output
    assert not (workplace / "out").exists()


HUB = {
    "GatedRepoError": "is gated: accept its terms on its page, then log in",
    "RepositoryNotFoundError": "is neither a folder nor a model on the hub that you may read",
    "RevisionNotFoundError": "has no such revision on the hub",
    "LocalEntryNotFoundError": "is neither a folder nor in the hub's cache, and the hub cannot be reached",
}


@pytest.mark.parametrize("kind", HUB)
@pytest.mark.parametrize("read", [read_config, load_tokenizer])
def test_what_the_hub_refuses_is_one_sentence(
    kind: str, read: Callable[[ModelConfig], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = getattr(huggingface_hub.errors, kind)
    fault = error.__new__(error)

    def refuse(*args: Any, **more: Any) -> None:
        raise OSError("You are trying to access ...\nhttps://...\n" * 5) from fault

    for automatic in (loading.AutoConfig, loading.AutoTokenizer):
        monkeypatch.setattr(automatic, "from_pretrained", refuse)
    with pytest.raises(ModelError) as caught:
        read(ModelConfig("owner/name"))
    assert str(caught.value).startswith(f"model 'owner/name' {HUB[kind]}")
    assert "\n" not in str(caught.value)


def test_a_head_on_the_hub_may_be_named_with_its_revision(
    tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_place("owner/name@0123abc") == ("owner/name", "0123abc")
    assert hub_place("owner/name") == ("owner/name", None)
    (workplace / "own@1").mkdir()
    for local in ("./owner/name@1", "own@1", str(tmp_path / "a@b"), "~/a@b"):
        assert hub_place(local) == (local, None)
    assert hub_place("zoo:drafter") == (str(ZOO / "drafter"), None)
    asked: dict[str, Any] = {}

    def download(place: str, **values: Any) -> str:
        asked.update(place=place, **values)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert eagle3_config.folder_of("owner/name@0123abc") == tmp_path
    assert (asked["place"], asked["revision"]) == ("owner/name", "0123abc")

"""What a config.json alone tells is told before torch, transformers or MLflow are imported, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_models
from helpers.family_table import FAMILIES
from specexp import config
from specexp.errors import ConfigError, ModelError, SpecexpError
from specexp.lm.configs import model_types, refusals
from specexp.lm.configs.config_check import check_sizes
from specexp.lm.configs.refusals import RawConfig
from specexp.lm.hf import loading, model_config, type_table
from specexp.lm.hf.model_config import CONDITIONAL
from specexp.lm.runtime import ModelConfig
from specexp.pair import first_look

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEAVY = ("torch", "transformers", "mlflow")
# What a config.json says, the methods, the words of the refusal.
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no causal head": ({"model_type": "vit"}, "baseline", "neither a causal language model"),
    "another head": (
        {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]}, "baseline",
        "was saved as Qwen2ForSequenceClassification",
    ),
    "encoder": ({"model_type": "bert"}, "baseline", "each token attends to later ones"),
    "encoder-decoder": ({"model_type": "t5", "is_encoder_decoder": True}, "baseline", "encoder-decoder"),
    "not text alone": ({"model_type": "moshi"}, "baseline", "audio codes"),
    "recurrent": ({"model_type": "mamba"}, "specexec", "holds one sequence and no tree; use a chain"),
    "convolutions": ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "specexec", "recurrent state"),
    "no cache": ({"model_type": "openai-gpt"}, "specexec", "without a cache"),
    "ALiBi by type": ({"model_type": "bloom"}, "specexec", "takes no position ids"),
    "ALiBi by setting": ({"model_type": "falcon", "alibi": True}, "specexec", "(ALiBi)"),
    "a whole model's text part": (
        {"model_type": "qwen3_5", "text_config": {"layer_types": ["linear_attention"]}}, "specexec", "recurrent state",
    ),
    "no context": ({"model_type": "llama", "max_position_embeddings": 0}, "baseline", "max_position_embeddings 0"),
    "a short context": ({"model_type": "llama", "max_position_embeddings": 6}, "speculative", "at most 3"),
    "sizes of the text part": (
        {"model_type": "mistral3", "text_config": {"hidden_size": 0}}, "baseline", "hidden_size is 0",
    ),
    "an old quantization": (
        {"model_type": "llama", "quantization_config": {"quant_method": "quanto"}}, "baseline",
        "pip install optimum-quanto",
    ),
    "sizes": ({"model_type": "llama", "hidden_size": -1}, "baseline", "hidden_size is -1"),
}  # fmt: skip
# Values of other types than the field has: transformers' classes say what is wrong with them.
ODD: dict[str, dict[str, Any]] = {
    "architectures": {"architectures": 5}, "layers": {"layer_types": 3}, "nested layers": {"layer_types": [["x"]]},
    "no layers": {"layer_types": ["full_attention", None]}, "a layer": {"layer_types": "full_attention"},
    "attention layers": {"model_type": "gpt_neo", "attention_layers": 5},
    "rotating layers": {"model_type": "llama4_text", "no_rope_layers": 4, "attn_temperature_tuning": True},
    "text": {"text_config": "x"}, "no text": {"text_config": {}}, "a number": {"text_config": 2.5},
    "a size": {"text_config": {"hidden_size": 32}}, "type": {"model_type": ["llama"]}, "no type": {"model_type": None},
    "quantization": {"quantization_config": "fp8"}, "map": {"auto_map": 3},
}  # fmt: skip
ALLOWED: dict[str, tuple[dict[str, Any], str]] = {
    "recurrent, chains": ({"model_type": "mamba"}, "speculative,lookup"),
    "a hybrid type without recurrent layers": (
        {"model_type": "granitemoehybrid", "layer_types": ["attention", "attention"]}, "specexec",
    ),
    "no recurrent layers by a number": ({"model_type": "qwen3_next", "full_attention_interval": 1}, "specexec"),
    "no recurrent layers by a pattern": ({"model_type": "nemotron_h", "hybrid_override_pattern": "*-*-"}, "specexec"),
    "a class of its own": (
        {"model_type": "janus", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "baseline",
    ),
    "layers by older names": ({"model_type": "qwen3", "layer_types": ["attention", "attention"]}, "specexec"),
    "a context that a class has by default": ({"model_type": "llama", "seq_length": 4}, "speculative"),
    "a length of a tokenizer": ({"model_type": "llama", "model_max_length": 1e30}, "baseline"),
    "a size of another part": (
        {"model_type": "mistral3", "num_attention_heads": 0, "text_config": {"model_type": "mistral"}}, "baseline",
    ),
    "a quantization that transformers ignores": (
        {"model_type": "llama", "quantization_config": {"quant_method": "modelopt"}}, "baseline",
    ),
    "falcon without ALiBi": ({"model_type": "falcon", "alibi": False}, "specexec"),
    "an unknown type": ({"model_type": "of_tomorrow"}, "specexec"),
    "a decoder of an encoder's type": ({"model_type": "bert", "is_decoder": True}, "specexec"),
    "images and text": ({"model_type": "mistral3", "text_config": {"max_position_embeddings": 4096}}, "specexec"),
}  # fmt: skip
COMMANDS = (
    ("evaluate", "--methods", "specexec"), ("advise",), ("certify", "--method", "specexec"),
    ("generate", "hello", "--method", "specexec"), ("log_decoder", "--method", "specexec", "--name", "x"),
    ("main", "--methods", "specexec"), ("collect_labels",), ("benchmark",),
)  # fmt: skip


def folder(path: Path, values: dict[str, Any], name: str = "model") -> str:
    """A folder with nothing but a config.json."""
    (path / name).mkdir()
    (path / name / "config.json").write_text(json.dumps({**SIZES, **values}))
    return str(path / name)


def look(path: str, methods: str, **flags: str) -> None:
    settings = {"methods": methods, "gamma": "4", "target": path, "draft": path, **flags}
    if not set(methods.split(",")) & {"speculative", "lookup", "specexec"}:
        del settings["gamma"]
    first_look.check(config.resolve("arith_quick", settings))


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_cannot_do_what_is_asked_is_refused(tmp_path: Path, case: str) -> None:
    values, methods, words = REFUSED[case]
    with pytest.raises((ModelError, ConfigError)) as error:
        look(folder(tmp_path, values), methods)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("case", ALLOWED)
def test_what_may_decode_is_not_refused(tmp_path: Path, case: str) -> None:
    values, methods = ALLOWED[case]
    look(folder(tmp_path, values), methods)


@pytest.mark.parametrize("case", ODD)
def test_odd_values_end_in_a_message_if_at_all(tmp_path: Path, case: str) -> None:
    path = folder(tmp_path, {"model_type": "llama", **ODD[case]})
    for check in (lambda: look(path, "specexec"), lambda: loading.check_decodable(ModelConfig(path), trees=True)):
        with suppress(ModelError):
            check()


def test_a_model_that_no_method_uses_is_not_looked_at(tmp_path: Path) -> None:
    broken = folder(tmp_path, {"model_type": "vit"}, "draft")
    look("zoo:target", "baseline,lookup", draft=broken)
    with pytest.raises(ModelError, match="neither a causal"):
        look("zoo:target", "speculative", draft=broken)


def test_what_cannot_be_read_is_left_to_the_loader(tmp_path: Path) -> None:
    for text in ("{", "[1]", "{}"):
        path = folder(tmp_path, {}, f"folder{len(text)}")
        Path(path, "config.json").write_text(text)
        look(path, "baseline")
    own = folder(tmp_path, {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "a.B"}})
    look(own, "baseline", config=_trusting(tmp_path, own))


def _trusting(tmp_path: Path, path: str) -> str:
    file = tmp_path / "trust.yaml"
    file.write_text(json.dumps({"target": {"model": path, "trust_remote_code": True}}))
    return str(file)


def test_hub_ids_are_looked_up_and_their_faults_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        if repository == "some/gated":
            raise type("GatedRepoError", (OSError,), {})("no")
        if repository == "some/odd":
            raise OSError("a full disk")
        return f"{folder(tmp_path, {'model_type': 'mamba'}, str(len(asked)))}/config.json"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ModelError, match="recurrent state"):
        look("some/mamba", "specexec")
    with pytest.raises(ModelError, match="is gated"):
        look("some/gated", "specexec")
    look("some/odd", "baseline")
    assert asked == [(name, "config.json", None) for name in ("some/mamba", "some/gated", "some/odd")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_refuse_without_importing_what_is_heavy(tmp_path: Path, command: tuple[str, ...]) -> None:
    """One line, exit code 2, nothing written; MLflow and the models' libraries are not even imported."""
    kind = "mamba" if "specexec" in command or command == ("advise",) else "vit"
    target = folder(tmp_path, {"model_type": kind})
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('imported:', [name for name in {HEAVY} if name in sys.modules]))\n"
        "from entrypoints.__main__ import cli\n"
        f"cli([*{command}, '--target', {target!r}, '--draft', {target!r}])\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert run.returncode == 2, run.stderr
    assert run.stdout == "imported: []\n"
    assert run.stderr.count("\n") == 1
    assert f"({kind})" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _compare(kind: str) -> None:
    """A saved config is refused for the reason that its class gives; the context it states is no shorter."""
    loaded = tiny_models.config(kind)
    values = json.loads(json.dumps(loaded.to_diff_dict(), default=str))
    raw = RawConfig({**values, "model_type": kind if kind in CONDITIONAL else loaded.model_type})
    facts = model_types.facts_of(raw)
    said = (refusals.refusal(raw, facts), refusals.tree_refusal(raw, facts))
    expected = (model_config.refusal(loaded), model_config.tree_refusal(loaded))
    assert said == expected
    check_sizes(raw.get_text_config().values, kind)
    if (context := raw.get_text_config().max_position_embeddings) is not None:
        assert context >= model_config.context_of(loaded, kind)


def test_named_types_are_judged_as_by_their_classes() -> None:
    for kind in ("llama", "bloom", "gpt_neo", "lfm2", "qwen3_next", "openai-gpt", "mistral3"):
        _compare(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FAMILIES - {"gemma4_assistant"}))  # which has no tiny config
def test_every_type_is_judged_as_by_its_class(kind: str) -> None:
    _compare(kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_file_of_model_types_says_what_the_classes_say() -> None:
    """For every type that the installed transformers has; `make settings` writes the file."""
    kept = json.loads(model_types.FILE.read_text())
    now = type_table.read_classes()
    known = {*now["causal"], *now[model_types.NO_HEAD]} & {*kept["causal"], *kept[model_types.NO_HEAD]}
    assert len(known) > 700
    for name, types in now.items():
        assert known & set(kept[name]) == known & set(types), name


def test_drafts_longer_than_half_the_context_are_refused() -> None:
    methods = config.resolve("arith_quick", {"methods": "speculative", "gamma": "8"}).methods
    first_look.check_lengths(methods, 16)
    for context, words in ((15, "at most 7"), (1, "holds no draft")):
        with pytest.raises(SpecexpError, match=words):
            first_look.check_lengths(methods, context)

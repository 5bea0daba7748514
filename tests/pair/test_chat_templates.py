"""Chat templates: used where a tokenizer has one and prompts are questions, said once, and shown with what they add."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import specexp
from entrypoints import generate, main
from entrypoints.__main__ import Entrypoints
from helpers.cli_runner import evaluate, invoke, refused, tiny
from helpers.judges import judge_for, label_set
from specexp import config
from specexp.advise.recommended import _models
from specexp.errors import ConfigError
from specexp.judge import features, trained_judge
from specexp.lm.hf.loading import load_tokenizer
from specexp.lm.runtime import ModelConfig
from specexp.pair import chat_template
from specexp.pair.loading import load_pair
from specexp.pair.tokenization import TokenizerText
from specexp.serving.decoder_spec import FILE, Reference, ServedDecoder, make_decoder_spec
from specexp.storage.run_folder import OutputFolder

TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
REPLY = "{% if add_generation_prompt %}[assistant] {% endif %}"
PLAIN = TURNS + REPLY
WITH_BOS = "{{ bos_token }}" + PLAIN
DEFAULT = (
    "{% if messages[0].role != 'system' %}[system] You are Tiny,\n a helpful model.\n{% endif %}" + PLAIN
)  # as Qwen2.5 and SmolLM2 have it
ALWAYS = (  # as Llama 3.1 has it: a date whatever else is said
    "{{ bos_token }}{% set own = messages[0].role == 'system' %}[system]\n\nToday is {{ date_string }}.\n"
    "{% if own %}{{ messages[0].content }}{% endif %}<|eos|>\n{% for m in messages[1:] if own %}[{{ m.role }}] "
    "{{ m.content }}<|eos|>\n{% endfor %}{% if not own %}{% for m in messages %}[{{ m.role }}] {{ m.content }}<|eos|>\n"
    "{% endfor %}{% endif %}" + REPLY
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN  # Gemma
PREFACE = "A chat with an expert. {% for m in messages %}{{ m.role | upper }}: {{ m.content }} {% endfor %}"  # Vicuna
DECODING = (
    "evaluate", "main", "benchmark", "advise", "certify", "collect_labels", "log_decoder", "generate",
)  # fmt: skip
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer has a template with a system prompt of its own."""
    folder = tiny(tmp_path_factory.mktemp("chat"))
    (folder / "chat_template.jinja").write_text(DEFAULT)
    return folder


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("base"))


def tokenizer_with(template: str) -> Any:
    tokenizer = load_tokenizer(ModelConfig("zoo:target"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template,system",
    [
        (PLAIN, ""),
        (WITH_BOS, ""),
        (NO_SYSTEM, ""),
        (DEFAULT, "You are Tiny,\n a helpful model."),
        (ALWAYS, f"Today is {chat_template.TODAY}."),
        (PREFACE, "A chat with an expert."),
        ("{{ raise_exception('nothing goes') }}", ""),
    ],
    ids=["plain", "with bos", "no system role", "default", "always", "preface", "refuses all"],
)
def test_what_a_template_tells_the_model_by_itself_is_found_by_rendering(template: str, system: str) -> None:
    tokenizer = tokenizer_with(template)
    assert chat_template.system_text(tokenizer) == system
    said = chat_template.note("auto", tokenizer, True, system, "")
    assert ("adds no system prompt" in said) == (not system)
    assert " ".join(system.split()) in said


@pytest.mark.parametrize("template,count", [(WITH_BOS, 1), (ALWAYS, 1), (PLAIN, 0)])
def test_a_tokenizer_that_adds_a_bos_adds_none_to_a_rendered_prompt(template: str, count: int) -> None:
    tokenizer = tokenizer_with(template)
    assert tokenizer(QUESTION)["input_ids"][0] == tokenizer.bos_token_id, "it does add one to plain text"
    messages = [{"role": "user", "content": QUESTION}]
    ids = chat_template.ids_of(tokenizer, chat_template.render(tokenizer, messages))
    assert ids.count(tokenizer.bos_token_id) == count
    assert ids == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, date_string=chat_template.TODAY, return_dict=False
    )
    assert tokenizer.decode(ids).endswith("[assistant] ")


ONE_ROW = {
    "arith": "",
    "gsm8k": '{"question": "1 + 1?", "answer": "#### 2"}',
    "mtbench": '{"question_id": 1, "category": "writing", "turns": ["Write."]}',
    "prompts": '{"prompt": "Say it."}',
}


@pytest.mark.parametrize(
    "task,setting,used",
    [
        ("arith", "", False),
        ("arith", "auto", False),
        ("arith", "own", True),
        ("gsm8k", "", True),
        ("gsm8k", "none", False),
        ("mtbench", "auto", True),
        ("prompts", "", True),
        ("prompts", "none", False),
    ],
)
def test_questions_go_into_the_template_and_completions_do_not(
    tmp_path: Path, chat_folder: Path, task: str, setting: str, used: bool
) -> None:
    flags = {"target": str(chat_folder), "draft": str(chat_folder), "task": task, "chat_template": setting}
    if ONE_ROW[task]:
        (tmp_path / "rows.jsonl").write_text(ONE_ROW[task] + "\n")
        flags["data"] = str(tmp_path / "rows.jsonl")
    pair = load_pair(config.resolve("arith_quick", flags), {"target"})
    text: Any = pair.text
    shown = text.tokenizer.decode(text.encode([{"role": "user", "content": "Say it."}]))
    assert (shown == "[system] You are Tiny,\n a helpful model.\n[user] Say it.\n[assistant] ") == used
    (note,) = pair.notes
    assert ("You are Tiny, a helpful model." in note) == used
    assert ("which is not used" in note) == (not used)
    assert ("the prompts of task 'arith' are completions" in note) == (task == "arith" and not used)


@pytest.mark.parametrize("template", [PLAIN, DEFAULT, ALWAYS, PREFACE], ids=["plain", "default", "always", "preface"])
def test_a_system_prompt_takes_the_place_of_the_templates_own(template: str) -> None:
    tokenizer = tokenizer_with(template)
    plain, text = TokenizerText(tokenizer, True), TokenizerText(tokenizer, True, given="Be brief.")
    asked = [{"role": "user", "content": QUESTION}]
    first = [{"role": "system", "content": "Be brief."}, *asked]
    assert text.encode(asked) == plain.encode(first) != plain.encode(asked)
    assert text.encode([{"role": "system", "content": "Be long."}, *asked]) != text.encode(asked), "its own wins"
    assert "Be brief." in tokenizer.decode(text.encode(asked))
    assert (text.facts()["system_prompt"], text.facts()["chat_template"] == plain.facts()["chat_template"]) == (
        "Be brief.", False,
    )  # fmt: skip
    chat_template.check_system(tokenizer, "x")
    said = chat_template.note("auto", tokenizer, True, "You are Tiny.", "", "Be brief.")
    assert said.endswith('tokenizer, with the system prompt "Be brief." (chat_template auto).')


LEFT_OUT = "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template,why", [(NO_SYSTEM, "no system role"), (LEFT_OUT, "it leaves it out")])
def test_a_template_that_takes_no_system_prompt_refuses_one(workplace: Path, template: str, why: str) -> None:
    tiny(workplace / "model")
    (workplace / "model" / "chat_template.jinja").write_text(template)
    models = ("--target", "./model", "--draft", "./model", "--max-new-tokens", "2")
    result = invoke(generate.command, QUESTION, *models, "--system", "Be brief.")
    assert result.exit_code == 2
    assert result.output.strip() == (
        f"error: system is given, but the chat template of './model' takes no system prompt ({why}); leave it out, or"
        " set chat_template to none."
    )
    assert (
        invoke(generate.command, QUESTION, *models, "--system", "Be brief.", "--chat-template", "none").exit_code == 0
    )


def test_solved_examples_are_turns_of_the_conversation(tmp_path: Path, chat_folder: Path) -> None:
    from specexp.tasks.source import DataConfig
    from specexp.tasks.task import task

    (tmp_path / "rows.jsonl").write_text(ONE_ROW["gsm8k"] + "\n")
    flags = {"target": str(chat_folder), "task": "gsm8k", "shots": "8", "data": str(tmp_path / "rows.jsonl")}
    text: Any = load_pair(config.resolve("arith_quick", flags), {"target"}).text
    (example,) = task("gsm8k", DataConfig(flags["data"]), 8).examples(1)
    assert text.tokenizer.decode(text.encode(example.messages())).count("[assistant] ") == 9


def test_generate_asks_a_chat_model_in_its_template_and_says_so_once(workplace: Path, chat_folder: Path) -> None:
    models = ["--target", str(chat_folder), "--draft", str(chat_folder), "--max-new-tokens", "5", "--json"]
    asked = invoke(generate.command, QUESTION, *models)
    assert asked.exit_code == 0, asked.output
    assert asked.stderr.count("note: ") == asked.stderr.count('system prompt: "You are Tiny, a helpful model."') == 1
    bare = invoke(generate.command, QUESTION, *models, "--chat-template", "none")
    assert "which is not used (chat_template none)" in bare.stderr
    (spelled,) = [
        invoke(generate.command, text, *models, "--chat-template", "none")
        for text in [f"[system] You are Tiny,\n a helpful model.\n[user] {QUESTION}\n[assistant] "]
    ]
    ids = [json.loads(each.stdout)["token_ids"] for each in (asked, bare, spelled)]
    assert ids[0] != ids[1], "the template makes a difference"
    assert len(ids[0]) == len(ids[2])


def test_an_empty_text_is_said_to_be_one(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specexp.pair.tokenization import TokenizerText

    monkeypatch.setattr(TokenizerText, "decode", lambda self, ids: "")
    result = invoke(generate.command, "Mia", "--max-new-tokens", "2", "--json")
    assert result.exit_code == 0, result.output
    assert "note: the text is empty" in result.stderr


def test_an_evaluation_tells_it_once_and_keeps_it(workplace: Path, chat_folder: Path) -> None:
    (workplace / "mine.jsonl").write_text(ONE_ROW["prompts"] + "\n")
    models = ["--target", str(chat_folder), "--draft", str(chat_folder), "--max-new-tokens", "4"]
    task = ["--task", "prompts", "--data", "mine.jsonl", "--methods", "baseline", "--show", "0"]
    result = evaluate(*models, *task, "--output", "out")
    assert result.exit_code == 0, result.output
    assert result.output.count("chat template") == 1
    (facts,) = json.loads((workplace / "out/environments.json").read_text()).values()
    tokenizer = facts["tokenizer"]
    assert tokenizer["chat_template_setting"] == "auto"
    assert tokenizer["system_prompt"] == "You are Tiny,\n a helpful model."
    assert tokenizer["chat_template"] is not None
    # What was begun when `none` was the default: the refusal names the setting that brings it back.
    settings = json.loads((workplace / "out/config.json").read_text())
    flags = {"methods": "baseline", "task": "prompts", "data": "mine.jsonl", "max_new_tokens": "4",
             "target": str(chat_folder), "draft": str(chat_folder), "chat_template": "none"}  # fmt: skip
    old = config.resolve("arith_quick", flags)
    (workplace / "out/records.jsonl").unlink()
    for role in ("target", "draft"):
        settings[role]["chat_template"] = "none"
    (workplace / "out/config.json").write_text(json.dumps({**settings, "settings_hash": old.hash}))
    other = evaluate(*models, *task, "--output", "out", "--resume")
    assert other.exit_code == 2
    assert 'target.chat_template was "none", is "auto"' in other.output
    assert OutputFolder(workplace / "out", old, resume=True), "with it, the folder is ours"


def test_where_auto_changes_no_prompt_it_changes_no_name_of_settings() -> None:
    arith = config.resolve("arith_quick")
    assert arith.target.chat_template == "auto"
    assert arith.hash == config.resolve("arith_quick", {"chat_template": "none"}).hash
    assert arith.hash != config.resolve("arith_quick", {"chat_template": "own"}).hash
    mined = [config.resolve_mining("arith_quick", {"chat_template": each}).hash for each in ("auto", "none", "own")]
    assert mined[0] == mined[1] != mined[2]
    asked = [config.resolve("arith_quick", {"task": "prompts", "data": "x", "chat_template": each}).hash
             for each in ("auto", "none", "own")]  # fmt: skip
    assert len(set(asked)) == 3
    toy = config.resolve("toy_quick")
    bare = replace(
        toy, target=replace(toy.target, chat_template="none"), draft=replace(toy.draft, chat_template="none")
    )
    assert toy.hash == bare.hash


def test_an_own_template_of_the_target_counts_for_both_as_before() -> None:
    """A file that names the target's alone kept `none` for the draft, and its settings keep their name."""
    experiment = config.resolve("gsm8k_llama_8b_1b")
    alone = replace(experiment, draft=replace(experiment.draft, chat_template="auto"))
    assert alone.hash == replace(experiment, draft=replace(experiment.draft, chat_template="none")).hash


@pytest.mark.parametrize("name", DECODING)
def test_every_command_that_decodes_takes_the_flag(name: str) -> None:
    command = Entrypoints().get_command(click.Context(click.Command("x")), name)
    assert command is not None
    (option,) = [p for p in command.params if p.name == "chat_template"]
    assert option.opts == ["--chat-template", "--chat_template"]


def test_labels_are_mined_with_the_template_that_the_story_evaluates_with() -> None:
    assert "chat_template" in main.OF_LABELS


def test_a_flag_wins_over_a_file_and_a_file_over_the_pair(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"

    def templates(text: str, experiment: str = "arith_quick", **flags: str) -> tuple[str, str]:
        file.write_text(text)
        got = config.resolve(experiment, {"config": str(file), **flags})
        return got.target.chat_template, got.draft.chat_template

    assert templates("target: {chat_template: own}\n") == ("own", "auto")
    assert templates("target: {chat_template: own}\n", chat_template="none") == ("none", "none")
    assert templates("chat_template: none\n", "gsm8k_llama_8b_1b") == ("none", "none")
    assert templates("chat_template: none\n", chat_template="own") == ("own", "own")
    with pytest.raises(ConfigError, match="chat_template is 'none', but target's is 'own'; give one of them"):
        templates("chat_template: none\ntarget: {chat_template: own}\n")
    with pytest.raises(ConfigError, match=r"unknown chat_template 'ours'\. Known: auto, none, own"):
        templates("limit: 3\n", chat_template="ours")
    with pytest.raises(ConfigError, match="chat_template is own, but pair 'toy' has no template"):
        config.resolve("toy_quick", {"chat_template": "own"})
    assert config.resolve("toy_quick", {"chat_template": "none"}).toy is not None


def test_a_template_that_is_asked_for_must_be_there(workplace: Path) -> None:
    result = evaluate("--chat-template", "own", "--output", "out")
    refused(result, "chat_template is own, but the tokenizer of 'zoo:target' has none; set chat_template to none.",
            workplace)  # fmt: skip


def test_several_templates_without_a_default_are_refused(workplace: Path, base_folder: Path) -> None:
    from specexp.errors import ModelError

    tokenizer = tokenizer_with(PLAIN)
    tokenizer.chat_template = {"tools": PLAIN, "rag": PLAIN}
    with pytest.raises(ModelError, match="has several chat templates and no default one; set chat_template to none"):
        chat_template.is_used("auto", tokenizer, completions=False, name="x")
    assert not chat_template.is_used("none", tokenizer, completions=False, name="x")


def test_a_judge_says_when_it_was_mined_with_other_prompts(tmp_path: Path) -> None:
    judge = judge_for("arith_quick", features.mode("target"))
    here = {"chat_template": "a" * 64}
    for mined, words in (("", "mined without the chat template"), ("b" * 64, "in another chat template")):
        (note,) = replace(judge, facts=replace(judge.facts, chat_template=mined)).notes(here)
        assert words in note
    chatty = replace(judge, facts=replace(judge.facts, chat_template="a" * 64))
    assert chatty.notes(here) == []
    assert "in a chat template, which is not used here" in chatty.notes({"chat_template": ""})[0]
    assert replace(judge, facts=replace(judge.facts, chat_template=None)).notes(here) == [], (
        "an older one does not know"
    )
    labels = label_set(tmp_path / "labels", chat_template="c" * 64)
    made = trained_judge.train("logistic", labels, features.mode("target"), 0.9, 0, lambda *_: None)
    assert made.judge.facts.chat_template == "c" * 64


def test_prompts_of_ones_own_go_into_the_template_whatever_the_experiment_asks(chat_folder: Path) -> None:
    """The Python door of the default experiment, whose own prompts are completions."""
    pair = specexp.load("arith_quick", target=str(chat_folder), draft=str(chat_folder))
    assert "You are Tiny" in pair.notes[0]
    assert pair.identity()["chat_template"]
    bare = specexp.load("arith_quick", target=str(chat_folder), draft=str(chat_folder), chat_template="none")
    assert pair.generate("hi", max_new_tokens=4).token_ids != bare.generate("hi", max_new_tokens=4).token_ids


def test_a_served_decoder_keeps_the_template_it_was_logged_with(
    tmp_path: Path, chat_folder: Path, base_folder: Path
) -> None:
    def logged(folder: Path) -> Reference:
        flags = {"target": str(folder), "draft": str(folder), "methods": "baseline"}
        pair = specexp.load("arith_quick", **flags)
        return make_decoder_spec(pair, config.resolve("arith_quick", flags), 8)

    chatty = logged(chat_folder)
    assert (chatty.experiment.target.chat_template, logged(base_folder).experiment.target.chat_template) == (
        "own", "none",
    )  # fmt: skip
    # A version of before, logged without the template that was there.
    chatty.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    for role in ("target", "draft"):
        content["experiment"][role]["chat_template"] = "none"
    content["identity"]["chat_template"] = ""
    (tmp_path / FILE).write_text(json.dumps(content))
    (old,) = ServedDecoder(tmp_path).decode(["hi"], {"max_new_tokens": 4})
    bare = specexp.load("arith_quick", target=str(chat_folder), draft=str(chat_folder), chat_template="none")
    assert old.token_ids == bare.generate("hi", "baseline", max_new_tokens=4).token_ids


def test_a_recommendation_carries_the_setting() -> None:
    def written(name: str, **flags: str) -> dict[str, Any]:
        return _models(config.resolve(name, flags), ("target", "draft"))

    assert written("arith_quick") == {"pair": "embedded"}
    assert written("arith_quick", chat_template="own") == {"pair": "embedded", "chat_template": "own"}
    assert written("gsm8k_llama_8b_1b") == {"pair": "llama_8b_1b"}
    off = written("gsm8k_llama_8b_1b", chat_template="none")
    assert off == {"pair": "llama_8b_1b", "chat_template": "none"}

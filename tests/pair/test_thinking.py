"""An answer is read from what follows the end of a thought, however the model marks it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specexp.errors import ModelError
from specexp.pair.thinking import Thinking, budget_of, thinking_changed, thinking_notes, thinking_of
from specexp.pair.tokenization import TokenizerText, ToyText
from specexp.tasks.example import Example


def text_with(tokens: tuple[str, ...] = (), special: bool = False, template: str = "") -> TokenizerText:
    """A tokenizer of characters that has these tokens besides; special ones are not in decoded texts."""
    base = Tokenizer(models.WordLevel({c: i for i, c in enumerate(string.printable)}, unk_token="?"))
    base.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    base.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.chat_template = template or None
    return TokenizerText(tokenizer, bool(template))


def ids_of(text: TokenizerText, said: str) -> list[int]:
    return [int(i) for i in text.tokenizer(said, add_special_tokens=False)["input_ids"]]


TEXTS = {
    "tokens": text_with(("<think>", "</think>")),
    "special tokens": text_with(("<think>", "</think>"), special=True),
    "ordinary text": text_with(template="{{ '<think></think>' }}"),
}


@pytest.mark.parametrize("how", TEXTS)
@pytest.mark.parametrize(
    "prompt,output,answer",
    [
        ("2+2?", "<think>5? No</think>4", "4"),
        ("2+2?", "4", "4"),
        ("2+2?", "<think>5? No", None),
        ("2+2?", "a</think>b<think>c</think>4", "4"),
        ("2+2?", "a</think>b<think>c", None),
        ("2+2?", "<think></think>", ""),
        ("2+2?<think>\n", "5? No</think>4", "4"),
        ("2+2?<think>\n", "5? No", None),
        ("2+2?<think>\n\n</think>\n\n", "4", "4"),
        ("What is <think> for?", "4", "4"),
    ],
)
def test_an_answer_follows_the_last_thought(how: str, prompt: str, output: str, answer: str | None) -> None:
    text = TEXTS[how]
    thinking = thinking_of(text)
    assert thinking is not None
    assert thinking.end == "</think>"
    assert bool(thinking.end_ids) == (how != "ordinary text")
    ids = ids_of(text, output)
    assert thinking.answer_text(text, ids_of(text, prompt), ids, text.decode(ids)) == answer


def test_a_text_that_is_cut_after_the_thought_stays_cut() -> None:
    text = TEXTS["special tokens"]
    thinking = thinking_of(text)
    assert thinking is not None
    ids = ids_of(text, "<think>so</think>4 and more")
    assert thinking.answer_text(text, [], ids, "so4") == "4"


def test_channels_of_several_tokens_are_markers() -> None:
    tokens = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
    text = text_with(tokens, special=True, template="{{ '<|channel|>final<|message|>' }}")
    thinking = thinking_of(text)
    assert thinking is not None
    assert len(thinking.end_ids) == 2 + len("final")
    thought = "<|channel|>analysis<|message|>5? No<|end|><|start|>assistant"
    ids = ids_of(text, f"{thought}<|channel|>final<|message|>4")
    assert thinking.answer_text(text, [], ids, text.decode(ids)) == "4"
    ids = ids_of(text, thought)
    assert thinking.answer_text(text, [], ids, text.decode(ids)) is None


def test_who_has_no_markers_does_not_think() -> None:
    assert thinking_of(text_with()) is None
    assert thinking_of(text_with(template="{{ 'hello' }}")) is None
    assert thinking_of(ToyText(9)) is None


def test_a_note_says_where_answers_are_read_and_a_folder_does_not_mix_two_ways() -> None:
    thinking = Thinking("<think>", "</think>")
    graded, open_question = Example("a", ("2+2?",), "4"), Example("b", ("Why?",))
    (note,) = thinking_notes(thinking, [open_question, graded])
    assert note.startswith("answers are read from what follows the end of thinking, </think>;")
    assert thinking_notes(thinking, [open_question]) == thinking_notes(None, [graded]) == []
    assert thinking_changed(Path("out"), {}, {}) is None
    assert thinking_changed(Path("out"), {}, {"thinking_end": "</think>"}) == (
        "'out' was begun with answers read from whole outputs, now from what follows </think>; name another output"
        " folder."
    )


def test_a_budget_has_the_ids_of_the_markers_and_of_the_text_that_ends_a_thought() -> None:
    text = TEXTS["special tokens"]
    budget = budget_of(text, 9)
    assert budget is not None
    assert text.tokenizer.decode(list(budget.forced_ids)) == "\n</think>\n\n"
    assert (budget.num_tokens, budget.most) == (9, 9 + 4)
    assert [text.tokenizer.decode(list(ids)) for ids in (budget.start_ids, budget.end_ids)] == ["<think>", "</think>"]
    assert budget.is_open(ids_of(text, "2+2?<think>\n"))
    assert not budget.is_open(ids_of(text, "2+2?<think>\n\n</think>\n\n"))
    assert not budget.is_open(ids_of(text, "What is <think> for?"))
    assert budget_of(text, 0) is None
    for other, words in (
        (TEXTS["ordinary text"], "has no token for </think>"),
        (text_with(), "neither the tokenizer nor its chat template has markers"),
        (ToyText(9), "neither the tokenizer nor its chat template has markers"),
    ):
        assert budget_of(other, 0) is None
        with pytest.raises(ModelError, match=f"thinking_budget is 9, but .*{words}.*; leave it out"):
            budget_of(other, 9)
    channels = "{{ '<|channel|>final<|message|>' }}"
    harmony = text_with(("<|channel|>", "<|message|>", "<|end|>", "<|start|>"), template=channels)
    forced = budget_of(harmony, 9)
    assert forced is not None
    assert tuple(forced.forced_ids[-len(forced.end_ids) :]) == forced.end_ids

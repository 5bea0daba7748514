"""One output of a served engine, as it is compared: its tokens with their end, else its text.

Where a server gives text alone, a tokenizer splits it. A model may emit the same text in other tokens, so that such
tokens are those of the text and not surely the ones that were emitted: `split` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specexp.certify.chi_square import Prefix
from specexp.engines import acceptance
from specexp.engines.acceptance import DraftCounts
from specexp.engines.stream import Answer
from specexp.evaluation.preparation import Prepared
from specexp.pair.tokenization import TokenizerText, ToyText

TOKEN_ID = "token_id:"  # how vLLM names a token of its log-probabilities by its id


@dataclass(frozen=True, slots=True)
class ServedOutput:
    """`tokens` end with the EOS if it ended the output; None where the server gives none and no tokenizer is at hand.

    `top` are the likeliest tokens in each place by id, as far as they were asked for and have ids.
    """

    text: str
    tokens: tuple[int, ...] | None
    ended: bool  # by an EOS or a stop string
    num_tokens: int | None
    top: tuple[dict[int, float], ...] = ()
    drafts: DraftCounts | None = None
    split: bool = False  # that a tokenizer made the tokens of the text

    @property
    def compared(self) -> tuple[int, ...] | str:
        """What decides if two outputs are equal."""
        return self.text if self.tokens is None else self.tokens

    def as_json(self) -> dict[str, Any]:
        drafts = self.drafts
        return {
            "text": self.text,
            "tokens": None if self.tokens is None else list(self.tokens),
            "ended": self.ended,
            "num_tokens": self.num_tokens,
            "top": [[list(pair) for pair in each.items()] for each in self.top],
            "drafts": None if drafts is None else [
                drafts.source, drafts.num_drafted, drafts.num_accepted, drafts.num_rounds, list(drafts.by_position),
                drafts.num_calls,
            ],
            "split": self.split,
        }  # fmt: skip

    @classmethod
    def of_json(cls, given: dict[str, Any]) -> ServedOutput:
        tokens, drafts = given["tokens"], given["drafts"]
        return cls(
            given["text"],
            None if tokens is None else tuple(tokens),
            given["ended"],
            given["num_tokens"],
            tuple({int(token): value for token, value in each} for each in given["top"]),
            None if drafts is None else _counts(*drafts),
            given["split"],
        )


def _counts(
    source: str, drafted: int | None, accepted: int | None, rounds: int | None, by_position: list[int],
    calls: int | None,
) -> DraftCounts:  # fmt: skip
    return DraftCounts(source, drafted, accepted, rounds, tuple(by_position), calls)


def read(
    answer: Answer, ends: Sequence[int], splitter: Callable[[str], list[int]] | None, stops: Sequence[str] = ()
) -> ServedOutput:
    """What an answer says. `splitter` splits a text into tokens where the server gives no ids.

    `ends` are all that end an output, of which the first is written.
    """
    ended = answer.finish_reason == "stop"
    ids = answer.token_ids
    if ids is None and answer.text == "" and ended:
        ids = []
    split = False
    if ids is None and splitter is not None:
        ids, split = splitter(answer.text), True
    if ids is not None and ends:
        ids = [ends[0] if token in ends else token for token in answer.with_end(ids, ends, stops)]
    return ServedOutput(
        answer.text, None if ids is None else tuple(ids), ended, answer.num_tokens, tuple(_tops(answer)),
        acceptance.of_answer(answer), split,
    )  # fmt: skip


def _tops(answer: Answer) -> list[dict[int, float]]:
    """The likeliest tokens by id; empty if the server names them by their text, which several may share."""
    if answer.top_ids and all(answer.top_ids):
        return answer.top_ids
    tops = answer.top_logprobs
    if not tops or not all(name.startswith(TOKEN_ID) for each in tops for name in each):
        return []
    return [{int(name.removeprefix(TOKEN_ID)): value for name, value in each.items()} for each in tops]


def has_tokenizer(prepared: Prepared) -> bool:
    return isinstance(prepared.pair.text, TokenizerText | ToyText)


def ends_of(prepared: Prepared) -> tuple[int, ...]:
    text = prepared.pair.text
    if prepared.pair.eos_ids or not isinstance(text, TokenizerText):
        return tuple(prepared.pair.eos_ids)
    end = text.tokenizer.eos_token_id
    return () if end is None else (int(end),)


def tokens_of(prepared: Prepared, place: int, after: Prefix, text: str) -> list[int]:
    """The ids of an output's text: what the ids of its prompt and of `after` are followed by, if these do not join."""
    known = prepared.pair.text
    if not isinstance(known, TokenizerText):  # the toy's text is its ids
        return [int(word) for word in text.split()]
    if not known.chat:
        prompt = [*prepared.prompts[place], *after]
        messages = prepared.examples[place].messages()
        behind = messages[-1]["content"] + (known.decode(after) if after else "") + text
        whole = known.encode([*messages[:-1], {**messages[-1], "content": behind}])
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
    return [int(token) for token in known.tokenizer(text, add_special_tokens=False)["input_ids"]]

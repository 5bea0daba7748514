"""Converts messages to token ids and ids to text: a transformers tokenizer, or the toy's characters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, Protocol

from specexp.pair import chat_template
from specexp.tasks.example import Message

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Replacement characters, decoded from an incomplete character; and beginnings of the texts that transformers' clean-up
# of spaces joins to the word before (" .", " ' ", " n't", " 've", ...).
_UNSETTLED = re.compile(r"(?:\ufffd+| (?:n'?|'[vr]?)?)\Z")


class Text(Protocol):
    """Converts messages to token ids and ids to text."""

    def encode(self, messages: Sequence[Message]) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def stable_text(self, ids: Sequence[int]) -> str:
        """The beginning of the decoded text that no later token can change."""
        ...

    def longest(self) -> int:
        """An upper bound on the bytes of one token's text."""
        ...

    def piece(self, token: int) -> str:
        """The name of a token in the vocabulary, which differs from its text."""
        ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class TokenizerText:
    """A transformers tokenizer. With `chat`, it formats messages with its chat template; else it just joins them.

    `setting` is the `chat_template` setting, and `system` the template's system prompt without a system message.
    `given` is the setting `system`: the system prompt of every conversation that has none of its own.
    """

    tokenizer: Any
    chat: bool
    setting: str = ""
    system: str = ""
    given: str = ""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer or the template adds."""
        messages = after_system(self.given, messages)
        if not self.chat:
            return self._plain_ids(joined(messages))
        return chat_template.ids_of(self.tokenizer, chat_template.render(self.tokenizer, messages))

    def _plain_ids(self, text: str) -> list[int]:
        """Token ids with the tokenizer's special tokens; a text that already begins with a BOS gets no second one."""
        ids, bos = [int(i) for i in self.tokenizer(text)["input_ids"]], self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            own = [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
            return ids[1:] if ids[1 : len(own) + 1] == own else ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def stable_text(self, ids: Sequence[int]) -> str:
        """The decoded text without an incomplete character, and without spaces that the tokenizer may still clean up.

        Consecutive byte tokens (`<0xE2>`) are decoded together: an invalid one makes all byte tokens directly before it
        invalid as well.
        """
        end = len(ids)
        while end and (_BYTE.fullmatch(self.piece(ids[end - 1])) or not self.decode([ids[end - 1]])):
            end -= 1
        result = self.decode(ids)
        if end < len(ids):
            result = commonprefix([result, self.decode(ids[:end])])  # noqa: RUF071 (of texts, not of paths)
        return _UNSETTLED.sub("", result)

    def longest(self) -> int:
        return max(len(token.encode("utf-8", "surrogatepass")) for token in self.tokenizer.get_vocab())

    def piece(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token) or f"<{token}>")

    def facts(self) -> dict[str, Any]:
        template = chat_template.template_of(self.tokenizer) if self.chat else ""
        return {
            "class": type(self.tokenizer).__name__,
            "vocabulary": vocabulary_hash(self.tokenizer.get_vocab()),
            "chat_template": hashlib.sha256((template + self.given).encode()).hexdigest() if template else None,
            "chat_template_setting": self.setting,
            "system_prompt": self.given or self.system,
        }


@dataclass(frozen=True, slots=True)
class ToyText:
    """Encodes characters by code point, modulo the vocabulary, and decodes ids to numbers. Id 0 is the EOS only."""

    vocab_size: int
    given: str = ""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return [1 + ord(c) % (self.vocab_size - 1) for c in joined(after_system(self.given, messages))]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids)

    def stable_text(self, ids: Sequence[int]) -> str:
        return self.decode(ids)

    def longest(self) -> int:
        return 4  # a character

    def piece(self, token: int) -> str:
        return str(token)

    def facts(self) -> dict[str, Any]:
        return {"class": "ToyText", "vocabulary": str(self.vocab_size), "chat_template": None}


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text as it is, for engines whose tokenizer is not named: its ids are bytes, which no model reads."""

    system: str = ""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return list(joined(after_system(self.system, messages)).encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def stable_text(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="ignore")

    def longest(self) -> int:
        return 1

    def piece(self, token: int) -> str:
        return chr(token)

    def facts(self) -> dict[str, Any]:
        return {"class": "none: prompts are sent as text", "vocabulary": "", "chat_template": ""}


def plain(text: Text) -> Text:
    """The same tokenization without a chat template and a system prompt."""
    if isinstance(text, TokenizerText):
        return replace(text, chat=False, given="")
    return replace(text, given="") if isinstance(text, ToyText) else text


def after_system(system: str, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages after a system message of this text, unless there is none, or they have one."""
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def joined(messages: Sequence[Message]) -> str:
    """A single message unchanged; several with an empty line after each, so that an answer can follow. A system message
    comes before them with an empty line, too, and does not count."""
    if messages[0]["role"] == "system":
        return f"{messages[0]['content'].rstrip()}\n\n{joined(messages[1:])}"
    if len(messages) == 1:
        return messages[0]["content"]
    return "".join(message["content"].rstrip() + "\n\n" for message in messages)


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a tokenizer's map from tokens to ids."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()

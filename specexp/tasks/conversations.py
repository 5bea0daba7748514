"""Reads rows that are conversations: a list of messages in their order, with the assistant's answers that are given.

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"},
                  {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 4 more?"}]}

The last message is the user's, and is answered; what precedes it is its context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specexp.errors import TaskError, shown
from specexp.reading import BOM
from specexp.tasks.source import Row

KEY = "messages"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Conversation:
    """The system message ("" if there is none), the exchanges (question, answer), and the question after them, which is
    "" if the last message is an answer."""

    system: str
    exchanges: tuple[tuple[str, str], ...]
    question: str


def is_one(row: Row) -> bool:
    """True if a row has messages. Null counts as missing: in a table they are the same."""
    value = row.values.get(KEY)
    return value is not None and value == value


def conversation(row: Row) -> Conversation:
    """Return a row's messages. Raises TaskError that names the message and the rule."""
    given = row.values[KEY]
    if not isinstance(given, list) or not given:
        raise TaskError(f"{row.where}: '{KEY}' must be a list of one message or more, got {shown(given)}.")
    said = [_message(row, number, each) for number, each in enumerate(given, 1)]
    system = said.pop(0)[1] if said[0][0] == "system" else ""
    first = len(given) - len(said) + 1
    if not said:
        raise TaskError(f"{row.where}: '{KEY}' holds a system message alone; add the user's.")
    for number, (role, _) in enumerate(said):
        if role != ROLES[1 + number % 2]:
            raise TaskError(
                f"{row.where}: message {first + number} is the {role}'s, but the {ROLES[1 + number % 2]}'s is next: a"
                " system message may come first, and then user and assistant take turns."
            )
    texts = [text for _, text in said]
    return Conversation(system, tuple(zip(texts[::2], texts[1::2], strict=False)), texts[-1] if len(texts) % 2 else "")


def _message(row: Row, number: int, given: Any) -> tuple[str, str]:
    """The role and the text of one message."""
    role, content = (given.get("role"), given.get("content")) if isinstance(given, dict) else (None, None)
    if role not in ROLES:
        raise TaskError(
            f"{row.where}: message {number} must have a role of {', '.join(ROLES)} and a content, got {shown(given)}."
        )
    if not isinstance(content, str) or not content.strip():
        raise TaskError(
            f"{row.where}: the content of message {number} must be a text that is not empty, got {shown(content)}."
        )
    return role, content.removeprefix(BOM)

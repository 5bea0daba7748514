"""One setting of one method of an experiment, for callers with their own prompts. Imports no model library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specexp import config, reading
from specexp.config import Experiment
from specexp.errors import ConfigError, PromptError, TaskError
from specexp.tasks.conversations import KEY, conversation
from specexp.tasks.example import Example, Message
from specexp.tasks.source import Row

MEGABYTE = 1 << 20
TOKEN_BYTES = 16
# The experiment's own prompts and the settings of its task are not used.
_NO_TASK = {"task": "prompts", "data": "-", "shots": 0, "shots_data": "none", "history": "baseline"}


def resolve(experiment: str, method: str, flags: Mapping[str, Any]) -> Experiment:
    """The experiment with this one method only. Raises ConfigError with every fault."""
    if not method:
        raise ConfigError("method is not given; name one preset, such as speculative.")
    result = config.resolve(experiment, {**flags, "methods": method}, _NO_TASK)
    if len(result.methods) > 1:
        names = ", ".join(each.label for each in result.methods)
        raise ConfigError(
            f"method '{method}' makes {len(result.methods)} settings here ({names}); name one preset, and one value of"
            " gamma, tree_budget, threshold, accept_k, rule and the like."
        )
    return result


def checked_prompt(prompt: str) -> str:
    """The prompt without a byte order mark. Raises PromptError if it is blank or not valid text."""
    prompt = prompt.removeprefix(reading.BOM)
    if not prompt.strip():
        raise PromptError("the prompt is empty; give it some text.")
    reading.check_text(prompt, "the prompt", PromptError)
    return prompt


def checked_messages(prompt: str | Sequence[Mapping[str, str]]) -> list[Message]:
    """A prompt as messages: the user's, or those of a conversation, the last of which is the user's.

    Raises PromptError for what is blank, not valid text, or no such conversation.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": checked_prompt(prompt)}]
    try:
        talk = conversation(Row("the conversation", 1, {KEY: list(prompt)}))
    except TaskError as error:
        raise PromptError(str(error)) from None
    if not talk.question:
        raise PromptError("the conversation ends with the assistant; end it with the user, who is answered.")
    messages = Example("", (talk.question,), context=talk.exchanges, system=talk.system).messages()
    for message in messages:
        reading.check_text(message["content"], "the conversation", PromptError)
    return messages


def most_bytes(context: int, longest: int) -> int:
    """The maximum number of bytes of a prompt that is tokenized, if the longest token has `longest` bytes.

    Above a megabyte it is also limited to 16 bytes per token of the context (text has about 4), and to 8 MB.
    """
    return min(context * longest, max(MEGABYTE, min(context * TOKEN_BYTES, 8 * MEGABYTE)))


def check_bytes(messages: Sequence[Message], most: int) -> None:
    """Refuse a prompt that is too long to process. Raises PromptError."""
    size = sum(len(message["content"].encode("utf-8")) for message in messages)
    if size > most:
        raise PromptError(f"the prompt has {size} bytes; the model's context takes at most {most}: shorten it.")

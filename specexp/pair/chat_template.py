"""Chat templates: decides if prompts use one, renders conversations, and finds the template's own system prompt.

auto   the tokenizer's own template, if it has one and the prompts are not completions
own    the tokenizer's own template, which must exist
none   messages are joined without a template
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from specexp.errors import ModelError, first_line
from specexp.lm.runtime import AUTO, NO_TEMPLATE
from specexp.tasks.example import Message

# Some templates write today's date into every prompt; a fixed date keeps prompts the same from day to day.
TODAY = "2024-07-26"
_FIXED_DATE = f"{{%- macro strftime_now(format) -%}}{TODAY}{{%- endmacro -%}}"
SHOWN = 200  # characters of a template's own text in a note
_FIRST, _SECOND, _REPLY, _SYSTEM = "first question", "second question", "some reply", "some system text"


def is_used(setting: str, tokenizer: Any, completions: bool, name: str) -> bool:
    """True if prompts are formatted with the chat template of this tokenizer, which belongs to the model `name`.

    Raises ModelError if a template is required and there is none, or there are several and no default.
    """
    if setting == NO_TEMPLATE or (setting == AUTO and (completions or not tokenizer.chat_template)):
        return False
    if not tokenizer.chat_template:
        raise ModelError(f"chat_template is own, but the tokenizer of '{name}' has none; set chat_template to none.")
    template_of(tokenizer, name)
    return True


def template_of(tokenizer: Any, name: str = "") -> str:
    """The template's text. Raises ModelError if there are several and none is the default."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError(
            f"the tokenizer of '{name or tokenizer.name_or_path}' has several chat templates and no default one; set"
            " chat_template to none, or save the tokenizer with one template."
        ) from error


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text of a conversation, with the prompt for the assistant's next reply. Raises ModelError."""
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=False,
                chat_template=_FIXED_DATE + template_of(tokenizer),
                date_string=TODAY,
            )
        )
    except ModelError:
        raise
    except Exception as error:  # a template is a program and can raise anything
        words = first_line(error)
        raise ModelError(f"the chat template cannot render this conversation: {words}") from error


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text. The template writes the special tokens, so the tokenizer must not add a BOS."""
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def system_text(tokenizer: Any) -> str:
    """The system prompt that the template adds to a conversation without a system message; "" if it adds none.

    Determined by rendering: the text in the place of an explicit system message, or else the text that precedes a first
    question and not a second one, without special tokens and the role's name.
    """
    alone = _tried(tokenizer, [("user", _FIRST)])
    if _FIRST not in alone:
        return ""
    before, mark, after = _tried(tokenizer, [("system", _SYSTEM), ("user", _FIRST)]).partition(_SYSTEM)
    if mark and alone.startswith(before) and alone.endswith(after) and len(before) + len(after) < len(alone):
        return alone[len(before) : len(alone) - len(after)].strip()
    talk = _tried(tokenizer, [("user", _FIRST), ("assistant", _REPLY), ("user", _SECOND)])
    between = talk.partition(_REPLY)[2].partition(_SECOND)[0]
    lead = alone.partition(_FIRST)[0]
    # The common suffix is the header of any question.
    header = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lead[::-1], between[::-1], strict=False)))
    extra = tokenizer.decode(ids_of(tokenizer, lead[: len(lead) - header]), skip_special_tokens=True).strip()
    return re.sub(r"^\W*system\W+", "", str(extra)) if talk else ""


def check_system(tokenizer: Any, name: str) -> None:
    """Raise ModelError if the template of this tokenizer, which belongs to the model `name`, takes no system prompt."""
    try:
        text = render(tokenizer, [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _FIRST}])
        why = "" if _SYSTEM in text else "it leaves it out"
    except ModelError as error:
        why = first_line(error.__cause__ or error)
    if why:
        raise ModelError(
            f"system is given, but the chat template of '{name}' takes no system prompt ({why}); leave it out, or set"
            " chat_template to none."
        )


def _tried(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> str:
    """A rendered conversation; "" if the template rejects it, as some reject a system message."""
    try:
        return render(tokenizer, [{"role": role, "content": content} for role, content in messages])
    except ModelError:
        return ""


def note(setting: str, tokenizer: Any, used: bool, system: str, why_not: str, given: str = "") -> str:
    """A note for the user: the template is used and adds this system prompt, or that which is given, or it is not
    used."""
    if used:
        shown = " ".join((given or system).split())
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN].rstrip()}..."
        adds = f', which adds its own system prompt: "{shown}"' if system else ", which adds no system prompt"
        adds = f', with the system prompt "{shown}"' if given else adds
        return f"prompts are put into the chat template of the target's tokenizer{adds} (chat_template {setting})."
    if not tokenizer.chat_template:
        return ""
    if setting == NO_TEMPLATE:
        return "the target's tokenizer has a chat template, which is not used (chat_template none)."
    return (
        f"the target's tokenizer has a chat template, which is not used: {why_not} (chat_template {setting}; own uses"
        " it)."
    )

"""Reads the bodies of OpenAI's completions and chat completions; refuses what this server would not obey.

Unknown fields are errors, and so are known ones with a value that would change the answer and that no decoder here can
follow (penalties, tools, ...): an answer never comes from other settings than the request's. vLLM's extensions
`min_tokens`, `ignore_eos`, `top_k`, `return_token_ids` and `return_tokens_as_token_ids` are taken, and our own
`speculation`, which is false for plain decoding of the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specexp import reading
from specexp.errors import RequestError, shown, unknown
from specexp.serving.requests import MOST_PROMPTS
from specexp.tasks.example import Message

Prompt = str | list[int] | list[Message]  # text, token ids, or a conversation
MOST_CHOICES, MOST_TOP = 16, 20
# Fields that settings have under another name.
SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed", "stop": "stop",
    "min_tokens": "min_new_tokens", "ignore_eos": "ignore_eos", "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}  # fmt: skip
_WHOLE = ("top_k", "seed", "min_tokens", "max_tokens", "max_completion_tokens")
_FLAGS = ("stream", "echo", "ignore_eos", "return_token_ids", "return_tokens_as_token_ids", "speculation")
# Fields that are taken with these values only, which change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,),
    "logit_bias": ({},), "suffix": ("",), "best_of": (1,), "use_beam_search": (False,),
    "include_stop_str_in_output": (False,), "skip_special_tokens": (True,), "add_special_tokens": (True,),
    "tools": ([],), "tool_choice": ("none",), "functions": ([],), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "prompt_logprobs": (), "stop_token_ids": ([],), "bad_words": ([],),
}  # fmt: skip
_NOTED = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key")  # of the caller's own use
_COMMON = {"model", "n", "stream_options", "logprobs", *SAMPLING, *_FLAGS, *_NEUTRAL, *_NOTED}
_FIELDS = {
    True: (_COMMON | {"messages", "top_logprobs"}) - {"echo", "suffix", "best_of"},
    False: _COMMON | {"prompt"},
}


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request that was read. `params` are settings, by our names; None in `logprobs` asks for none."""

    prompts: tuple[Prompt, ...]
    params: Mapping[str, Any]
    chat: bool = False
    model: str = ""
    num_choices: int = 1
    stream: bool = False
    with_usage: bool = False  # in a stream, which otherwise has none
    logprobs: int | None = None  # with so many of the likeliest tokens
    echo: bool = False
    decodes: bool = True  # False where only the prompt is scored
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    speculation: bool = True


def read_request(data: bytes, chat: bool) -> TextRequest:
    """Read a body. Raises RequestError with every fault."""
    body = reading.parse_json(reading.decode(data, "the body", RequestError, "."), "the body", RequestError)
    if not isinstance(body, dict):
        raise RequestError(f"the body must be an object, got {shown(body)}.")
    faults = [unknown("field", key, _FIELDS[chat]) for key in body if key not in _FIELDS[chat]]
    given = {key: value for key, value in body.items() if key in _FIELDS[chat] and value is not None}
    faults += _not_neutral(given) + _wrong_kinds(given)
    if faults:
        raise RequestError("\n".join(faults))
    logprobs = _chat_logprobs(given, faults) if chat else given.get("logprobs")
    count = given.get("n", 1)
    prompts = _conversation(given, faults) if chat else _prompts(given, faults)
    options = given.get("stream_options", {})
    if options and not given.get("stream"):
        faults.append("stream_options is given without stream; set stream to true, or leave it out.")
    if len(prompts) * count > MOST_PROMPTS:
        faults.append(
            f"{len(prompts)} prompts with n = {count} make {len(prompts) * count} choices; a request may have"
            f" {MOST_PROMPTS}: send several."
        )
    params = _params(given, faults)
    decodes = not (given.get("echo") and params.get("max_new_tokens") == 0)
    if not decodes:
        del params["max_new_tokens"]
    if faults:
        raise RequestError("\n".join(faults))
    return TextRequest(
        prompts, params, chat, given.get("model", ""), count, given.get("stream", False),
        options.get("include_usage", False), logprobs, given.get("echo", False), decodes,
        given.get("return_token_ids", False), given.get("return_tokens_as_token_ids", False),
        given.get("speculation", True),
    )  # fmt: skip


def renamed(message: str) -> str:
    """A message about settings with the names that requests have for them."""
    return message.replace("max_new_tokens", "max_tokens").replace("min_new_tokens", "min_tokens")


def _not_neutral(given: Mapping[str, Any]) -> list[str]:
    faults = []
    for key in _NEUTRAL.keys() & given.keys():
        neutral = (given.get("n", 1),) if key == "best_of" else _NEUTRAL[key]
        if given[key] not in neutral:
            way_out = f", or give {neutral[0]!r}" if neutral else ""
            faults.append(f"{key} is {shown(given[key])}; this server does not follow it: leave it out{way_out}.")
    return sorted(faults)


def _wrong_kinds(given: Mapping[str, Any]) -> list[str]:
    """Faults of single fields, as far as settings do not check them."""
    faults = []

    def expect(key: str, good: bool, rule: str) -> None:
        if not good:
            faults.append(f"{key} is {shown(given[key])}; it must be {rule}.")

    for key in given:
        value = given[key]
        if key in _FLAGS:
            expect(key, isinstance(value, bool), "true or false")
        elif key in _WHOLE:
            expect(key, _is_whole(value), "a whole number")
        elif key in ("temperature", "top_p"):
            expect(key, _is_whole(value) or isinstance(value, float), "a number")
        elif key == "n":
            expect(key, _is_whole(value) and 1 <= value <= MOST_CHOICES, f"a whole number from 1 to {MOST_CHOICES}")
        elif key == "model":
            expect(key, isinstance(value, str), "a text")
        elif key == "stop":
            expect(key, isinstance(value, str) or _are(value, str), "a text, or a list of texts")
        elif key == "stream_options":
            good = isinstance(value, dict) and all(
                name == "include_usage" and isinstance(flag, bool) for name, flag in value.items()
            )
            expect(key, good, 'an object such as {"include_usage": true}')
        elif key == "top_logprobs" or (key == "logprobs" and "messages" not in given):
            expect(key, _is_whole(value) and 0 <= value <= MOST_TOP, f"a whole number from 0 to {MOST_TOP}")
        elif key == "logprobs":
            expect(key, isinstance(value, bool), "true or false")
    return faults


def _chat_logprobs(given: Mapping[str, Any], faults: list[str]) -> int | None:
    """How many of the likeliest tokens are asked for in each place; None for no log-probabilities."""
    if given.get("logprobs"):
        return int(given.get("top_logprobs", 0))
    if given.get("top_logprobs"):
        faults.append("top_logprobs is given without logprobs; set logprobs to true.")
    return None


def _params(given: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """Settings by our names."""
    params: dict[str, Any] = {}
    for key, name in SAMPLING.items():
        if key not in given:
            continue
        value = given[key]
        if key == "top_k" and value == -1:
            value = 0  # as vLLM has it: all tokens
        if params.get(name, value) != value:
            faults.append(f"max_tokens is {params[name]} and max_completion_tokens is {value}; give one of them.")
        params[name] = value
    if isinstance(params.get("stop"), str):
        params["stop"] = [params["stop"]]
    return params


def _prompts(given: Mapping[str, Any], faults: list[str]) -> tuple[Prompt, ...]:
    """A text, token ids, or a list of either."""
    prompt = given.get("prompt")
    if isinstance(prompt, str) or (prompt and _are(prompt, int)):
        return (prompt,)
    if isinstance(prompt, list) and prompt and (_are(prompt, str) or all(each and _are(each, int) for each in prompt)):
        return tuple(prompt)
    what = "is missing" if prompt is None else f"is {shown(prompt)}"
    faults.append(f"prompt {what}; it must be a text, a list of token ids, or a list of such prompts.")
    return ()


def _conversation(given: Mapping[str, Any], faults: list[str]) -> tuple[Prompt, ...]:
    """The messages, each with one text; what their order must be is checked with the prompt."""
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        what = "is missing" if messages is None else f"is {shown(messages)}"
        faults.append(f"messages {what}; it must be a list of messages.")
        return ()
    result: list[Message] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) - {"role", "content", "name"}:
            faults.append(f"message {number} is {shown(message)}; it must be an object with role and content.")
            continue
        role, content = message.get("role"), message.get("content")
        if isinstance(content, list) and all(_is_text_part(part) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            faults.append(f"the content of message {number} is {shown(content)}; it must be a text.")
            continue
        result.append({"role": "system" if role == "developer" else str(role), "content": content})
    return (result,)


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are(value: object, kind: type) -> bool:
    """True for a list of values of this kind."""
    return isinstance(value, list) and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)

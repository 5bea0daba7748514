"""The JSON of a request: OpenAI's fields, and what single servers add, which is sent only where it changes something.

`Sampling` is what must be obeyed: a server that refuses one of its fields cannot be measured with it. `Wanted` is what
is asked for besides the text: where a server refuses that, the client does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specexp.engines.endpoint import Api, Endpoint

FEWEST_TOP = 5  # log-probabilities that OpenAI's completions give at most
Off = tuple[tuple[str, float], ...]
# What turns a setting off. Servers have defaults of their own where a request is silent (llama.cpp: top-k 40, top-p
# 0.95, min-p 0.05). All tokens are top-k -1 or 0: SGLang refuses 0, llama-cpp-python -1.
OFF: Mapping[str, tuple[float, ...]] = {"top_p": (1.0,), "top_k": (-1, 0), "min_p": (0.0,)}
ALL_OFF: Off = tuple((name, values[0]) for name, values in OFF.items())
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]  # a text or ids; of chat, messages


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one output is sampled and where it ends. `top_k` 0, `top_p` 1 and `min_p` 0 are off."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        result: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        optional: dict[str, tuple[Any, Any]] = {
            "top_k": (self.top_k, 0),
            "top_p": (self.top_p, 1.0),
            "min_p": (self.min_p, 0.0),
            "seed": (self.seed, None),
            "stop": (list(self.stop), []),
            "min_tokens": (self.min_tokens, 0),
            "ignore_eos": (self.ignore_eos, False),
            "logit_bias": ({str(token): bias for token, bias in self.logit_bias.items()}, {}),
        }
        return result | {name: value for name, (value, off) in optional.items() if value != off}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for besides the text: ids, the `top_logprobs` likeliest tokens, and counts of tokens and drafts.

    `off` is what a request says of the settings that its sampling leaves off.
    """

    token_ids: bool = True
    top_logprobs: int = 0  # 0: no log-probabilities
    usage: bool = True
    meta_info: bool = True  # SGLang's counts of drafts
    tokens_as_ids: bool = False  # that log-probabilities name tokens by their ids, as `token_id:5` (vLLM)
    verbose: bool = False  # llama.cpp's token ids, which it gives no other way for accepted drafts
    off: Off = ()

    def fields(self, api: Api) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.token_ids:  # vLLM and SGLang
            result["return_token_ids"] = True
        if self.verbose:
            result["verbose"] = True
        if self.meta_info:
            result["return_meta_info"] = True
        if self.top_logprobs and api == "chat":
            result |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        elif self.top_logprobs:
            result["logprobs"] = self.top_logprobs
        if self.tokens_as_ids:
            result["return_tokens_as_token_ids"] = True
        if self.usage:
            result["stream_options"] = {"include_usage": True}
        return result

    def fewer(self) -> list[Wanted]:
        """Return what to ask for instead, most first, if a server refuses this."""
        tried = [
            replace(self, meta_info=False),
            *(
                replace(
                    self, token_ids=token_ids, top_logprobs=top, usage=usage, meta_info=False,
                    tokens_as_ids=self.tokens_as_ids and token_ids,
                )
                for top in dict.fromkeys((self.top_logprobs, min(self.top_logprobs, FEWEST_TOP), 0))
                for token_ids in (self.token_ids, False)
                for usage in (self.usage, False)
            ),
        ]  # fmt: skip
        return [each for each in dict.fromkeys(tried) if each != self]


def body_of(
    endpoint: Endpoint, prompt: Prompt, sampling: Sampling, wanted: Wanted, switch: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a streaming request. `switch` is what turns speculation on or off, where a server takes it by request."""
    asked = {"messages": list(prompt)} if endpoint.api == "chat" else {"prompt": _plain(prompt)}
    return {
        "model": endpoint.model, **asked, "stream": True, **dict(wanted.off), **sampling.fields(),
        **wanted.fields(endpoint.api), **(switch or {}),
    }  # fmt: skip


def _plain(prompt: Prompt) -> str | list[Any]:
    return prompt if isinstance(prompt, str) else list(prompt)

"""Reads the events of a streamed answer, in every form that servers give them: vLLM, SGLang, llama.cpp, transformers.

A chunk is one event's JSON. Text is in `choices[0].text`, of chat in `delta.content`. Token ids are in `token_ids`
(vLLM, SGLang), `response_token_ids` (SGLang), in llama.cpp's `__verbose`, or in each entry of its `logprobs.content`,
which lacks accepted drafts. What a server says about its drafts is kept as it came, for `acceptance.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specexp.errors import EngineError, shown

DONE = "[DONE]"


@dataclass(slots=True)
class Answer:
    """One output. Ids and log-probabilities are None where the server gave none, or not for every token.

    Times are seconds after the request was sent. `num_tokens` is the server's count, else the number of ids or of
    log-probabilities, else None; `num_chunks` is how many chunks had text or ids.
    """

    text: str = ""
    token_ids: list[int] | None = None
    prompt_ids: list[int] | None = None
    logprobs: list[float] | None = None  # of the emitted tokens
    top_logprobs: list[dict[str, float]] = field(default_factory=list)  # by token as the server writes it
    top_ids: list[dict[int, float]] = field(default_factory=list)  # the same by id, where the server gives ids
    finish_reason: str = ""
    stop_reason: str | int | None = None  # the stop string or token that ended it, where the server says so
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    num_chunks: int = 0
    first_seconds: float | None = None  # time to first token
    last_seconds: float | None = None
    seconds: float = 0.0
    attempts: int = 1
    server: dict[str, Any] = field(default_factory=dict)  # meta_info, timings, metrics and usage as they came

    @property
    def seconds_per_token(self) -> float | None:
        """Time per token after the first; None if there are not two. Tokens that came together count as one arrival."""
        if self.num_tokens is None or self.num_tokens < 2 or self.first_seconds is None or self.last_seconds is None:
            return None
        return (self.last_seconds - self.first_seconds) / (self.num_tokens - 1)

    @property
    def checkable(self) -> str:
        """With what its output can be compared: ids, else text."""
        return "text" if self.token_ids is None else "token ids"

    def with_end(self, ids: Sequence[int], ends: Sequence[int], stops: Sequence[str] = ()) -> list[int]:
        """These ids of the output, with the first of `ends` after them if an EOS ended it that the server left out.

        With stop strings nothing is added: one of them may have ended the output.
        """
        left_out = self.finish_reason == "stop" and ends and not stops and (not ids or ids[-1] not in ends)
        return [*ids, ends[0]] if left_out else list(ids)


def _chunk(text: str, hide: Callable[[str], str]) -> dict[str, Any]:
    try:
        chunk = json.loads(text)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise EngineError(
            f"the server sent {shown(hide(text))} in a stream; it must send JSON objects: is it an OpenAI API?"
        )
    return chunk


class Reader:
    """Collects the chunks of one answer."""

    def __init__(self, hide: Callable[[str], str] = str) -> None:
        self.answer = Answer()
        self._hide = hide  # removes the key from what the server says, before it is shortened
        self._ids: list[int] = []
        self._logprobs: list[float] = []

    def add_event(self, data: str, elapsed: Callable[[], float]) -> bool:
        """Add an event's data, `elapsed` seconds after the request; True at the end of the stream.

        Raises EngineError for what is no JSON object.
        """
        if data.strip() == DONE:
            return True
        if data:  # else an event of another kind, or a sign of life
            self.add(_chunk(data, self._hide), elapsed())
        return False

    def add(self, chunk: Mapping[str, Any], seconds: float) -> None:
        """Add a chunk that arrived this long after the request. Raises Interrupted if it reports a failure."""
        if chunk.get("error"):
            said = self._hide(_message(chunk["error"]))
            raise Interrupted(f"the server ended the output: {shown(said)}")
        answer = self.answer
        for name in ("usage", "timings", "metrics", "meta_info", "specexp"):
            if isinstance(chunk.get(name), Mapping):
                answer.server[name] = dict(chunk[name])
        choices = chunk.get("choices") or []
        if not choices:
            return
        choice = choices[0]
        if isinstance(choice.get("meta_info"), Mapping):
            answer.server["meta_info"] = dict(choice["meta_info"])
        if (ids := choice.get("prompt_token_ids") or chunk.get("prompt_token_ids")) is not None:
            answer.prompt_ids = [int(token) for token in ids]
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        verbose = chunk.get("__verbose") or {}
        ids = choice.get("token_ids") or choice.get("response_token_ids") or verbose.get("tokens") or []
        emitted, from_logprobs = self._logprobs_of(choice.get("logprobs") or {})
        ids = ids or from_logprobs
        self._ids += [int(token) for token in ids]
        self._logprobs += emitted
        answer.text += text
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        answer.stop_reason = choice.get("stop_reason", answer.stop_reason)
        if text or ids or emitted:
            answer.num_chunks += 1
            answer.first_seconds = seconds if answer.first_seconds is None else answer.first_seconds
            answer.last_seconds = seconds

    def finish(self, seconds: float) -> Answer:
        """Return the answer. Raises Interrupted if the stream ended before its finish reason."""
        answer = self.answer
        if not answer.finish_reason:
            raise Interrupted("the stream ended in the middle of the output")
        answer.seconds = seconds
        usage = answer.server.get("usage") or {}
        said, of_prompt = usage.get("completion_tokens"), usage.get("prompt_tokens")
        answer.num_prompt_tokens = of_prompt if isinstance(of_prompt, int) else None
        answer.num_tokens = said if isinstance(said, int) else len(self._ids) or len(self._logprobs) or None
        # Ids of some tokens only cannot be compared: they count as none.
        answer.token_ids = self._ids if self._complete(len(self._ids)) else None
        answer.logprobs = self._logprobs if self._complete(len(self._logprobs)) else None
        return answer

    def _complete(self, num: int) -> bool:
        """True if there is one for each token; an EOS may count as a token and have none."""
        most = self.answer.num_tokens
        missing = 1 if self.answer.finish_reason == "stop" else 0
        return num > 0 and (most is None or most - missing <= num <= most)

    def _logprobs_of(self, given: Mapping[str, Any]) -> tuple[list[float], list[int]]:
        """Return the emitted tokens' log-probabilities, and their ids if each has one (llama.cpp)."""
        if isinstance(given.get("content"), list):  # chat, and llama.cpp's completions
            entries = given["content"]
            for entry in entries:
                tops = entry.get("top_logprobs") or []
                self.answer.top_logprobs.append({str(top.get("token")): float(top["logprob"]) for top in tops})
                self.answer.top_ids.append(
                    {int(top["id"]): float(top["logprob"]) for top in tops if isinstance(top.get("id"), int)}
                )
            ids = [entry["id"] for entry in entries if isinstance(entry.get("id"), int)]
            return [float(entry["logprob"]) for entry in entries], ids if len(ids) == len(entries) else []
        values = [value for value in given.get("token_logprobs") or [] if value is not None]
        self.answer.top_logprobs += [dict(top or {}) for top in given.get("top_logprobs") or []]
        return [float(value) for value in values], []


class Interrupted(EngineError):
    """An answer that ended in its middle; the request may be sent again."""


def _message(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)

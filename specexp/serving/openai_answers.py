"""Builds answers in OpenAI's forms: completions and chat completions, whole or in chunks, with vLLM's token ids.

`usage` also has `drafted` and `accepted`: tokens, of chains up to an output's end; `rounds`, those with a draft; and
`target_calls`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from specexp.engine.ending import STOP_STRING
from specexp.metrics.before_end import before_end, rounds_by_accepted
from specexp.pair.stop_strings import text_of
from specexp.serving.choices import Answered, Choice
from specexp.serving.completion_service import REASONS, CompletionService
from specexp.serving.log_probabilities import ScoredToken
from specexp.serving.openai_requests import TextRequest

_LEAST = -9999.0  # stands for -inf, which JSON does not have


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one request is answered. It is used in one thread."""

    service: CompletionService
    wanted: TextRequest
    id: str
    created: int

    @classmethod
    def of(cls, service: CompletionService, wanted: TextRequest) -> AnswerForm:
        name = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{secrets.token_hex(12)}"
        return cls(service, wanted, name, int(time.time()))

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer to a request whose choices have all ended. Raises Refusal."""
        answered = [choice.result() for choice in choices]
        return {
            **self._head("chat.completion" if self.wanted.chat else "text_completion"),
            "choices": [self._choice(*each) for each in zip(choices, answered, strict=True)],
            "usage": self.usage(choices),
        }

    def opening(self, choice: Choice) -> dict[str, Any]:
        """The first chunk of a chat's choice."""
        return self._chunk({"index": choice.index, "delta": {"role": "assistant", "content": ""}})

    def piece(self, choice: Choice, text: str, tokens: Sequence[int]) -> dict[str, Any]:
        """A chunk with the next piece of a choice's text, and the tokens since the chunk before."""
        body: dict[str, Any] = {"index": choice.index, **self._said(text), "logprobs": None}
        return self._chunk(body | self._ids(choice, tokens))

    def closing(self, choice: Choice, text: str, tokens: Sequence[int], scored: bool) -> dict[str, Any]:
        """A choice's last chunk; with `scored`, it has the log-probabilities of all tokens. Raises Refusal."""
        answered = choice.result()
        body: dict[str, Any] = {
            "index": choice.index, **self._said(text),
            "logprobs": self._logprobs(choice, answered) if scored else None,
            **self._ending(choice, answered),
        }  # fmt: skip
        return self._chunk(body | self._ids(choice, tokens))

    def last(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The chunk with the usage, after all choices."""
        return {**self._chunk({}), "choices": [], "usage": self.usage(choices)}

    def text(self, choice: Choice, answered: Answered) -> str:
        """A choice's text: with `echo`, after its prompt's."""
        out = answered.out
        ids = choice.request.prompt_ids
        text = text_of(self.service.text, out.token_ids, out.finish_reason, choice.stop, ids)
        return self._prompt(choice) + text if self.wanted.echo else text

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """Counts of all choices; a prompt counts once, however many outputs it has."""
        outs = [choice.result().out for choice in choices]
        prompts = choices[:: self.wanted.num_choices]
        ends = [before_end(asdict(out)) for out in outs]
        num_prompt = sum(len(choice.request.prompt_ids) for choice in prompts)
        num_tokens = sum(len(out.token_ids) for out in outs)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_tokens,
            "total_tokens": num_prompt + num_tokens,
            "accepted": sum(accepted for accepted, _ in ends),
            "drafted": sum(drafted for _, drafted in ends),
            "rounds": sum(sum(rounds_by_accepted(asdict(out))) for out in outs),
            "target_calls": sum(out.num_target_calls for out in outs),
        }

    def _choice(self, choice: Choice, answered: Answered) -> dict[str, Any]:
        text = self.text(choice, answered)
        said = {"message": {"role": "assistant", "content": text}} if self.wanted.chat else {"text": text}
        body: dict[str, Any] = {
            "index": choice.index, **said, "logprobs": self._logprobs(choice, answered),
            **self._ending(choice, answered),
        }  # fmt: skip
        return body | self._ids(choice, answered.out.token_ids, whole=True)

    def _ending(self, choice: Choice, answered: Answered) -> dict[str, Any]:
        """Why an output ended, and, as vLLM has it, the stop string that ended it."""
        out, found = answered.out, None
        if out.finish_reason == STOP_STRING and choice.stop is not None:
            finder = choice.stop.begin(choice.request.prompt_ids)
            for token in out.token_ids:
                finder.add(token)
            end = b"".join(map(self.service.spell, out.token_ids))[-finder.found :]
            found = next(each for each in choice.stop.strings if end.startswith(each.encode()))
        return {"finish_reason": REASONS[out.finish_reason], "stop_reason": found}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.service.name,
            "system_fingerprint": self.service.fingerprint,
        }  # fmt: skip

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        head = self._head("chat.completion.chunk" if self.wanted.chat else "text_completion")
        usage = {"usage": None} if self.wanted.with_usage else {}
        return {**head, "choices": [{"finish_reason": None, **choice}], **usage}

    def _said(self, text: str) -> dict[str, Any]:
        """The text of a chunk."""
        if self.wanted.chat:
            return {"delta": {"content": text} if text else {}}
        return {"text": text}

    def _ids(self, choice: Choice, tokens: Sequence[int], whole: bool = False) -> dict[str, Any]:
        """Token ids where they are asked for: the prompt's with an answer that is whole."""
        if not self.wanted.return_token_ids:
            return {}
        prompt = {"prompt_token_ids": list(choice.request.prompt_ids)} if whole else {}
        return {"token_ids": list(tokens), **prompt}

    def _prompt(self, choice: Choice) -> str:
        """The prompt's text, which is decoded from its ids where they were given."""
        given = self.wanted.prompts[choice.index // self.wanted.num_choices]
        return given if isinstance(given, str) else self.service.text.decode(choice.request.prompt_ids)

    def _logprobs(self, choice: Choice, answered: Answered) -> dict[str, Any] | None:
        if self.wanted.logprobs is None:
            return None
        if self.wanted.chat:
            return {"content": [self._chat_score(score) for score in answered.scores]}
        names = [self._name(score.token) for score in answered.scores]
        logprobs: list[float | None] = [_finite(score.logprob) for score in answered.scores]
        top: list[dict[str, float] | None] = [self._top(score) for score in answered.scores]
        if self.wanted.echo:  # nothing precedes the prompt's first token
            names.insert(0, self._name(choice.request.prompt_ids[0]))
            logprobs.insert(0, None)
            top.insert(0, None)
        offsets = self._offsets(choice, answered)
        return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def _offsets(self, choice: Choice, answered: Answered) -> list[int]:
        """Where each scored token begins in the choice's text, which has no BOS that a tokenizer added."""
        lengths = [len(self._spelled(score.token)) for score in answered.scores]
        end = 0
        if self.wanted.echo:
            ids = choice.request.prompt_ids
            lengths.insert(0, len(self._spelled(ids[0])))
            end = len(self._prompt(choice)) - sum(lengths[: len(ids)])
        return [max(0, end + before) for before in accumulate(lengths[:-1], initial=0)]

    def _top(self, score: ScoredToken) -> dict[str, float]:
        """The likeliest tokens, and the emitted one, which need not be among them."""
        result: dict[str, float] = {}
        for token, logprob in (*score.top, (score.token, score.logprob)):
            result.setdefault(self._name(token), _finite(logprob))
        return result

    def _chat_score(self, score: ScoredToken) -> dict[str, Any]:
        return {
            **self._named(score.token, score.logprob),
            "top_logprobs": [self._named(token, logprob) for token, logprob in score.top],
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._name(token), "logprob": _finite(logprob), "bytes": list(self.service.spell(token))}

    def _name(self, token: int) -> str:
        """A token's text, or, as vLLM spells it, its id: texts of different tokens may be the same."""
        if self.wanted.tokens_as_ids:
            return f"token_id:{token}"
        return self._spelled(token)

    def _spelled(self, token: int) -> str:
        return self.service.spell(token).decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)

"""Answers requests of the OpenAI interface by a pair and a method: checks them, lets them wait, decodes them together.

It knows neither HTTP nor asyncio. Of the queue there is one (`batcher.py`); this module bounds it.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from specexp.api import LoadedPair
from specexp.config import Experiment, MethodConfig
from specexp.config.single import check_bytes, checked_messages, checked_prompt
from specexp.engine import Engine, Generation
from specexp.engine.request import RequestCoroutine, ScoreRequest
from specexp.errors import PromptError, RequestError, unknown
from specexp.methods import main_role
from specexp.pair.stop_strings import StopStrings, TokenBytes
from specexp.pair.tokenization import Text, plain
from specexp.serving import requests, tokenizers
from specexp.serving.batcher import Batcher
from specexp.serving.choices import Answered, Choice
from specexp.serving.log_probabilities import ScoredToken, token_scores
from specexp.serving.openai_requests import Prompt, TextRequest, renamed
from specexp.serving.refusals import NOT_FOUND, OVERLOADED, Refusal
from specexp.serving.server_metrics import ServerMetrics

SCORE_PATIENCE = 8  # steps after which scores are computed, however many outputs are being decoded
LONGEST_WAIT = 60  # seconds that Retry-After says at most
PLAIN = MethodConfig("baseline", "baseline", "baseline")
REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "context": "length"}  # OpenAI's names


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What is served at a time, and at most."""

    max_batch_size: int  # outputs decoded together
    max_waiting: int  # outputs that wait for a free row
    most_new_tokens: int  # of one output


class CompletionService:
    """Decodes for many callers. Answers are those of `LoadedPair.generate`, whoever else is served."""

    def __init__(self, pair: LoadedPair, experiment: Experiment, limits: ServiceLimits, name: str = "") -> None:
        self.name = name or experiment.target.model or experiment.pair
        self.limits, self.metrics = limits, ServerMetrics(self.name)
        self.created = int(time.time())
        self._pair, self._experiment = pair, experiment
        self._role = main_role(experiment.methods[0])
        self._texts = tokenizers.share(pair, experiment)
        self.spell = TokenBytes(pair.spelled_by)  # for callers that run in one thread
        facts = json.dumps([pair.identity(), experiment.methods[0].label], sort_keys=True, default=str)
        self.fingerprint = f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        self._batcher = Batcher(self._engine, Engine.run_all)
        self._lock = threading.Lock()  # guards the fields below
        self._open: set[Choice] = set()
        self._mean_seconds = 1.0  # that an output takes once it has begun, the latest with more weight
        self._closing = False
        self.metrics.watch(lambda: self._count(True), lambda: self._count(False))

    def _engine(self) -> Engine:
        return self._pair.engine(self.limits.max_batch_size, score_patience=SCORE_PATIENCE)

    @property
    def text(self) -> Text:
        """Spells tokens, for callers that run in one thread."""
        return self._pair.spelled_by

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._pair.eos_ids

    @property
    def context(self) -> int:
        return self._pair.context_of(self._role)

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def most_bytes(self) -> int:
        """The most bytes that a request's body may have: those of its prompts, as JSON may write them."""
        longest = self._pair.most_bytes(self._role)
        return min(requests.LONGEST_BODY, requests.SMALL_BODY + requests.MOST_PROMPTS * 6 * longest)

    def prepare(self, wanted: TextRequest) -> list[Choice]:
        """Check a request and turn its prompts into ids. Raises RequestError with every fault of its settings."""
        if wanted.model not in ("", self.name):
            raise Refusal(unknown("model", wanted.model, [self.name]), 404, NOT_FOUND, "model_not_found")
        asked = self._settings(wanted)
        stop = self._stop(asked)
        prompts = []
        with self._texts.lend(sum(map(_size, wanted.prompts))) as text:
            for number, prompt in enumerate(wanted.prompts, 1):
                with requests.numbered(number, len(wanted.prompts)):
                    prompts.append(self._ids(prompt, text))
        count = wanted.num_choices
        result: list[Choice] = []
        for number, ids in enumerate(prompts, 1):
            for output in range(count):
                with requests.numbered(number, len(prompts)):
                    result.append(self._choice(len(result), wanted, asked, ids, str(output or ""), stop))
        return result

    def submit(self, choices: Sequence[Choice], hear: Callable[[Choice, Sequence[int] | None], object]) -> None:
        """Have choices decoded; returns at once. Raises Refusal where too many wait, or the server is closing."""
        with self._lock:
            if self._closing:
                raise closed()
            space = self.limits.max_batch_size + self.limits.max_waiting
            if len(choices) > space:
                raise Refusal(f"the request makes {len(choices)} outputs; {space} may wait at a time: send several.")
            if len(self._open) + len(choices) > space:
                wait = math.ceil(len(self._open) * self._mean_seconds / self.limits.max_batch_size)
                raise Refusal(
                    f"{len(self._open)} outputs are being decoded or wait, of at most {space}; send the request again"
                    " later.", 429, OVERLOADED, "too_many_requests", max(1, min(wait, LONGEST_WAIT)),
                )  # fmt: skip
            self._open.update(choices)
        for choice in choices:
            choice.hear, choice.arrived = hear, time.perf_counter()
        for choice, future in zip(choices, self._batcher.begin_jobs(list(map(self._steps, choices))), strict=True):
            choice.future = future
            if choice.cancelled:
                future.cancel()
            # `_open` holds it until it has ended.
            future.add_done_callback(partial(self._ended, weakref.ref(choice)))

    def close(self, grace: float) -> None:
        """Take no more requests, and cut off after `grace` seconds what is not done by then; returns at once."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        timer = threading.Timer(grace, self.cut_off)
        timer.daemon = True
        timer.start()

    def cut_off(self) -> None:
        """End all that is being decoded or waits; its callers are told that the server is closing."""
        with self._lock:
            self._closing = True
            choices = list(self._open)
        for choice in choices:
            choice.cancel(closed())

    def _settings(self, wanted: TextRequest) -> Experiment:
        """The settings of a request. Without a seed it gets one of its own, as other servers have it."""
        try:
            asked = requests.settings(self._experiment, wanted.params, self.limits.most_new_tokens)
        except RequestError as error:
            raise Refusal(renamed(str(error))) from None
        if "seed" not in wanted.params:
            asked = replace(asked, seed=secrets.randbits(31))
        if not wanted.speculation:
            if self._role != "target":
                raise Refusal("speculation is false; this server has no target: leave it out.")
            asked = replace(asked, methods=(PLAIN,))
        return asked

    def _stop(self, asked: Experiment) -> StopStrings | None:
        """Stop strings of the output alone: OpenAI's do not begin in the prompt, transformers' may."""
        stop = self._pair.stop_of(asked)
        return None if stop is None else replace(stop, in_prompt=False)

    def _ids(self, prompt: Prompt, text: Text) -> list[int]:
        """The ids of a prompt; a text is not put into a chat template, a conversation is."""
        if isinstance(prompt, str):
            prompt = checked_prompt(prompt)
            messages, text = [{"role": "user", "content": prompt}], plain(text)
        elif isinstance(prompt[0], int):
            return self._given_ids(prompt)
        else:
            messages = checked_messages(prompt)
        check_bytes(messages, self._pair.most_bytes(self._role))
        return text.encode(messages)

    def _given_ids(self, prompt: Sequence[Any]) -> list[int]:
        size = self._pair.vocab_size(self._role)
        for token in prompt:
            if not 0 <= token < size:
                raise PromptError(f"the prompt has token id {token}; ids are from 0 to {size - 1}.")
        return list(prompt)

    def _choice(
        self, index: int, wanted: TextRequest, asked: Experiment, ids: Sequence[int], prompt_id: str,
        stop: StopStrings | None,
    ) -> Choice:  # fmt: skip
        request = self._pair.request_of_ids(ids, asked, prompt_id, stop)
        return Choice(index, wanted, request, stop)

    def _steps(self, choice: Choice) -> RequestCoroutine[Answered]:
        """What the engine does for a choice: decode, then score where log-probabilities are asked for."""
        choice.began = time.perf_counter()
        self.metrics.began(choice.began - choice.arrived)
        out = Generation()
        if choice.wanted.decodes and not choice.cancelled:
            out = yield choice.decoded()
        scores: list[ScoredToken] = []
        if choice.wanted.logprobs is not None and not choice.cancelled:
            scores = yield from self._scores(choice, out, choice.wanted.logprobs)
        return Answered(out, scores)

    def _scores(self, choice: Choice, out: Generation, num_top: int) -> Generator[Any, Any, list[ScoredToken]]:
        """Score the output, and with `echo` the prompt from its second token on, by one more forward."""
        ids = list(choice.request.prompt_ids)
        first, known = 1 if choice.wanted.echo else len(ids), [*ids, *out.token_ids]
        if first >= len(known):
            return []
        logits, _ = yield ScoreRequest(self._role, known[:first], known[first:-1])
        return token_scores(logits, known[first:], num_top)

    def _ended(self, ended: weakref.ref[Choice], done: Future[Answered]) -> None:
        """Count an output that has ended, make room for another, and say so."""
        now, choice = time.perf_counter(), ended()
        assert choice is not None
        with self._lock:
            self._open.discard(choice)
            if choice.began is not None:
                self._mean_seconds += 0.1 * (now - choice.began - self._mean_seconds)
        if choice.cancelled or done.cancelled() or done.exception() is not None:
            self.metrics.aborted(now - choice.arrived)
        else:
            out = done.result().out
            to_first = None if choice.first is None else choice.first - choice.arrived
            reason = REASONS[out.finish_reason]
            self.metrics.finished(len(choice.request.prompt_ids), out, reason, now - choice.arrived, to_first)
        if choice.failure is None and not choice.cancelled:
            choice.hear(choice, None)

    def _count(self, begun: bool) -> int:
        """How many outputs are being decoded, or else wait."""
        with self._lock:
            return sum((choice.began is not None) == begun for choice in self._open)


def closed() -> Refusal:
    return Refusal("the server is shutting down; send the request again later.", 503, OVERLOADED, "shutting_down", 1)


def _size(prompt: Prompt) -> int:
    """About how many characters have to be turned into ids."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(part["content"]) for part in prompt if isinstance(part, dict))

"""A served engine without a server: the toy's target, asked as `EngineClient` is, with one bug at a time.

It is much faster than a real server behind a proxy, so that whole certificates are fast tests. Its sampling is written
out here, token by token, and shares no code with what it is compared with.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from specexp.engines.body import Sampling, Wanted
from specexp.engines.client import Offer, Refused
from specexp.engines.endpoint import Endpoint
from specexp.engines.stream import Answer
from specexp.errors import EngineError
from specexp.lm.toy import ToyModel

VOCAB, EOS = 24, 0
GIVES = ("ids", "logprobs")
# What an address such as http://bias-0.2/v1 plants.
BUGS = (
    "none", "temperature_dropped", "top_p_first", "top_p_ignored", "top_k_ignored", "min_p_ignored", "greedy_above",
    "bias", "token_replaced", "seed_ignored", "acceptance_doubled", "eos_swallowed", "stop_leaked", "stop_ignored",
    "limit_exceeded", "logit_bias_ignored", "random_when_greedy", "cut_off", "dies_of_load",
)  # fmt: skip


class ToyEngineClient:
    """`EngineClient` of the engine that the address names: http://BUG-AMOUNT/v1; a third part leaves out what it gives,
    as in http://none-0-ids/v1."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        parts = endpoint.url.removeprefix("http://").removesuffix("/v1").split("-")
        self.bug, self.amount = parts[0].replace(".", "_"), float(parts[1] if len(parts) > 1 else 0)
        self.lacks = frozenset(parts[2:])
        assert self.bug in BUGS, self.bug
        self.model = ToyModel(VOCAB, 0, context=512)
        self.num_tokens = 0
        self.num_planted = 0
        self.free = random.Random(1)  # of requests without a seed
        self.known: dict[tuple[int, ...], list[float]] = {}
        self.in_flight = threading.Semaphore(1)
        self.has_died = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def models(self) -> list[str]:
        return [self.endpoint.model]

    def counters(self) -> str:
        return ""

    def offer(self, prompt: Any, wanted: Wanted, switch: Mapping[str, Any] | None = None) -> Offer:
        if "ids" in self.lacks:
            if not isinstance(prompt, str):
                raise Refused("prompts are texts.")
            return Offer(Wanted(False, 0, True, False), False, False, True)
        top = 0 if "logprobs" in self.lacks else wanted.top_logprobs
        return Offer(Wanted(True, top, True, False, top > 0), True, top > 0, True)

    def ask(
        self, prompt: Any, sampling: Sampling, wanted: Wanted, switch: Mapping[str, Any] | None = None
    ) -> Answer:  # fmt: skip
        if self.bug in ("cut_off", "dies_of_load"):
            self._answered_alone()
        ids = [1 + ord(c) % (VOCAB - 1) for c in prompt] if isinstance(prompt, str) else list(prompt)
        ignored = self.bug == "seed_ignored"
        rng = self.free if sampling.seed is None or ignored else random.Random(f"{sampling.seed} {ids}")
        self.num_planted += ignored
        tokens, tops, text, reason = self._decoded(ids, sampling, rng)
        answer = Answer(text, tokens, finish_reason=reason, num_tokens=len(tokens))
        if "ids" in self.lacks:
            answer.token_ids = None
        else:
            answer.prompt_ids = ids
        if wanted.top_logprobs:
            answer.logprobs = [top[token] for token, top in zip(tokens, tops, strict=True)]
            for top in tops:
                best = sorted(top, key=lambda token: -top[token])[: wanted.top_logprobs]
                answer.top_logprobs.append({f"token_id:{token}": top[token] for token in best})
        accepted = len(tokens) // 3
        usage = {"drafted": 4 * (len(tokens) - accepted), "accepted": accepted, "target_calls": len(tokens) - accepted}
        if self.bug == "acceptance_doubled":
            usage["accepted"] *= 2
            self.num_planted += 1
        answer.server["usage"] = usage
        return answer

    def _answered_alone(self) -> None:
        """Raise EngineError for a request beside another one."""
        if self.has_died or not self.in_flight.acquire(blocking=False):
            self.has_died = self.bug == "dies_of_load"
            raise EngineError("the stream ended in the middle of the output")
        time.sleep(0.005)
        self.in_flight.release()

    def _decoded(
        self, ids: Sequence[int], sampling: Sampling, rng: random.Random
    ) -> tuple[list[int], list[dict[int, float]], str, str]:
        tokens: list[int] = []
        tops: list[dict[int, float]] = []
        most = sampling.max_tokens + (2 if self.bug == "limit_exceeded" else 0)
        while len(tokens) < most:
            logprobs = self._logprobs([*ids, *tokens])
            token = self._pick(dict(enumerate(logprobs)), sampling, rng, not tokens)
            self.num_tokens += 1
            if self.bug == "token_replaced" and self.num_tokens % int(self.amount) == 0:
                token = sorted(range(VOCAB), key=lambda each: -logprobs[each])[1]
                self.num_planted += 1
            tokens.append(token)
            tops.append(dict(enumerate(logprobs)))
            swallowed = self.bug == "eos_swallowed"
            if token == EOS and not sampling.ignore_eos and not swallowed:
                return tokens, tops, _text(tokens), "stop"
            self.num_planted += swallowed and token == EOS
            text = _text(tokens)
            for stop in sampling.stop if self.bug != "stop_ignored" else ():
                if stop in text:
                    leaked = self.bug == "stop_leaked"
                    self.num_planted += leaked
                    return tokens, tops, text[: text.index(stop)] + (stop if leaked else ""), "stop"
        return tokens, tops, _text(tokens), "length"

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        key = (*ids[-2:], len(ids) % 5)  # all that the toy's logits depend on
        if key not in self.known:
            session = self.model.session()
            logits = session.feed(self.model.ids(ids), 1)[0][0].tolist()
            total = math.log(sum(map(math.exp, logits)))
            self.known[key] = [logit - total for logit in logits]
        return self.known[key]

    def _pick(self, logprobs: dict[int, float], sampling: Sampling, rng: random.Random, first: bool) -> int:
        temperature, bug = sampling.temperature, self.bug
        if bug == "temperature_dropped" or (bug == "random_when_greedy" and not temperature and rng.random() < 0.3):
            temperature = 1.0
        if bug == "greedy_above" and temperature > self.amount:
            temperature = 0.0
        if bug != "logit_bias_ignored":
            logprobs = {token: value + sampling.logit_bias.get(token, 0.0) for token, value in logprobs.items()}
        ranked = sorted(logprobs, key=lambda token: (-logprobs[token], token))
        if temperature == 0:
            return ranked[0]
        if bug == "bias" and first and rng.random() < self.amount / (1 - math.exp(logprobs[ranked[1]])):
            self.num_planted += 1
            return ranked[1]
        if bug == "top_p_first":
            ranked = _nucleus({token: math.exp(logprobs[token]) for token in ranked}, sampling.top_p)
        weights = {token: math.exp((logprobs[token] - logprobs[ranked[0]]) / temperature) for token in ranked}
        if sampling.min_p and bug != "min_p_ignored":
            weights = {token: weight for token, weight in weights.items() if weight >= sampling.min_p}
        if sampling.top_k and bug != "top_k_ignored":
            weights = dict(list(weights.items())[: sampling.top_k])
        if bug not in ("top_p_first", "top_p_ignored"):
            total = sum(weights.values())
            kept = _nucleus({token: weight / total for token, weight in weights.items()}, sampling.top_p)
            weights = {token: weights[token] for token in kept}
        return rng.choices(list(weights), list(weights.values()))[0]


def _text(tokens: Sequence[int]) -> str:
    return " ".join(str(token) for token in tokens if token != EOS)


def _nucleus(p: Mapping[int, float], top_p: float) -> list[int]:
    """The likeliest tokens, given in this order, until they have this mass."""
    kept, mass = [], 0.0
    for token, share in p.items():
        if mass >= top_p:
            break
        kept.append(token)
        mass += share
    return kept

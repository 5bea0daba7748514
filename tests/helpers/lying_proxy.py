"""A proxy that forwards to a real server of the OpenAI interface, and plants one bug at a time.

It is what certificates of served engines are tested with: each bug is what users report of engines, planted exactly, so
that a test knows what must be found. Without a bug it changes nothing. For `bias`, `token_replaced` and `top_p_first`
the server must give token ids and log-probabilities as vLLM documents them (`return_token_ids`,
`return_tokens_as_token_ids`) and take prompts of ids; `serve` does. The other bugs are planted in any server's answers.
A stream comes through as one chunk for each choice.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

BUGS = {
    "none": "nothing",
    "temperature_dropped": "every temperature is 1",
    "top_p_first": "top-p is applied before the temperature",
    "greedy_above": "a temperature above `amount` is 0",
    "bias": "the first token is the runner-up more often, by a total variation of `amount`",
    "token_replaced": "every so many tokens (`amount`), one is the runner-up in its place",
    "seed_ignored": "every request has another seed",
    "acceptance_doubled": "twice as many drafted tokens count as accepted",
    "eos_swallowed": "an EOS does not end an output",
    "stop_leaked": "the stop string that ends an output is part of its text",
}
_NUM_TOP, _PATIENCE = 20, 120.0
_ACCEPTED = re.compile(r"^(vllm:spec_decode_num_accepted_tokens\S*) (\S+)$", re.MULTILINE)
Answer = dict[str, Any]


class UpstreamRefusal(Exception):
    """The server refused a request; the client gets its answer as it is."""

    def __init__(self, status: int, data: bytes) -> None:
        super().__init__(f"status {status}: {data[:500]!r}")
        self.status, self.data = status, data


@dataclass(slots=True)
class LyingProxy:
    """One bug before one server. `eos` are the ids that end an output, which `top_p_first` must know."""

    address: str  # of the server, such as http://127.0.0.1:8000
    bug: str = "none"
    amount: float = 0.0
    eos: frozenset[int] = frozenset()
    num_planted: int = 0  # how often the bug has changed an answer or a request
    _num_tokens: int = 0
    _rng: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tops: dict[tuple[int, ...], dict[int, float]] = field(default_factory=dict)  # what was asked before

    def __post_init__(self) -> None:
        assert self.bug in BUGS, self.bug

    def forward(self, verb: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        """What the server answers: status, content type, body."""
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_PATIENCE)
        try:
            kept = {key: value for key, value in headers.items() if key.lower() in ("content-type", "authorization")}
            connection.request(verb, path, data, kept)
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()

    def metrics(self, text: str) -> str:
        if self.bug != "acceptance_doubled":
            return text
        return _ACCEPTED.sub(lambda found: f"{found[1]} {2 * float(found[2])}", text)

    def answer(self, path: str, body: Answer, headers: Mapping[str, str]) -> Answer:
        """The answer to a request, whole, with the bug. Raises UpstreamRefusal."""
        chat = "messages" in body
        prompts = body["messages"] if chat else body["prompt"]
        listed = not chat and isinstance(prompts, list) and not all(isinstance(each, int) for each in prompts)
        num = body.get("n") or 1
        if not listed and num == 1:
            return self._one(path, body, headers)
        answers = []
        for prompt in prompts if listed else [prompts]:
            for i in range(num):
                own = {**body, "n": 1, ("messages" if chat else "prompt"): prompt}
                if body.get("seed") is not None:
                    own["seed"] = body["seed"] + i
                answers.append(self._one(path, own, headers))
        choices = [{**answer["choices"][0], "index": i} for i, answer in enumerate(answers)]
        usage = {key: sum(answer["usage"][key] for answer in answers) for key in answers[0]["usage"]}
        return {**answers[0], "choices": choices, "usage": usage}

    def _one(self, path: str, body: Answer, headers: Mapping[str, str]) -> Answer:
        """One prompt, one output."""
        temperature = body.get("temperature")
        match self.bug:
            case "temperature_dropped" if temperature is not None:
                return self._ask(path, {**body, "temperature": 1.0}, headers, planted=temperature != 1)
            case "greedy_above" if temperature is not None and temperature > self.amount:
                return self._ask(path, {**body, "temperature": 0.0}, headers, planted=True)
            case "seed_ignored":
                with self._lock:
                    seed = self._rng.getrandbits(30)
                return self._ask(path, {**body, "seed": seed}, headers, planted=True)
            case "eos_swallowed":
                return self._ask(path, {**body, "ignore_eos": True}, headers, planted=True)
            case "stop_leaked":
                answer = self._ask(path, body, headers)
                choice = answer["choices"][0]
                if stop := self._stop_of(path, body, headers, choice):
                    _set_text(choice, _text(choice) + stop)
                    self._plant()
                return answer
            case "acceptance_doubled":
                answer = self._ask(path, body, headers)
                if answer["usage"].get("accepted"):  # 0 is no lie when it is doubled
                    answer["usage"]["accepted"] *= 2
                    self._plant()
                return answer
            case "bias" if temperature:
                return self._biased(path, body, headers)
            case "token_replaced":
                return self._replaced(path, body, headers)
            case "top_p_first" if temperature and body.get("top_p", 1) < 1:
                return self._top_p_first(path, body, headers)
        return self._ask(path, body, headers)

    def _ask(self, path: str, body: Answer, headers: Mapping[str, str], planted: bool = False) -> Answer:
        own = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
        status, _, data = self.forward("POST", path, json.dumps(own).encode(), headers)
        if status != 200:
            raise UpstreamRefusal(status, data)
        if planted:
            self._plant()
        result: Answer = json.loads(data)
        return result

    def _plant(self) -> None:
        with self._lock:
            self.num_planted += 1

    def _rng_of(self, body: Answer) -> random.Random:
        """The same draws for the same request with a seed: a bug must not look like another one."""
        if body.get("seed") is not None:
            return random.Random(json.dumps([body.get("prompt", body.get("messages")), body["seed"]]))
        with self._lock:
            return random.Random(self._rng.getrandbits(64))

    def _stop_of(self, path: str, body: Answer, headers: Mapping[str, str], choice: Answer) -> str:
        """The stop string that ended an output, "" if none did: by the server's word, else by what it says without."""
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        if not stops or choice.get("finish_reason") != "stop":
            return ""
        if "stop_reason" in choice:
            return choice["stop_reason"] if isinstance(choice["stop_reason"], str) else ""
        unstopped = {key: value for key, value in body.items() if key != "stop"}
        rest = _text(self._ask(path, unstopped, headers)["choices"][0]).removeprefix(_text(choice))
        return next((stop for stop in stops if rest.startswith(stop)), "")

    def _biased(self, path: str, body: Answer, headers: Mapping[str, str]) -> Answer:
        answer = self._with_ids(path, body, headers)
        ids = _prompt_ids(answer)
        p = warped(self._top(ids, headers), body)
        if len(p) < 2:
            return answer
        runner_up = list(p)[1]
        # (1 - share) p + share [runner-up] is at a distance of share (1 - p[runner-up]).
        share = self.amount / (1 - p[runner_up])
        assert share <= 1, "the first token is too often the runner-up for this bias"
        if self._rng_of(body).random() >= share:
            return answer
        return self._continued(answer, body, ids, [runner_up], headers)

    def _replaced(self, path: str, body: Answer, headers: Mapping[str, str]) -> Answer:
        answer = self._with_ids(path, body, headers)
        tokens = answer["choices"][0]["token_ids"]
        with self._lock:
            before, self._num_tokens = self._num_tokens, self._num_tokens + len(tokens)
        place = int(self.amount) - 1 - before % int(self.amount)
        if place >= len(tokens):
            return answer
        ids = _prompt_ids(answer)
        top = self._top([*ids, *tokens[:place]], headers)
        other = next(token for token in top if token != tokens[place])
        return self._continued(answer, body, ids, [*tokens[:place], other], headers)

    def _top_p_first(self, path: str, body: Answer, headers: Mapping[str, str]) -> Answer:
        """Token by token, since the server knows no such order."""
        answer, rng = self._with_ids(path, body, headers), self._rng_of(body)
        ids = _prompt_ids(answer)
        tokens: list[int] = []
        while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in self.eos):
            p = warped(self._top([*ids, *tokens], headers), body, top_p_first=True)
            tokens.append(rng.choices(list(p), list(p.values()))[0])
        ended = tokens[-1] in self.eos
        result = self._continued(
            answer, {**body, "max_tokens": len(tokens)}, ids, tokens[: len(tokens) - ended], headers
        )
        result["choices"][0] |= {"token_ids": tokens, "finish_reason": "stop" if ended else "length"}
        return result

    def _with_ids(self, path: str, body: Answer, headers: Mapping[str, str]) -> Answer:
        return self._ask(path, {**body, "return_token_ids": True}, headers)

    def _top(self, ids: Sequence[int], headers: Mapping[str, str]) -> dict[int, float]:
        """The likeliest tokens after `ids` with their log-probabilities, the likeliest first."""
        if tuple(ids) in self._tops:
            return self._tops[tuple(ids)]
        body = {
            "prompt": list(ids), "max_tokens": 1, "temperature": 0, "logprobs": _NUM_TOP,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        top = self._ask("/v1/completions", body, headers)["choices"][0]["logprobs"]["top_logprobs"][0]
        named = {int(name.removeprefix("token_id:")): logprob for name, logprob in top.items()}
        self._tops[tuple(ids)] = dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))
        return self._tops[tuple(ids)]

    def _continued(
        self, answer: Answer, body: Answer, ids: Sequence[int], tokens: Sequence[int], headers: Mapping[str, str]
    ) -> Answer:
        """The answer with these tokens first, and what the server says after them."""
        self._plant()
        kept = ("temperature", "top_p", "top_k", "seed", "stop", "ignore_eos")
        own = {key: body[key] for key in kept if key in body}
        scoring = {"echo": True, "max_tokens": 0, "temperature": 0}
        before = self._ask("/v1/completions", {"prompt": list(ids), **scoring}, headers)["choices"][0]["text"]
        given = {"prompt": [*ids, *tokens], "echo": True, "return_token_ids": True}
        limit = body.get("max_tokens", answer["usage"]["completion_tokens"]) - len(tokens)
        continued = self._ask("/v1/completions", {**own, **given, "max_tokens": max(0, limit)}, headers)
        rest, choice = continued["choices"][0], answer["choices"][0]
        _set_text(choice, rest["text"].removeprefix(before))
        choice |= {"token_ids": [*tokens, *rest["token_ids"]], "finish_reason": rest["finish_reason"]}
        num_tokens = len(choice["token_ids"])
        answer["usage"] |= {
            "completion_tokens": num_tokens, "total_tokens": answer["usage"]["prompt_tokens"] + num_tokens,
        }  # fmt: skip
        # The server's counts are of what it emitted itself; the tokens that were given take a call each.
        draft_counts = ("accepted", "drafted", "target_calls")
        counts = {name: count for name, count in continued["usage"].items() if name in draft_counts}
        if "target_calls" in counts:
            counts["target_calls"] += len(tokens)
        answer["usage"] |= counts
        return answer


def warped(top: Mapping[int, float], body: Mapping[str, Any], top_p_first: bool = False) -> dict[int, float]:
    """The distribution that a request asks for, of the likeliest tokens: temperature, top-k, top-p; or top-p first."""
    logprobs = dict(top)
    if top_p_first:
        kept = _nucleus({token: math.exp(value) for token, value in logprobs.items()}, body["top_p"])
        logprobs = {token: logprobs[token] for token in kept}
    weights = {token: math.exp(value / body["temperature"]) for token, value in logprobs.items()}
    if (top_k := body.get("top_k", 0)) > 0:  # -1 says that it is off
        weights = dict(list(weights.items())[:top_k])
    p = {token: weight / sum(weights.values()) for token, weight in weights.items()}
    return p if top_p_first else _nucleus(p, body.get("top_p", 1))


def _nucleus(p: Mapping[int, float], top_p: float) -> dict[int, float]:
    """The smallest set of likeliest tokens with at least this probability, renormalised."""
    result: dict[int, float] = {}
    for token, value in p.items():
        if sum(result.values()) >= top_p:
            break
        result[token] = value
    return {token: value / sum(result.values()) for token, value in result.items()}


def _prompt_ids(answer: Answer) -> list[int]:
    """vLLM has them in a completion's choice, and at the top of a chat's answer."""
    ids = answer["choices"][0].get("prompt_token_ids") or answer["prompt_token_ids"]
    return [int(token) for token in ids]


def _text(choice: Answer) -> str:
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def _set_text(choice: Answer, text: str) -> None:
    if "message" in choice:
        choice["message"]["content"] = text
    else:
        choice["text"] = text


def events(answer: Answer) -> Iterator[Answer]:
    """An answer as the chunks of a stream, the last of which has the usage."""
    chat = "message" in answer["choices"][0]
    head = {**answer, "object": "chat.completion.chunk" if chat else answer["object"], "usage": None}
    for choice in answer["choices"]:
        rest = {key: value for key, value in choice.items() if key != "message"}
        yield {**head, "choices": [{**rest, "delta": choice["message"]} if chat else rest]}
    yield {**head, "choices": [], "usage": answer["usage"]}


@contextmanager
def lying(proxy: LyingProxy) -> Iterator[str]:
    """Run a proxy in threads; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, kind, data = proxy.forward("GET", self.path, None, self.headers)
            if self.path == "/metrics":
                data = proxy.metrics(data.decode()).encode()
            self._send(status, kind, data)

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                body = json.loads(data)
                answer = proxy.answer(self.path, body, self.headers)
            except UpstreamRefusal as refusal:
                self._send(refusal.status, "application/json", refusal.data)
            except (ValueError, KeyError, TypeError):  # no request that a bug could be planted in
                self._send(*proxy.forward("POST", self.path, data, self.headers))
            else:
                if not body.get("stream"):
                    self._send(200, "application/json", json.dumps(answer).encode())
                    return
                *chunks, usage = events(answer)
                wants_usage = (body.get("stream_options") or {}).get("include_usage")
                lines = [json.dumps(each) for each in (*chunks, *([usage] if wants_usage else []))]
                text = "".join(f"data: {line}\n\n" for line in (*lines, "[DONE]"))
                self._send(200, "text/event-stream", text.encode())

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The served engines of a certificate, connected: what each gives, what they are asked, and the weights at hand.

Every answer is a unit of the folder's journal: a certificate that was interrupted asks for the missing ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from specexp.certify.chi_square import Prefix
from specexp.engine_certify import next_tokens
from specexp.engine_certify.engine_certificate_config import EngineCertificateConfig
from specexp.engine_certify.next_tokens import NextTokens, Rows
from specexp.engine_certify.served_output import ServedOutput, ends_of, has_tokenizer, read, tokens_of
from specexp.engines.body import ALL_OFF, Prompt, Sampling, Wanted
from specexp.engines.client import EngineClient, Offer
from specexp.engines.responses import Refused
from specexp.engines.served_methods import ServedMethod
from specexp.errors import EngineError
from specexp.evaluation.equality import noise_of
from specexp.evaluation.preparation import Prepared
from specexp.lm.model import Model
from specexp.pair.tokenization import after_system, joined
from specexp.storage.journal import Journal, Key

TOGETHER = 8
NUM_TOP = 20  # likeliest tokens asked for
SPECULATIVE, PLAIN = "engine", "against"  # roles
Tick = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class ExaminedEngine:
    """One endpoint. `by_ids` is True if it takes prompts as token ids, which can then end in a part of an output."""

    role: str
    method: ServedMethod
    client: EngineClient
    offer: Offer
    by_ids: bool
    tops: bool  # that its log-probabilities name tokens by id

    @property
    def name(self) -> str:
        return self.method.method

    def facts(self) -> dict[str, Any]:
        endpoint = self.method.endpoint
        return {
            **{name: getattr(endpoint, name) for name in ("url", "model", "api", "tokenizer")},
            "request": dict(self.method.switch), "models": self.client.models(), "offer": self.offer.words(),
            "prompts": "token ids" if self.by_ids else "messages" if endpoint.api == "chat" else "text",
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request. `after` are tokens of an output that the prompt ends in."""

    key: Key
    prompt: int  # its place among the experiment's prompts
    sampling: Sampling
    after: Prefix = ()
    num_top: int = 0


@dataclass(slots=True)
class EngineSubject:
    """Everything that the checks of a served engine need."""

    config: EngineCertificateConfig
    prepared: Prepared
    engine: ExaminedEngine
    against: ExaminedEngine | None
    journal: Journal
    together: int = TOGETHER  # requests in flight, unless a check needs another number
    _rows: dict[tuple[int, Prefix], Rows] = field(default_factory=dict)

    @property
    def engines(self) -> list[ExaminedEngine]:
        """The examined one, then the one that it is compared with."""
        return [self.engine, *([] if self.against is None else [self.against])]

    @property
    def target(self) -> Model | None:
        """The local weights; None if there are none."""
        return self.prepared.pair.models.get("target") if self.config.weights else None

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end an output, as far as a tokenizer tells."""
        return ends_of(self.prepared)

    @property
    def ids(self) -> Sequence[list[int]] | None:
        """The prompts' ids; None without a tokenizer."""
        return self.prepared.prompts if has_tokenizer(self.prepared) else None

    def names(self) -> list[str]:
        return [example.prompt_id for example in self.prepared.examples]

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as readable text."""
        if self.ids is None:
            return " ".join(f"<{token}>" for token in tokens)
        text = self.prepared.pair.text.decode(list(tokens))
        return text or " ".join(f"<{token}>" for token in tokens)

    def noise(self, highest: float) -> float:
        """How far apart rounding may put two logits in the engine's dtype, where the largest has this size."""
        return noise_of(self.config.dtype, np.asarray([highest]))

    def ask(
        self, engine: ExaminedEngine, requests: Sequence[EngineRequest], tick: Tick, together: int = 0
    ) -> list[ServedOutput]:
        """The outputs, in the order of the requests. Raises Refused for a sampling that the server does not take."""
        missing = [each for each in requests if (engine.role, *each.key) not in self.journal]
        for _ in range(len(requests) - len(missing)):
            tick()
        pool = ThreadPoolExecutor(max_workers=together or self.together)
        try:
            futures = {pool.submit(self._answer, engine, each): each for each in missing}
            for future in as_completed(futures):
                output = future.result()
                self.journal.unit((engine.role, *futures[future].key), output.as_json)
                tick()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [
            ServedOutput.of_json(self.journal.unit((engine.role, *each.key), dict)) for each in requests
        ]  # fmt: skip

    def is_answered(self, engine: ExaminedEngine, request: EngineRequest) -> bool:
        """True if the engine answers this request while nothing else is asked of it."""
        try:
            self._answer(engine, request)
        except EngineError:
            return False
        return True

    def _answer(self, engine: ExaminedEngine, request: EngineRequest) -> ServedOutput:
        wanted = engine.offer.wanted
        top = min(request.num_top, wanted.top_logprobs) if engine.offer.logprobs else 0
        answer = engine.client.ask(
            prompt_of(self.prepared, engine.method, request.prompt, engine.by_ids, request.after), request.sampling,
            replace(wanted, top_logprobs=top, tokens_as_ids=wanted.tokens_as_ids and top > 0), engine.method.switch,
        )  # fmt: skip
        split = None if self.ids is None else lambda text: self.split(request.prompt, request.after, text)
        return read(answer, self.ends, split, request.sampling.stop)

    def split(self, prompt: int, after: Prefix, text: str) -> list[int]:
        """The tokens of a text that follows a prompt and these tokens."""
        return tokens_of(self.prepared, prompt, after, text)

    @property
    def by_text(self) -> bool:
        """True if an engine gives text alone, which a tokenizer splits."""
        return self.ids is not None and not all(engine.offer.token_ids for engine in self.engines)

    @property
    def rows_are_known(self) -> bool:
        """True if distributions of tokens are known: from weights, or from log-probabilities after any tokens."""
        return self.target is not None or self.scoring() is not None

    def rows_source(self) -> str:
        scoring = self.scoring()
        if self.target is not None:
            return "the weights"
        return "nothing" if scoring is None else f"the log-probabilities of {scoring.name}"

    def scoring(self) -> ExaminedEngine | None:
        """The engine whose log-probabilities are trusted: the plain one, if it has any."""
        usable = [each for each in self.engines if each.by_ids and each.tops and self.ends]
        return usable[-1] if usable else None

    @property
    def why_no_rows(self) -> str:
        """Why no distribution is known to compare with."""
        if not self.ends:
            return "without a tokenizer or weights it is not known which token ends an output"
        return "the server gives no log-probabilities by token id, and no weights are at hand"

    def rows(self, prompt: int, after: Prefix = ()) -> Rows:
        """The distributions of the tokens that follow a prompt and these tokens of its output."""
        if (prompt, after) not in self._rows:
            target, ids = self.target, self.ids
            if target is not None and ids is not None:
                rows = next_tokens.of_weights(target, [*ids[prompt], *after], self.ends)
            else:
                rows = self._served_rows(prompt, after)
            self._rows[prompt, after] = rows
        return self._rows[prompt, after]

    def _served_rows(self, prompt: int, after: Prefix) -> Rows:
        scoring = self.scoring()
        assert scoring is not None, "no distribution is known"
        known: dict[Prefix, NextTokens] = {}

        def row(prefix: Prefix) -> NextTokens:
            if prefix not in known:
                behind = (*after, *prefix)
                request = EngineRequest(("row", prompt, *behind), prompt, Sampling(1), behind, NUM_TOP)
                (output,) = self.ask(scoring, [request], lambda: None)
                known[prefix] = next_tokens.of_top(output.top[0])
            return known[prefix]

        return row


@contextmanager
def connected(config: EngineCertificateConfig, prepared: Prepared) -> Iterator[EngineSubject]:
    """Connect to the engines, and find out what each gives. The subject has a journal in memory. Raises EngineError."""
    with ExitStack() as opened:
        engines = []
        for role, method in ((SPECULATIVE, config.engine), (PLAIN, config.against)):
            if method is not None:
                client = opened.enter_context(EngineClient(method.endpoint))
                engines.append(_examined(role, method, client, prepared))
        if not has_tokenizer(prepared):
            prepared, engines = _with_served_ids(prepared, engines)
        yield EngineSubject(config, prepared, engines[0], engines[1] if len(engines) > 1 else None, Journal())


def _with_served_ids(
    prepared: Prepared, engines: list[ExaminedEngine]
) -> tuple[Prepared, list[ExaminedEngine]]:  # fmt: skip
    """The prompts' ids as the plain engine says them (vLLM does), where no tokenizer is at hand; else as it was."""
    plain, prompts = engines[-1], []
    for place in range(len(prepared.examples)):
        prompt = prompt_of(prepared, plain.method, place, False)
        ids = plain.client.ask(prompt, Sampling(1), plain.offer.wanted, plain.method.switch).prompt_ids
        if not ids:
            return prepared, engines
        prompts.append(ids)
    result = []
    for each in engines:
        takes = each.method.endpoint.api == "completions"
        try:
            if takes:
                each.client.ask(prompts[0], Sampling(1), each.offer.wanted, each.method.switch)
        except Refused:
            takes = False
        result.append(replace(each, by_ids=takes))
    return replace(prepared, prompts=prompts), result


def _examined(role: str, method: ServedMethod, client: EngineClient, prepared: Prepared) -> ExaminedEngine:
    """Ask for two tokens with everything wanted, then with less: prompts as ids first, log-probabilities by id."""
    forms = (True, False) if method.endpoint.api == "completions" and has_tokenizer(prepared) else (False,)
    for by_ids in forms:
        prompt = prompt_of(prepared, method, 0, by_ids)
        try:
            wanted = Wanted(top_logprobs=NUM_TOP, tokens_as_ids=True, verbose=True, off=ALL_OFF)
            offer = client.offer(prompt, wanted, method.switch)
        except Refused:
            if by_ids:
                continue
            raise
        answer = client.ask(prompt, Sampling(1), offer.wanted, method.switch)
        tops = offer.logprobs and bool(read(answer, (), None).top)
        # Most requests ask for no log-probabilities, and some servers give ids with them alone.
        silent = replace(offer.wanted, top_logprobs=0, tokens_as_ids=False)
        ids = client.ask(prompt, Sampling(2), silent, method.switch).token_ids
        return ExaminedEngine(role, method, client, replace(offer, token_ids=ids is not None), by_ids, tops)
    raise AssertionError("an engine was asked in no form")


def prompt_of(prepared: Prepared, method: ServedMethod, place: int, by_ids: bool, after: Prefix = ()) -> Prompt:
    """A prompt as this engine takes it, as `evaluate` sends it; `after` continues it where it is made of ids."""
    assert by_ids or not after, "only ids can be continued"
    if by_ids:
        return [*prepared.prompts[place], *after]
    messages = after_system(prepared.experiment.system, prepared.examples[place].messages())
    if method.endpoint.api == "chat":
        return [{"role": each["role"], "content": each["content"]} for each in messages]
    return joined(messages)


def facts_of(subject: EngineSubject) -> Mapping[str, Any]:
    """What answers depend on, for the journal."""
    config, prompts = subject.config, subject.prepared.prompts
    return {
        "prompts": [[name, prompt] for name, prompt in zip(subject.names(), prompts, strict=True)],
        "engines": [asdict(each.method) for each in subject.engines],
        "settings": config.hash,
    }  # fmt: skip

"""Asks served engines for an experiment's outputs, one at a time, and makes their records.

Prompts go as messages (`api: chat`), as ids where `tokenizer` is given, else as text. A record's `seconds` are those of
the whole request, queue and prompt included; what the server says of its drafts is in `served`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from specexp.engines import acceptance
from specexp.engines.acceptance import DraftCounts
from specexp.engines.body import ALL_OFF, Prompt, Sampling, Wanted
from specexp.engines.client import EngineClient, Offer
from specexp.engines.served_methods import ServedMethod
from specexp.engines.stream import Answer
from specexp.errors import EngineError
from specexp.evaluation.preparation import Prepared, ServedSetting
from specexp.evaluation.scheduling import Job, earlier_texts
from specexp.evaluation.served_resume import changes, check_same_server
from specexp.pair.tokenization import after_system, joined
from specexp.storage.records import SCHEMA_VERSION, Record, num_tokens
from specexp.tasks.example import Message

COUNTS = (
    "num_rounds", "num_drafted", "num_accepted", "num_judged", "num_cut", "num_full", "num_tested", "num_target_calls",
    "num_target_positions", "num_draft_calls", "num_draft_positions",
)  # fmt: skip
UNSEEN = ("calls/", "speed/prefill", "speed/speedup_end_to_end")  # metrics that no one outside a server can know


@dataclass(slots=True)
class Engines:
    """Connections to an experiment's engines; a context manager, which finds out what each server gives."""

    prepared: Prepared
    begun: Sequence[Mapping[str, Any]] = ()  # environments of the folder that is resumed
    _open: ExitStack = field(default_factory=ExitStack)
    _clients: dict[str, EngineClient] = field(default_factory=dict)  # by name of the engine
    _offers: dict[str, Offer] = field(default_factory=dict)
    _counting: set[str] = field(default_factory=set)  # engines whose /metrics count drafts
    facts: dict[str, Any] = field(default_factory=dict)  # for environments.json

    def __enter__(self) -> Self:
        try:
            for setting in self.prepared.served:
                self._connect(setting.engine)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _connect(self, engine: ServedMethod) -> None:
        client = self._open.enter_context(EngineClient(engine.endpoint))
        prompt = self.prompt(engine, 0)
        # With log-probabilities only to know if there are any: they would slow down what is measured.
        more = client.offer(prompt, Wanted(top_logprobs=1, verbose=True, off=ALL_OFF), engine.switch)
        offer = client.offer(prompt, Wanted(verbose=more.wanted.verbose, off=more.wanted.off), engine.switch)
        by_logprobs = more.num_tokens and not offer.num_tokens
        offer = more if by_logprobs else offer
        if not offer.num_tokens:
            raise EngineError(
                f"engine {engine.endpoint.url} counts no tokens in its answers, so no speed is known; serve with"
                " stream_options.include_usage, return_token_ids or logprobs."
            )
        self._clients[engine.name], self._offers[engine.name] = client, offer
        if acceptance.of_counters("", client.counters()) is not None:
            self._counting.add(engine.name)
        endpoint = engine.endpoint
        self.facts[engine.name] = {
            **{name: getattr(endpoint, name) for name in ("url", "model", "api", "tokenizer")},
            "request": dict(engine.switch),
            "models": client.models(),
            "offer": Offer(more.wanted, offer.token_ids, more.logprobs, True).words(),
            "compared_by": "token ids" if offer.token_ids else "text",
            "counted_by": "log-probabilities" if by_logprobs else "the server or its ids",
            "first_output": offer.text,
            "counts_drafts": "/metrics, of all its requests" if engine.name in self._counting else "in answers, if any",
        }
        check_same_server(engine.name, self.begun, self.facts[engine.name])
        for said in changes([*self.begun, {"engines": {engine.name: self.facts[engine.name]}}]):
            print(said, file=sys.stderr)

    def record(self, job: Job, texts: Sequence[str]) -> Record:
        """Ask for one output, after the answers `texts` of the turns before. Raises EngineError."""
        assert isinstance(job.setting, ServedSetting)
        engine = job.setting.engine
        client = self._clients[engine.name]
        counting = engine.name in self._counting
        before = client.counters() if counting else ""
        prompt = self.prompt(engine, job.index, texts)
        answer = client.ask(prompt, self.sampling(job.repeat), self.wanted(engine), engine.switch)
        drafts = acceptance.of_answer(answer)
        if counting and (drafts is None or not drafts.can_be_refuted):  # llama.cpp's answers have no rounds
            drafts = acceptance.of_counters(before, client.counters()) or drafts
        return record_of(self.prepared, job, answer, drafts)

    def sampling(self, repeat: int) -> Sampling:
        """How the outputs of one repeat are sampled and where they end."""
        experiment = self.prepared.experiment
        return Sampling(
            experiment.max_new_tokens, experiment.temperature, experiment.top_k, experiment.top_p,
            seed=experiment.seed + repeat if experiment.temperature else None, stop=self.prepared.stop_texts,
            min_tokens=experiment.min_new_tokens, ignore_eos=experiment.ignore_eos,
        )  # fmt: skip

    def wanted(self, engine: ServedMethod) -> Wanted:
        """What this engine can be asked for besides the text, without log-probabilities."""
        return self._offers[engine.name].wanted

    def prompt(self, engine: ServedMethod, index: int, texts: Sequence[str] = ()) -> Prompt:
        """An example's next turn, after the answers `texts` of the turns before, as this engine takes it."""
        messages: Sequence[Message] = self.prepared.examples[index].messages(texts)
        if engine.endpoint.api != "chat" and engine.endpoint.tokenizer:
            return self.prepared.pair.text.encode(messages)
        messages = after_system(self.prepared.experiment.system, messages)
        if engine.endpoint.api == "chat":
            return [{"role": each["role"], "content": each["content"]} for each in messages]
        return joined(messages)


def texts_before(prepared: Prepared, records: Any, job: Job) -> list[str]:
    """Return the answers that a turn's prompt follows."""
    return earlier_texts(prepared, records, job) if job.turn else []


def record_of(prepared: Prepared, job: Job, answer: Answer, drafts: DraftCounts | None) -> Record:
    """Return one answer's record, without its environment."""
    if not answer.num_tokens or answer.first_seconds is None:
        name = prepared.examples[job.index].prompt_id
        raise EngineError(
            f"{job.setting.config.label} answered prompt '{name}' with no token; check its model, resume."
        )
    example, method, experiment = prepared.examples[job.index], job.setting.config, prepared.experiment
    last = job.turn == len(example.turns) - 1
    gold = example.answer if last else None
    text, ids = answer.text, answer.token_ids
    said: str | None = text
    if prepared.thinking is not None and ids is not None:
        said = prepared.thinking.answer_text(prepared.pair.text, prepared.prompts[job.index], ids, text)
    read = last and said is not None
    found = prepared.task.extract(said or "", answer.finish_reason == "stop", example.answer) if read else None
    correct = found is not None and gold is not None and prepared.task.comparator.equal(found, gold, example)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "prompt_id": example.prompt_id, "turn": job.turn,
        "category": example.category, "paired": job.turn == 0 or experiment.history == "baseline",
        "method": method.method, "preset": method.preset, "label": method.label, "repeat": job.repeat,
        "seed": experiment.seed + job.repeat, "text": text, "answer": found, "gold": gold,
        "correct": None if gold is None else correct, "token_ids": ids or [], "finish_reason": answer.finish_reason,
        **dict.fromkeys(COUNTS, 0), "overlap": 0.0, "accepted_histogram": [], "trees": [],
        "seconds": answer.seconds, "prefill_seconds": 0.0, "time_to_first_token": answer.first_seconds,
        "settings_hash": experiment.hash, "num_tokens": answer.num_tokens,
        "served": {
            "attempts": answer.attempts,
            "last_seconds": answer.last_seconds,
            "drafts": None if drafts is None else asdict(drafts),
        },
    }  # fmt: skip
    return record  # type: ignore[return-value]


class ServedSums:
    """Sums over an engine's records, of what others do not have: time per token, and the server's acceptance."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0  # of longer outputs: those after the first token
        self._drafts: DraftCounts | None = None
        self._all_say = True  # of their drafts

    def add(self, record: Record) -> None:
        """Add one record of an engine."""
        if num_tokens(record) > 1:
            self._tokens += num_tokens(record) - 1
            self._seconds += record["served"]["last_seconds"] - record["time_to_first_token"]
        said = record["served"]["drafts"]
        self._all_say &= said is not None
        if self._all_say:
            counts = DraftCounts(**{**said, "by_position": tuple(said["by_position"])})
            self._drafts = counts if self._drafts is None else acceptance.total([self._drafts, counts])

    @property
    def drafts(self) -> DraftCounts | None:
        """The sum of what a server said of its drafts; None unless it said so of every output."""
        return self._drafts if self._all_say else None

    def metrics(self, of_all: Mapping[str, float]) -> dict[str, float]:
        """Return an engine's metrics: those of all methods that can be seen from outside, time per token, and the
        server's acceptance. Calls and the time of a prompt cannot be seen; a request's seconds include its prompt."""
        result = {name: value for name, value in of_all.items() if not name.startswith(UNSEEN)}
        if self._tokens:
            result["speed/time_per_token"] = self._seconds / self._tokens
        return result | (self.drafts.metrics() if self.drafts is not None else {})


def sums_of(records: Iterable[Record]) -> ServedSums:
    """Add up an engine's records."""
    result = ServedSums()
    for record in records:
        result.add(record)
    return result


def warnings(records: Mapping[str, Sequence[Record]], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader should know of engines: counts that cannot be true, and what outputs were compared by."""
    result = []
    for label, each in records.items():
        if not each or "served" not in each[0]:
            continue
        drafts = sums_of(each).drafts
        faults = drafts.faults(sum(map(num_tokens, each)), len(each)) if drafts is not None else []
        result += [f"{label}: the server's counts of drafts cannot be true: {fault}" for fault in faults]
        if again := sum(record["served"]["attempts"] > 1 for record in each):
            result.append(f"{label}: {again} of {len(each)} outputs were asked for more than once.")
    ours = [label for label, each in records.items() if each and "served" not in each[0]]
    engines = [label for label in records if label not in ours]
    if engines and (ours or len(engines) > 1):
        result.append(
            f"Engines are compared with {engines[0]}, never with our own methods: their seconds are of whole requests."
        )
    result += changes(facts)
    known = {name: engine for environment in facts for name, engine in environment.get("engines", {}).items()}
    for name, engine in known.items():
        counted = "; its tokens are counted by log-probabilities, which may slow it down"
        slower = counted if engine.get("counted_by") == "log-probabilities" else ""
        result.append(f"engine:{name}: {engine['offer']}; outputs are compared by {engine['compared_by']}{slower}.")
    return result

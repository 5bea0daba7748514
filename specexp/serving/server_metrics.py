"""What a server counts, by the names that vLLM has for the same things, so that its dashboards and readers fit.

Counts of drafts are those of records: of chains, up to an output's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from specexp.engine import Generation
from specexp.metrics.before_end import before_end, rounds_by_accepted

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ABORTED = "abort"  # the finished_reason of what was cut off
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LABELS = ("model_name", "engine")


class ServerMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model, "engine": "0"}
        counters = {
            "prompt_tokens": "Tokens of prompts.",
            "generation_tokens": "Tokens that were emitted.",
            "spec_decode_num_drafts": "Rounds with drafted tokens.",
            "spec_decode_num_draft_tokens": "Drafted tokens.",
            "spec_decode_num_accepted_tokens": "Drafted tokens that were accepted.",
        }
        self._counts = {
            name: Counter(f"vllm:{name}", text, _LABELS, registry=self._registry).labels(**self._labels)
            for name, text in counters.items()
        }
        self._by_place = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by their place in the draft.",
            (*_LABELS, "position"), registry=self._registry,
        )  # fmt: skip
        self._ended = Counter(
            "vllm:request_success", "Outputs by what ended them.", (*_LABELS, "finished_reason"),
            registry=self._registry,
        )  # fmt: skip
        self._first = self._histogram("time_to_first_token_seconds", "From arrival to the first tokens.", _SECONDS)
        self._whole = self._histogram("e2e_request_latency_seconds", "From arrival to the end.", _SECONDS)
        self._queued = self._histogram("request_queue_time_seconds", "From arrival to a free row.", _SECONDS)
        self._each = self._histogram(
            "request_time_per_output_token_seconds", "After the first tokens, a token.", _TOKEN_SECONDS
        )

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Show how many outputs are being decoded, and how many wait, whenever the metrics are read."""
        for name, text, read in (
            ("running", "Outputs that are being decoded.", running),
            ("waiting", "Outputs that wait for a free row.", waiting),
        ):
            gauge = Gauge(f"vllm:num_requests_{name}", text, _LABELS, registry=self._registry)
            gauge.labels(**self._labels).set_function(read)

    def began(self, waited: float) -> None:
        self._queued.observe(waited)

    def finished(
        self, num_prompt: int, out: Generation, reason: str, seconds: float, to_first: float | None
    ) -> None:  # fmt: skip
        """Count a finished output: `seconds` from its arrival, `to_first` of them until its first tokens."""
        counts = asdict(out)
        num_accepted, num_drafted = before_end(counts)
        by_accepted = rounds_by_accepted(counts)
        for name, value in (
            ("prompt_tokens", num_prompt), ("generation_tokens", len(out.token_ids)),
            ("spec_decode_num_draft_tokens", num_drafted), ("spec_decode_num_accepted_tokens", num_accepted),
            ("spec_decode_num_drafts", sum(by_accepted)),
        ):  # fmt: skip
            self._counts[name].inc(value)
        for place in range(len(by_accepted) - 1):
            self._by_place.labels(**self._labels, position=str(place)).inc(sum(by_accepted[place + 1 :]))
        self._end(reason, seconds)
        if to_first is not None:
            self._first.observe(to_first)
            if len(out.token_ids) > 1:
                self._each.observe((seconds - to_first) / (len(out.token_ids) - 1))

    def aborted(self, seconds: float) -> None:
        """Count an output that was cut off, or failed."""
        self._end(_ABORTED, seconds)

    def text(self) -> bytes:
        """The metrics as Prometheus reads them (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def _end(self, reason: str, seconds: float) -> None:
        self._ended.labels(**self._labels, finished_reason=reason).inc()
        self._whole.observe(seconds)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        result = Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self._registry)
        return result.labels(**self._labels)

"""What a server itself says about its drafts, under this project's metric names, and what its counts imply.

vLLM: counters of /metrics, of all requests since it began (`vllm:spec_decode_num_drafts_total`, ...), or of one request
with `--per-request-spec-decode-metrics`. SGLang: `meta_info` of each choice, whose names differ by version. llama.cpp:
`timings.draft_n` and `draft_n_accepted`, and vLLM's counters under its own name where it serves /metrics. A server of
this project: `usage.drafted`, `accepted` and `target_calls`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specexp.engines.stream import Answer

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)(?: -?\d+)?$")
_POSITION = re.compile(r'(?:^|,)position="(\d+)"')
_COUNTER = re.compile(r"(vllm|llamacpp):spec_decode_num_(\w+)")
_SERVERS = {"vllm": "vLLM", "llamacpp": "llama.cpp"}
# Names of SGLang's counts, newest first; a pair counts only if both are there.
_SGLANG = (
    ("spec_num_correct_drafts", "spec_num_proposed_drafts"),
    ("spec_accepted_drafts", "spec_proposed_drafts"),
    ("spec_accept_token_num", "spec_draft_token_num"),
)
_SGLANG_HISTOGRAMS = ("spec_correct_drafts_histogram", "spec_accept_histogram")


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """A server's counts of one answer, or of all. None is what it does not say.

    `num_rounds` are verifying calls that had a draft. `by_position[i]` is how many had draft i accepted. `num_calls`
    are all calls that emitted tokens, with a draft or without one.
    """

    source: str
    num_drafted: int | None
    num_accepted: int | None
    num_rounds: int | None = None
    by_position: tuple[int, ...] = ()
    num_calls: int | None = None

    @property
    def longest(self) -> int | None:
        """The longest draft, as far as the counts tell: of drafts of one length exactly, else a lower bound."""
        if self.by_position:
            return len(self.by_position)
        rounds = self.num_rounds or self.num_calls
        if rounds and self.num_drafted is not None:
            return -(-self.num_drafted // rounds)
        return None

    @property
    def can_be_refuted(self) -> bool:
        """True if there are calls or rounds, with which accepted tokens must add up to those of the outputs."""
        return self.num_accepted is not None and (self.num_calls is not None or self.num_rounds is not None)

    def metrics(self) -> dict[str, float]:
        """Return what the counts give under the names of docs/metrics.md."""
        result: dict[str, float] = {}
        if self.num_drafted and self.num_accepted is not None:
            result["accept/draft_rate"] = self.num_accepted / self.num_drafted
        if self.num_rounds:
            if self.num_accepted is not None:
                result["accept/mean_length"] = 1 + self.num_accepted / self.num_rounds
            if self.num_drafted is not None:
                result["accept/drafted_length"] = self.num_drafted / self.num_rounds
            # Servers count every round, those with shorter drafts too: below ours where drafts end early.
            for place, count in enumerate(self.by_position, 1):
                result[f"accept/position_{place}"] = count / self.num_rounds
        return result

    def faults(self, num_tokens: int, num_outputs: int = 1) -> list[str]:
        """Return what cannot be true of outputs with this many tokens in all.

        Each round emits its accepted drafts and one token more; of an output, only the last round may lose tokens, at
        the end: at most the longest draft and the extra token. Where all calls are known, accepted tokens and calls are
        also no fewer than the tokens.
        """
        drafted, accepted, rounds, calls = self.num_drafted, self.num_accepted, self.num_rounds, self.num_calls
        if accepted is None:
            return []
        result = []
        if drafted is not None and accepted > drafted:
            result.append(f"{accepted} of {drafted} drafted tokens are counted as accepted.")
        longest = self.longest
        if longest is None:  # nothing tells how long a draft is, so that the last one may have been all of them
            longest = drafted if drafted is not None else accepted
        lost = num_outputs * (longest + 1)
        unit = "rounds" if calls is None else "calls"
        emitted = accepted + ((rounds or 0) if calls is None else calls)
        words = f"{accepted} accepted tokens" + (f" in {emitted - accepted} {unit}" if emitted > accepted else "")
        if emitted > num_tokens + lost:
            result.append(f"{words} are {emitted} tokens or more, but the outputs have {num_tokens}.")
        if calls and emitted < num_tokens:
            result.append(f"{words} are {emitted} tokens at most, but the outputs have {num_tokens}.")
        if self.by_position and sum(self.by_position) != accepted:
            result.append(f"{accepted} tokens are counted as accepted, but {sum(self.by_position)} by position.")
        if rounds is not None and any(count > rounds for count in self.by_position):
            result.append(f"a position has {max(self.by_position)} accepted tokens in {rounds} rounds.")
        return result


def of_answer(answer: Answer) -> DraftCounts | None:
    """Return what the server said about this answer's drafts, or None."""
    server = answer.server
    for of, name in ((_of_vllm, "metrics"), (_of_sglang, "meta_info"), (_of_llama_cpp, "timings"), (_of_own, "usage")):
        if (found := of(server.get(name) or {})) is not None:
            return found
    return None


def total(each: Sequence[DraftCounts]) -> DraftCounts | None:
    """Return the sum of several answers' counts; a count that one of them lacks is None."""
    if not each:
        return None
    width = max(len(one.by_position) for one in each)
    return DraftCounts(
        each[0].source,
        _sum([one.num_drafted for one in each]),
        _sum([one.num_accepted for one in each]),
        _sum([one.num_rounds for one in each]),
        tuple(sum(one.by_position[i] for one in each if i < len(one.by_position)) for i in range(width)),
        _sum([one.num_calls for one in each]),
    )


def of_counters(before: str, after: str) -> DraftCounts | None:
    """Return what vLLM or llama.cpp counted between two readings of its /metrics; None if it counts no drafts.

    Other clients' requests are in it, too. A counter that fell means that the server began anew: then also None.
    """
    first, (server, second) = _samples(before)[1], _samples(after)
    if not all((name, None) in second for name in ("drafts", "draft_tokens", "accepted_tokens")):
        return None
    grown = {key: value - first.get(key, 0) for key, value in second.items()}
    if any(value < 0 for value in grown.values()):
        return None
    positions = sorted(place for name, place in grown if name == "accepted_tokens_per_pos" and place is not None)
    by_position = tuple(grown["accepted_tokens_per_pos", place] for place in positions)
    drafted, accepted = grown["draft_tokens", None], grown["accepted_tokens", None]
    return DraftCounts(f"{server} /metrics", drafted, accepted, grown["drafts", None], by_position)


def _samples(text: str) -> tuple[str, dict[tuple[str, int | None], int]]:
    """Return whose counters of drafts these are, and them by name and position, summed over engines and models."""
    server, result = "", dict[tuple[str, int | None], int]()
    for line in text.splitlines():
        match = _SAMPLE.match(line.strip())
        counter = None if match is None else _COUNTER.fullmatch(match[1])
        if match is None or counter is None:
            continue
        name = counter[2].removesuffix("_total")
        if name.endswith("_created"):  # when the counter began, in seconds
            continue
        place = _POSITION.search(match[2] or "")
        key = name, int(place[1]) if place else None
        server = _SERVERS[counter[1]]
        result[key] = result.get(key, 0) + int(float(match[3]))
    return server, result


def _of_vllm(metrics: Mapping[str, Any]) -> DraftCounts | None:
    given = metrics.get("speculative_decoding")
    if not isinstance(given, Mapping):
        return None
    by_position = _by_position(_counts(given.get("acceptance_histogram")))
    return DraftCounts(
        "vLLM metrics", _count(given, "num_draft_tokens"), _count(given, "num_accepted_draft_tokens"),
        _count(given, "num_spec_steps"), by_position,
    )  # fmt: skip


def _of_sglang(meta: Mapping[str, Any]) -> DraftCounts | None:
    rounds = _count(meta, "spec_verify_ct")
    pairs = [(_count(meta, accepted), _count(meta, drafted)) for accepted, drafted in _SGLANG]
    complete = [pair for pair in pairs if None not in pair]
    accepted, drafted = complete[0] if complete else (None, None)
    if accepted is None and rounds is None:
        return None
    histogram = next((_counts(meta[name]) for name in _SGLANG_HISTOGRAMS if name in meta), [])
    return DraftCounts("SGLang meta_info", drafted, accepted, rounds, _by_position(histogram))


def _of_llama_cpp(timings: Mapping[str, Any]) -> DraftCounts | None:
    drafted, accepted = _count(timings, "draft_n"), _count(timings, "draft_n_accepted")
    return None if drafted is None else DraftCounts("llama.cpp timings", drafted, accepted)


def _of_own(usage: Mapping[str, Any]) -> DraftCounts | None:
    drafted, accepted = _count(usage, "drafted"), _count(usage, "accepted")
    if drafted is None:
        return None
    return DraftCounts("usage", drafted, accepted, _count(usage, "rounds"), (), _count(usage, "target_calls"))


def _count(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _counts(given: object) -> list[int]:
    return [int(each) for each in given] if isinstance(given, list) else []


def _by_position(histogram: Sequence[int]) -> tuple[int, ...]:
    """How many rounds accepted draft i, of a histogram whose entry j counts those that accepted exactly j drafts."""
    return tuple(sum(histogram[i:]) for i in range(1, len(histogram)))


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None

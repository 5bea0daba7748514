"""What suffix decoding remembers of a run: which outputs, what adding them costs, and that all phases have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import evaluate, records
from helpers.fake_clock import Clock
from helpers.kept_chains import Watching, toys
from specexp import config
from specexp.decoding.chain import Chain, Lossless, Suffix
from specexp.decoding.protocol import SuffixLimits
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Request, suffix_automaton
from specexp.engine.suffix_automaton import SuffixIndex, SuffixLengths
from specexp.evaluation import preparation, runner
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.scheduling import BATCHES, Job, Memories, memory_of
from specexp.evaluation.token_view.origins import TracedDecoder
from specexp.profiling.time_breakdown import TimedDecoder

REMEMBERING = "suffix_k4_run"


def prepared(**more: Any) -> Prepared:
    given = {"methods": "suffix", "gamma": 4, "suffix_memory": ["prompt", "run"], "limit": 12}
    return preparation.prepare(config.resolve("toy_quick", {**given, **more}))


class Outputs:
    """Records in which example i of a repeat has i + 1 tokens."""

    def find(self, key: tuple[str, int, str, int]) -> dict[str, Any]:
        name, turn, label, repeat = key
        assert (turn, label) == (0, REMEMBERING)
        return {"token_ids": [repeat] * (int(name.rpartition("-")[2]) + 1)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A second passes with each token that is appended."""
    result, append = Clock(), suffix_automaton.SuffixAutomaton.append

    def slow(self: Any, token: int) -> None:
        result.now += 1
        append(self, token)

    monkeypatch.setattr(suffix_automaton.SuffixAutomaton, "append", slow)
    return result


def remembering(made: Prepared, clock: Clock) -> tuple[Memories, Any]:
    (setting,) = (each for each in made.settings if each.config.label == REMEMBERING)
    records: Any = Outputs()
    return Memories(made, records, clock), lambda index, repeat=0: Job(index, 0, setting, repeat)


def test_adding_an_output_is_charged_to_the_next_prompt_and_never_again(clock: Clock) -> None:
    made = prepared()
    memories, job = remembering(made, clock)
    assert [memories.learn([job(index)]) for index in (0, 1, 2, 2, 3)] == [0, 1, 2, 0, 3]
    plain = next(each for each in made.settings if each.config.label != REMEMBERING)
    assert memories.learn([Job(3, 0, plain, 0)]) == 0
    assert memories.earlier(Job(3, 0, plain, 0)) is None
    resumed, job = remembering(made, clock)
    assert resumed.learn([job(6)]) == 6, "those before the latest output were remembered before the interruption"
    assert resumed.learn([job(7)]) == 7
    assert clock.now == 1 + 2 + 3 + sum(range(1, 8)), "each once"


def test_a_groups_outputs_are_charged_to_the_next_group_in_equal_shares(clock: Clock) -> None:
    memories, job = remembering(prepared(batch=2, limit=20), clock)
    assert BATCHES * 2 == 8
    shares = [memories.learn([job(index) for index in group]) for group in (range(8), range(8, 16), range(16, 20))]
    assert shares == [0, sum(range(1, 9)) / 8, sum(range(9, 17)) / 4]


def test_a_memory_is_of_one_repeat_at_a_time(clock: Clock) -> None:
    memories, job = remembering(prepared(repeats=3), clock)
    first = memories.earlier(job(4))
    assert first is not None
    assert set(first._next[0]) == {0}
    second = memories.earlier(job(2, repeat=1))
    assert second is not None
    assert set(second._next[0]) == {1}
    assert [each.outputs for each in memories._kept.values()] == [second], "the first repeat's memory is dropped"
    assert memories.earlier(job(1, repeat=1)) is not second, "an earlier prompt does not see later ones"
    third = memories.earlier(job(3, repeat=2))
    assert third is not None
    assert set(third._next[0]) == {2}, "also where the repeat before had not come as far"


def test_no_match_spans_two_outputs() -> None:
    """The text before a prompt's output is not what stood before it in the memory, nor is what stands after it."""
    memory = memory_of([[1, 2, 3], [4, 5, 6]])
    for text, expected in (([9, 2], [3]), ([9, 3], []), ([2, 3], []), ([9, 3, 4], [5, 6])):
        assert SuffixIndex(memory).continuation(text, SuffixLengths(4, 4, 0)) == expected


def test_a_prompt_is_continued_by_its_own_text_alone() -> None:
    """Without a memory, what another prompt says plays no part, although one engine decodes both."""
    proposer = Watching(Suffix(4, SuffixLimits(4.0, 0.0)))
    decoder = Chain(proposer, Lossless(), Warp())
    first, second = [1, 2, 3, 4, 5, 1, 2, 3], [7, 6, 3]
    for texts in ((first, second), (second, first)):
        engine, begun = Engine(toys()), {}
        for text in texts:
            proposer.seen.clear()
            engine.generate(decoder, text, 5, CertainRng())
            begun[len(text)] = [int(token) for token in proposer.seen[0].tokens]
        assert begun == {len(first): [4, 5, 1, 2], len(second): []}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, int | None]], Counter[str]]:
    """What each request may continue, by phase: the states of its memory; and the outputs that memories asked for."""
    seen: list[tuple[str, int | None]] = []
    asked: Counter[str] = Counter()
    generate, outputs = Engine.generate_all, Memories._outputs

    def phase(request: Request) -> str:
        if request.max_new_tokens == runner.WARM_UP_TOKENS:
            return "warm-up"
        kinds = {TimedDecoder: "split", TracedDecoder: "view"}
        return kinds.get(type(request.decoder), "run")  # type: ignore[call-overload, no-any-return]

    def noted(requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            seen.append((phase(request), None if request.earlier is None else len(request.earlier._next) - 1))
            yield request

    def counted(self: Any, label: str, repeat: int, start: int, stop: int) -> Any:
        asked[label] += stop - start
        return outputs(self, label, repeat, start, stop)

    monkeypatch.setattr(Engine, "generate_all", lambda self, requests: generate(self, noted(requests)))
    monkeypatch.setattr(Memories, "_outputs", counted)
    return seen, asked


def test_every_phase_of_a_run_has_the_memory(watched: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up that of other prompts, the time split and the token view that of the prompts before."""
    seen, asked = watched
    learn = Memories.learn
    monkeypatch.setattr(Memories, "learn", lambda self, jobs: learn(self, jobs) and 5.0)
    (workplace / "own.yaml").write_text("suffix_memory: [prompt, run]\nsuffix_min_probability: 0\n")
    lengths = ["--gamma", "4", "--limit", "5", "--max-new-tokens", "20"]
    settings = ["--methods", "baseline,suffix", *lengths, "--output", "out"]
    result = evaluate("--experiment", "toy_quick", "--config", "own.yaml", *settings)
    assert result.exit_code == 0, result.output
    sizes = {name: [size for phase, size in seen if phase == name] for name in ("warm-up", "run", "split", "view")}
    assert sizes["warm-up"].count(None) == 6, "three settings, two prompts"
    warm = [size for size in sizes["warm-up"] if size is not None]
    assert len(warm) == 2
    assert min(warm) > 0
    run = [size for size in sizes["run"] if size is not None]
    assert run == sorted(run)
    assert (len(run), run[0]) == (5, 0)
    assert [size for size in sizes["split"] if size is not None] == run[:4]
    assert [size for size in sizes["view"] if size is not None] == run[:3]
    assert asked == {REMEMBERING: 4 + 3 + 2}, "each phase adds each output once"
    charged = [row["seconds"] > 5 for row in records(workplace / "out") if row["label"] == REMEMBERING]
    assert charged == [False, True, True, True, True]
    assert all(row["seconds"] < 5 for row in records(workplace / "out") if row["label"] != REMEMBERING)

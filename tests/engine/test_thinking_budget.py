"""A thought that has used its budget is ended by tokens that nobody draws: exact for every method, and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from helpers.generation import prompts
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from specexp.certify.oracle import output_distribution
from specexp.certify.reference_distribution import gap, logits_behind, warp
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless, Suffix
from specexp.decoding.protocol import Role, SuffixLimits
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Decoder, Ending, Engine, Request, ThinkingBudget
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.toy import ToyModel

START, END = 1, 2
Walk = Iterator[tuple[tuple[int, ...], float]]
Pair = Callable[[str], dict[str, HFModel]]


def decoders(warp: Warp) -> dict[str, Decoder]:
    """Every way to a lossless output."""
    return {
        "baseline": Baseline(warp),
        "chain": Chain(DraftModel(2), Lossless(), warp),
        "block": Chain(DraftModel(2), Lossless(), warp, verification="block"),
        "match": Chain(DraftModel(2), Lossless(), warp, verification="match"),
        "no bonus": Chain(DraftModel(2), Lossless(), warp, bonus=False),
        "lookup": Chain(Lookup(2, max_ngram=2), Lossless(), warp),
        "suffix": Chain(Suffix(2, SuffixLimits(2.0, 0.3)), Lossless(), warp),
        "tree": SpecExec(6, 2, warp, parallel_branches=2),
    }


def budget(
    num_tokens: int, *, opened: bool, start: Sequence[int] = (START,), end: Sequence[int] = (END,),
    forced: Sequence[int] = (START, END, START),
) -> ThinkingBudget:  # fmt: skip
    return ThinkingBudget(num_tokens, tuple(start), tuple(end), tuple(forced), lambda prompt: opened)


def toys(vocab: int = 3, seed: int = 3) -> dict[Role, Any]:
    return {"target": ToyModel(vocab, seed), "draft": ToyModel(vocab, seed, draft_noise=0.8)}


def tail(ids: Sequence[int], part: Sequence[int]) -> bool:
    return list(ids[len(ids) - len(part) :]) == list(part)


def missing(thought: Sequence[int], forced: Sequence[int]) -> list[int]:
    """The forced text without the beginning of it that a thought ends with."""
    size = next(n for n in range(len(forced) - 1, -1, -1) if tail(thought, forced[:n]))
    return list(forced[size:])


def literal(
    step: Callable[[list[int]], Sequence[tuple[int, float]]], rule: ThinkingBudget, opened: bool, length: int,
    eos: Sequence[int], most: int = 99,
) -> Walk:  # fmt: skip
    """Every output with its probability, drawn token by token: `step` gives the next tokens after an output.

    Three loops: before the thought, in it, after it. `most` is what the context leaves.
    """
    todo: list[tuple[list[int], str, list[int], int, float]] = [([], "in" if opened else "before", [], length, 1.0)]
    while todo:
        out, phase, part, left, prob = todo.pop()
        if (out and out[-1] in eos) or left == 0 or len(out) >= most:
            yield tuple(out[:most]), prob
            continue
        if phase == "in" and len(part) == rule.num_tokens:
            todo.append(([*out, *missing(part, rule.forced_ids)], "after", [], left, prob))
            continue
        for token, p in step(out):
            drawn = [*part, token]
            if phase == "before":
                begun = bool(rule.start_ids) and tail(drawn, rule.start_ids)
                follows = ("in", [], left - 1) if begun else ("before", drawn, left - 1)
            elif phase == "in":
                follows = ("after", [], left) if tail(drawn, rule.end_ids) else ("in", drawn, left)
            else:
                follows = ("after", [], left - 1)
            todo.append(([*out, token], *follows, prob * p))


def distribution(
    model: Any, prompt: list[int], rule: ThinkingBudget, opened: bool, length: int, **sampling: Any
) -> dict[tuple[int, ...], float]:
    def step(out: list[int]) -> list[tuple[int, float]]:
        (row,) = logits_behind(model, [*prompt, *out], 1)
        return [(token, float(p)) for token, p in enumerate(warp(row, **sampling)) if p > 0]

    result: dict[tuple[int, ...], float] = {}
    for out, prob in literal(step, rule, opened, length, [EOS]):
        result[out] = result.get(out, 0.0) + prob
    return result


def greedy(model: HFModel, prompt: list[int], rule: ThinkingBudget, opened: bool, length: int, eos: list[int]) -> Any:
    """The one output at temperature 0, by a whole forward of transformers for every token."""

    def step(out: list[int]) -> list[tuple[int, float]]:
        with torch.inference_mode():
            logits = model.module(torch.tensor([[*prompt, *out]])).logits
        return [(int(logits[0, -1].argmax()), 1.0)]

    ((out, _),) = literal(step, rule, opened, length, eos)
    return list(out)


@pytest.mark.parametrize(
    "name,sampling",
    [
        *(pytest.param(name, SAMPLINGS[2], marks=pytest.mark.slow) for name in decoders(Warp())),
        *((name, SAMPLINGS[5]) for name in ("chain", "block", "tree")),
    ],
    ids=lambda value: value if isinstance(value, str) else names(value),
)
def test_outputs_have_the_targets_distribution_with_forced_ends(name: str, sampling: dict[str, Any]) -> None:
    models, seen = toys(), set()
    for opened, rule, length in (
        (True, budget(2, opened=True), 2),
        (False, budget(1, opened=False, forced=(END,)), 3),
    ):
        ending = Ending(thinking=rule)
        decoder = decoders(Warp(**sampling))[name]
        got = output_distribution(lambda: Engine(models, [EOS]), decoder, [1], length, ending)
        expected = distribution(models["target"], [1], rule, opened, length, **sampling)
        assert gap(got, expected) < EXACT
        seen |= {len(output) for output in got}
    assert max(seen) > 4, "no output has a forced end and an answer"


def test_without_a_cache_it_is_the_same() -> None:
    models, rule = toys(), budget(2, opened=True)
    for name in ("chain", "tree"):
        decoder = decoders(Warp(1.0))[name]
        got = output_distribution(lambda: Engine(models, [EOS], cached=False), decoder, [1], 2, Ending(thinking=rule))
        assert gap(got, distribution(models["target"], [1], rule, True, 2, temperature=1.0)) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("family,batch", [("llama", 3), ("gpt2", 1)])  # the native forward, and transformers'
def test_greedy_output_is_that_of_whole_forwards(pair: Pair, family: str, batch: int) -> None:
    models: Any = pair(family)
    cut = natural = late = 0
    for prompt in list(prompts())[1:2]:
        free = Engine(models, []).generate(Baseline(Warp()), prompt, 24, CertainRng()).token_ids
        for opened, size, start, end in (
            (True, 5, (), (free[2],)),  # ends by itself
            (True, 5, (), (free[20], free[20], free[20])),  # does not
            (False, 3, (free[4],), (free[20], free[20])),  # begins in a round
        ):
            rule = budget(size, opened=opened, start=start, end=end, forced=(7, *end, 9))
            wanted = greedy(models["target"], prompt, rule, opened, 12, [])
            cut += len(wanted) > size + 12
            natural += len(wanted) <= 3 + 12
            late += not opened
            for decoder in decoders(Warp()).values():
                request = Request(decoder, prompt, 12, CertainRng(), ending=Ending(thinking=rule))
                out = dict(Engine(models, [], max_batch_size=batch).generate_all([request] * batch))
                assert [each.token_ids for each in out.values()] == [wanted] * batch
                assert {each.finish_reason for each in out.values()} == {"length"}
                forced = {each.num_forced for each in out.values()}
                assert forced == {max(0, len(wanted) - 12 - size)} or not opened
    assert (cut, natural, late) == (2, 1, 1)


def test_rows_of_a_batch_have_budgets_of_their_own() -> None:
    models, decoder = toys(6, 5), Chain(DraftModel(3), Lossless(), Warp(0.8))
    rules = [None, budget(1, opened=True), budget(4, opened=True), budget(2, opened=False), budget(9, opened=True)]
    requests = [
        Request(decoder, [1, 2], 8, rng_for(0.8, 3, "p"), ending=Ending(ignore_eos=True, thinking=each))
        for each in rules
    ]
    alone = [
        Engine(models, [EOS]).generate(r.decoder, r.prompt_ids, r.max_new_tokens, r.rng, ending=r.ending)
        for r in requests
    ]
    together = dict(Engine(models, [EOS], max_batch_size=5).generate_all(requests))
    assert [together[i].token_ids for i in range(5)] == [each.token_ids for each in alone]
    assert [together[i].num_forced for i in range(5)] == [each.num_forced for each in alone]
    assert len({tuple(each.token_ids) for each in alone}) >= 4
    assert sum(each.num_forced > 0 for each in alone) >= 2


def test_counts_leave_forced_tokens_out_and_positions_have_them() -> None:
    """A perfect draft: all is accepted, up to the budget, and the next call feeds the forced tokens, too."""
    model = ToyModel(6, 5)
    rule = budget(5, opened=True, end=(4, 4, 4, 4), forced=(4, 4, 4, 4))
    heard: list[int] = []
    out = Engine({"target": model, "draft": model}).generate(
        Chain(DraftModel(3), Lossless(), Warp()), [1, 2], 6, CertainRng(), heard.extend, ending=Ending(thinking=rule)
    )
    assert len(out.token_ids) == 5 + 4 + 6
    assert heard == out.token_ids
    assert out.token_ids[5:9] == [4, 4, 4, 4]
    # Rounds of 4 and 1 tokens, then of 4 and 2: no draft is lost to the budget.
    assert (out.num_forced, out.num_rounds, out.num_accepted, out.num_cut) == (4, 4, 3 + 0 + 3 + 1, 0)
    assert out.num_target_positions == out.num_rounds + out.num_drafted + 4


def test_a_thought_that_begins_and_is_cut_in_a_round_leaves_nothing_of_the_rest_in_the_cache() -> None:
    """A perfect draft: the rest of the round is accepted, in the slots that the forced tokens will have."""
    models: Any = {"target": ToyModel(6, 5), "draft": ToyModel(6, 5)}
    free = Engine(models).generate(Baseline(Warp()), [1, 2], 12, CertainRng()).token_ids
    num_cut = 0
    for place in range(8):
        ending = Ending(thinking=budget(1, opened=False, start=free[: place + 1], end=(9, 9), forced=(3, 5, 5)))
        plain, *others = (
            Engine(models, cached=cached).generate(decoder, [1, 2], 12, CertainRng(), ending=ending)
            for decoder, cached in (
                (Baseline(Warp()), False),
                (Chain(DraftModel(4), Lossless(), Warp()), True),
                (SpecExec(9, 4, Warp()), True),
            )
        )
        assert plain.num_forced >= 2
        assert [each.token_ids for each in others] == [plain.token_ids] * 2
        num_cut += sum(each.num_cut for each in others)
    assert num_cut > 4


def test_a_context_that_is_full_ends_a_thought_or_its_end() -> None:
    class Short(ToyModel):
        context = 8

    rule = budget(4, opened=True, end=(9, 9), forced=(3, 3, 3, 3))
    for num_prompt, forced in ((5, 0), (3, 1), (1, 3)):
        out = Engine({"target": Short(6, 5)}).generate(
            Baseline(Warp()), [1] * num_prompt, 6, CertainRng(), ending=Ending(thinking=rule)
        )
        assert (len(out.token_ids), out.num_forced, out.finish_reason) == (8 - num_prompt, forced, "context")


def test_a_budget_reads_back_where_it_forced_tokens() -> None:
    rule = budget(2, opened=True, forced=(7, END, 8))
    for output, forced, state in (
        ([3, 4, 7, END, 8, 5], range(2, 5), (True, False, 9)),
        ([3, 7, END, 8, 5], range(2, 4), (True, False, 9)),  # the thought ends as its forced end begins
        ([3, END, 5, 5], range(0), (True, False, 8)),
        ([3], range(0), (False, True, 10)),
        ([3, 4, 7], range(2, 3), (True, False, 10)),
    ):
        reading = rule.read([1], output, 10)
        thought = reading.thought
        assert reading.forced == forced
        assert reading.lacking == ((END, 8) if output == [3, 4, 7] else ())
        assert (thought.is_over, thought.is_open, thought.num_left) == state


def test_an_end_in_forced_tokens_ends_the_output() -> None:
    rule = budget(2, opened=True, end=(4, 4, 4), forced=(3, 5, 3))
    out = Engine(toys(6, 5), [5]).generate(Baseline(Warp()), [1, 2], 6, CertainRng(), ending=Ending(thinking=rule))
    assert (out.token_ids[2:], out.finish_reason, out.num_forced) == ([3, 5], "stop", 2)

"""Mining against the paper's literal procedure (reference_miner.py), its guarantees, its corners, and what it may
cost."""

from __future__ import annotations

import importlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers import reference_miner
from helpers.mining import LIMIT, RULES, Reads, disagreements, miner, toy_examples
from helpers.model_folders import slow_for
from helpers.reference_miner import Reference
from helpers.seeded_bugs import MINING_BUGS, Bug, mutated
from specexp.engine.ngram_lookup import continuation
from specexp.lm.model import Feed, one_by_one

# Vocabulary, seed, how far the draft is from the target.
PAIRS = [(5, 0, 0.3), (6, 1, 0.8), (7, 2, 0.2), (8, 3, 0.5), (9, 4, 0.4), (10, 5, 1.0), (12, 6, 0.3), (12, 7, 0.6)]


def toy_pair(vocab: int, seed: int, noise: float) -> Any:
    """Imports what is current."""
    toy, pair = importlib.import_module("specexp.lm.toy"), importlib.import_module("specexp.pair.loading")
    models = {"target": toy.ToyModel(vocab, seed), "draft": toy.ToyModel(vocab, seed, draft_noise=noise)}
    return pair.Pair(pair.ToyText(vocab), models, (0,))


@dataclass
class Mining:
    """One toy prompt, mined both ways."""

    pair: Any
    task: Reads
    example: Any
    mined: Any
    slow: Reference


@pytest.fixture(scope="module")
def minings() -> list[Mining]:
    """Every toy pair and rule on many prompts; one miner mines all prompts of a pair and rule."""
    result = []
    for sizes, rule in itertools.product(PAIRS, RULES):
        pair, task = toy_pair(*sizes), Reads(rule)
        fast = miner(pair, task)
        for example in toy_examples(12):
            slow = reference_miner.mine(pair, task, LIMIT, example)
            result.append(Mining(pair, task, example, fast.mine(example), slow))
    return result


def test_the_miner_finds_what_the_literal_procedure_finds(minings: list[Mining]) -> None:
    for one in minings:
        assert list(disagreements(one.mined, one.slow, 1e-12)) == []
    statuses = Counter(one.mined.status for one in minings)
    kinds = Counter(label.important for one in minings for label in one.mined.labels)
    assert min(statuses[s] for s in ("mined", "no_answer", "unfinished")) > 10
    assert min(kinds[important] for important in (True, False, None)) > 50


def test_an_unfinished_swap_is_on_record_without_a_label(minings: list[Mining]) -> None:
    labels = [label for one in minings for label in one.mined.labels]
    assert all((label.important is None) <= (label.answer_after is None) for label in labels)
    answers = [label for label in labels if label.important is not None]
    assert all(label.important == (label.answer_after != label.answer_before) for label in answers)
    assert any(label.answer_after is None for label in answers), "an answer that is gone is an important loss"


def drafted_alone(one: Mining) -> tuple[list[int], bool]:
    """The draft's own greedy response, and whether it ends."""
    prompt = one.pair.text.encode(one.example.messages())
    tokens, *_ = reference_miner.greedy(one.pair.models["draft"], one.pair.eos_ids, prompt, LIMIT)
    return tokens, tokens[-1] in one.pair.eos_ids


def guaranteed(minings: list[Mining]) -> Iterator[tuple[Mining, list[int]]]:
    """The prompts of which Algorithm 1 promises something, with the draft's own response."""
    for one in minings:
        tokens, finished = drafted_alone(one)
        if one.mined.status == "mined" and finished and all(x.important is not None for x in one.mined.labels):
            yield one, tokens


def test_different_answers_of_draft_and_target_have_an_important_mismatch(minings: list[Mining]) -> None:
    different = 0
    for one, drafted in guaranteed(minings):
        start = one.mined.labels[0].answer_before if one.mined.labels else None
        if one.mined.labels and reference_miner.read(one.pair, one.task, drafted) != start:
            different += 1
            assert any(label.important for label in one.mined.labels)
    assert different > 20


def test_without_an_important_mismatch_the_response_becomes_the_drafts_own(minings: list[Mining]) -> None:
    turned = 0
    for one, drafted in guaranteed(minings):
        if not any(label.important for label in one.mined.labels):
            assert one.mined.response == drafted
            turned += bool(one.mined.labels)
    assert turned > 20


def test_the_corners_around_the_end_of_a_response_were_mined(minings: list[Mining]) -> None:
    labels = [label for one in minings for label in one.mined.labels]
    assert sum(label.target_token == 0 for label in labels) > 20
    assert sum(label.draft_token == 0 for label in labels) > 20
    last = [label for label in labels if label.position == LIMIT - 1]
    assert last
    assert all(label.important is None for label in last if label.draft_token != 0)


def miner_of_rows(pair: Any, task: Any, rows: int, limit: int = LIMIT) -> Any:
    return importlib.import_module("specexp.judge.mining").Miner(pair, task, limit, max_batch_size=rows)


def batch_disagreements(one: Any, other: Any, tolerance: float) -> Iterator[str]:
    """Where two minings of one prompt differ: labels, counts and the last response exactly, features nearly."""
    for name in ("status", "labels", "counts", "response"):
        if getattr(one, name) != getattr(other, name):
            yield f"{name}: {getattr(one, name)}, not {getattr(other, name)}"
    if set(one.features) != set(other.features):
        yield f"features of {set(one.features)}"
    for part, rows in other.features.items():
        if not np.allclose(one.features[part], rows, atol=tolerance):
            yield f"{part} differ"


@pytest.mark.slow
def test_several_prompts_at_a_time_give_what_each_gives_alone(minings: list[Mining]) -> None:
    """Labels, features and counts, with more prompts than rows; whoever had the row before leaves no trace."""
    for start in range(0, len(minings), 12):  # the prompts of one pair and rule
        group = minings[start : start + 12]
        for rows in (2, 5) if start % 24 else (3, 16):
            results = dict(miner_of_rows(group[0].pair, group[0].task, rows).mine_all(one.example for one in group))
            for place, one in enumerate(group):
                assert list(disagreements(results[place], one.slow, 1e-12)) == []
                assert list(batch_disagreements(results[place], one.mined, 1e-12)) == []


def test_the_order_of_the_prompts_changes_nothing() -> None:
    """Prompts share their beginnings, and so their caches."""
    pair, task = toy_pair(9, 4, 0.4), Reads("the sum modulo 3")
    examples = toy_examples(40)
    one, other = miner(pair, task), miner(pair, task)
    by_prompt = {x.prompt_id: one.mine(x) for x in examples}
    for x in [*reversed(examples), *examples]:
        again = other.mine(x)
        assert (again.status, again.labels, again.response) == (
            by_prompt[x.prompt_id].status, by_prompt[x.prompt_id].labels, by_prompt[x.prompt_id].response,
        )  # fmt: skip
        assert all(np.array_equal(again.features[part], rows) for part, rows in by_prompt[x.prompt_id].features.items())


# Written by hand: each model as the token it says behind a text, and what it says behind any other.


class Scripted:
    """A model that has read a script: its favourite behind `ids` is script[ids], else `otherwise`."""

    vocab_size, context = 10, 64

    def __init__(self, script: Mapping[tuple[int, ...], int], otherwise: int) -> None:
        self.script, self.otherwise = script, otherwise

    def sessions(self, count: int, capacity: int = 0) -> list[ScriptedSession]:
        return [ScriptedSession(self) for _ in range(count)]

    def session(self) -> ScriptedSession:
        return ScriptedSession(self)

    def feed(self, feeds: Sequence[Feed]) -> Any:
        return one_by_one(feeds)

    def ids(self, tokens: Sequence[int]) -> Any:
        return np.asarray(tokens, dtype=np.int64)

    def check_trees(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}

    def wait(self) -> None:
        return None


class ScriptedSession:
    def __init__(self, model: Scripted) -> None:
        self.model = model
        self.text: list[int] = []

    @property
    def length(self) -> int:
        return len(self.text)

    def feed(self, tokens: Any, rows: int, hidden: bool = False, branches: Any = None) -> tuple[Any, Any]:
        self.text += tokens.tolist()
        ends = range(len(self.text) - rows + 1, len(self.text) + 1)
        said = [self.model.script.get(tuple(self.text[:end]), self.model.otherwise) for end in ends]
        states = np.array([[float(end), float(self.text[end - 1])] for end in ends])
        return np.eye(10)[said].reshape(rows, 10), states if hidden else None

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        self.text = [*self.text[:length], *(self.text[slot] for slot in slots)]

    def slots(self) -> object:
        return tuple(self.text)


def scripted(target: Mapping[tuple[int, ...], int], draft: Mapping[tuple[int, ...], int], ends: int = 0) -> Any:
    """A pair that reads the prompt "0" as the one id 4."""
    pair = importlib.import_module("specexp.pair.loading")
    return pair.Pair(pair.ToyText(10), {"target": Scripted(target, ends), "draft": Scripted(draft, ends)}, (0,))


def labels_of(pair: Any, rule: str, limit: int = 6) -> list[tuple[int, int, int, bool | None]]:
    """(position, target's token, draft's, important) as the miner and the literal procedure find them."""
    example = toy_examples(1)[0]
    example = type(example)("p", ("0",))
    assert pair.text.encode(example.messages()) == [4]
    mined = miner(pair, Reads(rule), limit).mine(example)
    assert list(disagreements(mined, reference_miner.mine(pair, Reads(rule), limit, example), 0)) == []
    return [(x.position, x.target_token, x.draft_token, x.important) for x in mined.labels]


SAYS_12 = {(4,): 1, (4, 1): 2}  # and then the EOS


def test_a_mismatch_at_the_eos_is_one() -> None:
    pair = scripted(SAYS_12, {**SAYS_12, (4, 1, 2): 3})
    assert labels_of(pair, "the last token") == [(2, 0, 3, True)]
    assert labels_of(pair, "always the same") == [(2, 0, 3, False)]


def test_a_swap_that_is_an_eos_ends_the_response_there_at_no_cost() -> None:
    pair = scripted(SAYS_12, {(4,): 1, (4, 1): 0})
    assert labels_of(pair, "the last token") == [(1, 2, 0, True)]
    assert labels_of(pair, "always the same") == [(1, 2, 0, False)]
    one = miner(pair, Reads("always the same"), 6).mine(type(toy_examples(1)[0])("p", ("0",)))
    assert one.response == [1, 0]
    assert one.counts["slow_target_calls"] == 0
    assert one.counts["mining_target_calls"] == 1, "its features alone"


def test_a_swap_that_leaves_nothing_of_the_response_has_no_answer() -> None:
    pair = scripted(SAYS_12, {**SAYS_12, (4,): 0})
    assert labels_of(pair, "the last token") == [(0, 1, 0, True)]


def test_a_swap_at_the_last_position_of_the_limit_is_unfinished_unless_it_is_an_eos() -> None:
    assert labels_of(scripted(SAYS_12, {**SAYS_12, (4, 1, 2): 3}), "always the same", limit=3) == [(2, 0, 3, None)]
    longer = {**SAYS_12, (4, 1, 2): 3}  # and the draft leaves out its last word
    assert labels_of(scripted(longer, SAYS_12), "always the same", limit=4) == [(2, 3, 0, False)]
    assert labels_of(scripted(longer, SAYS_12), "the last token", limit=4) == [(2, 3, 0, True)]


def test_an_unfinished_swap_keeps_the_response_and_what_is_right_of_it_is_tested() -> None:
    """Behind 5 the target never ends; the mismatch behind it is one of the old response."""
    behind_5: dict[tuple[int, ...], int] = {(4, 5, *[7] * n): 7 for n in range(6)}
    pair = scripted({**SAYS_12, **behind_5}, {(4,): 5, (4, 1): 3})
    assert labels_of(pair, "the last token") == [(0, 1, 5, None), (1, 2, 3, True)]


def test_an_unimportant_swap_moves_the_mismatches_behind_it() -> None:
    """The draft would say 9 in the old response, and agrees in the new one but for its last word."""
    target = {**SAYS_12, (4, 5): 6, (4, 5, 6): 2}
    draft = {(4,): 5, (4, 1): 9, (4, 5): 6, (4, 5, 6): 3}
    assert labels_of(scripted(target, draft), "the last token") == [(0, 1, 5, False), (2, 2, 3, True)]


def test_an_important_swap_leaves_the_mismatches_behind_it() -> None:
    target = {**SAYS_12, (4, 5): 6, (4, 1, 9): 2}
    draft = {(4,): 5, (4, 1): 9, (4, 5): 8, (4, 1, 9): 2}
    assert labels_of(scripted(target, draft), "the last token") == [(0, 1, 5, True), (1, 2, 9, False)]


def test_prompts_without_an_answer_or_an_end_are_not_mined() -> None:
    example = type(toy_examples(1)[0])("p", ("0",))
    draft: dict[tuple[int, ...], int] = {(4,): 5}
    assert miner(scripted({}, draft), Reads("the last token"), 4).mine(example).status == "no_answer"
    endless = miner(scripted({}, draft, ends=7), Reads("the last token"), 4).mine(example)
    assert (endless.status, endless.labels, endless.features) == ("unfinished", [], {})


def test_no_mismatch_gives_no_label() -> None:
    assert labels_of(scripted(SAYS_12, SAYS_12), "the last token") == []


# engine.score


def fresh_rows(model: Any, ids: list[int], rows: int) -> tuple[Any, Any]:
    logits, hidden = model.session().feed(model.ids(ids), rows=rows, hidden=True)
    return logits, hidden


def looking_engine(reuse: bool) -> SimpleNamespace:
    pair = toy_pair(9, 4, 0.4)
    engine = importlib.import_module("specexp.engine").Engine(pair.models, (0,), reuse=reuse)
    return SimpleNamespace(engine=engine, models=pair.models)


@pytest.mark.parametrize("reuse", [True, False])
def test_looking_gives_the_rows_of_a_fresh_forward_whatever_was_looked_at_before(reuse: bool) -> None:
    lab = looking_engine(reuse)
    chain = importlib.import_module("specexp.judge.mining").Chain
    rules = importlib.import_module("specexp.decoding.rules")
    mining = importlib.import_module("specexp.judge.mining")
    decoder = chain(mining.DraftModel(3), mining.Lossless(), rules.Warp())
    rng = random.Random(1)
    for number in range(300):
        ids = [rng.randrange(1, 4) for _ in range(rng.randrange(1, 12))]
        tokens = [rng.randrange(1, 4) for _ in range(rng.randrange(0, 6))]
        if number % 5 == 4:
            out = lab.engine.generate(decoder, ids, 8, mining.CertainRng())
            assert out.token_ids == reference_miner.greedy(lab.models["target"], (0,), ids, 8)[0]
            continue
        role = rng.choice(["draft", "target"])
        hidden = rng.random() < 0.5
        logits, states = lab.engine.score(role, ids, tokens, hidden=hidden)
        expected_logits, expected_states = fresh_rows(lab.models[role], [*ids, *tokens], len(tokens) + 1)
        assert np.array_equal(logits, expected_logits)
        assert (states is not None) == hidden
        assert states is None or np.array_equal(states, expected_states)


def test_looking_feeds_only_what_the_cache_does_not_hold() -> None:
    """All but the last token of a look stay; a longer look feeds that one and what is new."""
    lab = looking_engine(reuse=True)

    def fed(ids: list[int], tokens: list[int]) -> tuple[int, int]:
        before = lab.engine.spent()
        lab.engine.score("draft", ids, tokens)
        after = lab.engine.spent()
        return after["draft_calls"] - before["draft_calls"], after["draft_positions"] - before["draft_positions"]

    assert fed([1, 2, 3, 4], [5, 6]) == (2, 6)  # a prefill of three, then three
    assert fed([1, 2, 3, 4, 5, 6], [7]) == (1, 2)
    assert fed([1, 2, 3, 4, 5, 6], []) == (1, 1)
    assert fed([1, 2, 3, 4], [8]) == (1, 2)  # back, and another way
    assert fed([1, 2, 3, 4, 5, 6], [7]) == (2, 3)  # which forgot 5
    assert fed([8], []) == (1, 1)
    assert lab.engine.spent()["target_calls"] == 0


# recall.continuation


@pytest.mark.parametrize(
    "ids,text,expected",
    [
        ([1, 2, 3], [1, 2, 3, 4, 5, 6], [4, 5, 6]),
        ([1, 2, 9], [5, 6, 7, 8], []),  # not a word of it
        ([], [1, 2, 3], []),
        ([1, 2], [], []),
        ([1, 2, 3], [1, 2, 3], []),  # it ends there
        ([7, 1, 2, 3], [1, 2, 3, 4], [4]),  # moved by one place
        ([5, 2, 3], [1, 3, 7, 2, 3, 8], [8]),  # the longest agreement wins
        ([9, 3], [3, 4, 3, 5], [4, 3, 5]),  # of equal ones the nearest place: behind ids there is index 2
        ([8, 8, 8, 3], [3, 4, 8, 3, 5], [5]),
        ([1, 2, 9], [1, 2, 3, 4, 5, 6, 7], [4, 5, 6]),  # a replaced word, and what came behind it: three, no more
        ([1, 2, 3, 9], [1, 2, 3, 4, 5, 9, 6], [5, 9, 6]),  # three that agree up to it beat the word itself elsewhere
    ],
)
def test_a_text_goes_on_where_it_says_what_was_said_last(ids: list[int], text: list[int], expected: list[int]) -> None:
    assert list(continuation(ids, text, 24)) == expected


def test_the_shorter_the_agreement_the_fewer_tokens_are_offered() -> None:
    text = list(range(100))
    assert continuation([50], text, 24) == [51, 52, 53, 54]
    assert continuation([49, 50], text, 24) == [51, 52, 53, 54, 55, 56]
    assert len(continuation(text[:51], text, 24)) == 24
    assert len(continuation(text[:51], text, 99)) == 26  # twelve are looked at
    assert continuation(text[:51], text, 2) == [51, 52]
    assert continuation(text[:51], text, 0) == []


def test_a_replayed_text_never_changes_what_is_said(minings: list[Mining]) -> None:
    """Any text may be replayed, to the point or not: the output is the target's own."""
    mining, rules = (importlib.import_module(f"specexp.{name}") for name in ("judge.mining", "decoding.rules"))
    engine = importlib.import_module("specexp.engine").Engine
    rng = random.Random(2)
    recalled = 0
    for one in minings[::6]:
        text = tuple(rng.randrange(one.pair.text.vocab_size) for _ in range(60))
        decoder = mining.Chain(mining.Replay(text, 7, mining.DraftModel(2)), mining.Lossless(), rules.Warp())
        prompt = one.pair.text.encode(one.example.messages())
        out = engine(one.pair.models, (0,)).generate(decoder, prompt, LIMIT, mining.CertainRng())
        assert out.token_ids == reference_miner.greedy(one.pair.models["target"], (0,), prompt, LIMIT)[0]
        recalled += out.num_drafted - out.num_draft_calls
    assert recalled > 100


# Real models.


def pairs_by_eos(models: dict[str, Any], num_examples: int) -> Iterator[tuple[Any, list[Any]]]:
    """The models with every seventh token ending a text, from each of seven first ones on, and prompts for each.

    Which tokens a random model says depends on its weights: over all seven, some texts end and some do not.
    """
    module = importlib.import_module("specexp.pair.loading")
    examples = toy_examples(7 * num_examples)
    for place in range(7):
        eos = tuple(range(2 + place, 96, 7))
        yield module.Pair(module.ToyText(96), models, eos), examples[place::7]


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_random_models_give_the_literal_procedures_labels(pair: Callable[[str], Any], family: str) -> None:
    """Several tokens end a text; the literal procedure's forwards are counted one by one."""
    task = Reads("the sum modulo 3")
    kinds: Counter[bool | None] = Counter()
    minings = []
    for models, examples in pairs_by_eos(pair(family), 3):
        fast = miner(models, task)
        for example in examples:
            mined, slow = fast.mine(example), reference_miner.mine(models, task, LIMIT, example)
            assert list(disagreements(mined, slow, 1e-5)) == []
            kinds.update(label.important for label in mined.labels)
            minings.append(Mining(models, task, example, mined, slow))
    assert min(kinds[True], kinds[False]) > 0
    promised = list(guaranteed(minings))
    assert promised, "no prompt of which Algorithm 1 promises anything: the test says little"
    for one, drafted in promised:
        important = any(label.important for label in one.mined.labels)
        if not important:
            assert one.mined.response == drafted
        if one.mined.labels and reference_miner.read(one.pair, task, drafted) != one.mined.labels[0].answer_before:
            assert important


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("family", slow_for(["llama", "mistral_window", "gpt2"], "mistral_window"))
def test_random_models_give_the_same_labels_several_at_a_time(pair: Callable[[str], Any], family: str) -> None:
    task, num_labels = Reads("the sum modulo 3"), 0
    for models, examples in pairs_by_eos(pair(family), 3):
        alone = [miner(models, task).mine(example) for example in examples]
        num_labels += sum(len(one.labels) for one in alone)
        for rows in (2, 5):
            for place, mined in miner_of_rows(models, task, rows).mine_all(examples):
                assert list(batch_disagreements(mined, alone[place], 1e-4)) == []
    assert num_labels > 5


@pytest.mark.nightly
def test_arith_prompts_give_the_same_labels_sixteen_at_a_time() -> None:
    ready = prepared(18)
    max_new_tokens = ready.config.experiment.max_new_tokens
    alone = miner(ready.pair, ready.task, max_new_tokens)
    for place, mined in miner_of_rows(ready.pair, ready.task, 16, max_new_tokens).mine_all(ready.examples):
        assert list(batch_disagreements(mined, alone.mine(ready.examples[place]), 1e-4)) == []


def prepared(limit: int) -> Any:
    config, collecting = (importlib.import_module(f"specexp.{name}") for name in ("config", "judge.collection"))
    return collecting.prepare(config.resolve_mining("arith_quick", {"limit": limit}))


def cost(minings: Sequence[Any]) -> tuple[float, float, int]:
    """Target forwards and positions, as shares of the literal procedure's, and the number of labels."""
    counts: Counter[str] = Counter()
    for mined in minings:
        counts.update(mined.counts)
    calls, positions = (counts[f"mining_target_{x}"] / counts[f"slow_target_{x}"] for x in ("calls", "positions"))
    return calls, positions, sum(len(mined.labels) for mined in minings)


def mine_both_ways(limit: int, features: bool, batch: int = 100) -> list[Any]:
    """Arith prompts; every one must agree, counts of the literal procedure included."""
    ready = prepared(limit)
    max_new_tokens = ready.config.experiment.max_new_tokens
    fast = miner(ready.pair, ready.task, max_new_tokens)
    result = []
    for start in range(0, limit, batch):
        examples = ready.examples[start : start + batch]
        for example, expected in zip(
            examples, reference_miner.mine_all(ready.pair, ready.task, max_new_tokens, examples, features), strict=True
        ):
            result.append(fast.mine(example))
            assert list(disagreements(result[-1], expected, 1e-4)) == [], example.prompt_id
    return result


@pytest.mark.slow
def test_arith_prompts_give_the_literal_procedures_labels_for_less() -> None:
    calls, positions, labels = cost(mine_both_ways(6, features=True))
    assert labels > 20
    assert calls <= 0.2
    assert positions <= 0.6


@pytest.mark.slow
def test_the_literal_procedure_costs_what_the_miner_says_forward_by_forward() -> None:
    ready = prepared(4)
    max_new_tokens = ready.config.experiment.max_new_tokens
    fast = miner(ready.pair, ready.task, max_new_tokens)
    for example in ready.examples:
        slow = reference_miner.mine(ready.pair, ready.task, max_new_tokens, example)
        assert slow.num_calls > 0
        assert list(disagreements(fast.mine(example), slow, 1e-4)) == []


@pytest.mark.nightly
def test_200_arith_prompts_give_the_literal_procedures_labels_for_less(capsys: pytest.CaptureFixture[str]) -> None:
    result = mine_both_ways(200, features=False)
    calls, positions, labels = cost(result)
    important = sum(bool(label.important) for mined in result for label in mined.labels)
    statuses = dict(Counter(mined.status for mined in result))
    with capsys.disabled():
        print(
            f"\n  {labels} labels ({important} important), {statuses}: {calls:.3f} of the literal procedure's target"
            f" forwards, {positions:.3f} of its positions",
            end="",
        )
    assert labels > 800
    assert calls <= 0.2
    assert positions <= 0.6


# Seeded bugs.


def caught_by(bug: Bug) -> str | None:
    """The first disagreement with the literal procedure, or None."""
    with mutated(bug):
        for (sizes, rule), example in itertools.product(itertools.product(PAIRS[::2], RULES), toy_examples(12)):
            pair, task = toy_pair(*sizes), Reads(rule)
            where = f"vocabulary {sizes[0]}, {rule}, {example.prompt_id}"
            try:
                mined = miner(pair, task).mine(example)
            except (AssertionError, IndexError, ValueError) as error:
                return f"{type(error).__name__} at {where}"
            for disagreement in disagreements(mined, reference_miner.mine(pair, task, LIMIT, example), 1e-12):
                return f"{disagreement} at {where}"
    return None


def test_the_unchanged_miner_passes_the_same_checks() -> None:
    assert caught_by(Bug("nothing", "specexp.judge.mining", "GAMMA = 6", "GAMMA = 6")) is None


@pytest.mark.nightly
@pytest.mark.parametrize("bug", MINING_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None

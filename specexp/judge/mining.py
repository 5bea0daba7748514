"""Labels the mismatches between draft and target as important or not: AutoJudge 2504.20039, Algorithm 1, per prompt.

    y = the target's greedy response, a = its answer
    for every position t, left to right, where the draft's argmax d differs from y_t:
        y' = y[:t], d, and the target's greedy continuation;  a' = its answer
        a' = a: the mismatch is unimportant, and y' becomes y;  else it is important, and y stays

Whether a' = a is said by the task's comparator.

Three optimisations change no label: prefixes stay in the caches; the draft's choices are computed in one pass over y;
and the continuation after a swap is verified against the old one, which it usually rejoins, instead of being generated
token by token. The search of one prompt is sequential, but the searches of several prompts advance together, each on
its own row of the engine. `tests/helpers/reference_miner.py` is the literal procedure and serves as the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device

from specexp.decoding.chain import Chain, DraftModel, Lossless, Replay
from specexp.decoding.lossy_rules import draft_scalars, target_scalars
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import UNIT_TEMPERATURE, Warp
from specexp.engine import Ending, Engine, Request, RequestCoroutine, ScoreRequest, UsageQuery
from specexp.judge.labels import Label
from specexp.judge.splits import split_of
from specexp.pair.loading import Pair
from specexp.pair.thinking import budget_of, thinking_of
from specexp.tasks.example import Example, Task

GAMMA = 6  # of the chain that generates the response, and of drafts where the old continuation proposes nothing
WIDTH = 24  # the most tokens of the old continuation that one call verifies
MINED, NO_ANSWER, UNFINISHED = "mined", "no_answer", "unfinished"
OnProgress = Callable[
    [int, int, int], object
]  # index of a prompt, tokens of its response that were tried, response length


@dataclass(slots=True)
class Mined:
    """The result of one prompt.

    `counts` are forwards and positions, prefill included: the total of the prompt, the search alone (`mining_`), and
    what the literal procedure would have spent on the target for that search (`slow_`). `num_tokens` is the length of
    the target's own response; `response` is its final form.
    """

    status: str  # mined, no_answer, unfinished
    labels: list[Label] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    response: list[int] = field(default_factory=list)  # y at the end: the draft's own if none of its choices mattered


class Miner:
    """Mines prompts, `max_batch_size` of them at a time.

    It decodes greedily, in the dtype the models were loaded in, and stores features as `dtype`.
    """

    def __init__(
        self, pair: Pair, task: Task, max_new_tokens: int, dtype: str = "float32", max_batch_size: int = 1,
        thinking_budget: int = 0,
    ) -> None:  # fmt: skip
        self._pair = pair
        self._task = task
        self._limit = max_new_tokens
        self._dtype = np.dtype(dtype)
        self._engine = Engine(pair.models, pair.eos_ids, reuse=True, max_batch_size=max_batch_size)
        self._thinking, self._budget = thinking_of(pair.text), budget_of(pair.text, thinking_budget)
        self._respond = Chain(DraftModel(GAMMA), Lossless(), Warp())

    def mine(self, example: Example) -> Mined:
        """Run Algorithm 1 on one prompt."""
        ((_, result),) = self.mine_all([example])
        return result

    def mine_all(
        self, examples: Iterable[Example], on_progress: OnProgress = lambda *_: None
    ) -> Iterator[tuple[int, Mined]]:
        """Run Algorithm 1 on each example and yield (index, result) as soon as one is done.

        `on_progress` is called with the progress of the searches.
        """
        return self._engine.run_all(
            self._mining(example, partial(on_progress, place)) for place, example in enumerate(examples)
        )

    def _mining(self, example: Example, on_progress: Callable[[int, int], object]) -> RequestCoroutine[Mined]:
        prompt = self._pair.text.encode(example.messages())
        start = yield UsageQuery()
        first = yield self.request(prompt, example.prompt_id)
        before = yield UsageQuery()
        whole = len(first.token_ids)
        length = {"num_tokens": whole}
        if first.finish_reason != "stop":
            on_progress(whole, whole)
            return Mined(UNFINISHED, counts=_less(before, start) | length)
        answer = self.answer(prompt, first.token_ids, example.answer)
        if answer is None:
            on_progress(whole, whole)
            return Mined(NO_ANSWER, counts=_less(before, start) | length)
        result = _Search(self, example, prompt, first.token_ids)
        on_progress(0, whole)
        yield from result.run(answer, on_progress)
        after = yield UsageQuery()
        search = {f"mining_{key}": value for key, value in _less(after, before).items()}
        features = {part: np.stack(rows).astype(self._dtype) for part, rows in result.features.items()}
        counts = _less(after, start) | search | result.slow | length
        return Mined(MINED, result.labels, features, counts, result.response)

    def request(self, prompt: Sequence[int], name: str) -> Request:
        """The request for a response."""
        return Request(
            self._respond, prompt, self._limit, CertainRng(), name=name, ending=Ending(thinking=self._budget)
        )

    def forced(self, prompt: Sequence[int], response: Sequence[int]) -> range:
        """Where tokens of a response ended its thought, which were not the target's to choose."""
        return range(0) if self._budget is None else self._budget.read(prompt, response, self._limit).forced

    def answer(self, prompt: Sequence[int], response: Sequence[int], gold: str | None) -> str | None:
        """Return the answer that the task reads from a response's ids, in the form of the gold answer. A model that
        thinks gives it after the end of thinking."""
        finished = bool(response) and response[-1] in self._pair.eos_ids
        text: str | None = self._pair.text.decode(list(response[:-1] if finished else response))
        if self._thinking is not None and text is not None:
            text = self._thinking.answer_text(self._pair.text, prompt, response, text)
        return None if text is None else self._task.extract(text, finished, gold)

    def equal(self, answer: str | None, before: str, example: Example) -> bool:
        """Return whether the answer after a swap is the one before it, by the task's comparator; none never is."""
        return answer is not None and self._task.comparator.equal(answer, before, example)

    def draft_choices(self, prompt: Sequence[int], response: Sequence[int], start: int) -> RequestCoroutine[list[int]]:
        """Return the draft's argmax at every position of `response` from `start` on, each given the true prefix."""
        logits, _ = yield ScoreRequest("draft", [*prompt, *response[:start]], response[start:-1])
        return [int(i) for i in array_namespace(logits).argmax(logits, axis=-1).tolist()]

    def rows(self, role: Role, ids: Sequence[int], token: int) -> RequestCoroutine[dict[str, np.ndarray]]:
        """Return the rows of a model's parts (features.py) for `token`, which follows `ids`."""
        logits, hidden = yield ScoreRequest(role, ids, [token], hidden=True)
        assert hidden is not None
        previous, own = _host(hidden)
        tokens = array_namespace(logits).asarray([token], device=device(logits))
        if role == "target":
            scalars = target_scalars(logits[:1], tokens, UNIT_TEMPERATURE)
        else:
            scalars = draft_scalars(UNIT_TEMPERATURE(logits[:1]), tokens)
        read = {part: _host(row)[0] for part, row in scalars.items()}
        return {f"{role}_previous": previous, f"{role}_token": own, **read}

    def swapped(
        self, prompt: Sequence[int], response: Sequence[int], position: int, token: int, name: str = ""
    ) -> RequestCoroutine[tuple[list[int], bool]]:
        """Return the response with `token` at `position` and the target's continuation, and whether that ended."""
        head = [*response[:position], token]
        if token in self._pair.eos_ids:
            return head, True
        left, ending = self._limit - len(head), Ending()
        if self._budget is not None:
            reading = self._budget.read(prompt, head, self._limit)
            head += reading.lacking
            left, ending = reading.thought.num_left, Ending(thinking=replace(self._budget, resumed=reading.thought))
        if not left:
            return head, False
        replay = Replay((*prompt, *response), WIDTH, DraftModel(GAMMA))
        decoder = Chain(replay, Lossless(), Warp())
        out = yield Request(decoder, [*prompt, *head], left, CertainRng(), name=name, ending=ending)
        return [*head, *out.token_ids], out.finish_reason == "stop"

    def text_of(self, token: int) -> str:
        return self._pair.text.decode([token])


def _less(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {key: now - before[key] for key, now in after.items()}


class _Search:
    """The search over one response."""

    def __init__(self, miner: Miner, example: Example, prompt: list[int], response: list[int]) -> None:
        self._miner = miner
        self._example, self._prompt_id = example, example.prompt_id
        self._prompt = prompt
        self.response = response  # y
        self.labels: list[Label] = []
        self.features: dict[str, list[np.ndarray]] = {}
        # What the literal procedure would have spent on the target: a prefill of what is kept, then one call a token.
        self.slow = {"slow_target_calls": 0, "slow_target_positions": 0}

    def run(self, answer: str, on_progress: Callable[[int, int], object]) -> RequestCoroutine[None]:
        miner, prompt = self._miner, self._prompt
        start = 0
        choices = yield from miner.draft_choices(prompt, self.response, 0)
        while True:
            forced = miner.forced(prompt, self.response)
            mismatches = (
                t for t in range(start, len(self.response)) if choices[t] != self.response[t] and t not in forced
            )
            position = next(mismatches, None)
            if position is None:
                on_progress(len(self.response), len(self.response))
                return
            token = choices[position]
            yield from self._look(position, token)
            after, finished = yield from miner.swapped(prompt, self.response, position, token, self._prompt_id)
            self._count_slow(position, len(after), miner.forced(prompt, after))
            result = miner.answer(prompt, after, self._example.answer) if finished else None
            important = None if not finished else not miner.equal(result, answer, self._example)
            self._record(position, token, important, answer, result)
            if important is False:
                self.response = after
                if position + 1 < len(after):
                    behind = yield from miner.draft_choices(prompt, after, position + 1)
                    choices = [*choices[: position + 1], *behind]
            start = position + 1
            on_progress(start, len(self.response))

    def _look(self, position: int, token: int) -> RequestCoroutine[None]:
        ids = [*self._prompt, *self.response[:position]]
        for role in ("draft", "target"):
            parts = yield from self._miner.rows(role, ids, token)
            for part, row in parts.items():
                self.features.setdefault(part, []).append(row)

    def _count_slow(self, position: int, length: int, forced: range) -> None:
        generated = length - position - 1
        if generated:
            self.slow["slow_target_calls"] += generated - sum(place > position for place in forced)
            self.slow["slow_target_positions"] += len(self._prompt) + position + generated

    def _record(self, position: int, token: int, important: bool | None, before: str, after: str | None) -> None:
        target = self.response[position]
        text = self._miner.text_of
        self.labels.append(
            Label(
                prompt_id=self._prompt_id, position=position, target_token=target, draft_token=token,
                target_text=text(target), draft_text=text(token), important=important, answer_before=before,
                answer_after=after, split=split_of(self._prompt_id),
            )
        )  # fmt: skip


def _host(array: Any) -> np.ndarray:
    xp = array_namespace(array)
    return np.asarray(to_device(xp.astype(array, xp.float32), "cpu"))

"""Algorithm 1 of AutoJudge (2504.20039) as the paper writes it: the reference for specexp/judge/mining.py.

Nothing is kept from one step to the next: every swap is continued in a fresh session, token by token; the draft's
choices are read in a fresh pass over prompt and response whenever the response changed; features come from fresh
forwards. It shares no code with decoding or mining. A search is a generator that asks for greedy continuations. So
`mine` can generate them with one forward a token, and count, and `mine_all` many at a time with transformers' own
generate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specexp.certify.reference_distribution import warp
from specexp.judge.splits import split_of

Ids = list[int]
# Asks for the target's greedy continuation of these ids, of at most so many tokens, the EOS its last one.
Search = Generator[tuple[Ids, int], Ids, "Reference"]
ROLES = ("draft", "target")


@dataclass
class Reference:
    """The result of one prompt. Counts are the target's, for continuing swaps only."""

    status: str
    labels: list[dict[str, Any]] = field(default_factory=list)  # the fields of Label
    features: dict[str, list[np.ndarray]] = field(default_factory=dict)
    response: Ids = field(default_factory=list)  # y at the end
    num_calls: int = 0
    num_positions: int = 0


def search(pair: Any, task: Any, limit: int, example: Any, features: bool = True) -> Search:
    """Algorithm 1. `pair` and `task` are those that Miner takes."""
    prompt = pair.text.encode(example.messages())
    y = yield prompt, limit
    answer = read(pair, task, y)
    if y[-1] not in pair.eos_ids:
        return Reference("unfinished")
    if answer is None:
        return Reference("no_answer")
    result = Reference("mined")
    drafts = draft_choices(pair, prompt, y)
    t = 0
    while t < len(y):
        d = drafts[t]
        if d != y[t]:
            kept = [*y[:t], d]
            swapped = kept if d in pair.eos_ids else [*kept, *(yield [*prompt, *kept], limit - len(kept))]
            label = label_of(pair, task, example, y, swapped, t, answer, lambda ids: read(pair, task, ids))
            result.labels.append(label)
            if features:
                for part, row in feature_rows(pair, [*prompt, *kept]).items():
                    result.features.setdefault(part, []).append(row)
            if label["important"] is False:
                y = swapped
                drafts = draft_choices(pair, prompt, y)
        t += 1
    result.response = y
    return result


def label_of(
    pair: Any, task: Any, example: Any, response: Ids, swapped: Ids, position: int, answer: str,
    read_answer: Callable[[Ids], str | None],
) -> dict[str, Any]:  # fmt: skip
    """The fields of a swap's label. `swapped` is the response with the draft's token at this position, continued."""
    finished = swapped[-1] in pair.eos_ids
    after = read_answer(swapped) if finished else None
    important = None
    if finished:
        important = after is None or not task.comparator.equal(after, answer, example)
    y, d = response[position], swapped[position]
    return {
        "prompt_id": example.prompt_id, "position": position, "target_token": y, "draft_token": d,
        "target_text": pair.text.decode([y]), "draft_text": pair.text.decode([d]), "important": important,
        "answer_before": answer, "answer_after": after, "split": split_of(example.prompt_id),
    }  # fmt: skip


def read(pair: Any, task: Any, response: Ids) -> str | None:
    """The answer in a response, its EOS left out."""
    finished = response[-1] in pair.eos_ids
    answer: str | None = task.extract(pair.text.decode(response[:-1] if finished else response), finished)
    return answer


def draft_choices(pair: Any, prompt: Ids, response: Ids) -> Ids:
    """The draft's likeliest token at every position of the response, teacher-forced."""
    model = pair.models["draft"]
    logits, _ = model.session().feed(model.ids([*prompt, *response[:-1]]), rows=len(response))
    return [int(row.argmax()) for row in logits]


def feature_rows(pair: Any, ids: Ids) -> dict[str, np.ndarray]:
    """Hidden rows at the last of `ids` and at the one before it, of both models, and the scalars of the last one."""
    rows = {}
    for role in ROLES:
        model = pair.models[role]
        logits, hidden = model.session().feed(model.ids(ids), rows=2, hidden=True)
        rows[f"{role}_previous"], rows[f"{role}_token"] = (np.asarray(row, dtype=np.float32) for row in hidden)
        p = warp(logits[0].tolist(), 1.0)
        scalars = {"draft_q": p[ids[-1]]}
        if role == "target":
            spread = -sum(each * math.log(each) for each in p if each)
            scalars = {"target_entropy": spread, "target_margin": max(p) - p[ids[-1]], "target_p": p[ids[-1]]}
        rows |= {part: np.array([value], dtype=np.float32) for part, value in scalars.items()}
    return rows


def greedy(model: Any, eos_ids: Sequence[int], ids: Ids, limit: int) -> tuple[Ids, int, int]:
    """A continuation, and its forwards and positions: the prefill is one forward, each further token one more."""
    tokens: Ids = []
    calls = positions = 0
    session, fed = model.session(), ids
    while len(tokens) < limit:
        logits, _ = session.feed(model.ids(fed), rows=1)
        calls, positions = calls + 1, positions + len(fed)
        fed = [int(logits[-1].argmax())]
        tokens += fed
        if fed[0] in eos_ids:
            break
    return tokens, calls, positions


def mine(pair: Any, task: Any, limit: int, example: Any) -> Reference:
    """Mine one prompt, with one forward a token."""
    steps = search(pair, task, limit, example)
    ids, remaining = next(steps)
    calls = positions = 0
    tokens, *_ = greedy(pair.models["target"], pair.eos_ids, ids, remaining)
    while True:
        try:
            ids, remaining = steps.send(tokens)
        except StopIteration as end:
            result: Reference = end.value
            result.num_calls, result.num_positions = calls, positions
            return result
        tokens, *spent = greedy(pair.models["target"], pair.eos_ids, ids, remaining)
        calls, positions = calls + spent[0], positions + spent[1]


def mine_all(pair: Any, task: Any, limit: int, examples: Sequence[Any], features: bool = True) -> list[Reference]:
    """Mine many prompts side by side: the continuations that they ask for next are generated as one padded batch."""
    steps = [search(pair, task, limit, example, features) for example in examples]
    asked = {i: next(search) for i, search in enumerate(steps)}
    done: dict[int, Reference] = {}
    spent = dict.fromkeys(asked, (-1, -1))  # the first continuation is the response: not a swap, so it is not counted
    while asked:
        order = sorted(asked)
        replies = generated(pair.models["target"].module, pair.eos_ids, [asked[i] for i in order])
        for i, tokens in zip(order, replies, strict=True):
            calls, positions = spent[i]
            ids, _ = asked.pop(i)
            if calls < 0:
                spent[i] = 0, 0
            elif tokens:
                spent[i] = calls + len(tokens), positions + len(ids) + len(tokens) - 1
            try:
                asked[i] = steps[i].send(tokens)
            except StopIteration as end:
                done[i] = end.value
                done[i].num_calls, done[i].num_positions = spent[i]
    return [done[i] for i in range(len(steps))]


def generated(module: Any, eos_ids: Sequence[int], asked: Sequence[tuple[Ids, int]]) -> list[Ids]:
    """transformers' greedy continuations of left-padded prompts, each cut at its EOS and at its own limit."""
    import torch

    limits = [limit for _, limit in asked]
    if not max(limits):
        return [[] for _ in asked]
    width = max(len(ids) for ids, _ in asked)
    with torch.inference_mode():
        out = module.generate(
            torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in asked]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in asked]),
            do_sample=False, max_new_tokens=max(limits), eos_token_id=list(eos_ids), pad_token_id=eos_ids[0],
            repetition_penalty=1.0,
        )  # fmt: skip
    return [_ended(row[:limit], eos_ids) for row, limit in zip(out[:, width:].tolist(), limits, strict=True)]


def _ended(tokens: Ids, eos_ids: Sequence[int]) -> Ids:
    stop = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), len(tokens))
    return tokens[:stop]

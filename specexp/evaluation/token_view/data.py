"""tokens.json: the chosen prompts, decoded once more by traced decoders, with every token's origin and probabilities.

With the same seed and rng, the tokens are those of the records; this is checked, and differences are noted. Nothing
here is timed, and nothing here is a record. `token_page.py` makes the page.

A cell is one setting's output for one prompt and turn, in the first repeat. Its `tokens` are columns of one length:

position   from 0, as everywhere          kind       text, part (of a character shown at a later token), special
id, text   the token and what it adds     origin     a key of origins.ORIGINS
round      from 1                         place      index of the token in its round, from 1
p, q       the target's and the draft's probability of the token given its prefix; null without that model. q is at the
           temperature at which the setting's drafts were drawn
p_rank     its rank among the target's likeliest tokens, from 1
first, first_id, first_p   the target's likeliest token there
score      the judge's p(important) of a drafted token
rank       of a tree's node among its siblings by the draft, from 0
rejected, rejected_id, rejected_p, rejected_q, rejected_score   the draft that a corrected token replaces

`counts` has the tokens by origin, `cut` those that the engine dropped after an EOS or the limit. `left_out` are prompts
that would have taken more of the run's time than the token view may use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from tqdm import tqdm

from specexp.config import MethodConfig
from specexp.decoding.chain import Chain
from specexp.decoding.lossy_rules import Judged
from specexp.decoding.protocol import Role
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, Generation, Request
from specexp.evaluation import scheduling
from specexp.evaluation.preparation import Prepared, PreparedMethod
from specexp.evaluation.scheduling import LOWER, Job, KnownRecords, Memories
from specexp.evaluation.token_view.origins import Emitted, TracedDecoder, tally
from specexp.evaluation.token_view.teacher_forcing import TokenScore, teacher_forced_probs, unit_temperature
from specexp.lm import out_of_memory
from specexp.lm.text_drafts import TextModel
from specexp.pair.token_text import alone, spelled
from specexp.storage.journal import Journal, Key
from specexp.storage.records import Count, Record, RecordFile

VERSION = 1
Compared = Literal[Count, "finish_reason"]
COUNTS: tuple[Compared, ...] = (
    "num_rounds", "num_drafted", "num_accepted", "num_judged", "num_cut", "num_full", "finish_reason",
)  # fmt: skip
Cell = dict[str, Any]
Tracer = Callable[[Prepared, RecordFile, Sequence[int], Journal, "Budget"], dict[str, Any]]  # as `trace`


@dataclass(slots=True)
class Budget:
    """The seconds that decoding once more may take, measured as it proceeds.

    `ratio` is the time of a prompt here / that of its records: here tokens are read to the host one by one. Its initial
    value is a guess.
    """

    seconds: float
    clock: Callable[[], float] = time.perf_counter
    ratio: float = 2.0
    spent: float = 0.0
    recorded: float = 0.0

    def allows(self, recorded: float) -> bool:
        """True if there is time left for a prompt whose records took so long."""
        return self.spent + self.ratio * recorded <= self.seconds

    def note(self, recorded: float, begun: float) -> None:
        self.spent += self.clock() - begun
        self.recorded += recorded
        self.ratio = self.spent / self.recorded if self.recorded else self.ratio


def trace(
    prepared: Prepared, records: KnownRecords, chosen: Sequence[int], journal: Journal, budget: Budget
) -> dict[str, Any]:
    """Return the content of tokens.json for these examples, which must have records. Prompts in the journal are not
    decoded again; once the budget is used up, prompts are `left_out`."""
    experiment = prepared.experiment
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids, reuse=True)
    memories = scheduling.Memories(prepared, records)
    prompts: list[dict[str, Any]] = []
    left_out: list[str] = []
    whole = sum(len(prepared.examples[index].turns) for index in chosen) * len(prepared.settings)
    bar = tqdm(total=whole, desc="token view", unit="output", delay=1, dynamic_ncols=True)
    with bar:
        for index in chosen:
            example = prepared.examples[index]
            keys: list[Key] = [(example.prompt_id, turn) for turn in range(len(example.turns))]
            missing = [key for key in keys if key not in journal]
            recorded = sum(_recorded(prepared, records, key) for key in missing)
            if missing and not budget.allows(recorded):
                left_out.append(example.prompt_id)
                continue
            begun = budget.clock()
            for turn, key in enumerate(keys):
                jobs = [Job(index, turn, setting, 0) for setting in prepared.settings]
                with out_of_memory.translate_oom("the token view", LOWER, experiment.models):
                    prompts.append(journal.unit(key, partial(_prompt, prepared, records, engine, jobs, memories, bar)))
            if missing:
                budget.note(recorded, begun)
    return {
        "version": VERSION,
        "experiment": experiment.name,
        "settings_hash": experiment.hash,
        "task": experiment.task,
        "pair": experiment.pair,
        "history": experiment.history,
        **{name: getattr(experiment, name) for name in ("temperature", "top_k", "top_p", "seed", "repeats", "batch")},
        "models": sorted(role for role, model in prepared.pair.models.items() if not isinstance(model, TextModel)),
        "methods": [_method(setting) for setting in prepared.settings],
        "prompts": prompts,
        "left_out": left_out,
    }


def _recorded(prepared: Prepared, records: KnownRecords, key: Key) -> float:
    """Return the seconds that the first repeat took for all settings on one turn of a prompt."""
    prompt_id, turn = str(key[0]), int(key[1])
    result = [records.find((prompt_id, turn, setting.config.label, 0)) for setting in prepared.settings]
    return float(sum(record["seconds"] + record["prefill_seconds"] for record in result))


def _method(setting: PreparedMethod) -> dict[str, Any]:
    config, decoder = setting.config, setting.decoder
    judged = isinstance(decoder, Chain | SpecExec) and isinstance(decoder.rule, Judged)
    return {
        "label": config.label,
        "method": config.method,
        "lossless": setting.lossless,
        "bonus": config.bonus,
        "gamma": "auto" if config.auto_gamma else config.gamma or None,
        "threshold": decoder.rule.threshold if judged else None,  # type: ignore[attr-defined]
        "accept_k": config.accept_k or None,
        "dial": config.dial,
        "draft_temperature": config.draft_temperature,
    }


def _prompt(
    prepared: Prepared, records: KnownRecords, engine: Engine, jobs: Sequence[Job], memories: Memories, bar: Any
) -> dict[str, Any]:
    """Return one prompt's turn, with a cell for each setting."""
    example, turn = prepared.examples[jobs[0].index], jobs[0].turn
    decoded = []
    requests = list(scheduling.requests(prepared, records, jobs, memories))
    for traced in _decoded(engine, jobs, requests):
        decoded.append(traced)
        bar.update()
    scores = _text_scores(prepared, engine, decoded)
    last = turn == len(example.turns) - 1
    return {
        "prompt_id": example.prompt_id,
        "turn": turn,
        "num_turns": len(example.turns),
        "num_shots": len(example.shots),
        "num_exchanges": len(example.context),
        "text": example.turns[turn],
        "gold": example.answer if last else None,
        "cells": [
            _cell(prepared, traced, records.find((example.prompt_id, turn, traced.config.label, 0)), scores)
            for traced in decoded
        ],
    }


@dataclass(frozen=True, slots=True)
class _Traced:
    """One setting's output with its tokens' origins; `dropped` tokens were committed and cut off."""

    config: MethodConfig
    prompt: tuple[int, ...]
    out: Generation
    tokens: Sequence[Emitted]
    dropped: Sequence[Emitted]

    @property
    def behind(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The prompt and output that the models score: the same for many settings."""
        return self.prompt, tuple(self.out.token_ids)


def _decoded(engine: Engine, jobs: Sequence[Job], requests: Sequence[Request]) -> Iterator[_Traced]:
    asked = [(request, TracedDecoder(request.decoder)) for request in requests]
    for place, out in engine.generate_all(replace(request, decoder=traced) for request, traced in asked):
        request, traced = asked[place]
        tokens, dropped = traced.tokens[: len(out.token_ids)], traced.tokens[len(out.token_ids) :]
        assert [token.token for token in tokens] == out.token_ids, "what was traced is not what was emitted"
        yield _Traced(jobs[place].setting.config, tuple(request.prompt_ids), out, tokens, dropped)


# By prompt and output; then by model, and of the draft by the temperature at which its drafts were drawn.
TextScores = dict[tuple[tuple[int, ...], tuple[int, ...]], dict[tuple[Role, float | None], list[TokenScore | None]]]


def _text_scores(prepared: Prepared, engine: Engine, decoded: Sequence[_Traced]) -> TextScores:
    """Return each model's scores of each emitted text, and of all tokens that were rejected in it."""
    experiment = prepared.experiment
    warp = unit_temperature(experiment.warp)
    result: TextScores = {}
    for behind in dict.fromkeys(traced.behind for traced in decoded):
        others: dict[int, dict[int, None]] = {}
        for traced in decoded:
            if traced.behind == behind:
                for position, token in enumerate(traced.tokens):
                    if token.rejected is not None:
                        others.setdefault(position, {})[token.rejected] = None
        asked = {position: list(tokens) for position, tokens in others.items()}
        drawn = dict.fromkeys(traced.config.draft_temperature for traced in decoded if traced.behind == behind)
        result[behind] = {
            (role, temperature): teacher_forced_probs(
                engine, role, model.context, warp.of_draft(temperature), *behind, asked
            )
            for role, model in prepared.pair.models.items()
            if not isinstance(model, TextModel)
            for temperature in (drawn if role == "draft" else (None,))
        }
    return result


def _cell(prepared: Prepared, traced: _Traced, record: Record, scores: TextScores) -> Cell:
    calls = record["num_target_calls"]
    return {
        "label": traced.config.label,
        "answer": record["answer"],
        "correct": record["correct"],
        "paired": record["paired"],
        "finish_reason": traced.out.finish_reason,
        "num_rounds": traced.out.num_rounds,
        "tokens_per_call": len(traced.out.token_ids) / traced.out.num_target_calls if calls else None,
        "difference": _difference(prepared, traced.out, record),
        "counts": tally(traced.tokens),
        "cut": tally(traced.dropped),
        "tokens": _columns(prepared, traced, scores),
    }


def _difference(prepared: Prepared, out: Generation, record: Record) -> dict[str, Any] | None:
    """Return where the output decoded now differs from the record; None if it does not."""
    if out.token_ids == record["token_ids"]:
        other = [name for name in COUNTS if getattr(out, name) != record[name]]
        return {"position": None, "counts": other} if other else None
    pairs = zip(out.token_ids, record["token_ids"], strict=False)
    at = next((i for i, (here, there) in enumerate(pairs) if here != there), None)
    at = min(len(out.token_ids), len(record["token_ids"])) if at is None else at
    text = prepared.pair.text
    here, there = (alone(text, ids[at]) if at < len(ids) else None for ids in (out.token_ids, record["token_ids"]))
    return {"position": at, "recorded": there, "traced": here, "num_recorded": len(record["token_ids"])}


def _columns(prepared: Prepared, traced: _Traced, scores: TextScores) -> dict[str, list[Any]]:
    text, ids = prepared.pair.text, traced.out.token_ids
    pieces = spelled(text, ids, prepared.pair.eos_ids)
    nobody: list[TokenScore | None] = [None] * len(ids)
    known = scores[traced.behind]
    target = known.get(("target", None), nobody)
    draft = known.get(("draft", traced.config.draft_temperature), nobody)
    rejected = [token.rejected for token in traced.tokens]
    return {
        "position": list(range(len(ids))),
        "id": list(ids),
        "text": [piece.text for piece in pieces],
        "kind": [piece.kind for piece in pieces],
        **{name: [getattr(token, name) for token in traced.tokens] for name in ("origin", "round", "place", "rank")},
        "score": [_short(token.score) for token in traced.tokens],
        "p": [None if one is None else _short(one.probability) for one in target],
        "q": [None if one is None else _short(one.probability) for one in draft],
        "p_rank": [None if one is None else one.rank for one in target],
        "first_id": [None if one is None else one.first for one in target],
        "first": [None if one is None else alone(text, one.first) for one in target],
        "first_p": [None if one is None else _short(one.first_probability) for one in target],
        "rejected_id": rejected,
        "rejected": [None if token is None else alone(text, token) for token in rejected],
        "rejected_p": [_other(one, token) for one, token in zip(target, rejected, strict=True)],
        "rejected_q": [_other(one, token) for one, token in zip(draft, rejected, strict=True)],
        "rejected_score": [_short(token.rejected_score) for token in traced.tokens],
    }


def _other(one: TokenScore | None, token: int | None) -> float | None:
    return None if one is None or token is None else _short(one.others[token])


def _short(value: float | None) -> float | None:
    """Round to six digits, to keep the file readable."""
    return None if value is None else float(f"{value:.6g}")

"""Made-up evaluations of any size, to test their display: records, comparison and page without a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specexp import config
from specexp.config import Experiment, MethodConfig
from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.methods import is_lossless
from specexp.metrics.summary import summarise
from specexp.profiling.call_costs import Costs

COSTS = Costs(0.01, {n: 0.1 + 0.004 * (n - 1) for n in (1, 3, 5, 9, 17)}, {4: 0.02}, {9: 0.2, 33: 0.3})
SHARES = {"draft": 0.3, "target": 0.4, "judge": 0.05, "sampling": 0.1, "host": 0.15}


def record(rng: random.Random, method: MethodConfig, prompt: str, repeat: int, graded: bool) -> dict[str, Any]:
    """One record with plausible counts: plain decoding, the draft alone, a chain or a tree."""
    tokens = list(range(40))
    length = method.tree.max_depth if method.tree else method.gamma
    histogram: list[int] = []
    left = len(tokens)
    while length and left > 0:
        accepted = min(length, left - 1, sum(rng.random() < 0.85 for _ in range(length)))
        histogram += [0] * (accepted + 1 - len(histogram))
        histogram[accepted] += 1
        left -= accepted + 1
    rounds = sum(histogram) or len(tokens)
    nodes = method.tree.tree_budget if method.tree else length
    lossy = not is_lossless(method, 0)
    right = rng.random() > (0.4 if method.method == "draft_only" else 0.03 if lossy else 0.01)
    seconds = 4.0 / {"draft_only": 5.0}.get(method.method, (1 if not length else 0.9 + 0.08 * length + 0.3 * lossy))
    shape = {
        "num_nodes": nodes, "depth": length, "num_draft_calls": length, "max_active": 1, "num_expanded": 1,
        "num_candidates": nodes, "pruned_by_threshold": 0, "pruned_by_log_prob": 0, "pruned_by_budget": 0,
    }  # fmt: skip
    depths = [a for a, n in enumerate(histogram) for _ in range(n)]
    return {
        "prompt_id": prompt, "turn": 0, "category": "", "paired": True, "method": method.method, "label": method.label,
        "finish_reason": "stop",
        "repeat": repeat, "token_ids": tokens if not lossy else [*tokens[:-1], rng.randrange(40)], "text": "…",
        "answer": "7" if right else None, "gold": "7" if graded else None, "correct": right if graded else None,
        "num_rounds": rounds, "num_drafted": nodes * sum(histogram),
        "num_accepted": sum(i * n for i, n in enumerate(histogram)), "num_judged": 0, "num_cut": 0, "num_full": 0,
        "drafted_before_end": [0] * nodes + [sum(histogram)] if histogram else [], "accepted_before_end": histogram,
        "num_judged_before_end": 0,
        "num_tested": 20, "overlap": 17.0, "num_target_calls": 0 if method.method == "draft_only" else rounds,
        "num_target_positions": rounds * (nodes + 1), "num_draft_calls": length * rounds,
        "num_draft_positions": length * rounds * 4, "accepted_histogram": histogram,
        "trees": [{**shape, "num_accepted": a, "path": list(range(a)), "ranks": [0] * a} for a in depths]
        if method.tree else [],
        "seconds": seconds * rng.uniform(0.9, 1.1), "prefill_seconds": 0.2, "time_to_first_token": 0.3,
    }  # fmt: skip


def made_up(
    methods: Sequence[MethodConfig],
    num_prompts: int,
    repeats: int = 1,
    graded: bool = True,
    prompt: str = "prompt-{}",
    **more: Any,
) -> Comparison:
    """A comparison of these methods on made-up records; `more` are settings of the experiment."""
    rng = random.Random(0)
    experiment = replace(config.resolve("arith_quick"), methods=tuple(methods), repeats=repeats, **more)
    records = {
        m.label: [
            record(rng, m, prompt.format(i), repeat, graded) for repeat in range(repeats) for i in range(num_prompts)
        ]
        for m in methods
    }
    return compared(experiment, records, num_prompts)


def compared(experiment: Experiment, records: dict[str, list[dict[str, Any]]], num_prompts: int) -> Comparison:
    plain = next((group for group in records.values() if group[0]["method"] == "baseline"), [])
    entries = [
        Entry(
            number,
            method,
            is_lossless(method, experiment.temperature),
            summarise(records[method.label], plain, COSTS, method.gamma, batch=experiment.batch),
            records[method.label],
            SHARES if experiment.batch == 1 else {},
        )
        for number, method in enumerate(experiment.methods, 1)
    ]
    return Comparison(experiment, entries, num_prompts)


def settings(methods: str, **more: Any) -> tuple[MethodConfig, ...]:
    """Methods, from the names that a user gives."""
    return config.resolve("arith_quick", {"methods": methods, **more}).methods


ONE = "baseline"
SIX = "baseline,draft_only,speculative,autojudge,topk,specexec"


def twenty() -> tuple[MethodConfig, ...]:
    """Every method at several lengths, thresholds and Ks."""
    chains = settings("baseline,draft_only,speculative,specexec,lookup", gamma="2,4,8,16")
    lossy = settings("autojudge,topk", gamma="8,16", threshold="0.01,0.1,0.3", accept_k="2,4")
    return (*chains, *lossy)[:24]

"""What a walk over a tree gives whose rule may go to a child that was not drawn: by recursion, with fresh forwards."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from helpers.reference_distribution import tree
from helpers.sampling import EOS
from specexp.certify.reference_distribution import warp

VOCAB, PROMPT, LENGTH = 3, [1], 5
# Nodes, levels, branches and width.
SHAPES = [(3, 3, 1, 1), (5, 3, 1, 3), (8, 3, 3, 2), (2, 2, 2, 2)]
Waives = Callable[[list[int], int], bool]  # whether a rule lets a token pass behind a text


def module(name: str) -> Any:
    return importlib.import_module(f"specexp.{name}")


def pair(seed: int = 3, vocab: int = VOCAB, noise: float = 0.8) -> dict[Any, Any]:
    toy = module("lm.toy")
    return {"target": toy.ToyModel(vocab, seed), "draft": toy.ToyModel(vocab, seed, draft_noise=noise)}


def decoder(shape: tuple[int, int, int, int], sampling: dict[str, Any], rule: Any = None) -> Any:
    budget, depth, branches, width = shape
    specexec, rules = module("decoding.specexec"), module("decoding.rules")
    return specexec.SpecExec(budget, depth, rules.Warp(**sampling), branches, width, rule=rule)


def outputs_of_recursion(
    models: dict[Any, Any], shape: tuple[int, int, int, int], sampling: dict[str, Any], waives: Waives
) -> dict[tuple[int, ...], float]:
    """Probability of every output by recursion over slowly grown trees, with fresh forwards and no cache."""
    masses: dict[tuple[int, ...], float] = {}
    budget, depth, branches, width = shape

    def row(role: str, ids: list[int], **warped: Any) -> Any:
        logits, _ = models[role].session().feed(models[role].ids(ids), rows=1)
        return warp(logits[0].tolist(), **warped)

    def begin(out: tuple[int, ...], mass: float) -> None:
        if len(out) == LENGTH or EOS in out:
            masses[out] = masses.get(out, 0.0) + mass
            return
        ids = [*PROMPT, *out]
        go(out, tree(models["draft"], ids, min(depth, LENGTH - len(out) - 1), budget, branches, width), (), mass)

    def go(out: tuple[int, ...], paths: set[tuple[int, ...]], path: tuple[int, ...], mass: float) -> None:
        if path and path[-1] == EOS:
            begin((*out, *path), mass)
            return
        ids = [*PROMPT, *out, *path]
        q = row("draft", ids, temperature=1.0)
        children = sorted((p[-1] for p in paths if p[:-1] == path and p), key=lambda token: (-q[token], token))
        instead = next((token for token in children if waives(ids, token)), None)
        for token, chance in enumerate(row("target", ids, **sampling)):
            if chance and token in children:
                go(out, paths, (*path, token), mass * chance)
            elif chance and instead is not None:
                go(out, paths, (*path, instead), mass * chance)
            elif chance:
                begin((*out, *path, token), mass * chance)

    begin((), 1.0)
    return masses

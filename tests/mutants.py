"""Seeded bugs: the package with one line of its source changed, imported beside the real one.

`mutated(bug)` yields a fresh import of specexp in which `bug.old` (which must stand exactly once in its file) reads
`bug.new`; afterwards the real modules are back.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Bug:
    name: str
    module: str
    old: str
    new: str


class _Loader(importlib.machinery.SourceFileLoader):
    bug: Bug

    def get_code(self, fullname: str) -> Any:
        source = self.get_data(self.path).decode()
        if source.count(self.bug.old) != 1:  # no AssertionError: that would pass for a bug caught
            raise RuntimeError(f"{self.bug.name}: {self.bug.old!r} stands {source.count(self.bug.old)}x in its file")
        return compile(source.replace(self.bug.old, self.bug.new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, bug: Bug) -> None:
        self.bug = bug

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname != self.bug.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(fullname, spec.origin)
        loader.bug = self.bug
        spec.loader = loader
        return spec


@contextlib.contextmanager
def mutated(bug: Bug | None) -> Iterator[None]:
    """Inside, `import specexp...` gives modules with the bug in them (None: unchanged fresh ones)."""
    mine = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "specexp"}
    for name in mine:
        del sys.modules[name]
    finder = _Finder(bug) if bug else None
    if finder:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder:
            sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.split(".")[0] == "specexp"]:
            del sys.modules[name]
        sys.modules.update(mine)


RULES, CHAIN, ENGINE, CONTEXT, BASELINE = (
    "specexp.decoding.rules", "specexp.decoding.chain", "specexp.engine.engine", "specexp.engine.context",
    "specexp.decoding.baseline",
)  # fmt: skip

BUGS = [
    Bug("residual not used", RULES, "xp.where(xp.any(residual > 0), residual, row)", "row"),
    Bug("residual not clipped", RULES, "axis=0)[0], 0, None)", "axis=0)[0], -1, None) ** 2"),
    Bug("accept on p instead of p/q", RULES, " / xp.take_along_axis(q, where, axis=-1)", ""),
    Bug("q's rows shifted by one", RULES, "xp.take_along_axis(q, where", "xp.take_along_axis(xp.roll(q, 1, axis=0), where"),
    Bug("p's rows shifted by one", RULES, "take_along_axis(p[:-1], where", "take_along_axis(p[1:], where"),
    Bug("correction drawn from the next row", RULES, "row = xp.take(p, num_accepted[None]",
        "row = xp.take(p, xp.clip(num_accepted + 1, 0, num_drafted)[None]"),
    Bug("bonus from the wrong row", CHAIN, "p = self.warp(scored.logits)",
        "p = self.warp(array_namespace(scored.logits).concat([scored.logits[:-1], scored.logits[-2:-1]])"
        " if scored.logits.shape[0] > 1 else scored.logits)"),
    Bug("soft p at temperature 0", RULES, "if self.greedy:\n", "if self.greedy:\n            return _softmax(xp, 2 * logits)\n"),
    Bug("q is not what the draft was sampled from", ENGINE, "self.dice.pick(rows[-1][0]",
        "self.dice.pick(type(ask.warp)(2.0)(logits[-1:])[0]"),
    Bug("warp on one model only", CHAIN, "p = self.warp(scored.logits)", "p = Warp(1.0)(scored.logits)"),
    Bug("top-k keeps one token too many", RULES, "ranks[None, :] < self.top_k", "ranks[None, :] <= self.top_k"),
    Bug("top-p drops the token that reaches its mass", RULES, "before < self.top_p",
        "(before + ranked < self.top_p) | (before == 0)"),
    Bug("top-k after top-p's mass is not renormalised", RULES,
        "            ranked = ranked / xp.sum(ranked, axis=-1, keepdims=True)\n        if", "        if"),
    Bug("target cache not rewound", CONTEXT, "                self._session.keep(self._cached + len(slots))\n", "                pass\n"),
    Bug("cache keeps the rejected token", CONTEXT, "slots = [slot for slot in kept if slot < len(self._parents)][: len(tokens) - 1]",
        "slots = [*range(len(self._parents))][: len(tokens)]"),
    Bug("cache keeps the wrong length after a rejection", CONTEXT, "self._session.keep(self._cached + len(slots))",
        "self._session.keep(self._cached)"),
    Bug("EOS inside the block ignored", ENGINE, "if token in self.engine._eos:", "if token in self.engine._eos and i == 0:"),
    Bug("length overshoot", ENGINE, "else self.room - len(tokens)", "else self.room - max(1, len(tokens) - 1)"),
    Bug("correction not emitted", CHAIN, "num_tokens = verdict.num_accepted + 1",
        "num_tokens = verdict.num_accepted + (verdict.num_accepted == 0)"),
    Bug("one token too many accepted", CHAIN, "num_tokens = verdict.num_accepted + 1",
        "num_tokens = array_namespace(p).clip(verdict.num_accepted + 2, None, num_drafted + 1)"),
    Bug("a die drawn twice", CHAIN, "            num_drafted = drafted.tokens.shape[0]\n",
        "            num_drafted = drafted.tokens.shape[0]\n            dice.after(p[0], whole - room,"
        " verdict.num_accepted, num_drafted)\n"),
    Bug("dice of committed positions reused", CHAIN, "waived, dice, whole - room)", "waived, dice, 0)"),
    Bug("draft dice for the wrong positions", ENGINE, "position + i, DRAFT", "position, DRAFT"),
    Bug("plain decoding reads the first row for ever", BASELINE, "Score(self.model)", "Score(self.model, None)\n"
        "            first = locals().get('first', scored)\n            scored = first"),
]  # fmt: skip

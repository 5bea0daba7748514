"""Seeded bugs: the package with one line of its source changed, imported alongside the real one.

`mutated(bug)` yields a fresh import of specexp in which `bug.old` (which must occur exactly once in its file) reads
`bug.new`; afterwards the real modules are back. `tests/test_seeded_bugs.py` runs whole test files on the bugs of
`FILE_BUGS`, each in a separate process (`run_seeded_bugs.py`).
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


def install(bug: Bug) -> None:
    """Import the package with this bug in it from now on, in a process that has not imported it yet."""
    if any(name.split(".")[0] == "specexp" for name in sys.modules):
        raise RuntimeError("specexp is imported already: the bug would not be in it")
    sys.meta_path.insert(0, _Finder(bug))


@contextlib.contextmanager
def mutated(bug: Bug | None) -> Iterator[None]:
    """Inside, `import specexp...` gives modules with the bug in them (None: unchanged fresh ones)."""
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "specexp"}
    for name in modules:
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
        sys.modules.update(modules)


RULES, CHAIN, ENGINE, RUN, CONTEXT, BASELINE = (
    "specexp.decoding.rules", "specexp.decoding.chain", "specexp.engine.engine", "specexp.engine.request_state",
    "specexp.engine.context", "specexp.decoding.baseline",
)  # fmt: skip
DRAFTING, FORWARDS = "specexp.engine.drafting", "specexp.engine.forwards"
CHAIN_LENGTH = "specexp.engine.chain_length"
HEAD, EAGLE, EAGLE_CONFIG = (
    "specexp.lm.heads.head_session", "specexp.lm.heads.eagle3_forward", "specexp.lm.heads.eagle3_config",
)  # fmt: skip

BUGS = [
    Bug("residual not used", RULES, "xp.where(xp.any(residual > 0), residual, row)", "row"),
    Bug("residual not clipped", RULES, "num_accepted), 0, None)", "num_accepted), -1, None) ** 2"),
    Bug("accept on p instead of p/q", RULES, " / xp.take_along_axis(q, where, axis=-1)", ""),
    Bug("q's rows shifted by one", RULES, "xp.take_along_axis(q, where", "xp.take_along_axis(xp.roll(q, 1, axis=0), where"),
    Bug("p's rows shifted by one", RULES, "take_along_axis(p[:-1], where", "take_along_axis(p[1:], where"),
    Bug("correction drawn from the next row", RULES, "row, judges = _row(p, num_accepted), accepted_anyway is not None\n",
        "row, judges = _row(p, array_namespace(p).clip(num_accepted + 1, 0, drafted.shape[0])), accepted_anyway is not None\n"),
    Bug("bonus from the wrong row", CHAIN, "p = self.warp(scored.logits)",
        "p = self.warp(array_namespace(scored.logits).concat([scored.logits[:-1], scored.logits[-2:-1]])"
        " if scored.logits.shape[0] > 1 else scored.logits)"),
    Bug("a greedy chain is verified by the row behind", RULES, "passed = choice[:-1] == drafted", "passed = choice[1:] == drafted"),
    Bug("a greedy chain takes what was drafted behind a rejection", RULES, "xp.sum(xp.cumulative_prod(kept))", "xp.sum(kept)"),
    Bug("a greedy correction comes from the first row", RULES, "return VerifyResult(choice, num_accepted, 0, same)", "return VerifyResult(xp.take(choice, xp.zeros_like(choice), axis=0), num_accepted, 0, same)"),
    Bug("q is not what the draft was sampled from", DRAFTING, "_draw(going, q, step)",
        "_draw(going, type(ask.warp)(2.0)(logits), step)"),
    Bug("warp on one model only", CHAIN, "p = self.warp(scored.logits)", "p = Warp(1.0)(scored.logits)"),
    Bug("top-k keeps one token too many", RULES, "ranks[None, :] < self.top_k", "ranks[None, :] <= self.top_k"),
    Bug("top-p drops the token that reaches its mass", RULES, "before < self.top_p",
        "(before + ranked < self.top_p) | (before == 0)"),
    Bug("top-k after top-p's mass is not renormalised", RULES,
        "            ranked = ranked / xp.sum(ranked, axis=-1, keepdims=True)\n        if", "        if"),
    Bug("target cache not rewound", CONTEXT, "                self._session.truncate(self._num_cached + len(slots))\n", "                pass\n"),
    Bug("cache keeps the rejected token", CONTEXT, "slots = [slot for slot in kept if slot < self._num_slots][: len(tokens) - 1]",
        "slots = [*range(self._num_slots)][: len(tokens)]"),
    Bug("cache keeps the wrong length after a rejection", CONTEXT, "self._session.truncate(self._num_cached + len(slots))",
        "self._session.truncate(self._num_cached)"),
    Bug("EOS inside the block ignored", RUN, "            if self._ends(token):\n                return tokens[: i + 1], []", "            if i == 0 and self._ends(token):\n                return tokens[: i + 1], []"),
    Bug("length overshoot", RUN, "else self._left - len(tokens) -", "else self._left - max(1, len(tokens) - 1) -"),
    Bug("correction not emitted", CHAIN, "num_tokens = verdict.num_accepted + 1",
        "num_tokens = verdict.num_accepted + (verdict.num_accepted == 0)"),
    Bug("one token too many accepted", CHAIN, "num_tokens = verdict.num_accepted + 1",
        "num_tokens = array_namespace(drafted.tokens).clip(verdict.num_accepted + 2, None, num_drafted + 1)"),
    Bug("a draw made twice", CHAIN, "accepted_anyway, rng, position, padded)\n",
        "accepted_anyway, rng, position, padded)\n                rng.sample_next(p[0], position, verdict.num_accepted,"
        " drafted.tokens.shape[0])\n"),
    Bug("rng of committed positions reused", CHAIN, "accepted_anyway, rng, position, padded)", "accepted_anyway, rng, 0, padded)"),
    Bug("draft rng for the wrong positions", DRAFTING, "chain.position + step for", "chain.position for"),
    Bug("plain decoding reads the first row for ever", BASELINE, "yield Score(self.model, trial=trial)", "yield Score(self.model)\n"
        "            first = locals().get('first', scored)\n            scored = first"),
]  # fmt: skip

CHAIN_BLOCK_BUGS = [
    Bug("a block residual of p alone", RULES, "row = _row(b, num_accepted) * _row(p, num_accepted)", "row = _row(p, num_accepted)"),
    Bug("a block residual with the p of the row before", RULES, "_row(b, num_accepted) * _row(p, num_accepted)",
        "_row(b, num_accepted) * _row(p, xp.clip(num_accepted - 1, 0, None))"),
    Bug("a likely token makes up for those behind it, too", RULES, "xp.clip(kept[-1] * ratios[i], None, 1)", "kept[-1] * ratios[i]"),
    Bug("a block forgets the tokens before", RULES, "xp.clip(kept[-1] * ratios[i], None, 1)", "xp.clip(0 * kept[-1] + ratios[i], None, 1)"),
    Bug("a block's mass is of the row before", RULES, "p[1:-1] - q[1:]", "p[:-2] - q[:-1]"),
    Bug("a block's tests leave out what was kept", RULES, "total = mass + (1 - b[1:-1])", "total = mass + (1 - mass)"),
    Bug("the last test of a block is always passed", RULES, "b[1:][-1:]", "b[:1]"),
    Bug("a block ends at its first failure", RULES, ".accept_longest(xp.concat([passes, b[1:][-1:]]), position)",
        ".accept_prefix(xp.concat([passes, b[1:][-1:]]), None, position)[0]"),
]  # fmt: skip
SHARED_DRAWS = [  # which enumeration cannot see: its rng has no draws that rounds could share
    Bug("a block's drafts share draws with the next round", DRAFTING, "state.rng.of_round(self.position) if by_round else state.rng", "state.rng"),
    Bug("a block's tests share draws with the next round", RULES, "rng.of_round(position).accept_longest", "rng.accept_longest"),
]  # fmt: skip

STOP = "                    chain.length = len(chain.tokens)\n"

EARLY_STOP_BUGS = [  # that change the output; where a draft ends is tests/engine/test_early_stop.py's
    Bug("the unlikely token is dropped", DRAFTING, STOP, "                    chain.tokens.pop(), chain.rows.pop()\n" + STOP),
    Bug("the unlikely token is drawn again", DRAFTING, STOP, STOP + "                    chain.tokens[-1] = chain.rows[-1].argmax()[None]\n"),
    Bug("q is another than it was drawn from", DRAFTING, STOP, STOP + "                    chain.rows[-1] = chain.rows[-1] ** 0.5\n"),
]  # fmt: skip

AUTO_BUGS = [  # of chains that adapt, that change the output; where one ends is tests/engine/test_chain_length.py's
    Bug("the first token is dropped where it alone does not pay", DRAFTING, "return self.stopping.goes_on(len(self.tokens), self.survival)",
        "return self.stopping.goes_on(len(self.tokens), self.survival) or (len(self.tokens) == 1 and self.tokens.pop() is self.rows.pop())"),
    Bug("a token is drawn, looked at and dropped", DRAFTING, "        return [self._drafted(chain, ask) for chain in chains]\n",
        "        for chain in chains:\n            if ask.costs and len(chain.tokens) > 1 and chain.rows[-1][0][int(chain.tokens[-1][0])] < 0.5:\n"
        "                chain.tokens.pop(), chain.rows.pop(), chain.probability.pop(), chain.peaks.pop()\n"
        "        return [self._drafted(chain, ask) for chain in chains]\n"),
]  # fmt: skip

LOOKUP_BUGS = [  # that change the output; what is found is tests/engine/test_lookup.py's
    Bug("q is no distribution of what was found", DRAFTING, "tokens[:, None] == vocabulary[None, :]", "tokens[:, None] >= vocabulary[None, :]"),
    Bug("q is of the token before", DRAFTING, "tokens[:, None] == vocabulary[None, :]", "xp.roll(tokens, 1)[:, None] == vocabulary[None, :]"),
]  # fmt: skip

TRANSLATED, TEXT_DRAFTS = "specexp.lm.translated", "specexp.lm.text_drafts"
OWN_TEXT, TRANSLATION = "specexp.lm.own_text", "specexp.pair.translation"

TRANSLATION_BUGS = [  # of drafts with another tokenizer; most leave the output distribution as it is
    Bug("mass left on tokens outside the intersection", TRANSLATED, 'xp.where(has[None, :], there, xp.full_like(there, float("-inf"))), hidden', "there, hidden"),
    Bug("q over the common tokens is not renormalised", DRAFTING, "q = logits if greedy else ask.warp(logits)\n", "q = logits if greedy else ask.warp(logits) * 0.9\n"),
    Bug("an id of the target is taken for the draft's", TRANSLATED, "array_namespace(tokens).take(self._of_target(tokens)[0], tokens)", "tokens"),
    Bug("an id of the draft is taken for the target's", TEXT_DRAFTS, "translation.continued(self._ids, ahead)[:count]", "ahead[:count]"),
    Bug("a draft that writes text reads the target's ids", TEXT_DRAFTS, "own = self.own(len(self._ids))", "own = list(self._ids)"),
    Bug("text that is split anew stays in the cache as it was", TRANSLATED, "common = common_prefix(self._cached, own)", "common = min(len(self._cached), len(own))"),
    Bug("what was written before is continued whatever was committed", TEXT_DRAFTS, "self._written[len(own) :] if self._written[: len(own)] == own else []", "self._written[len(own) :]"),
]  # fmt: skip

RECALL = "specexp.engine.ngram_lookup"

SEARCH_BUGS = [
    Bug("the end finds itself", RECALL, "range(self._indexed, len(ids))", "range(self._indexed, len(ids) + 1)"),
    Bug("the earliest place wins", RECALL, "self._behind[tuple(ids[place - length : place])] = place", "self._behind.setdefault(tuple(ids[place - length : place]), place)"),
    Bug("the shortest run wins", RECALL, "range(min(self._longest, len(ids) - 1), shortest - 1, -1)", "range(shortest, min(self._longest, len(ids) - 1) + 1)"),
    Bug("the copy ends with the sequence", RECALL, "ids[result + i % period] for i in range(most)", "ids[result + i] for i in range(min(most, period))"),
    Bug("a place is left out at every call", RECALL, "self._indexed = max(self._indexed, len(ids))", "self._indexed = max(self._indexed, len(ids) + 1)"),
    Bug("runs are too short", RECALL, "range(1, min(self._longest, place) + 1)", "range(1, min(self._longest, place))"),
    Bug("nothing new is indexed", RECALL, "for place in range(self._indexed, len(ids)):", "for place in range(self._indexed, len(ids) if self._indexed == 1 else 0):"),
]  # fmt: skip

SUFFIX = "specexp.engine.suffix_automaton"

SUFFIX_BUGS = [
    Bug("a state that is split off forgets its places", SUFFIX, "self._count[own], self._followed[own] = self._count[longer], self._followed[longer]", "pass"),
    Bug("a state that is split off forgets its favourite", SUFFIX, "        self._favourite[own] = self._favourite[longer]\n", ""),
    Bug("a state that is split off forgets what followed", SUFFIX, "dict(self._next[longer])", "{}"),
    Bug("states that are split share what follows", SUFFIX, "dict(self._next[longer])", "self._next[longer]"),
    Bug("the longer substrings keep their link", SUFFIX, "self._link[own], self._link[longer] = self._link[longer], own", "self._link[own] = self._link[longer]"),
    Bug("only the whole sequence is counted", SUFFIX, "            self._count[state] += 1\n            state = self._link[state]\n", "            self._count[state] += 1\n            break\n"),
    Bug("only the longest suffix is followed", SUFFIX, "            self._followed[followed] += 1\n            followed = self._link[followed]\n", "            self._followed[followed] += 1\n            break\n"),
    Bug("transitions stay with the longer substrings", SUFFIX, "self._next[before].get(token) == longer", "False"),
    Bug("a text that repeats is continued to its end only", SUFFIX, "            while not self._followed[state] and state > ROOT:", "            if not self._next[state]:\n                break\n            while False:"),
    Bug("what follows nothing is proposed at an output's end", SUFFIX, "            if state == ROOT:\n                break\n", ""),
    Bug("outputs run on into each other", SUFFIX, "    def begin(self) -> None:\n        \"\"\"Begin another sequence: no substring spans two of them.\"\"\"\n        self._last = self._recent = ROOT\n", "    def begin(self) -> None:\n        pass\n"),
    Bug("a match that breaks off is lost", SUFFIX, "            state = self._link[state]\n            length = self._length[state]\n        return self._within", "            state = ROOT\n            length = 0\n        return self._within"),
    Bug("a match keeps its length when it breaks off", SUFFIX, "            state = self._link[state]\n            length = self._length[state]\n        return self._within", "            state = self._link[state]\n        return self._within"),
    Bug("earlier outputs win if they are as good", SUFFIX, "others_score > score", "others_score >= score"),
    Bug("earlier outputs are never asked", SUFFIX, "others_score > score", "others_score > 1e9"),
    Bug("the earliest of equal ones is taken", SUFFIX, "times >= self._count[following[self", "times > self._count[following[self"),
    Bug("the rarest token is taken", SUFFIX, "times >= self._count[following[self", "times <= self._count[following[self"),
    Bug("the latest token is taken", SUFFIX, "            if not self._followed[followed] or times", "            if True or times"),
    Bug("a share is of all places", SUFFIX, "self._count[following] / self._followed[state]", "self._count[following] / self._count[state]"),
    Bug("counts end a token early", SUFFIX, "[token], self.depth + 1)", "[token], self.depth)"),
    Bug("a continuation has no limit to what it continues", SUFFIX, "state = self._within(following, self.depth)", "state = following"),
    Bug("a match has no limit", SUFFIX, "return self._within(self._next[state][token], self.depth), min(length + 1, self.depth)", "return self._next[state][token], length + 1"),
    Bug("what occurs elsewhere has no limit", SUFFIX, "        if self._length[state] > self.depth:", "        if False:"),
    Bug("a long match is one token too long", SUFFIX, "return self._within(self._recent, self.depth), self.depth", "return self._recent, self.depth"),
    Bug("the first share alone counts", SUFFIX, "            product *= ", "            product = product if tokens else "),
    Bug("a match drafts a token too many", SUFFIX, "max(1, int(limits.factor * length)))", "1 + int(limits.factor * length))"),
    Bug("the longest match wins", SUFFIX, "            if score > highest:", "            if not best and score > highest:"),
    Bug("a shorter match of the same worth wins", SUFFIX, "            if score > highest:", "            if score >= highest:"),
    Bug("what cannot be better is not looked at, nor what can", SUFFIX, "if highest >= longest:", "if highest > 0:"),
    Bug("matches may be shorter", SUFFIX, "length >= limits.shortest", "length >= 1"),
]  # fmt: skip

SPECEXEC, TREE, TOY = "specexp.decoding.specexec", "specexp.decoding.tree", "specexp.lm.toy"

TREE_BUGS = [
    Bug("the target's parents shifted by one", SPECEXEC, "[parent for _, parent in grown]\n",
        "[max(-1, parent - 1) for _, parent in grown]\n"),
    Bug("all nodes scored as children of the root", SPECEXEC, "[parent for _, parent in grown]\n", "[-1 for _ in grown]\n"),
    Bug("the walk's parents shifted by one", SPECEXEC, "[parent + 1 for _, parent in grown]", "[max(0, parent) for _, parent in grown]"),
    Bug("the tree fed as a chain", SPECEXEC, "parents = [node.token for node, _ in grown], [parent for _, parent in grown]",
        "parents = [node.token for node, _ in grown], None"),
    Bug("wrong path kept in the target", SPECEXEC, "slots=visited - 1,", "slots=xp.where(visited > 0, xp.arange(visited.shape[0]), -1),"),
    Bug("wrong path kept in the draft", SPECEXEC, '"draft": path.draft_slots', '"draft": path.slots'),
    Bug("the draft's parents shifted by one", TREE, "self.nodes[n.parent].slot for n", "max(0, self.nodes[n.parent].slot - 1) for n"),
    Bug("the best branches are not the ones expanded", TREE, "i in self.kept if self.nodes[i].slot < 0", "i in sorted(self.kept) if self.nodes[i].slot < 0"),
    Bug("the threshold compares with the parent", TREE, "score - scores[0] < least", "score < least"),
    Bug("siblings see each other", CONTEXT, "paths.append([*(paths[parent] if parent >= 0 else []), slot])",
        "paths.append([*(paths[parent] if parent >= 0 else []), *range(max(parent + 1, slot - 1), slot), slot])"),
    Bug("siblings share a cache", TOY, "            sees[branches.base :, branches.base :] = False\n", ""),
    Bug("positions by index instead of depth", CONTEXT, "[len(path) - 1 for path in paths]", "list(range(len(paths)))"),
    Bug("a node is drawn twice", SPECEXEC, "        token = rng.pick(", "        rng.pick(p, position + step, TARGET)\n        token = rng.pick("),
    Bug("drawn at the root's position all the way", SPECEXEC, "position + step, TARGET", "position, TARGET"),
    Bug("drawn from the parent's row", SPECEXEC, "row = xp.where(inside, xp.argmax(xp.astype(child, xp.int64)), row)\n        rows.append(xp.where(inside, row, xp.zeros_like(row)))",
        "rows.append(xp.where(inside, xp.argmax(xp.astype(child, xp.int64)), xp.zeros_like(row)))"),
    Bug("a child of another node accepted", SPECEXEC, "children = (parents == row) & inside", "children = (tokens >= 0) & inside"),
    Bug("the draw that leaves the tree is not emitted", SPECEXEC, "path.num_accepted + 1,", "path.num_accepted + (path.num_accepted == 0),"),
    Bug("a token emitted behind the draw that left", SPECEXEC, "path.num_accepted + 1,", "path.num_accepted + 2,"),
    Bug("pruning changes the output: a sibling is drawn only if it stayed", SPECEXEC, "xp.where(inside, p, certain)",
        "xp.where(inside, xp.where(xp.any((parents == row)[:, None] & (tokens[:, None] == xp.arange(p.shape[0])[None, :]), axis=0)"
        " | ~xp.any(parents == row), p, 0 * p), certain)"),
    Bug("the draft's favourite taken without a draw", SPECEXEC, "child = children & (tokens == token)",
        "child = children\n        token = xp.where(xp.any(child), tokens[xp.argmax(xp.astype(child, xp.int64))], token)"),
    Bug("a warp at temperature 1", SPECEXEC, "p = warp(xp.take", "p = Warp(1.0)(xp.take"),
    Bug("a node kept without its parent", TREE, "key=lambda i: (-self.nodes[i].score, i)", "key=lambda i: (-self.nodes[i].depth, i)"),
]  # fmt: skip

SERVICE = "specexp.serving.completion_service"
READER = "specexp.serving.openai_requests"
PREDICTION, OUTPUTS = "specexp.advise.engines.engine_prediction", "specexp.advise.engines.engine_outputs"
MINING = "specexp.judge.mining"

MINING_BUGS = [
    Bug("y stays after an unimportant swap", MINING, "if important is False:", "if False:"),
    Bug("y is replaced after an important swap", MINING, "if important is False:", "if important is not None:"),
    Bug("y is replaced after an unfinished swap", MINING, "if important is False:", "if not important:"),
    Bug("mismatches to the left are tested again", MINING, "            start = position + 1\n",
        "            start = position + 1 if important is not False else 0\n"),
    Bug("a position is skipped", MINING, "            start = position + 1\n", "            start = position + 2\n"),
    Bug("compared with gold", MINING, "result.run(answer, on_progress)", "result.run(example.answer, on_progress)"),
    Bug("no answer is an answer", MINING, "        if answer is None:\n", "        if answer is None and False:\n"),
    Bug("a swap that loses the answer is unimportant", MINING, "return answer is not None and self._task", "return answer is None or self._task"),
    Bug("an unfinished response is mined", MINING, 'if first.finish_reason != "stop":', 'if first.finish_reason == "context":'),
    Bug("an unfinished swap gets a label", MINING, "important = None if not finished else not miner", "important = not miner"),
    Bug("an unfinished swap's answer is read", MINING, "result = miner.answer(prompt, after, self._example.answer) if finished else None", "result = miner.answer(prompt, after, self._example.answer)"),
    Bug("mismatches are not found anew", MINING, "choices = [*choices[: position + 1], *behind]",
        "choices = [*choices, *after][: len(after)]"),
    Bug("the draft's choices are a place off", MINING, "[*prompt, *response[:start]], response[start:-1])", "[*prompt[:1], *prompt, *response[:start]], response[start:-1])"),
    Bug("a swap that is an EOS goes on", MINING, "        if token in self._pair.eos_ids:\n", "        if token in self._pair.eos_ids and False:\n"),
    Bug("every swap has the whole limit", MINING, "left, ending = self._limit - len(head), Ending()", "left, ending = self._limit, Ending()"),
    Bug("the swap is the target's own token", MINING, "head = [*response[:position], token]", "head = [*response[: position + 1]]"),
    Bug("the answer is read with its EOS", MINING, "response[:-1] if finished else response", "response"),
    Bug("the two places of the features are swapped", MINING, "previous, own = _host(hidden)", "own, previous = _host(hidden)"),
    Bug("features of the target's token", MINING, "self._look(position, token)", "self._look(position, self.response[position])"),
    Bug("features one place to the right", MINING, "*self.response[:position]]", "*self.response[: position + 1]]"),
    Bug("both models' features are the target's", MINING, "self._miner.rows(role, ids", 'self._miner.rows("target", ids'),
    Bug("the prefill of the literal procedure is free", MINING, "+= len(self._prompt) + position + generated", "+= generated"),
    Bug("a swap that is an EOS costs the literal procedure a prefill", MINING, "        if generated:\n", "        if True:\n"),
    Bug("a cache from another prompt is taken for this one's", CONTEXT, "            if old != new:\n", "            if False:\n"),
    Bug("a scoring request reads the row before", FORWARDS, "        each.send(result)\n",
        "        each.send((result[0], None if result[1] is None else result[1][[0, *range(len(ask.tokens))]]))\n"),
    Bug("a scoring request forgets what it fed but not that it fed it", CONTEXT, "                self._session.truncate(self._num_cached + len(slots))\n", "                self._session.truncate(self._num_cached)\n"),
]  # fmt: skip

JUDGED, NETWORK, RNG, FEATURES = (
    "specexp.decoding.lossy_rules", "specexp.judge.network", "specexp.decoding.rng", "specexp.judge.features",
)  # fmt: skip

JUDGED_BUGS = [
    Bug("token features a row early", JUDGED, 'first = 1 if place == "token" else 0', "first = 0"),
    Bug("previous features a row late", JUDGED, 'first = 1 if place == "token" else 0', 'first = 1 if place == "token" or role == "target" else 0'),
    Bug("one model's rows for the other's", JUDGED, 'scored.hidden if role == "target" else drafted.hidden',
        "drafted.hidden if drafted.hidden is not None and drafted.hidden.shape[0] > num_drafted else scored.hidden"),
    Bug("parts in another order", JUDGED, "[rows[part] for part in self.parts], drafted.tokens)", "[rows[part] for part in sorted(self.parts, reverse=True)], drafted.tokens)"),
    Bug("scalars of the row behind the token", JUDGED, "target_scalars(scored.logits[:num_drafted]", "target_scalars(scored.logits[1:]"),
    Bug("the draft's scalar is not asked for", FEATURES, 'draft_q="draft_q" in self.parts', 'draft_q=False'),
    Bug("scalars of temperature 1 where another is sampled", JUDGED, "p = warp.softened(logits if", "p = UNIT_TEMPERATURE(logits if"),
    Bug("a margin is that of the entropy", JUDGED, '"target_margin": xp.max(p, axis=-1) - chances', '"target_margin": chances'),
    Bug("a bound goes right", NETWORK, "xp.where(tested <= of(", "xp.where(tested > of("),
    Bug("trees stop a level early", NETWORK, 'range(int(self.arrays["depth"][0]))', 'range(int(self.arrays["depth"][0]) - 1)'),
    Bug("every tree is the first", NETWORK, "xp.reshape(starts + node, (-1,))", "xp.reshape(node, (-1,))"),
    Bug("an EOS is accepted anyway", JUDGED, "            result = result & (tokens != eos)\n", "            pass\n"),
    Bug("an EOS that the target wants is rejected", CHAIN, "                verdict = verify(p, q,",
        "                p[:-1, 0] = p[:-1, 0] * (accepted_anyway is None)\n                verdict = verify(p, q,"),
    Bug("what is important is accepted_anyway", JUDGED, "self.score(xp.concat(rows, axis=-1)) < self.threshold", "self.score(xp.concat(rows, axis=-1)) > self.threshold"),
    Bug("a judge at threshold 0 waives", JUDGED, "or self.threshold <= 0:", "or self.threshold < 0:\n            return None\n        if self.threshold == 0:\n"
        "            return drafted.tokens == drafted.tokens[:1]\n        if False:"),
    Bug("top-k takes one more", JUDGED, "axis=-1) < self.k", "axis=-1) <= self.k"),
    Bug("top-k a row late", JUDGED, "at_drafted(drafted, scored), drafted", "scored.logits[1:], drafted"),
    Bug("top-k is of the draft", JUDGED, "at_drafted(drafted, scored), drafted", "at_drafted(drafted, scored) if drafted.q is None else drafted.q, drafted"),
    Bug("the last drafted token is not fed", DRAFTING, "chain.hidden.append(hidden_states)\n", "chain.hidden.append(chain.hidden[-1])\n"),
    Bug("the last drafted token is always fed", DRAFTING, "        if ask.feed_last_token and (", "        if ask.hidden and ("),
    Bug("the last drafted token is fed twice", CONTEXT, "slots = [slot for slot in kept if slot < self._num_slots][: len(tokens) - 1]",
        "slots = [slot for slot in kept if slot < self._num_slots][: max(0, len(tokens) - 2)]"),
    Bug("accepted_anyway tokens are moved by one", CHAIN, "        if self.warp.greedy:",
        "        accepted_anyway = None if accepted_anyway is None else array_namespace(accepted_anyway).roll(accepted_anyway, 1)\n        if self.warp.greedy:"),
    Bug("accepted anyway means accepted by the lossless rule too", RULES, "passed if judges else None, num_drafted)", "~accepted_anyway if judges else None, num_drafted)"),
    Bug("judged tokens behind a rejection count", RULES, "(ids[:-1] < num_accepted) & ~passed", "~passed"),
    Bug("a token accepted anyway needs the lossless rule as well, greedily", RULES, "xp.astype(passed | accepted_anyway, drafted.dtype)", "xp.astype(passed & accepted_anyway, drafted.dtype)"),
    Bug("what is accepted anyway is the target's choice all the same", RULES, "tokens = xp.where(accepted, xp.concat([drafted, _zero(xp, drafted)]), choice)", "tokens = choice"),
    Bug("greedily judged tokens are not told apart", RULES, "accepted[:-1] & ~passed, same", "accepted[:-1], same"),
    Bug("a token accepted anyway needs the lossless rule as well", RNG, "passed if accepted_anyway is None else passed | accepted_anyway", "passed if accepted_anyway is None else passed & accepted_anyway"),
    Bug("a correction after an accepted token is drawn from p", RULES, "weights = xp.where(xp.any(residual > 0), residual, row)",
        "weights = xp.where(xp.any(residual > 0), residual, row) if passed is None else row"),
    Bug("no standardising", NETWORK, '(xp.astype(features, xp.float32) - where["mean"]) / where["scale"]', "xp.astype(features, xp.float32)"),
    Bug("a mode asks for the wrong hidden rows", FEATURES, 'feed_last_token="draft_token" in self.parts', 'feed_last_token="target_token" in self.parts'),
    Bug("a judge for each position", JUDGED, "self.score(xp.concat(rows, axis=-1)) <",
        "xp.concat([self.score(row[None]) for row in xp.concat(rows, axis=-1)]) <"),
]  # fmt: skip

UNTRAINED = "specexp.decoding.untrained_rules"

RULE_BUGS = [
    Bug("typical acceptance at its bound", UNTRAINED, "axis=-1)[:, 0] > least", "axis=-1)[:, 0] >= least"),
    Bug("typical acceptance takes the greater bound", UNTRAINED, "None, self.epsilon)", "self.epsilon, None)"),
    Bug("typical acceptance grows with the entropy", UNTRAINED, "xp.exp(-entropy(p))", "xp.exp(entropy(p))"),
    Bug("the rows of typical acceptance are one late", UNTRAINED, "return scored.logits[: drafted.tokens.shape[0]]", "return scored.logits[1:]"),
    Bug("typical acceptance knows no entropy at the end of its dial", UNTRAINED, "return self.epsilon >= 1 and self.delta == math.inf", "return self.epsilon >= 1"),
    Bug("a gate opens at its entropy", UNTRAINED, "return entropy(self.warp.softened(rows)) > self.gate", "return entropy(self.warp.softened(rows)) >= self.gate"),
    Bug("a gate reads the draft's entropy", UNTRAINED, "return self._unsure(at_drafted(drafted, scored))",
        "return self._unsure(at_drafted(drafted, scored) if drafted.q is None else drafted.q)"),
    Bug("a gate's entropy is in bits", UNTRAINED, "return -_sum_of_logs(p, p)", "return -_sum_of_logs(p, p) / math.log(2)"),
    Bug("a gate at 1 is open", UNTRAINED, "if not drafted.tokens.shape[0] or self.gate >= 1:\n            return None\n        return self._unsure",
        "if not drafted.tokens.shape[0]:\n            return None\n        if self.gate >= 1:\n            return drafted.tokens == drafted.tokens\n        return self._unsure"),
    Bug("greedy rules see one-hot distributions", RULES, "return UNIT_TEMPERATURE if self.greedy else self", "return self"),
    Bug("rules see temperature 1 where another is sampled", RULES, "return UNIT_TEMPERATURE if self.greedy else self", "return UNIT_TEMPERATURE"),
    Bug("a window begins at the mismatch", UNTRAINED, "before[self.window + 1 :] - before[1 : inside + 1]", "before[self.window : -1] - before[:inside]"),
    Bug("a window is one too long", UNTRAINED, "before[self.window + 1 :] - before[1 : inside + 1]", "before[self.window + 1 :] - before[1 : inside + 1] - 1 + xp.astype(agrees[:inside], xp.int64)"),
    Bug("a window is one too short", UNTRAINED, "xp.concat([behind, none[inside:]]) == self.window", "xp.concat([behind, none[inside:]]) >= self.window - 1"),
    Bug("a window past the draft's end agrees", UNTRAINED, "xp.concat([behind, none[inside:]])", "xp.concat([behind, none[inside:] + self.window])"),
    Bug("a window agrees behind an EOS", UNTRAINED, "agrees = agrees & (xp.cumulative_sum(ends) == ends)", "pass"),
    Bug("FLy without its gate", UNTRAINED, "return unsure & self", "return unsure | self"),
    Bug("fuzzy acceptance at its bound", UNTRAINED, "(p, drafted.q) < self.bound", "(p, drafted.q) <= self.bound"),
    Bug("the divergence is of the target from the draft", UNTRAINED, "_sum_of_logs(q, q) - _sum_of_logs(q, p))", "_sum_of_logs(p, p) - _sum_of_logs(p, q))"),
    Bug("a symmetric distance has one side", UNTRAINED, "+ _sum_of_logs(q, q) - _sum_of_logs(q, middle)) / 2", ")"),
    Bug("a total variation is twice as large", UNTRAINED, "xp.sum(xp.abs(p - q), axis=-1) / 2", "xp.sum(xp.abs(p - q), axis=-1)"),
    Bug("a divergence is finite where the target says never", UNTRAINED, "xp.where(never, xp.full_like(p[..., 0], math.inf), _sum", "xp.where(never, xp.zeros_like(p[..., 0]), _sum"),
    Bug("a draft's greedy distributions are logits", DRAFTING, "q = UNIT_TEMPERATURE(to_device(_joined(chain.rows), place))", "q = to_device(_joined(chain.rows), place)"),
    Bug("a margin at its bound", JUDGED, "(below < self.margin)", "(below <= self.margin)"),
    Bug("a margin of probabilities that are renormalised over the best", JUDGED, "p = self.warp.softened(rows)",
        "p = type(self.warp)(self.warp.temperature or 1.0, self.k)(rows)"),
    Bug("a margin below the best logit", JUDGED, "p = self.warp.softened(rows)", "p = rows"),
    Bug("a margin without the K best", JUDGED, "return among_best & (below", "return (below"),
]  # fmt: skip

JUDGED_TREE_BUGS = [
    Bug("a drawn node is passed over", SPECEXEC, "missed = ~xp.any(child)", "missed = ~xp.any(child & ~anyway)"),
    Bug("the judged node of highest rank", SPECEXEC, "best = xp.min(xp.where(others, ranks, last))", "best = xp.max(xp.where(others, ranks, -1))"),
    Bug("a judged node of another parent", SPECEXEC, "others = children & anyway & missed", "others = (tokens >= 0) & inside & anyway & missed"),
    Bug("the draw is emitted in place of the judged node", SPECEXEC, "xp.where(judged[-1], xp.take(tokens, row[None], axis=0)[0], token)", "token"),
    Bug("the walk ends at a judged node", SPECEXEC, "        inside = xp.any(child)\n", "        inside = xp.any(child & (tokens == token))\n"),
    Bug("an EOS is judged", JUDGED, "            result = result & (tokens != eos)\n", "            pass\n"),
    Bug("a node's features are its parent's", JUDGED, '{"target_token": hidden,', '{"target_token": xp.take(hidden, above, axis=0),'),
    Bug("a node's features are the row's before it", JUDGED, '"target_previous": xp.take(hidden, above, axis=0)',
        '"target_previous": xp.take(hidden, xp.clip(xp.arange(hidden.shape[0]) - 1, 0, None), axis=0)'),
    Bug("a node's scalars are those behind it", JUDGED, "logits = xp.take(scored.logits, above, axis=0)", "logits = scored.logits"),
    Bug("what is important is judged", JUDGED, "result = self.score(xp.concat(rows, axis=-1)) <", "result = self.score(xp.concat(rows, axis=-1)) >="),
    Bug("a tree's judge at threshold 0 is asked", JUDGED, "        if self.threshold <= 0:\n", "        if self.threshold < 0:\n"),
    Bug("drawn nodes count as judged", SPECEXEC, "judged.append(missed & xp.any(child))", "judged.append(xp.any(child))"),
]  # fmt: skip

RULES_ON_TREES_BUGS = [
    Bug("a node stands in its own row", UNTRAINED, "xp.clip(parents, 0, None), axis=0), xp", "xp.arange(parents.shape[0]), axis=0), xp"),
    Bug("nodes stand in the root's row", UNTRAINED, "xp.clip(parents, 0, None), axis=0), xp", "parents * 0, axis=0), xp"),
    Bug("a node has the token of a lower id", UNTRAINED, "axis=0), xp.clip(tokens, 0, None)", "axis=0), xp.clip(tokens - 1, 0, None)"),
    Bug("typical acceptance is off on trees", UNTRAINED, "return None if self.is_off else self._likely", "return None if not self.is_off else self._likely"),
    Bug("what is unlikely is accepted", UNTRAINED, "[:, 0] > least", "[:, 0] <= least"),
]  # fmt: skip

ORDERED_ATTENTION, ORDERED_CACHE = "specexp.lm.kernels.ordered_attention", "specexp.lm.native.ordered_cache"
INVARIANCE = "specexp.lm.native.invariance"
KV = "specexp.lm.native.kv_cache"
ATTENTION = "specexp.lm.native.attention"
REFERENCE = "specexp.lm.kernels.reference"
CHOICE, CACHE, TIMED = (f"specexp.lm.kernels.product_{part}" for part in ("choice", "cache", "timing"))

BATCH_BUGS = [
    Bug("rows fed into the slots of the first", ATTENTION, "(self.used[:, None] * pool.", "(self.used[:1, None] * pool."),
    Bug("a row's tokens stand in the row before", ATTENTION, "fed += range(i * self.num, i * self.num + sizes[i])", "fed += range(max(0, i - 1) * self.num, max(0, i - 1) * self.num + sizes[i])"),
    Bug("keys of the first rows of the pool", ATTENTION, "slice(used[0], used[0] + self.count) if adjacent", "slice(0, self.count) if adjacent"),
    Bug("idle rows between are read as if they were fed", ATTENTION, "index_select(0, self.used)", "narrow(0, 0, self.count)"),
    Bug("padding is attended", ATTENTION, "sees = slots.clone(), column <= slots[:, :, None]", "sees = slots.clone(), (column <= slots[:, :, None]) | (column <= slots[:, -1:, None])"),
    Bug("positions of the longest row", ATTENTION, "positions, sees = slots.clone(),", "positions, sees = slots * 0 + slots.max(0).values,"),
    Bug("the answers are the next row's", ATTENTION, "range(len(fed) - feed.rows, len(fed))", "range(len(fed) - feed.rows + (i == 0), len(fed) + (i == 0))"),
    Bug("a padded row is as long as the longest", KV, "self.lengths[row] += feed.tokens.shape[0]", "self.lengths[row] += many.num"),
    Bug("a window by slots where there is a tree", ATTENTION, "(column if at is None else at[:, None, :]) > positions", "column > positions"),
    Bug("a tree's nodes stand in a chain", ATTENTION, "            positions[i, :size] = at[i, start : start + size]\n", ""),
    Bug("a tree's siblings see each other in a batch", ATTENTION, "            sees[i, :size, : start + size] = to_device(own_sees, place)\n", "            sees[i, :size] = column <= slots[i, :size, None]\n"),
    Bug("what attention found is not brought back to its tokens", ATTENTION, "return result if self.fed is None else result.index_select(0, self.fed)", "return result if self.fed is None else result[: len(self.fed)]"),
    Bug("answers stay in the order of rows", KV, "[answers[i] for i in range(len(feeds))]", "list(answers.values())"),
    Bug("every token of a row is scored", ATTENTION, "None if len(wanted) == len(fed) else integers(wanted, place)", "None"),
    Bug("hidden rows of the row before", KV, "torch.split(logits, sizes), torch.split(chosen, sizes)", "torch.split(logits, sizes), torch.split(chosen.roll(1, 0), sizes)"),
    Bug("growing forgets what was there", KV, "        self.values[:, :, : old.shape[2]] = old\n", "        self.values[:, :1, : old.shape[2]] = old[:, :1]\n"),
    Bug("slots are not reset when a row is used again", CONTEXT, "        self._session.truncate(common)\n        self._num_cached = common", "        self._session.truncate(self._session.length)\n        self._num_cached = common"),
    Bug("a context beyond its row", ENGINE, "return self._contexts[role][row]", "return self._contexts[role][max(0, row - 1)]"),
    Bug("the rng of the first row for every row", DRAFTING, "[chain.rng for chain in chains]", "[chains[0].rng for _ in chains]"),
    Bug("positions of the first row's rng for every row", DRAFTING, "[chain.position + step for chain in chains]", "[chains[0].position + step for chain in chains]"),
    Bug("every row drafts as far as the first", DRAFTING, "        chains = [self._begin(state, each) for state, each in asked]\n", "        chains = [self._begin(state, each) for state, each in asked]\n        for chain in chains:\n            chain.length = chains[0].length\n"),
    Bug("chains that end early are mistaken for each other", DRAFTING, "zip(going, result, strict=True):\n                if value <", "zip(going, reversed(result), strict=True):\n                if value <"),
    Bug("a round's values are read in another order", ENGINE, "for _, ask in asked for part in parts_of(ask)", "for _, ask in reversed(asked) for part in parts_of(ask)"),
    Bug("hidden rows of another chain", DRAFTING, '[c.state for c in behind], last), strict', '[c.state for c in behind], last)[::-1], strict'),
    Bug("the best tokens of another row", FORWARDS, "    for pair in ranked:\n", "    for pair in ranked[::-1]:\n"),
]  # fmt: skip

PAIRED, STATISTICS, METRICS = (
    "specexp.metrics.paired", "specexp.metrics.statistics", "specexp.metrics.summary",
)  # fmt: skip
RECORD_FILES = "specexp.storage.records"
SIMULATION, RECORDING = "specexp.scale.simulation", "specexp.scale.recording"
FEATURE_FILES, SHARDS = "specexp.judge.shards.feature_files", "specexp.lm.sharded.shards"
CALIBRATION, LABELS = "specexp.judge.calibration", "specexp.judge.labels"
PAIRED_AUC, RELIABILITY = "specexp.judge_comparison.paired_auc", "specexp.judge_report.reliability"

# Bugs that the tests of these files must catch by themselves: `pytest` on them fails.
EAGLE3 = "specexp.drafter.eagle3"
MTP, DFLASH, DFLASH_SESSION, DFLASH_CONFIG, LOADING, READING = (
    "specexp.lm.heads.mtp_session", "specexp.lm.heads.dflash", "specexp.lm.heads.dflash_session",
    "specexp.lm.heads.dflash_config", "specexp.lm.heads.loading", "specexp.lm.heads.reading",
)  # fmt: skip
CHOICES, KINDS, JSON_VALUES, MATHEMATICS, OWN_FUNCTION = (
    f"specexp.answers.{name}" for name in ("choices", "comparators", "json_values", "mathematics", "own_function")
)
EXPERIMENT, THINKING = "specexp.config.experiment", "specexp.pair.thinking"
THOUGHT = "specexp.engine.thought"
MEMORIES = "specexp.evaluation.scheduling"
SHOTS = TALKS = "specexp.tasks.conversations"
EXPLAINING = "specexp.engine_certify.explaining"
NEXT_TOKENS, BIAS_POWER = "specexp.engine_certify.next_tokens", "specexp.engine_certify.bias_power"
HANDOUT, DISPATCH = "specexp.workers.handout", "specexp.workers.dispatch"
PLACEMENT, ON_WORKERS = "specexp.workers.placement", "specexp.certify.on_workers"
ADVICE_MEASURING = "specexp.advise.workers.measuring"
ENGINE_STREAM = "specexp.engines.stream"

RECORDED_ROUNDS = "specexp.engine.recorded_rounds"
ROWS_FORWARD, BATCH_GRAPHS, RECORDED_DRAFT = (
    f"specexp.lm.native.{name}" for name in ("rows_forward", "batch_graphs", "recorded_draft")
)
TENSOR_TREE, TREE_GRAPHS, DEVICE_TREES = (
    "specexp.decoding.tensor_tree",
    "specexp.lm.native.tree_graphs",
    "specexp.engine.device_trees",
)

TIMERS, CALL_BENCH = "specexp.profiling.timers", "specexp.profiling.call_bench"
CALL_COSTS = "specexp.profiling.call_costs"
LAYER_STREAM, STREAMED_LAYERS, TRANSPORTS = (
    f"specexp.lm.streaming.{name}" for name in ("layer_stream", "streamed_layers", "transports")
)
OFFLOAD = "specexp.lm.hf.offload"
HARDWARE_CHECK, HARDWARE_TABLE = "specexp.benchmark.hardware_check", "specexp.benchmark.hardware_table"
NUMERICS_CHECK = "specexp.benchmark.numerics_check"
ASSUMED, OFFLOAD_CHECK, OFFLOAD_MODELS, OFFLOAD_TABLE = (
    "specexp.benchmark.assumed_acceptance", "specexp.benchmark.offload_check", "specexp.benchmark.offload_models",
    "specexp.benchmark.offload_table",
)  # fmt: skip

FILE_BUGS: dict[tuple[str, ...], list[Bug]] = {
    ("profiling/test_timers.py",): [
        Bug("an event is read before it happened", TIMERS, "            last.synchronize()\n", ""),
        Bug("each stretch is waited for", TIMERS, "        first, last = self._first, self._timer._recorded()\n", "        first, last = self._first, self._timer._recorded()\n        last.synchronize()\n"),
        Bug("milliseconds are seconds", TIMERS, "elapsed_time(last)) / 1e3", "elapsed_time(last))"),
        Bug("the clock is read before the device is done", TIMERS, "        self._wait()\n        seconds = self._clock() - self._start", "        seconds = self._clock() - self._start"),
        Bug("events are in the wrong order", TIMERS, "float(first.elapsed_time(last))", "float(last.elapsed_time(first))"),
        Bug("a stretch begins at its end", TIMERS, "first, last = self._first, self._timer._recorded()", "first = last = self._timer._recorded()"),
        Bug("the first event is waited for", TIMERS, "            last.synchronize()\n", "            first.synchronize()\n"),
        Bug("the clock starts before the device is done", TIMERS, "        self._wait()\n        return _ByClock(", "        return _ByClock("),
        Bug("the clock is read when seconds are asked for", TIMERS, "        seconds = self._clock() - self._start\n        return lambda: seconds", "        return lambda: self._clock() - self._start"),
        Bug("seconds are those of all calls", TIMERS, "return lambda: seconds() / calls", "return seconds"),
        Bug("models on a CPU are timed by events", TIMERS, "== \"cuda\":", "in (\"cuda\", \"cpu\"):"),
        Bug("a whole growth is a level", CALL_BENCH, "max(0.0, growth() - root()), tree.depth - 1)", "max(0.0, growth() - root()), 1)"),
        Bug("the root's call is a level's", CALL_BENCH, "max(0.0, growth() - root())", "growth()"),
        Bug("trees on the device are timed by asks", CALL_BENCH, "if not (isinstance(draft, GrowsTrees) and isinstance(target, GrowsTrees)):", "if True:"),
        Bug("a tree is not rewound", CALL_BENCH, "            yield from self._grown(tree, *both)\n            self._rewind()\n", "            yield from self._grown(tree, *both)\n"),
    ],
    ("profiling/test_call_costs.py",): [
        Bug("trees need a draft", CALL_BENCH, 'if tree.depth > 1 and "draft" in self._sessions:', "if tree.depth > 1:"),
    ],
    ("lm/test_round_counts.py",): [
        Bug("the logits of every round are kept", "specexp.lm.native.cuda_graphs", "        wanted = slice(num - rows, num)\n", "        wanted = slice(num - rows, num)\n        vars(self).setdefault('rounds', []).append(logits.clone())\n"),
        Bug("a recording is replayed twice", "specexp.lm.native.graph_capture", "self.num_replays += not recording.moves\n", "self.num_replays += 2 * (not recording.moves)\n        recording.replay()\n"),
        Bug("each array is read by itself", "specexp.engine.host_transfer", "        self.num_reads += 1\n", "        self.num_reads += len(distinct)\n"),
    ],
    ("benchmark/test_numerics_check.py",): [
        Bug("the cost of a step is turned round", NUMERICS_CHECK, "median(invariant_steps) / median(steps)", "median(steps) / median(invariant_steps)"),
        Bug("a tree costs what a step costs", NUMERICS_CHECK, ", median(invariant_trees) / median(trees)", ", median(invariant_steps) / median(steps)"),
        Bug("calls follow the whole prompt", NUMERICS_CHECK, "self._ids[: len(self._ids) // 2]", "self._ids"),
        Bug("calls are measured once", NUMERICS_CHECK, "for _ in range(self._repeats):", "for _ in range(1):"),
        Bug("what cannot be invariant is measured", NUMERICS_CHECK, "        invariance.require(invariant)\n", ""),
    ],
    ("benchmark/test_offload_check.py",): [
        Bug("the share is of one layer's bytes", OFFLOAD_TABLE, "ratio(self.bytes_per_call, min(ways))", "ratio(self.bytes_per_call / (self.copies_per_call or 1), min(ways))"),
        Bug("the share is of the faster way", OFFLOAD_TABLE, "min(ways)", "max(ways)"),
        Bug("the draft's calls cost nothing", OFFLOAD_TABLE, "self.expected / (self.draft + self.target)", "self.expected / self.target"),
        Bug("every drafted token is accepted", ASSUMED, "return (1 - acceptance ** (gamma + 1)) / (1 - acceptance)", "return gamma + 1.0"),
        Bug("a chain has no bonus", ASSUMED, "(1 - acceptance ** (gamma + 1))", "(1 - acceptance**gamma)"),
        Bug("siblings are as likely as the first", ASSUMED, "negative * (1 - acceptance), level)", "negative, level)"),
        Bug("the given acceptance is ignored", OFFLOAD_CHECK, "speeds = offload_table.speeds(numbers, check.acceptance, check.gamma)", "speeds = offload_table.speeds(numbers, 0.8, check.gamma)"),
        Bug("layers share storage where memory suffices", OFFLOAD_MODELS, "return needed > MOST_OF_MEMORY * available", "return True"),
        Bug("layers never share storage", OFFLOAD_MODELS, "return needed > MOST_OF_MEMORY * available", "return False"),
        Bug("layers share storage in words alone", OFFLOAD_MODELS, "offload.stream(module, shared)", "offload.stream(module)"),
        Bug("layers that stay are counted as needed", OFFLOAD_MODELS, "for number, size in enumerate(sizes) if number not in stay)", "for number, size in enumerate(sizes))"),
        Bug("layers that stay come by the hooks", OFFLOAD_MODELS, "on_device if name in kept else place", "place"),
        Bug("untimed calls are not counted", OFFLOAD_CHECK, "self._calls += 2 * ROW", "self._calls += ROW"),
        Bug("accelerate's failure ends the command", OFFLOAD_CHECK, "ids, attempts, \"hooked\", any_error=True)", "ids, attempts, \"hooked\")"),
        Bug("files are read to the device", STREAMED_LAYERS, "    slot.part._hf_hook.weights_map.dataset.device = \"cpu\"\n", ""),
    ],
    ("lm/test_streamed_layers.py",): [
        Bug("a layer computes before its copy", LAYER_STREAM, "        self._transport.wait_for(self._buffers[place].copied)\n", ""),
        Bug("a buffer is overwritten while its layer computes", LAYER_STREAM, "self._transport.copy(place, layer, buffer.computed)", "self._transport.copy(place, layer, None)"),
        Bug("a layer whose call failed is overwritten", LAYER_STREAM, "            buffer.computed, buffer.running = self._transport.computed(), False\n", "            pass\n"),
        Bug("the next layer is not sent for", LAYER_STREAM, "        if self._place(following) is None:", "        if False:"),
        Bug("the next call begins cold", LAYER_STREAM, "        following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]\n        if self._place(following)", "        following = self._layers[min(self._layers.index(layer) + 1, len(self._layers) - 1)]\n        if self._place(following)"),
        Bug("layers that stay take the buffers' memory", LAYER_STREAM, "memory - BUFFERS * max(sizes)", "memory"),
        Bug("a layer computes from the other buffer", LAYER_STREAM, "        return place\n\n    def end", "        return (place + 1) % len(self._buffers)\n\n    def end"),
        Bug("the next layer overwrites the one that computes", LAYER_STREAM, "self._fetch(following, (place + 1) % len(self._buffers))", "self._fetch(following, place)"),
        Bug("the layer after the next one is sent for", LAYER_STREAM, "following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]\n        if self._place(following)", "following = self._layers[(self._layers.index(layer) + 2) % len(self._layers)]\n        if self._place(following)"),
        Bug("the end of a layer is not noted", LAYER_STREAM, "self._buffers[place].computed, self._buffers[place].running = self._transport.computed(), False", "self._buffers[place].running = False"),
        Bug("only layers that fit with room to spare stay", LAYER_STREAM, "if sum(sizes) <= memory:", "if sum(sizes) < memory:"),
        Bug("the smallest layer counts", LAYER_STREAM, "max(0, memory - BUFFERS * max(sizes)) // max(sizes)", "max(0, memory - BUFFERS * min(sizes)) // min(sizes)"),
        Bug("the first layers stay", LAYER_STREAM, "return [i * len(sizes) // count for i in range(count)]", "return list(range(count))"),
        Bug("layers that stay are copied as well", STREAMED_LAYERS, "streamed = [number for number in range(len(layers)) if number not in self.resident]", "streamed = list(range(len(layers)))"),
        Bug("parameters are those of the first buffer", STREAMED_LAYERS, "= views[buffer][name]", "= views[0][name]"),
        Bug("weights stay between calls", STREAMED_LAYERS, "            slot.part._parameters[slot.name] = slot.empty\n", "            pass\n"),
        Bug("layers in host memory are held twice", STREAMED_LAYERS, "table.dataset.state_dict[f\"{table.prefix}{slot.name}\"] = layer.weights[name].view(flat)", "pass"),
        Bug("accelerate moves weights as well", STREAMED_LAYERS, "slot.part._hf_hook.offload = False  # nothing is left for it to move", "pass"),
        Bug("offload_memory is in GB", OFFLOAD, "int(self.memory * 2**30)", "int(self.memory * 10**9)"),
        Bug("layers stream on CUDA alone", OFFLOAD, "if self.device.type != \"cuda\" and self.memory is None:", "if self.device.type != \"cuda\":"),
        Bug("layers take all of a device's memory", TRANSPORTS, "int(free * (1 - KEPT_FREE))", "int(free)"),
    ],
    ("lm/test_layer_transports.py",): [
        Bug("a layer whose read failed is in its buffer", LAYER_STREAM, "buffer.layer = None  # until", "buffer.layer = layer  # until"),
        Bug("a read that failed is that of another layer", LAYER_STREAM, "        self._reading = {other", "        for other, read in self._reading.items():\n            if read[0] == buffer:\n                read[1].result()\n        self._reading = {other"),
        Bug("a layer that was given up is taken", LAYER_STREAM, "        self._reading = {other: read for other, read in self._reading.items() if read[0] != buffer}\n", ""),
        Bug("a read is not waited for", LAYER_STREAM, "        filled.result()\n        return buffer", "        return buffer"),
        Bug("a host buffer is read into while it is copied", LAYER_STREAM, "            if before is not None:\n                self._wait(before)\n", ""),
        Bug("a host buffer waits for the copy out of the other one", LAYER_STREAM, "buffer, before = self._newest, self._copied[self._newest]", "buffer, before = self._newest, self._copied[self._newest - 1]"),
        Bug("the layer that was copied is read again", LAYER_STREAM, "        following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]\n        if following not in", "        following = layer\n        if following not in"),
        Bug("the disk is read ahead of the wrong layer", LAYER_STREAM, "following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]\n        if following not in", "following = self._layers[(self._layers.index(layer) + 2) % len(self._layers)]\n        if following not in"),
        Bug("reading ahead ends with the last layer", LAYER_STREAM, "following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]\n        if following not in", "following = self._layers[min(self._layers.index(layer) + 1, len(self._layers) - 1)]\n        if following not in"),
        Bug("one host buffer has all layers", LAYER_STREAM, "self._newest = (self._newest + 1) % len(self._copied)", "self._newest = 0"),
        Bug("weights of a layer overlap", TRANSPORTS, "offset += -(-size // ALIGNED) * ALIGNED", "offset += size // ALIGNED * ALIGNED"),
        Bug("weights of a layer are not aligned", TRANSPORTS, "offset += -(-size // ALIGNED) * ALIGNED", "offset += size"),
        Bug("copies on a host are not noted", TRANSPORTS, "        self._source.copied(layer, True)\n", ""),
        Bug("buffers have the size of the first layer", TRANSPORTS, "        most = max(layer.size for layer in layers.values())\n        self.buffers = [torch.empty(most, dtype=torch.uint8, device=device)", "        most = next(iter(layers.values())).size\n        self.buffers = [torch.empty(most, dtype=torch.uint8, device=device)"),
        Bug("a copy does not wait for the layer before", TRANSPORTS, "        if after is not None:\n            self._stream.wait_event(after)\n", ""),
        Bug("copies are in the stream of the calls", TRANSPORTS, "with torch.cuda.stream(self._stream):", "with torch.cuda.stream(torch.cuda.current_stream(self._device)):"),
        Bug("a copy's event comes before the copy", TRANSPORTS, "            self.buffers[buffer][:size].copy_(host[:size], non_blocking=True)\n            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]\n            event.record(self._stream)\n", "            event: Any = torch.cuda.Event()\n            event.record(self._stream)\n            self.buffers[buffer][:size].copy_(host[:size], non_blocking=True)\n"),
        Bug("the host waits for copies", TRANSPORTS, "copy_(host[:size], non_blocking=True)", "copy_(host[:size])"),
        Bug("copies wait for copies in place of calls", TRANSPORTS, "torch.cuda.current_stream(self._device).wait_event(copied)", "self._stream.wait_event(copied)"),
        Bug("the end of a layer is noted in the stream of copies", TRANSPORTS, "        event.record(torch.cuda.current_stream(self._device))\n        return event", "        event.record(self._stream)\n        return event"),
        Bug("the reader does not learn of a copy's event", TRANSPORTS, "        self._source.copied(layer, event)\n", ""),
    ],
    ("benchmark/test_hardware_check.py",): [
        Bug("a ratio is turned round", HARDWARE_TABLE, "return None if value is None or not by else value / by", "return None if by is None or not value else by / value"),
        Bug("the reason of a ratio's other part is dropped", HARDWARE_TABLE, " or failed.get(by) or", " or"),
        Bug("a reason for all lines is dropped", HARDWARE_TABLE, " or failed.get(\"all\") or", " or"),
        Bug("a line that was not measured has no reason", HARDWARE_TABLE, "reason = \"\" if value is not None else failed", "reason = \"\" if value is None else failed"),
        Bug("a share is wanted to be small", HARDWARE_TABLE, "\"target_bound\", \"plain_step\", at_least=0.85", "\"target_bound\", \"plain_step\", at_most=0.85"),
        Bug("what is wanted is printed the other way", HARDWARE_TABLE, "wanted = f\"<= {self.at_most}\"", "wanted = f\">= {self.at_most}\""),
        Bug("seconds are milliseconds", HARDWARE_TABLE, "            value *= 1e3\n", "            pass\n"),
        Bug("the draft's share is of the target's bound", HARDWARE_TABLE, "\"draft_bound\", \"draft_step\"", "\"target_bound\", \"draft_step\""),
        Bug("v(8) is v(5)", HARDWARE_TABLE, "\"target_8\", \"plain_forward\"", "\"target_5\", \"plain_forward\""),
        Bug("v(5) is relative to a step with all it takes", HARDWARE_TABLE, "\"target_5\", \"plain_forward\"", "\"target_5\", \"plain_step\""),
        Bug("prompts together are compared with their number", HARDWARE_TABLE, "\"round_together\", \"round\", at_most", "\"round_together\", \"round_parts\", at_most"),
        Bug("a tree is compared with the chain's forwards", HARDWARE_TABLE, "f\"tree_{tree.nodes}_parts\", at_most", "\"round_parts\", at_most"),
        Bug("a tree's forwards leave out the draft's root", CALL_COSTS, "return self.draft_step + ((tree.depth - 1)", "return ((tree.depth - 1)"),
        Bug("a tree's draft makes a call on each level and at the root", CALL_COSTS, "(tree.depth - 1) * self.tree_draft", "tree.depth * self.tree_draft"),
        Bug("a tree is scored without its root", CALL_COSTS, "self.tree_drafts(tree) + self.tree_target[tree.nodes + 1]", "self.tree_drafts(tree) + self.target[1]"),
        Bug("a chain's forwards have one draft step too few", HARDWARE_CHECK, "return gamma * costs.draft_step", "return (gamma - 1) * costs.draft_step"),
        Bug("a chain is verified without the position that it begins after", HARDWARE_CHECK, "costs.target[gamma + 1]", "costs.target[gamma + 2]"),
        Bug("plain steps of one prompt are taken for several", HARDWARE_CHECK, "models, Baseline(Warp()), ids, check, 0, hardware_table.ROWS)", "models, Baseline(Warp()), ids, check, 0)"),
        Bug("rounds of one prompt are taken for several", HARDWARE_CHECK, "check, check.gamma, hardware_table.ROWS)", "check, check.gamma)"),
        Bug("one prompt is decoded in place of several", HARDWARE_CHECK, "            for row in range(rows)\n", "            for row in range(1)\n"),
        Bug("prompts wait for each other", HARDWARE_CHECK, "Engine(models, max_batch_size=rows)", "Engine(models, max_batch_size=1)"),
        Bug("rounds at the limit are timed", HARDWARE_CHECK, "if remaining > reach]", "if remaining > 0]"),
        Bug("the prefill is timed", HARDWARE_CHECK, "for (before, remaining), (after, _) in pairs", "for (before, remaining), (after, _) in [((0.0, reach + 1), stamps[0])]"),
        Bug("the bounds are of the target alone", HARDWARE_CHECK, "for role in (\"target\", \"draft\"))\n    plain", "for role in (\"target\", \"target\"))\n    plain"),
        Bug("the warm-up is the only one that is timed", HARDWARE_CHECK, "seconds[name] += [took / check.new_tokens] if repeat else []", "seconds[name] += [] if repeat else [took / check.new_tokens]"),
        Bug("a reason why memory did not suffice is dropped", HARDWARE_CHECK, "            failed[name] = f\"memory does not suffice: {first_line(error)}\"\n", "            pass\n"),
        Bug("every error is a lack of memory", HARDWARE_CHECK, "            if not is_exhausted(error):\n                raise\n", ""),
        Bug("a reason of generate is dropped", HARDWARE_CHECK, "return {name: failed.get(name) or median(times) for name, times in seconds.items()}", "return {name: median(times) for name, times in seconds.items() if times}"),
        Bug("what failed is tried again", HARDWARE_CHECK, "            if name in failed:\n                continue\n", ""),
        Bug("a reason of generate is a number", HARDWARE_CHECK, "failed = {name: value for name, value in generated.items() if isinstance(value, str)}", "failed: dict[str, str] = {}"),
    ],
    ("decoding/test_tensor_tree.py",): [
        Bug("a full tree's ties are expanded", TENSOR_TREE, "(self._scores > self._scores[-1:])", "(self._scores >= self._scores[-1:])"),
        Bug("a level too many", TENSOR_TREE, "growth.frontier(rows, depth > level)", "growth.frontier(rows, depth >= level)"),
        Bug("the branches expanded are not the best", TENSOR_TREE, "xp.where(chosen > 0, chosen, xp.full_like(chosen, _NO_NUMBER)), stable=True)", "xp.where(chosen > 0, -chosen, xp.full_like(chosen, _NO_NUMBER)), stable=True)"),
        Bug("ties go to the later node", TENSOR_TREE, "xp.argsort(all_scores, descending=True, stable=True)", "xp.flip(xp.argsort(all_scores, stable=True))"),
        Bug("scores of float32", TENSOR_TREE, "logprob = xp.astype(logprob, xp.float64)", "logprob = xp.astype(xp.astype(logprob, xp.float32), xp.float64)"),
        Bug("a log-probability above 0 is kept", TENSOR_TREE, "xp.clip(logprob, None, 0.0)", "logprob"),
        Bug("what is never emitted is padding", TENSOR_TREE, "xp.clip(totals, lowest, None)", "totals"),
        Bug("padding enters", TENSOR_TREE, "entering = active & ~by_threshold", "entering = ~by_threshold"),
        Bug("both prunings are charged", TENSOR_TREE, "by_log_prob = active & ~by_threshold &", "by_log_prob = active &"),
        Bug("the grandparent is not seen", TENSOR_TREE, "for _ in range(len(self._sizes.rows) - 1):", "for _ in range(min(1, len(self._sizes.rows) - 1)):"),
        Bug("every expanded node counts as active", TENSOR_TREE, "xp.max(xp.stack([old[ACTIVE], num[0]]))", "old[ACTIVE] + num[0]"),
    ],
    ("lm/test_device_trees.py",): [
        Bug("padding takes slots of the draft", TENSOR_TREE, "old[SLOTS] + (0 if is_root else num[0])", "old[SLOTS] + (0 if is_root else above.shape[1])"),
        Bug("the draft's siblings see each other", TREE_GRAPHS, "(self._forward.columns == (self._base + slots)[:, None])", "((self._forward.columns >= self._base) & (self._forward.columns <= (self._base + slots)[:, None]))"),
        Bug("the draft's nodes stand by slot", TREE_GRAPHS, "positions = self._base + depths - 1", "positions = self._base + slots"),
        Bug("the target's nodes stand by place", TREE_GRAPHS, "below = base + depths - 1", "below = base + columns[:places]"),
        Bug("the target's nodes see all of the tree", TREE_GRAPHS, "(columns < base) | inner, (columns", "(columns < base + places), (columns"),
        Bug("positions of nodes are counted as calls", DEVICE_TREES, "state.unsized[\"draft\"] = draft.grow(ask, depth)", "state.unsized[\"target\"] = draft.grow(ask, depth)"),
        Bug("banned ids are drafted", DEVICE_TREES, " or state.end.banned(len(state.ids) - state.num_prompt)", ""),
        Bug("the draft's numbers are not watched", DEVICE_TREES, "        state.peaks.append(LogitPeaks(\"draft\", tree.peak, drafts=True))\n", ""),
    ],
    ("lm/test_invariance.py",): [
        Bug("products of as many rows as there are", ORDERED_CACHE, "stack(_padded(tokens[start:stop], TILE), _padded_angles(angles, start, stop),", "stack(tokens[start:stop], angles.at(start, stop),"),
        Bug("logits of as many rows as there are", ORDERED_CACHE, "function(_padded(piece, TILE))", "function(piece)"),
        Bug("a tile's keys are those of the first tile", ORDERED_CACHE, "slots=self.slots[some]", "slots=self.slots[: stop - start]"),
        Bug("a tree's nodes read by slot", ORDERED_ATTENTION, "places = torch.where(seen, at, slots)", "places = torch.where(seen, columns, slots)"),
        Bug("blocks of as many positions as there are", ORDERED_ATTENTION, "group, blocks = heads // kv_heads, -(-index.shape[1] // BLOCK)\n", "BLOCK = index.shape[1]\n    group, blocks = heads // kv_heads, -(-index.shape[1] // BLOCK)\n"),
        Bug("the last block is left out of the sum", ORDERED_ATTENTION, "range(1, blocks)", "range(1, max(1, blocks - 1))"),
        Bug("the window is one too wide", ORDERED_ATTENTION, "(columns > positions[:, None] - window)", "(columns >= positions[:, None] - window)"),
        Bug("sinks have no weight", ORDERED_ATTENTION, "        total += torch.exp(each - peak)[:, :, 0, :, 0]\n", "        pass\n"),
        Bug("rows of a batch read the first row", ORDERED_CACHE, "indices.append(index + row * capacity)", "indices.append(index)"),
        Bug("experts pass", INVARIANCE, "if any(block.experts_per_token for block in model.native.spec.blocks):", "if not model.native.spec.blocks:"),
        Bug("trees are not compared", INVARIANCE, "(differing := [each for each in compare(model) if each.num_differing])", "(differing := [each for each in compare(model, trees=()) if each.num_differing])"),
        Bug("one weight with a kernel takes the place of tiles", "specexp.lm.native.native_forward", "not all(linear.is_chosen for linear in linears)", "not any(linear.is_chosen for linear in linears)"),
    ],
    ("config/test_numerics.py",): [
        Bug("offloaded weights pass", "specexp.config.models", '"offload": (model.offload, "none"), "quantization"', '"quantization"'),
        Bug("a head passes", "specexp.config.models", "            if model.head:\n                result.append(\n                    f\"numerics", "            if not model.head:\n                result.append(\n                    f\"numerics"),
        Bug("older folders do not resume", "specexp.config.experiment", '"tpot_bound": 0.0, "numerics": FASTEST,', '"tpot_bound": 0.0,'),
        Bug("a near tie explains it", "specexp.evaluation.divergence", "UNEXPLAINED if experiment.numerics == INVARIANT else explanation", "UNEXPLAINED if experiment.numerics == dtype else explanation"),
        Bug("a config's experts pass", "specexp.pair.first_look", "text.values.get(\"enable_moe_block\", True) and", "text.values.get(\"enable_moe_block\") and"),
        Bug("labels have no numerics", "specexp.config.mining", '"thinking_budget", "numerics")', '"thinking_budget")'),
    ],
    ("workers/test_handout.py",): [
        Bug("a unit that was lost is forgotten", HANDOUT, "        for entry in held:\n", "        for entry in held[1:]:\n"),
        Bug("the newest unit of a block is to blame", HANDOUT, "oldest = held.pop(0)", "oldest = held.pop()"),
        Bug("a fourth worker dies at a unit", HANDOUT, "if len(oldest.deaths) >= self._most_deaths:", "if len(oldest.deaths) > self._most_deaths:"),
        Bug("a death without blame counts", HANDOUT, "if held and blamed:", "if held:"),
        Bug("results come as they arrive", HANDOUT, "while self._open and (outcome := self._open[0].outcome) is not None:\n            del self._open[0]", "while (entry := next((x for x in self._open if x.outcome), None)) and (outcome := entry.outcome):\n            self._open.remove(entry)"),
        Bug("the window has no bound", HANDOUT, "while not self._exhausted and len(self._open) < self._window:", "while not self._exhausted:"),
        Bug("the shortest goes first", HANDOUT, "-len(self.deaths), -self.size, self.place", "-len(self.deaths), self.size, self.place"),
        Bug("what was lost waits like any other", HANDOUT, "-len(self.deaths), -self.size, self.place", "0, -self.size, self.place"),
        Bug("whole blocks at the end", HANDOUT, "most = 1 if self._exhausted and", "most = 1 if False and"),
        Bug("parts come after all others", HANDOUT, "self._open[at : at + 1] = made", "self._open.pop(at)\n        self._open.extend(made)"),
        Bug("the deaths of the whole count for its parts", HANDOUT, "_Entry((*entry.place, i), part, self._size(part)) for", "_Entry((*entry.place, i), part, self._size(part), list(entry.deaths)) for"),
    ],
    ("workers/test_dispatch.py",): [
        Bug("the dead are not replaced", DISPATCH, "self._staff(present + handout.is_wanted(present))", "self._staff(self.number - self.num_deaths)"),
        Bug("more workers than asked for", DISPATCH, "< min(wanted, self.number):", "< min(wanted, 2 * self.number):"),
        Bug("a result is written as it came", DISPATCH, "handout.done(worker, on_result(worker, result))", "on_result(worker, result)\n                    handout.done(worker, result)"),
        Bug("a worker gets the unit as it was", DISPATCH, "self.pool.submit(worker, on_submit(worker, unit))", "self.pool.submit(worker, unit)"),
        Bug("workers that die as they load are started for ever", DISPATCH, "self._failed_starts >= MOST_FAILED_STARTS and", "self._failed_starts >= 10**6 and"),
        Bug("the dead keep their place", DISPATCH, "self.facts.pop(worker, None)", "self.facts.get(worker)"),
    ],
    ("workers/test_certificate_units.py",): [
        Bug("costs of calls are not sent along", ON_WORKERS, "(Assignment(unit, self.costs) for unit in units)", "(Assignment(unit) for unit in units)"),
        Bug("parts of a unit forget what calls cost", ON_WORKERS, "[Assignment(part, self.costs) for part", "[Assignment(part) for part"),
        Bug("a unit is one step of the bar", ON_WORKERS, "tick(outcome.unit.unit.num_runs)", "tick(1)"),
        Bug("all workers are as fast as one", ON_WORKERS, "Pace(one.prefill / self.crew.number, one.token / self.crew.number)", "Pace(one.prefill, one.token)"),
        Bug("environments are in the order in which workers were ready", ON_WORKERS, "in sorted(self.crew.facts.items())", "in self.crew.facts.items()"),
        Bug("a sample is given the draws of its place in a unit", "specexp.certify.sampled", "for i in self.numbers)", "for i in range(len(self.numbers)))"),
        Bug("samples have one seed", "specexp.certify.sampled", "rng_for(experiment.temperature, experiment.seed,", "rng_for(experiment.temperature, 0,"),
        Bug("samples count at their unit's place", "specexp.certify.sampled", "counts[unit.salt] = counts.get(unit.salt, 0) + result", "counts[unit.salt] = result"),
        Bug("lost samples are left out of the test", "specexp.certify.sampled", "    if not targets or any(isinstance(each, Lost) and each not in lost for each in gone):", "    if not targets:"),
        Bug("outputs are in the order in which they end", "specexp.certify.own_models", "[by_place[place] for place in range(len(prompts))]", "list(by_place.values())"),
        Bug("a part is compared with another prompt's plain output", "specexp.certify.own_models", "MethodUnit({name: ids}, {name: self.plain[name]})", "MethodUnit({name: ids}, {name: next(iter(self.plain.values()))})"),
        Bug("a check passes without its lost prompts", "specexp.certify.work", "FAILED if check.verdict == FAILED else INCONCLUSIVE", "check.verdict"),
        Bug("a check that lacks prompts is kept for a resume", "specexp.certify.certificate", "if note is not None and LOST not in checks[name].details:", "if note is not None:"),
        Bug("a resumed check is done again", "specexp.certify.certificate", "            if name not in checks:\n                bar", "            if True:\n                bar"),
        Bug("a resume rereads what it has judged", "specexp.certify.certificate", "own_models.PLAIN not in checks)", "True)"),
    ],
    ("workers/test_advice_units.py",): [
        Bug("a worker's drafts follow no output", ADVICE_MEASURING, "output = value if kind == OUTPUTS else output", "output = output"),
        Bug("what calls cost is not sent along", ADVICE_MEASURING, "prepared if self.costs is None else measured_costs.adapted(prepared, self.costs)", "prepared"),
        Bug("results are numbered as they come", ADVICE_MEASURING, "            index = outcome.unit.index\n", "            index = bar.n - 1\n"),
        Bug("a resumed measurement is done again", ADVICE_MEASURING, "if (*kind, index) not in journal]", "]"),
        Bug("an output that is known is not sent along", ADVICE_MEASURING, "journal.unit(known, list) if known in journal else ()", "()"),
        Bug("workers are started for nothing", ADVICE_MEASURING, "    if not left:\n        return\n", ""),
        Bug("a prompt that was lost is passed over", ADVICE_MEASURING, "    if failed:\n", "    if False:\n"),
        Bug("of what a worker returns the last is written", ADVICE_MEASURING, "for kind, value in outcome.result or ():", "for kind, value in (outcome.result or ())[-1:]:"),
        Bug("a draft of any temperature is measured at the target's", "specexp.advise.untimed", "temperature = draft_temperatures(self.candidates)[key]", "temperature = None"),
    ],
    ("workers/test_placement.py",): [
        Bug("devices are shared with nobody", PLACEMENT, "if number > 1}", "if number > 9}"),
        Bug("a name that is asked for is not asked again", PLACEMENT, 'key = id(facts), str(facts["device"]) in self._crowded', "key = id(facts), False"),
        Bug("a device is shared no longer", PLACEMENT, "self._crowded |= {", "self._crowded = {"),
        Bug("drivers are all alike", PLACEMENT, '"driver": facts["driver"]}', '"driver": ""}'),
        Bug("a folder's nodes are forgotten", PLACEMENT, "nodes = {*saved.get(name, {}).get(WORKER, {}).get(NODES, ()), ", "nodes = {"),
        Bug("failures outlive their cause", "specexp.workers.failures", ".unlink(missing_ok=True)", ".exists()"),
        Bug("every worker logs its node", "specexp.workers.node_metrics", "self._watching.setdefault(node, worker) == worker", "bool(self._watching.setdefault(node, worker))"),
        Bug("nobody takes over", "specexp.workers.node_metrics", "            self._watching[node] = heir\n", "            pass\n"),
        Bug("nodes of one host have one name", "specexp.workers.node_metrics", ".count(host) > 1}", ".count(host) > 9}"),
        Bug("any store is reached", "specexp.workers.node_metrics", "self.store.startswith(_REMOTE)", "bool(self.store)"),
    ],
    ("lm/test_batch_graphs.py",): [
        Bug("rows that are not fed are written to", ROWS_FORWARD, "torch.where((start < 0)[:, None], self._scratch + self._columns[:num], slots)", "slots"),
        Bug("reserved slots hold sequences", KV, "        slots += self.reserved\n", ""),
        Bug("gathered rows are written in place", ROWS_FORWARD, "self.rows[:, None] * self._buffers.capacity", "(self.rows * 0 + self._columns[: self.rows.shape[0]])[:, None] * self._buffers.capacity"),
        Bug("the first rows are read", ROWS_FORWARD, "here[:count] if self._in_place else here.index_select(0, self._rows)", "here[:count]"),
        Bug("all rows stand where the first does", ROWS_FORWARD, "start.clamp(min=0)[:, None]", "start.clamp(min=0)[:1, None]"),
        Bug("a window of rows is one too wide", ROWS_FORWARD, "self._columns > slots[:, :, None] - window", "self._columns >= slots[:, :, None] - window"),
        Bug("every row has the first one's seed", BATCH_GRAPHS, "[key[0] for key in keys]", "[keys[0][0] for key in keys]"),
        Bug("answers are those of the rows' first tokens", BATCH_GRAPHS, "range(stop - feed.rows, stop)", "range(place * size, place * size + feed.rows)"),
        Bug("the padding of a row counts as fed", BATCH_GRAPHS, "pool.lengths[row] += feed.tokens.shape[0]", "pool.lengths[row] += size"),
        Bug("values are in the order of the feeds", ROWS_FORWARD, "result[place] = value", "result[self.places.index(place)] = value"),
        Bug("a row may be there twice", ROWS_FORWARD, "if row not in used]", "]"),
        Bug("a row that stopped counts what others draft", RECORDED_DRAFT, "number.add_(goes_on)", "number.add_(1)"),
        Bug("an unlikely token ends nothing", RECORDED_DRAFT, " & ~(chance.double() < ask.min_draft_probability)", ""),
        Bug("a chain ends with the first row that does", RECORDED_DRAFT, "(goes_on if ask.feed_last_token else following).any()", "(goes_on if ask.feed_last_token else following).all()"),
        Bug("the padding of a prompt needs room that is not there", "specexp.lm.native.cuda_graphs", "min(room, most)", "most"),
        Bug("a piece's scores are those of all its tokens", BATCH_GRAPHS, "min(max(feed.rows - (num - stop), 0), stop - start)", "min(feed.rows, stop - start)"),
    ],
    ("lm/test_recorded_rounds.py",): [
        Bug("recorded draws stand where the first ones did", RECORDED_ROUNDS, "[self.trial.position, *seeds,", "[0, *seeds,"),
        Bug("the seeds of a recording are swapped", RECORDED_ROUNDS, "ArrayRng((others[0], others[1]))", "ArrayRng((others[1], others[0]))"),
        Bug("a recording takes drafts for certain", CHAIN, '"q": needs.draft_q or not self.warp.greedy', '"q": False'),
        Bug("a recorded rule reads hidden rows of before", RECORDED_ROUNDS, 'parts.get("hidden")', 'parts["hidden"] * 0 if "hidden" in parts else None'),
        Bug("what happens once is recorded", RECORDED_ROUNDS, "        if self._seen[kind] < OFTEN:\n", "        if False:\n"),
        Bug("what may not be recorded is", RECORDED_ROUNDS, "if not (plain and trial.decision.recordable) or", "if not plain or"),
        Bug("recorded rounds emit ids that are banned", RECORDED_ROUNDS, " or state.end.banned(len(state.ids) - state.num_prompt)", ""),
        Bug("nobody looks at a recording's logits", RECORDED_ROUNDS, "self.state.peaks.append(LogitPeaks(self.ask.model, peaks))", "pass"),
        Bug("positions of a recorded round are not counted", RECORDED_ROUNDS, "self.state.fed(ask.model, self.context.num_fed(ask))", "self.state.fed(ask.model, 1)"),
        Bug("nodes of a recorded round are not counted", RECORDED_ROUNDS, "self.state.unsized[ask.model] = self.context.num_unfed", "pass"),
        Bug("noise of the first position for all", RNG, "xp.arange(count, dtype=xp.int64, device=where) + position", "xp.arange(count, dtype=xp.int64, device=where) * 0 + position"),
        Bug("a round's own draws are any round's", RNG, "ArrayRng(HashRng.of_round(self, start).key)", "self"),
        Bug("a path is moved while it is recorded", TREE_GRAPHS, "(graphs.zeros(1), nowhere), moves=True)", "(graphs.zeros(1), nowhere))"),
        Bug("a recorded chain is told the wrong tokens", "specexp.lm.native.feed_through", "fed[num - more : num]", "fed[:more]"),
        Bug("a chain of the host's is fed in place of the device's", "specexp.lm.native.graph_capture", "buffer[len(value.ids) :][", "buffer[:]["),
        Bug("padding counts as drafted", RECORDED_ROUNDS, "[] if self.padded_to is None else [self.num_drafted]", "[] if self.padded_to is None else [self.padded_to]"),
        Bug("what is padded teaches lengths", RECORDED_ROUNDS, "each[:length] for each, length in zip(watched, lengths, strict=False)", "each for each in watched"),
        Bug("a padded draft may be accepted anyway", RULES, "accepted_anyway = None if accepted_anyway is None else accepted_anyway & there", "accepted_anyway = accepted_anyway"),
        Bug("padding is what the residual lacks", RULES, "xp.where(there[:, None], q, xp.zeros_like(q))", "q"),
        Bug("a whole padded chain is followed by a correction", RULES, "drafted.shape[0] if num_drafted is None else num_drafted)", "drafted.shape[0])"),
        Bug("every row is told the first one's tokens", "specexp.lm.native.feed_through", "made.append(then(tokens[stop - more : stop],", "made.append(then(tokens[num - more : num],"),
        Bug("rows of a recording are read by place", "specexp.lm.native.feed_through", "if in_order else made.index_select(0, places)", "if in_order else made[: len(rows)]"),
        Bug("all inputs of a decision are one", "specexp.lm.native.graph_capture", "key, size = (place, like.dtype), math.prod(shape)", "key, size = like.dtype, math.prod(shape)"),
        Bug("a kind is recorded once for all shapes", "specexp.lm.native.feed_through", 'then, _kinds(given))\n    inputs = (ids if', 'then)\n    inputs = (ids if'),
    ],
    ("engine_certify/test_engine_certificate_parts.py",): [
        Bug("the pooled mass is left out", NEXT_TOKENS, "p = weights[kept] / (weights[kept].sum() + rest)", "p = weights[kept] / weights[kept].sum()"),
        Bug("top-p before the temperature is top-p after it", NEXT_TOKENS, "if warping.top_p_first:\n", "if False:\n"),
        Bug("a nucleus that is not known is taken for whole", NEXT_TOKENS, "if rest and p.sum() < warping.top_p:", "if False:"),
        Bug("an EOS that the server leaves out stays out", ENGINE_STREAM, "return [*ids, ends[0]] if left_out else list(ids)", "return list(ids)"),
        Bug("a stop string is taken for an EOS", ENGINE_STREAM, "and ends and not stops and (", "and ends and ("),
        Bug("an EOS is there twice", ENGINE_STREAM, "and (not ids or ids[-1] not in ends)", ""),
        Bug("a bias needs a fourth of the samples", BIAS_POWER, "4 * num_samples * variation**2", "16 * num_samples * variation**2"),
        Bug("a rare leftover cell tells as a frequent one does", BIAS_POWER, "    rare = chi_square.is_rare(fair, num_samples)\n    moved, share = chi_square.merged(other, fair, num_samples)", "    rare, moved, share = False, other, fair"),
        Bug("cells that expect few outputs reject what is true", BIAS_POWER, "    if rare.any():", "    if False:"),
        Bug("what cannot occur may", BIAS_POWER, "    if counts[probability < _FLOOR].any():", "    if False:"),
        Bug("half of the samples make the truth likelier", BIAS_POWER, "number = min(number, root**2)", "number = min(number, root**2 / 2)"),
        Bug("greedy decoding is explained at any temperature", "specexp.engine_certify.findings", "if asked.temperature >= temperature else asked", ""),
        Bug("one of several is a finding though it is known", "specexp.engine_certify.findings", " and not (each.fitting and each.names & told)]", "]"),
        Bug("a bound that is not corrected for what is searched", BIAS_POWER, "each = level / (2 * len(groups))", "each = 0.5"),
        Bug("what follows from a cause is a finding", "specexp.engine_certify.findings", "if not each.names & following and not (each.fitting and each.names & told)]", "if not (each.fitting and each.names & told)]"),
        Bug("another distribution keeps the cells' own shares", "specexp.certify.chi_square", "share = mass * float(p[token]) if token < len(p) else 0.0", "share = mass * node.shares[token]"),
        Bug("Holm's procedure corrects all alike", "specexp.certify.chi_square", "(len(ps) - rank) * ps[place]", "len(ps) * ps[place]"),
        Bug("an engine is compared with nothing", "specexp.engine_certify.engine_certificate_config", "if not options.against and not weights and not faults:", "if False:"),
    ],
    ("sequences/test_lazy.py",): [
        Bug("an index error ends the sequence", "specexp.sequences.lazy", "return iter(self._each()) if self._each is not None else map(self._make, self._places)", "return super().__iter__()"),
        Bug("a part is yielded as the whole", "specexp.sequences.lazy", "result._places, result._each = places, None", "result._places = places"),
        Bug("what was used first is kept", "specexp.sequences.lazy", "self._kept.popitem(last=False)[1][1]", "self._kept.popitem(last=True)[1][1]"),
        Bug("using an item does not count", "specexp.sequences.lazy", "                self._kept.move_to_end(place)\n", ""),
        Bug("an item that is put again takes more", "specexp.sequences.lazy", "if size > self._most or place in self._kept:", "if size > self._most:"),
        Bug("what is too large empties the rest", "specexp.sequences.lazy", "if size > self._most or place in self._kept:", "if place in self._kept:"),
        Bug("names that share 64 bits are one", "specexp.sequences.names", "if self._low[place] == low:", "if True:"),
        Bug("sorting loses numbers", "specexp.sequences.names", "np.array([*self._recent.values()], np.uint32)", "np.arange(len(self._recent), dtype=np.uint32)"),
        Bug("ids are the caller's and the next one's", "specexp.sequences.token_ids", "lambda index: recent(index).tolist(), number", "lambda index: recent(index), number"),
        Bug("lengths of parts are those of the first", "specexp.sequences.token_ids", "LazySequence(self._lengths.__getitem__, self._places)", "LazySequence(self._lengths.__getitem__, len(self._places))"),
        Bug("prompts are refused after all are encoded", "specexp.sequences.token_ids", "            check(index, ids)\n            self._lengths.append(len(ids))", "            self._lengths.append(len(ids))\n            check(number - 1, ids)"),
        Bug("the last of the longest", "specexp.sequences.token_ids", "return max(range(len(lengths)), key=lengths.__getitem__)", "return max(reversed(range(len(lengths))), key=lengths.__getitem__)"),
        Bug("a line that was written over is read", "specexp.sequences.file_lines", "if zlib.crc32(line) != self._sums[index]:", "if False:"),
    ],
    ("engine_certify/test_planted_bugs.py",): [
        Bug("a server that has died is one that fails under load", "specexp.engine_certify.stability_checks", "if together == 1 or not subject.is_answered(engine, asked[0]):", "if together == 1:"),
        Bug("under load is also what comes next", "specexp.engine_certify.stability_checks", "subject.together = 1", "pass"),
    ],
    ("engine_certify/test_explanations.py",): [
        Bug("the first of several explanations is named", "specexp.engine_certify.findings", "if len(names) == 1:", "if names:"),
        Bug("nothing is drawn to tell", EXPLAINING, "if len({each.name for each in left}) < 2 or most < FEWEST:", "if True:"),
        Bug("what is drawn to tell has no bound", EXPLAINING, "for number in apart if number <= most]", "for number in apart if number <= 100_000]"),
        Bug("what is drawn to tell is not looked at", EXPLAINING, "left, is_confirmed = fitting(sampled, explanations), is_alone", "left, is_confirmed = left[:1], is_alone"),
        Bug("a cut near a token tells", EXPLAINING, "target.under(each.sampled(target.warping), MARGIN[subject.config.dtype])", "target.under(each.sampled(target.warping))"),
        Bug("a value that is refused is asked for again and again", EXPLAINING, "warpings.remove(target.warping)\n            continue", "break"),
        Bug("a name is not confirmed", EXPLAINING, "if most < FEWEST:\n        return None\n    result, best, bias", "if True:\n        return None\n    result, best, bias"),
        Bug("a name is confirmed where it was seen", EXPLAINING, "worth = ((target.place.prompt, target.place.after) not in known and apart >= bias, apart)", "worth = (False, apart)"),
        Bug("few outputs confirm", EXPLAINING, "number = min(max(bias_power.samples_needed(len(p), bias, FIT), FEWEST), most)", "number = FEWEST"),
        Bug("an explanation need not fit", EXPLAINING, "if all(bias_power.fits(counts, p, FIT) for counts, p in both):", "if True:"),
        Bug("what top-p does is not told at other temperatures", "specexp.engine_certify.parameter_checks", "for each in (name, TEMPERATURE) for value", "for each in (name,) for value"),
        Bug("the first place is sampled, however many samples it takes", "specexp.engine_certify.parameter_checks", "elif (needed, apart) < least:", "elif best.target is None:"),
    ],
    ("engine_certify/test_text_alone.py",): [
        Bug("tokens of a split text are taken for those that were emitted", "specexp.engine_certify.greedy_checks", "if outputs.engine[prompt].split and any(one.kind == BUG for one in each):", "if False:"),
        Bug("equal texts are compared by their tokens", "specexp.engine_certify.divergences", "    if output.text == expected.text:\n        return None\n", ""),
        Bug("any text goes on with any token", "specexp.engine_certify.divergences", "return text.startswith(subject.prepared.pair.text.decode([*emitted, token]).rstrip(\"\\ufffd\"))", "return True"),
        Bug("an end is not looked for", "specexp.engine_certify.divergences", "len(emitted) < output.num_tokens + output.ended:", "len(emitted) < output.num_tokens:"),
        Bug("a text is split without what is before it", "specexp.engine_certify.served_output", "(known.decode(after) if after else \"\")", "\"\""),
        Bug("no text is split otherwise", "specexp.engine_certify.sampled_places", "moved += float(p[token])", "moved += 0.0"),
        Bug("a rare cell shows no single output", "specexp.engine_certify.sampled_places", "samples * least >= chi_square.LEAST_EXPECTED and ", ""),
        Bug("a forced token is looked for among split ones", "specexp.engine_certify.request_checks", "    if answer.split:\n", "    if False:\n"),
    ],
    ("engines/test_engine_client.py",): [
        Bug("a validation error is asked again", "specexp.engines.responses", "(status == 500 and VALIDATION.search(said) is not None)", "False"),
        Bug("what is refused takes all of its kind with it", "specexp.engines.client", "off += [each for each in given if self._takes(prompt, replace(bare, off=(each,)), switch)][:1]", "off += []"),
        Bug("what turns settings off overrides them", "specexp.engines.body", "**dict(wanted.off), **sampling.fields(),\n        **wanted.fields(endpoint.api),", "**sampling.fields(), **dict(wanted.off),\n        **wanted.fields(endpoint.api),"),
        Bug("llama.cpp's ids are those of its log-probabilities", "specexp.engines.stream", " or verbose.get(\"tokens\") or []", " or []"),
    ],
    ("engines/test_acceptance_counts.py",): [
        Bug("all drafts may be lost at an end", "specexp.engines.acceptance", "        longest = self.longest\n", "        longest = drafted\n"),
        Bug("llama.cpp's counters are not its own", "specexp.engines.acceptance", 'r"(vllm|llamacpp):', 'r"(vllm):'),
        Bug("calls are not counted", "specexp.engines.acceptance", "((rounds or 0) if calls is None else calls)", "(rounds or 0)"),
    ],
    ("load_testing/test_loops.py",): [
        Bug("one client too many", "specexp.load_testing.loops", "for _ in range(clients))", "for _ in range(clients + 1))"),
        Bug("the warm-up counts", "specexp.load_testing.loops", "            if counting.begun is None:\n                warmed", "            if counting.begun is None:\n                counting.count(number, result, loop.time())\n                warmed"),
        Bug("a failure is no pause", "specexp.load_testing.loops", "await asyncio.sleep(_pause(result))", "await asyncio.sleep(0)"),
        Bug("what did not end is forgotten", "specexp.load_testing.loops", "            for number in unfinished:\n", "            for number in unfinished[:0]:\n"),
        Bug("times are from when a late client sent", "specexp.load_testing.loops", "counting.count(number, result, loop.time(), late)", "counting.count(number, result, loop.time())"),
        Bug("arrivals at twice the rate", "specexp.load_testing.levels", "rng.exponential(1 / rate,", "rng.exponential(0.5 / rate,"),
        Bug("every round has the same arrivals", "specexp.load_testing.levels", "[seed, number, 0x10AD]", "[seed, 0x10AD]"),
    ],
    ("load_testing/test_estimates.py",): [
        Bug("goodput has one bound", "specexp.load_testing.estimates", "return in_time and (", "return in_time or ("),
        Bug("a draw of longer requests takes no longer", "specexp.load_testing.estimates", "window = segment.seconds * sums[:, 3] / whole[3]", "window = np.full(draws + 1, segment.seconds)"),
        Bug("methods draw other rounds", "specexp.load_testing.estimates", "picks = np.random.default_rng(0)", "picks = np.random.default_rng()"),
        Bug("speculation ends to pay at the first level where it does not", "specexp.load_testing.estimates", "np.where(pays.any(axis=0), len(levels) - np.argmax(pays[::-1], axis=0), 0)", "np.where(pays.all(axis=0), len(levels), np.argmin(pays, axis=0))"),
        Bug("failures take none of the client's time", "specexp.load_testing.capacity", "len(each.samples) + len(each.failures)", "len(each.samples)"),
    ],
    ("e2e/test_served_engines.py",): [
        Bug("log-probabilities count nothing", "specexp.evaluation.served", "by_logprobs = more.num_tokens and not offer.num_tokens", "by_logprobs = False"),
        Bug("log-probabilities are asked for where tokens are counted", "specexp.evaluation.served", "by_logprobs = more.num_tokens and not offer.num_tokens", "by_logprobs = more.num_tokens"),
        Bug("a server without its model goes on", "specexp.evaluation.served_resume", "if model in before[\"models\"] and", "if False and"),
        Bug("ids and texts are mixed", "specexp.evaluation.served_resume", "if before[\"compared_by\"] != now[\"compared_by\"]:", "if False:"),
        Bug("another first output is not told", "specexp.evaluation.served_resume", "if len(firsts) > 1:", "if False:"),
    ],
    ("engines/test_recorded_answers.py", "engines/test_acceptance_counts.py"): [
        Bug("a histogram counts rounds at one place alone", "specexp.engines.acceptance", "sum(histogram[i:])", "histogram[i]"),
    ],
    ("pair/test_served_tokenizer.py",): [
        Bug("another tokenizer is taken", "specexp.pair.served_tokenizer", "    if wrong:", "    if False:"),
        Bug("a toy takes a tokenizer", "specexp.pair.loading", "        check_toy(experiment)\n", ""),
    ],
    ("advise/test_engine_advice.py",): [
        Bug("the first engine is compared with itself", "specexp.advise.engines.engine_advice", "order[1] if order[0] == first else first", "first"),
        Bug("the slowest is advised", "specexp.advise.engines.engine_advice", "key=lambda label: -metrics[label][\"speed/tokens_per_second\"]", "key=lambda label: metrics[label][\"speed/tokens_per_second\"]"),
        Bug("chance is called sure", "specexp.advise.engines.engine_advice", "return self.p < SIGNIFICANT", "return True"),
    ],
    ("advise/test_engine_prediction.py",): [
        Bug("q / p is p / q", PREDICTION, "more = [one / other if other else 1.0 for one, other in", "more = [other / one if one else 1.0 for one, other in"),
        Bug("the draft is a place ahead", PREDICTION, "[*out.prompt_ids, *seen[:start]], piece)", "[*out.prompt_ids, *seen[: start + 1]], piece)"),
        Bug("every round has a draft", PREDICTION, "for drafted, number in rounds.by_drafted.items() if drafted)", "for drafted, number in rounds.by_drafted.items())"),
        Bug("a place counts rounds that end there", PREDICTION, "if accepted > place)", "if accepted == place + 1)"),
        Bug("a block is verified token by token", PREDICTION, 'block = method.rule == "block" and experiment.temperature > 0', "block = False"),
        Bug("a draft has one temperature", PREDICTION, "draft_warp = out.token_ids[: max(0, draft_limit)], warp.of_draft(draft_temperature)", "draft_warp = out.token_ids[: max(0, draft_limit)], warp.of_draft(None)"),
        Bug("log-probabilities of other settings are taken", PREDICTION, "(warp.temperature, warp.top_k, warp.top_p) != (1.0, 0, 1.0)", "False"),
        Bug("calls cost nothing", PREDICTION, "self.tokens / (self.calls + costs.per_drafted * self.drafted)", "self.tokens / (costs.per_drafted * self.drafted + 1)"),
        Bug("a round costs what a token does", PREDICTION, "(token * length / step - 1) / drafted", "(token / step - 1) / drafted"),
        Bug("an engine that drafts is a plain one", PREDICTION, 'if metrics[plain].get("accept/drafted_length") or None in times', "if None in times"),
        Bug("slower than plain decoding is recommended", PREDICTION, "fastest.speedup(costs) > 1 else None", "fastest.speedup(costs) > 0 else None"),
        Bug("an output's end is forgotten", OUTPUTS, "else answer.with_end(ids, ends, prepared.stop_texts)", "else ids"),
        Bug("a server's own limit is not one", OUTPUTS, 'limit = len(ids) if answer.finish_reason == "length" else', 'limit = len(ids) if answer.finish_reason == "never" else'),
        Bug("load settings are dropped", "specexp.advise.engines.engine_advice", "engine_prediction.faults(experiment) + load_settings.refused(experiment)", "engine_prediction.faults(experiment)"),
    ],
    ("serving/test_allocator.py",): [
        Bug("threads have arenas of their own", "specexp.serving.allocator", "mallopt(M_ARENA_MAX, 1) == 1", "mallopt(M_ARENA_MAX, 64) == 1"),
        Bug("the environment decides nothing", "specexp.serving.allocator", "if environment.get(CHOSEN):", "if False:"),
        Bug("a full collection waits", "specexp.serving.allocator", "    gc.freeze()\n    gc.collect()\n", "    gc.freeze()\n"),
    ],
    ("lm/test_linear_rows.py",): [
        Bug("every number of rows has a primitive", "specexp.lm.blocks.linear", "if num <= MOST_EXACT_ROWS:", "if num:"),
        Bug("weights are joined again", "specexp.lm.blocks.linear", " if before is None else before", ""),
        Bug("weights in another order are as they were", "specexp.lm.blocks.linear", " or weight.storage_offset() != place", ""),
        Bug("rows of zeros come out", "specexp.lm.blocks.linear", "pad(x, (0, 0, 0, more)))[:num]", "pad(x, (0, 0, 0, more)))"),
        Bug("residuals are not padded", "specexp.lm.blocks.linear", "pad(x, (0, 0, 0, more)), pad(residual, (0, 0, 0, more))", "pad(x, (0, 0, 0, more)), residual"),
    ],
    ("serving/test_openai_interface.py",): [
        Bug("a choice is in a cycle", "specexp.serving.completion_service", "partial(self._ended, weakref.ref(choice))", "partial(self._ended, lambda: choice)"),
        Bug("a request without a seed has the server's", SERVICE, 'if "seed" not in wanted.params:', "if False:"),
        Bug("speculation is not switched off", SERVICE, "if not wanted.speculation:", "if False:"),
        Bug("nothing bounds what waits", SERVICE, "if len(self._open) + len(choices) > space:", "if False:"),
        Bug("what has ended takes a place", SERVICE, "            self._open.discard(choice)\n", ""),
        Bug("scores are those of the token before", SERVICE, "known[:first], known[first:-1]", "known[: first - 1], known[first - 1 : -1]"),
        Bug("a prompt counts for each of its outputs", "specexp.serving.openai_answers", "choices[:: self.wanted.num_choices]", "choices"),
        Bug("any key is one", "specexp.serving.openai_app", '(scheme.lower() == "bearer" and any(matches))', 'scheme.lower() == "bearer"'),
        Bug("the held end of a text is not sent", "specexp.serving.openai_app", "                    pieces[choice].close()\n", ""),
        Bug("a place counts rounds that end there", "specexp.serving.server_metrics", "sum(by_accepted[place + 1 :])", "by_accepted[place + 1]"),
        Bug("log-probabilities are not normalised", "specexp.serving.log_probabilities", "rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))", "rows"),
        Bug("a cancelled output is decoded to its end", "specexp.serving.choices", "return self.is_cancelled() or (", "return ("),
        Bug("penalties are dropped", READER, "faults += _not_neutral(given) + _wrong_kinds(given)", "faults += _wrong_kinds(given)"),
        Bug("all tokens are none", READER, 'if key == "top_k" and value == -1:', "if False:"),
    ],
    ("judge/test_comparator_mining.py",): [
        Bug("mining compares texts, whatever the comparator", MINING, "self._task.comparator.equal(answer, before, example)", "answer == before"),
        Bug("the comparator is asked the other way round", MINING, "self._task.comparator.equal(answer, before, example)", "self._task.comparator.equal(before, answer, example)"),
        Bug("after an unimportant swap its answer is the one before", MINING, "            if important is False:\n", "            answer = result if important is False and result is not None else answer\n            if important is False:\n"),
    ],
    ("answers/test_comparators.py",): [
        Bug("an article is a choice", CHOICES, 'found["letter"] in "AI"', 'found["letter"] in "I"'),
        Bug("one of two choices is the answer", CHOICES, "None if _MORE.match(text, found.end()) else", "None if False else"),
        Bug("the first choice counts", CHOICES, "reversed(list(_LEAD.finditer(text)))", "list(_LEAD.finditer(text))"),
        Bug("a choice may end where an unfinished text does", CHOICES, "letter if finished or whole.end() < len(text) else None", "letter"),
        Bug("numbers of a set keep their order", KINDS, "map(numbers.canonical, sorted(values))", "map(numbers.canonical, values)"),
        Bug("a set may hold what is no number", KINDS, "if found and None not in found else None", "if values else None"),
        Bug("1,234 is two numbers", KINDS, "if _UNCLEAR.search(bare):", "if False:"),
        Bug("a key may be given twice", JSON_VALUES, "if len(result) < len(pairs):", "if False:"),
        Bug("1.0 is not 1", JSON_VALUES, "int(value) if value.is_integer() and abs(value) < 2**53 else value", "value"),
        Bug("a brace that is escaped closes a box", MATHEMATICS, 'if text[place - 1] != "\\\\" else 0', "if True else 0"),
        Bug("a function is asked the other way round", OWN_FUNCTION, "self.function(answer, other)", "self.function(other, answer)"),
        Bug("a similarity must exceed its threshold", OWN_FUNCTION, "similarity >= self.min_similarity", "similarity > self.min_similarity"),
        Bug("True is a similarity of 1", OWN_FUNCTION, 'if str(said) in ("True", "False"):', "if False:"),
        Bug("a comparator is no part of the hash", EXPERIMENT, "(value != LATER_OF_EXPERIMENT[key] and value not in ((), [], None))", "False"),
    ],
    ("pair/test_thinking.py",): [
        Bug("an answer follows the first thought", THINKING, "text.rpartition(self.end)", "text.partition(self.end)"),
        Bug("an unfinished second thought is an answer", THINKING, "None if begun or (not ended", "None if (not ended"),
        Bug("a thought that the prompt begins is forgotten", THINKING, "None if begun or (not ended and self._is_open(decoder, prompt)) else rest", "None if begun else rest"),
        Bug("a thought that the prompt ends is open", THINKING, "_last(rest, self.end_ids) < 0 and", ""),
    ],
    ("tasks/test_benchmarks.py",): [
        Bug("an index need not be the letter's", "specexp.tasks.benchmarks", "index is not None and index != letters.index(answer)", "False"),
        Bug("placeholders are questions", "specexp.tasks.questions", "if any(turn.startswith(PLACEHOLDER) for turn in turns):", "if False:"),
        Bug("splits of long prompts share codes", "specexp.tasks.long_prompts", "code % 8 in SPLITS[split] and", ""),
        Bug("codes come on top of the length", "specexp.tasks.long_prompts", " - sum(len(fact) + 1 for fact in facts)", ""),
        Bug("labels are mined on an evaluation's rows", "specexp.config.mining", "in ONE_SPLIT and not skip:", "in ONE_SPLIT and False:"),
    ],
    ("drafter/test_eagle3_head.py",): [
        Bug("a later step sees the target's states at drafted tokens", EAGLE3, ".tril(start - step)", ".tril(start)"),
        Bug("keys of a later step are one row late", EAGLE3, "_moved(keys[j], step - j)", "_moved(keys[j], step - j + 1)"),
        Bug("values of a later step stay where they are", EAGLE3, "_moved(values[j], step - j)", "values[j]"),
        Bug("a later step has its own row's output as its feature", EAGLE3, "functional.pad(out[:, :-1], (0, 0, 1, 0))", "out"),
        Bug("the feature comes first", EAGLE3, "functional.linear(embedded, weight[:, :size])", "functional.linear(embedded, weight[:, size:])"),
        Bug("the residual is the normed feature", EAGLE3, "after = feature + attn", "after = normed + attn"),
        Bug("positions begin at one", EAGLE3, "torch.arange(rows, device=frequencies.device)", "torch.arange(2, 2 * rows + 2, 2, device=frequencies.device)"),
        Bug("chains begin in the prompt", "specexp.drafter.training", "row >= first[:, None] + step", "row >= first[:, None]"),
        Bug("offsets are ids", EAGLE3, "ids - torch.arange(len(ids))", "ids - 0"),
    ],
    ("engine/test_thinking_budget.py",): [
        Bug("a thought has one token too many", THOUGHT, "self.num_used < self.budget.num_tokens:", "self.num_used <= self.budget.num_tokens:"),
        Bug("drafts go beyond the budget", THOUGHT, "return self.budget.num_tokens - self.num_used if self.is_open else self.num_left", "return self.budget.num_tokens + self.num_left"),
        Bug("the answer has fewer tokens by its thought", THOUGHT, "            self.num_used += 1\n", "            self.num_used += 1\n            self.num_left -= 1\n"),
        Bug("a forced end repeats what is there", THOUGHT, "forced[next(begun, 0) :]", "forced"),
        Bug("a second thought has a budget, too", THOUGHT, "        if self.is_over:\n            self.num_left -= 1\n            return\n", ""),
        Bug("forced tokens count as the answer's", "specexp.engine.ending", "is not None and not forced:", "is not None:"),
        Bug("the cache keeps what was cut before a forced end", RUN, "slots.get(role, ())[: len(tokens)]", "slots.get(role, ())"),
        Bug("forced tokens do not move the position", RUN, "- len(tokens) - len(forced)", "- len(tokens)"),
        Bug("forced tokens are not streamed", RUN, "        out.token_ids += forced\n", ""),
    ],
    ("judge/test_mining_thoughts.py",): [
        Bug("a forced token is a mismatch", "specexp.judge.mining", " and t not in forced", ""),
        Bug("a swap that ends the budget has no forced end", "specexp.judge.mining", "            head += reading.lacking\n", ""),
        Bug("a swap begins its thought anew", THOUGHT, "        if self.resumed is not None:\n            return self.resumed.copy()\n", ""),
        Bug("forced tokens cost calls", "specexp.judge.mining", "generated - sum(place > position for place in forced)", "generated"),
    ],
    ("engine/test_ending.py",): [
        Bug("an EOS is allowed at the last step before the minimum", "specexp.engine.ending", "if position < self.min_new_tokens", "if position < self.min_new_tokens - 1"),
        Bug("an EOS is banned at the first step after the minimum", "specexp.engine.ending", "if position < self.min_new_tokens", "if position <= self.min_new_tokens"),
        Bug("rows of a round are banned as its first one", "specexp.engine.forwards", "state.end.banned(first + depth)", "state.end.banned(first)"),
        Bug("the depth of a node is its slot", "specexp.engine.context", "result.append(result[parent + 1] + 1)", "result.append(len(result))"),
        Bug("drafts are banned one place late", "specexp.engine.drafting", "self.state.end.banned(self.position + step)", "self.state.end.banned(self.position + step + 1)"),
        Bug("an ignored EOS ends the output", "specexp.engine.ending", "NO_IDS if ending.ignore_eos else eos", "eos"),
        Bug("an EOS that was found is drafted before the minimum", DRAFTING, "if each in state.end.banned(position + i)", "if False"),
    ],
    ("pair/test_stop_strings.py",): [
        Bug("the text is cut one character late", "specexp.pair.stop_strings", "self.found = len(text) - min(starts)", "self.found = len(text) - min(starts) - 1"),
        Bug("a stop string across tokens is missed", "specexp.pair.stop_strings", "text = self.tail + own", "text = own"),
        Bug("the tail is one byte short", "specexp.pair.stop_strings", "self.longest = max(map(len, self.strings)) - 1", "self.longest = max(max(map(len, self.strings)) - 2, 0)"),
        Bug("the last of several strings cuts the text", "specexp.pair.stop_strings", "len(text) - min(starts)", "len(text) - max(starts)"),
        Bug("nothing is held back", "specexp.pair.detokenizer", "self._finder.found or self._finder.held", "self._finder.found"),
        Bug("an output goes on after its stop string", "specexp.engine.ending", "            return STOP_STRING\n", "            pass\n"),
        Bug("the prompt's own text ends an output", "specexp.pair.stop_strings", "text.find(each, max(0, len(self.tail) - len(each) + 1))", "text.find(each)"),
    ],
    ("tasks/test_conversations.py",): [
        Bug("what is shown is asked", SHOTS, "if example.turns[-1] not in shown", "if True"),
        Bug("the rows of solved examples are not hashed", SHOTS, 'f"{dataset.digest} {self.digest}"', "dataset.digest"),
        Bug("solved examples are not worded as the task", SHOTS, "[(ask(question), answer(said))", "[(question, said)"),
        Bug("answers that are given are left out", "specexp.tasks.example", "[*self.shots, *self.context, *zip", "[*self.shots, *zip"),
        Bug("roles may follow each other in any order", TALKS, "if role != ROLES[1 + number % 2]", "if role not in ROLES"),
        Bug("a conversation has two system prompts", "specexp.pair.tokenization", 'if not system or messages[0]["role"] == "system"', "if not system"),
        Bug("solved examples of arith are of its train split alone", "specexp.tasks.task", 'rows.split if rows else "train"', '"train"'),
        Bug("another system prompt is the same settings", "specexp.config.experiment", "(value != LATER_OF_EXPERIMENT[key] and", '(value != LATER_OF_EXPERIMENT[key] and key != "system" and'),
    ],
    ("metrics/test_paired.py",): [
        Bug("pairing of repeats is ignored", PAIRED, 'by_key[r["prompt_id"], r["turn"], r["repeat"]])', 'by_key[r["prompt_id"], r["turn"], 0])'),
        Bug("pairing of turns is ignored", PAIRED, 'by_key[r["prompt_id"], r["turn"], r["repeat"]])', 'by_key[r["prompt_id"], 0, r["repeat"]])'),
        Bug("a speed-up is upside down", PAIRED, "side.seconds) for side in self.sides)\n        return first / second", "side.seconds) for side in self.sides)\n        return second / first"),
        Bug("a speed-up is of seconds alone", PAIRED, "side.tokens / side.seconds", "1 / side.seconds"),
        Bug("the end-to-end speed-up leaves out the prefill", PAIRED, '        self.whole_seconds += record["prefill_seconds"]\n', ""),
        Bug("outputs after other histories are compared", PAIRED, 'if not record["paired"]:', "if False:"),
        Bug("turns of a prompt are drawn apart", PAIRED, 'result.setdefault(record["prompt_id"], [])', 'result.setdefault((record["prompt_id"], record["turn"]), [])'),
        Bug("values of one record stand for a prompt's", "specexp.metrics.per_prompt", "self._values[prompt] += value", "self._values[prompt] = value"),
        Bug("an answer lost counts as gained", PAIRED, "gains = kinds[1] - kinds[2]", "gains = kinds[2] - kinds[1]"),
        Bug("plain decoding's seconds are the setting's", PAIRED, 'num_tokens(plain), [plain["seconds"]])', 'num_tokens(plain), [record["seconds"]])'),
        Bug("repeats make a test of answers stronger", PAIRED, "sign_flip_p(gains[gains != 0].tolist())", "sign_flip_p([1] * int(kinds[1].sum()) + [-1] * int(kinds[2].sum()))"),
        Bug("agreement counts records, not prompts", PAIRED, "wilson(num_prompts * self._num_equal / self._num_same, num_prompts)", "wilson(self._num_equal, self._num_same)"),
        Bug("ungraded answers are wrong answers", PAIRED, 'if record["correct"] is None:', "if False:"),
    ],
    ("scale/test_simulation.py",): [
        Bug("a worker that has all of its block is asked first", SIMULATION, "            insort(self._hungry, (each.place, worker))\n", "            self._hungry.insert(0, (each.place, worker))\n"),
        Bug("a worker is full with one unit less", SIMULATION, "if self._handout.held(worker) < self._cluster.block:", "if self._handout.held(worker) < self._cluster.block - 1:"),
        Bug("a window of half the size", SIMULATION, "UNITS_OPEN * cluster.num_workers)", "UNITS_OPEN * cluster.num_workers // 2)"),
        Bug("the driver takes results all at once", SIMULATION, "self._driver_free = max(now, self._driver_free) + self._cluster.driver_seconds", "self._driver_free = now + self._cluster.driver_seconds"),
        Bug("a dead worker's units are lost time for nobody", SIMULATION, "            self.lost += now - each.began\n", "            pass\n"),
        Bug("another worker loads before it is started", SIMULATION, "self._begin(now + self._cluster.restart_seconds, worker)", "self._begin(now, worker)"),
        Bug("slow workers are not slow", SIMULATION, "now + each.factor * self._seconds", "now + self._seconds"),
        Bug("what waits is handed out as it came", "specexp.workers.handout", "return -len(self.deaths), -self.size, self.place", "return -len(self.deaths), 0.0, self.place"),
        Bug("a longer run is as long", SIMULATION, "outcome.makespan + (num_units - num_simulated) / outcome.rate", "outcome.makespan"),
        Bug("units are drawn without a seed", "specexp.scale.planning", "np.random.default_rng(seed)", "np.random.default_rng(0)"),
    ],
    ("scale/test_measuring.py",): [
        Bug("every block is done in one order", "specexp.scale.measuring", "if block % 2 == 0 else numbers[::-1]", "if block >= 0 else numbers[::-1]"),
        Bug("a block leaves out its last prompt", "specexp.scale.measuring", "(block + 1) * len(places) // num_blocks]", "(block + 1) * len(places) // num_blocks - 1]"),
        Bug("runs are written at the end only", "specexp.scale.measuring", "            measurement.write(folder)\n            shutil", "            shutil"),
        Bug("units are in the order of their results", "specexp.scale.measuring", "key=lambda each: work.place(each.unit)", "key=lambda each: 0"),
        Bug("the driver's time is that in which it waits", RECORDING, "self.driver_seconds += entered - self._left", "self.driver_seconds += self._left - entered"),
        Bug("a result comes in no time", RECORDING, "        if new := self.units[before:]:\n", "        if False and (new := self.units[before:]):\n"),
        Bug("what comes after the last result is no time of the driver", RECORDING, "        self.driver_seconds += self.clock() - self._left\n", "        pass\n"),
        Bug("CPU seconds between units are those of the process", RECORDING, "else spent - self._spent", "else spent"),
        Bug("a death is passed on", RECORDING, "                raise WorkerError(f\"a worker died, so that", "                return event\n                raise WorkerError(f\"a worker died, so that"),
        Bug("a worker asks for what it has", "specexp.scale.recorded_runs", "after.submitted > before.ended", "after.submitted > before.began"),
        Bug("predictions know how long units take", "specexp.scale.comparison", "[unit.size for unit in run.units]).makespan", "list(seconds)).makespan"),
        Bug("one worker's units are replayed on one worker", "specexp.scale.comparison", "replayed(run, [unit.seconds for unit in run.units], number) for run in base", "replayed(run, [unit.seconds for unit in run.units], 1) for run in base"),
        Bug("costs are of a unit", "specexp.scale.comparison", "fmean(asked) / each", "fmean(asked)"),
        Bug("results are not compared", "specexp.scale.comparison", "if len(results) > 1]", "if len(results) > 9]"),
    ],
    ("scale/test_limits.py",): [
        Bug("Ray's calls take nothing", "specexp.scale.limits", "few - 256 * slope) + run.call_seconds", "few - 256 * slope)"),
        Bug("the loop takes as long for any number of workers", "specexp.scale.limits", "slope = max(0.0, (many - few) / (1_024 - 256))", "slope = 0.0"),
        Bug("memory is that of all objects", "specexp.scale.limits", "- before) / number", "- before)"),
        Bug("a prompt has one label", "specexp.scale.limits", "run.labels_per_prompt * label", "label"),
    ],
    ("judge/test_large_label_sets.py",): [
        Bug("rows of a second shard overwrite the first's", FEATURE_FILES, "start, done = end, done + len(inside)", "start, done = end, len(inside)"),
        Bug("rows are counted from each block's start", FEATURE_FILES, "(chosen < end)] - start", "(chosen < end)] - (start and start - 1)"),
        Bug("the last rows of a shard are not read", FEATURE_FILES, "min(start + BLOCK, size)", "min(start + BLOCK, size - size % BLOCK)"),
        Bug("the last shard is not written", FEATURE_FILES, "    if waiting or not names:\n", "    if not names:\n"),
        Bug("a part has the first shard's rows", FEATURE_FILES, "return sum(self._features.sizes), int(width)", "return self._features.sizes[0], int(width)"),
        Bug("the scaler is that of the last batch", "specexp.judge.shards.matrices", "        scaler.partial_fit(batch)\n", "        scaler = StandardScaler().partial_fit(batch)\n"),
        Bug("standardised batches overwrite each other", "specexp.judge.shards.matrices", "        done += len(batch)\n", "        done = 0\n"),
        Bug("large matrices are held in memory", "specexp.judge.shards.matrices", "    if not is_too_large(num_rows, width):\n", "    if True:\n"),
        Bug("shards but the first are not hashed", "specexp.judge.labels", 'for name in (LABELS, FEATURES, *manifest["files"]):', "for name in (LABELS, FEATURES):"),
    ],
    ("evaluation/test_speed_groups.py",): [
        Bug("groups are compared by all prompts", "specexp.evaluation.speed_groups", "% step == 0]", "% step >= 0]"),
        Bug("every part of the shuffles is the first", "specexp.evaluation.speed_groups", "        as_far += int(", "        as_far = int("),
        Bug("p is not corrected for settings and groups", "specexp.evaluation.speed_groups", "return min(1.0, min(ps) * len(ps)) if ps else None", "return max(ps) if ps else None"),
    ],
    ("lm/test_sharded.py",): [
        Bug("heads are shared in any way", SHARDS, "        if number % size:\n", "        if number < size:\n"),
        Bug("only the attention's heads are looked at", SHARDS, 'for name in ("num_attention_heads", "num_key_value_heads")', 'for name in ("num_key_value_heads",)'),
        Bug("a family needs no plan", SHARDS, 'if not getattr(text, "base_model_tp_plan", None):', 'if getattr(text, "base_model_tp_plan", "") == "":'),
        Bug("shards are joined in the first one's values", SHARDS, "return parts[0] if dim is None else torch.cat(parts, dim)", "return parts[0]"),
        Bug("whole parameters are joined, too", SHARDS, "return parts[0] if dim is None else torch.cat(parts, dim)", "return torch.cat(parts, dim or 0)"),
        Bug("a dead process has no last words", "specexp.lm.sharded.group", "if lines and code > 0 else", "if lines and code < 0 else"),
        Bug("an exit code is a signal", "specexp.lm.sharded.group", 'if code < 0 else f"exit code {code}"', 'if code else f"exit code {code}"'),
    ],
    ("storage/test_rotation.py",): [
        Bug("a file is never full", "specexp.storage.numbered_files", "start >= MOST_BYTES", "False"),
        Bug("a missing file is passed over", "specexp.storage.numbered_files", "        if not each.exists():", "        if False:"),
        Bug("a resume begins again with the first file", "specexp.storage.numbered_files", "self._number = max(1, len(existing(path)))", "self._number = 1"),
        Bug("a cut line before another file is dropped", RECORD_FILES, "if number < len(paths):", "if False:"),
        Bug("what is cut off stays", RECORD_FILES, "file.truncate(self._good)", "file.truncate(self._good + 1)"),
        Bug("the bytes of all files are counted together", RECORD_FILES, "            self._good, self._num_lines = 0, 0\n", ""),
        Bug("a name sorted in is another name's", "specexp.sequences.names", "if self._low[place] == low:", "if True:"),
        Bug("names are sorted in at one size", "specexp.sequences.names", ">= max(_RECENT, len(self._high) // _PART):", ">= _RECENT:"),
        Bug("recent names are numbered anew", "specexp.sequences.names", "result = len(self)", "result = len(self._recent)"),
        Bug("a second record of a key replaces the first", "specexp.storage.record_places", "if column[prompt] >= 0:", "if False:"),
    ],
    ("evaluation/test_large_runs.py",): [
        Bug("parts of a resample begin anew", STATISTICS, "            again.integers(num_prompts, size=(rows, num_prompts)), rng", "            np.random.default_rng(0).integers(num_prompts, size=(rows, num_prompts)), rng"),
        Bug("a sample is of the first prompts", "specexp.evaluation.large_runs", "prepared.examples[i * total // SAMPLE]", "prepared.examples[i]"),
        Bug("records of prompts that failed are found", "specexp.storage.stored_lines", "if not self._is_chosen(result):", "if False:"),
        Bug("records of prompts that failed are kept", "specexp.storage.stored_lines", "return filter(self._is_chosen, self._lines)", "return iter(self._lines)"),
        Bug("without prompts that failed all records are held", "specexp.evaluation.in_process", "if isinstance(kept, StoredLines):", "if False:"),
        Bug("counts begin in the widest type", "specexp.metrics.per_prompt", '"BHIQ"', '"QIHB"'),
        Bug("prompts beyond the known ones share a number", "specexp.metrics.per_prompt", "            for name in self._few:\n                self._many.number(name)\n", ""),
    ],
    ("metrics/test_statistics.py",): [
        Bug("Wilson's interval has no continuity of z", STATISTICS, "z * z / (4 * trials * trials)", "z * z / (4 * trials)"),
        Bug("a one-sided p", STATISTICS, "np.abs(np.arange(-whole, whole + 1)) >= abs(sum(differences))", "np.arange(-whole, whole + 1) >= abs(sum(differences))"),
        Bug("p leaves out what was seen", STATISTICS, ">= abs(sum(differences))", "> abs(sum(differences))"),
        Bug("swaps of a drawn test leave out the one seen", STATISTICS, "return (1 + hits) / (1 + SWAPS)", "return hits / SWAPS"),
        Bug("the mirrored swap is missed", STATISTICS, "np.abs(np.log(a[:, 0] / a[:, 1]) - np.log(b[:, 0] / b[:, 1]))", "np.log(a[:, 0] / a[:, 1]) - np.log(b[:, 0] / b[:, 1])"),
        Bug("a mean of rates instead of a ratio of sums", STATISTICS, "np.asarray(timed.tokens)[prompts].sum(axis=1) / seconds", "(np.asarray(timed.tokens)[prompts] / np.asarray(timed.seconds)[:, 0][prompts]).mean(axis=1)"),
        Bug("the best repeat instead of the median", STATISTICS, "np.median(every_PR[:, repeats], axis=-1)", "np.min(every_PR[:, repeats], axis=-1)"),
        Bug("both sides of a ratio are drawn apart", STATISTICS, "_rates(candidate, prompts, repeats) / _rates(baseline, prompts, repeats)", "_rates(candidate, prompts, repeats) / _rates(baseline, prompts[::-1], repeats)"),
        Bug("power without the null's spread", STATISTICS, "level * math.sqrt(d) + power", "level * math.sqrt(d - difference**2) + power"),
    ],
    ("pair/test_own_text.py",): [
        Bug("parts end before any space", TRANSLATION, " and self.bytes[run[-1]][-1:] in _SIGNS:", ":"),
        Bug("what follows a part begins a text", TRANSLATION, "begins = not start or ids[start - 1] in self.special", "begins = True"),
        Bug("the last part is settled, too", OWN_TEXT, "        return translation.begun([*self._own, *last])\n", "        self._own += last\n        self._ends.append((end, len(self._own)))\n        return translation.begun(list(self._own))\n"),
        Bug("a part that was cut stays", OWN_TEXT, "        del self._own[self._ends[-1][1] :]\n", ""),
        Bug("nothing is settled", OWN_TEXT, "            if end > start:\n", "            if end > start and not start:\n"),
    ],
    ("engine/test_chain_length.py",): [  # enumeration has no draws that rounds share
        Bug("what a round cost counts at once", CHAIN_LENGTH, "if end <= position:", "if True:"),
        Bug("acceptances of untested tokens count", CHAIN_LENGTH, "probabilities[: num_accepted + 1]", "probabilities"),
        Bug("a rejected token counts as accepted", CHAIN_LENGTH, "self._good[place] += i < num_accepted", "self._good[place] += 1"),
        Bug("drafts of nothing are never tried again", CHAIN_LENGTH, "if self._num_idle % RETRY:", "if True:"),
        Bug("the draft is free", "specexp.decoding.draft_length", "steps * self.draft + ", ""),
        Bug("every step begins a chain", "specexp.decoding.draft_length", "(steps > 0) * self.begin", "steps * self.begin"),
        Bug("nothing begins a chain", "specexp.decoding.draft_length", "(steps > 0) * self.begin + ", ""),
        Bug("a token pays by itself or not at all", "specexp.decoding.draft_length", "for m in range(1, most - i + 1):", "for m in range(1, 2):"),
        Bug("survival is of the last token alone", DRAFTING, "self.survival *= ", "self.survival = "),
        Bug("survival is of the last token alone in the model's loop", "specexp.lm.native.draft_loop", "survival *= ", "survival = "),
        Bug("a chain goes on by its probability, not its acceptance", "specexp.decoding.draft_length", "return self.acceptance[bin_of(probability)]", "return probability"),
    ],
    ("engine/test_request_state.py",): [
        Bug("seconds of a batch are not divided by its rows", ENGINE, "share = (self._clock() - start) / len(active)", "share = self._clock() - start"),
        Bug("time to the first token from the second", ENGINE, "state.out.num_rounds == 1:", "state.out.num_rounds == 2:"),
        Bug("a rejected token is not tested", RUN, "min(num_accepted + 1, num_drafted, num_kept)", "min(num_accepted, num_drafted, num_kept)"),
        Bug("what is behind an EOS is tested", RUN, "min(num_accepted + 1, num_drafted, num_kept)", "min(num_accepted + 1, num_drafted)"),
        Bug("overlap of untested positions", RUN, 'sum(counts["overlap"][:num_tested])', 'sum(counts["overlap"])'),
        Bug("an empty round is full", RUN, "num_drafted > 0 and num_accepted == num_drafted", "num_accepted == num_drafted"),
        Bug("cut tokens stay in the sequence", RUN, "        self.ids += [*tokens, *forced]\n", "        self.ids += block[:num_tokens]\n"),
        Bug("an EOS beyond the limit stops", RUN, "tokens = tokens[: self._left]\n        for i, token in enumerate(tokens):", "for i, token in enumerate(tokens):"),
        Bug("told twice", RUN, "            self._num_emitted += len(new)\n", ""),
        Bug("the histogram forgets rounds without a draft", RUN, "        _count(out.accepted_histogram, num_accepted)\n        _count(out.drafted", "        if num_drafted:\n            _count(out.accepted_histogram, num_accepted)\n        _count(out.drafted"),
    ],
    ("engine/test_context.py",): [
        Bug("the last prompt token is prefilled, too", CONTEXT, "self._model.ids(ids[common:-1]), rows=0", "self._model.ids(ids[common:]), rows=0"),
        Bug("nothing is reused", CONTEXT, "            common += 1\n", "            break\n"),
        Bug("a prompt beyond the context is fed", CONTEXT, "if common < len(ids) - 1 <= self._model.context:", "if common < len(ids) - 1:"),
        Bug("row 0 is answered at each ask", CONTEXT, "        self._begun = True\n", ""),
        Bug("reused tokens count as fed", CONTEXT, "self.count(len(ids) - 1 - common)", "self.count(len(ids) - 1)"),
        Bug("slots are counted from the start of the cache", CONTEXT, "[self._num_cached + slot for slot in slots]", "list(slots)"),
        Bug("a round's slots are not forgotten", CONTEXT, "self._begun, self._fed, self._parents, self._num_slots = False, [], None, 0", "self._begun, self._fed, self._parents = False, [], None"),
        Bug("uncached asks forget what the round fed", CONTEXT, "[self._model.ids(self._ids), *self._fed]", "[self._model.ids(self._ids)]"),
        Bug("forgetting keeps the ids", CONTEXT, "        self._ids, self._num_cached = [], 0\n", "        self._num_cached = len(self._ids) - 1\n"),
    ],
    ("judge/test_judge_comparison.py",): [
        Bug("equal scores count as won", PAIRED_AUC, "below + others / 2", "below + others"),
        Bug("an AUC pairs across weights of one side", PAIRED_AUC, "pairs = caught.sum(axis=1) * others.sum(axis=1)", "pairs = caught.sum(axis=1) * (~marked).sum()"),
        Bug("a test of one side", PAIRED_AUC, "min(1.0, 2 * (least + 1)", "min(1.0, (least + 1)"),
        Bug("the sample is no draw", PAIRED_AUC, "2 * (least + 1) / (len(known) + 1)", "2 * least / len(known)"),
        Bug("p is not made monotone", PAIRED_AUC, "highest = max(highest, min(", "highest = max(0.0, min("),
        Bug("Bonferroni in place of Holm", PAIRED_AUC, "(len(p) - rank) * p[place]", "len(p) * p[place]"),
        Bug("chosen on the test split", "specexp.judge_comparison.comparison", "(candidates[name].validation_auc, -_extra", '(candidates[name].metrics["judge/roc_auc"], -_extra'),
        Bug("the cost is of a call", "specexp.judge_comparison.comparison", "median(seconds) / ROWS", "median(seconds)"),
        Bug("ECE of squared gaps", RELIABILITY, "np.abs((weights * (important - p)) @ inside)", "((weights * (important - p)) @ inside) ** 2"),
        Bug("gaps within a bin do not cancel", RELIABILITY, "np.abs((weights * (important - p)) @ inside)", "np.abs(weights * (important - p)) @ inside"),
        Bug("a probability of 1 has a bin of its own", RELIABILITY, "np.minimum((p * BINS).astype(int), BINS - 1)", "(p * BINS).astype(int)"),
        Bug("an operator is punctuation", "specexp.judge_report.token_kinds", 'return "operator" if any', 'return "operator" if not any'),
        Bug("kinds count what is refused", "specexp.judge_report.token_kinds", "accepted = int(passes[inside].sum())", "accepted = int((~passes[inside]).sum())"),
        Bug("a bound is rounded to the nearest", "specexp.judge.trees", "np.where(near > bounds, np.nextafter(near, np.float32(-np.inf)), near)", "near"),
        Bug("transfer is the same task", "specexp.evaluation.report.transfer", "judge_task != task", "judge_task == task"),
        Bug("a case is wrong where the judge is right", "specexp.judge_report.cases", "return self.passes == bool(self.label.important)", "return self.passes != bool(self.label.important)"),
    ],
    ("judge/test_calibration.py", "judge/test_features.py"): [
        Bug("the calibration term is missing from the margin", CALIBRATION, "(1 / num_calibration + 1 / num_test)", "(1 / num_test)"),
        Bug("a mismatch at the threshold is waved through", CALIBRATION, "(p[important] >= threshold)", "(p[important] > threshold)"),
        Bug("accepted counts what is at the threshold", CALIBRATION, "(p < threshold).mean()", "(p <= threshold).mean()"),
        Bug("feature order of `both` without a new version", FEATURES, 'Mode("both", ("draft_token", "target_token"))', 'Mode("both", ("target_token", "draft_token"))'),
        Bug("columns in the order of storage", LABELS, "parts = [self.features[part] for part in mode.parts]", "parts = [self.features[part] for part in sorted(mode.parts, reverse=True)]"),
        Bug("undecided mismatches are labels", LABELS, "label.split == split and label.important is not None", "label.split == split"),
    ],
    ("decoding/test_rules.py",): [
        Bug("a nucleus holds one more at an exact mass", RULES, "before < self.top_p", "before <= self.top_p"),
    ],
    ("lm/test_kernel_table.py",): [
        Bug("no number passes for a kernel's result", "specexp.lm.kernels.verification", "if not gap <= tolerance", "if gap > tolerance"),
        Bug("kernels see beyond the window", "specexp.lm.native.bucketed_forward", "self._slots, spec.window, seen", "self._slots, 0, seen"),
        Bug("a tree is fed to kernels as a chain", "specexp.lm.native.bucketed_forward", "seen = None if self._seen is None else", "seen = None if self._seen else"),
        Bug("keys are stored before their last norm", "specexp.lm.native.native_forward", "(block.qk_norm is None or not spec.qk_norm_last)", "True"),
        Bug("a parallel block's input is written over", "specexp.lm.native.native_forward", "overwrite=not spec.parallel", "overwrite=True"),
        Bug("every activation is SiLU to a kernel", "specexp.lm.blocks.feed_forward", "            same = act is function", "            same = True"),
    ],
    ("lm/test_product_choice.py",): [
        Bug("the last timing at a number of rows is all that counts", CHOICE, "costs[candidate] += seconds", "costs[candidate] = seconds"),
        Bug("seconds are weighed, not fractions", CHOICE, "seconds / min(value for value in each.values() if value is not None)", "seconds"),
        Bug("PyTorch's product is a candidate of one order", CHOICE, "tiling = _least(candidates,", "tiling = _least([None, *candidates],"),
        Bug("one order ends at the largest number of rows that is timed", CHOICE, "len(BUCKETS), tiling)", "len(BUCKETS))"),
        Bug("more rows than are timed have the last tiling", CHOICE, "if rows <= most), self.beyond)", "if rows <= most), self.buckets[-1])"),
        Bug("a bucket ends before its largest number of rows", CHOICE, "if rows <= most)", "if rows < most)"),
        Bug("what does not run is free", CHOICE, "                del costs[candidate]", "                continue"),
        Bug("a split may be empty", CHOICE, "warps, -(-steps // each))", "warps, splits)"),
        Bug("nothing but the fastest is chosen", CHOICE, "cost <= STEADY * best", "cost <= best"),
        Bug("a file of another environment is used", CACHE, 'content.get("environment") != environment', "False"),
        Bug("shapes that the file has are lost", CACHE, "{**self.read(), **measured}", "measured"),
        Bug("true is a time", CACHE, "type(each) in (int, float)", "isinstance(each, int | float)"),
        Bug("what cannot be written is left over", CACHE, "                    os.unlink(partial)", "                    pass"),
        Bug("the user's folder is the variable's parent", CACHE, "return Path(given)", "return Path(given).parent"),
        Bug("a corrupt file is no reason for a note", CACHE, "        except (OSError, ValueError, RecursionError) as error:\n", "        except (OSError, ValueError, RecursionError) as error:\n            return {}\n"),
        Bug("other candidates' timings are enough", TIMED, "set(known.get(rows, {})) != names", "not set(known.get(rows, {})) & names"),
        Bug("one weight is read again and again", TIMED, "islice(cycle(weights), count)", "islice(cycle(weights[:1]), count)"),
        Bug("no memory is a product that does not run", TIMED, "if tiling is None or is_exhausted(error)", "if tiling is None"),
        Bug("a residual is always written over", "specexp.lm.blocks.linear", "out = residual if overwrite else None", "out = residual"),
        Bug("a differing product is used", "specexp.lm.kernels.verification", "if name not in faults}", "if name in choices}"),
    ],
    ("lm/test_eagle3_drafts.py",): [
        Bug("d2t is off by one", EAGLE, 'ids = ids + weights["d2t"]', 'ids = (ids + weights["d2t"] + 1) % num_valid_ids'),
        Bug("d2t is taken for ids", EAGLE, 'ids = ids + weights["d2t"]', 'ids = weights["d2t"]'),
        Bug("ids of layers name what enters them", EAGLE_CONFIG, "tuple(given) if isinstance(given, list) and given else", "tuple(max(0, i - 1) for i in given) if isinstance(given, list) and given else"),
        Bug("by default the layers' outputs are read", EAGLE_CONFIG, "(1, total // 2 - 1, total - 4)", "(2, total // 2, total - 3)"),
        Bug("the embedding comes second", EAGLE, "torch.cat([embedded, normed], dim=1)", "torch.cat([normed, embedded], dim=1)"),
        Bug("the residual is always the feature", EAGLE, "normed if self._before_residual else features", "features"),
        Bug("drafts go on from normed outputs", EAGLE, "cache.keep(x, 0)", "cache.keep(self._final_norm(x), 0)"),
        Bug("the target's state is that of the token itself", READING, "keeper.states(start, stop)", "keeper.states(start - 1, stop - 1) if start else keeper.states(start, stop)"),
        Bug("a drafted token's feature is the slot's before last", HEAD, "at - 1 : at] if at", "at - 2 : at - 1] if at > 1"),
        Bug("a node's feature is that of the slot before it", HEAD, "branches.base + path[-2] if len(path) > 1", "slot - 1 if len(path) > 1"),
        Bug("what was computed for drafts is kept", CONTEXT, "[: len(tokens) - 1] if not self._reader else []", "[: len(tokens) - 1]"),
        Bug("a kept path keeps the states of other slots", KV, "for each in (self.buffers.values, self.buffers.states):", "for each in (self.buffers.values,):"),
        Bug("the states of a replay are taken for new ones", "specexp.lm.kept_states", "[-num:] for parts", "[:num] for parts"),
        Bug("a head begins with the text's first token", HEAD, "first = int(not self._begun and tokens.shape[0] > 0)", "first = 0"),
    ],
    ("lm/test_mtp.py",): [
        Bug("MTP layers read the states before the last layer", LOADING, "target.keep_states([total])", "target.keep_states([total - 1])"),
        Bug("MTP layers keep the slot of a rejected token", MTP, "max(0, length - 1 - layer)", "max(0, length - layer)"),
        Bug("MTP layers keep keys of rejected tokens", READING, "layer.keys, layer.values = layer.keys[:, :, :num], layer.values[:, :, :num]", "pass"),
        Bug("MTP positions begin at each feed", MTP, "torch.arange(start, stop, device=model.device)", "torch.arange(stop - start, device=model.device)"),
        Bug("MTP layers embed the token before", MTP, "self.tokens[start:stop][None]", "self.tokens[start - 1 : stop - 1][None]"),
        Bug("all MTP layers read one token further", MTP, "start + layer + 1, end + layer + 1", "start + 1, end + 1"),
        Bug("each MTP layer reads the target's states", MTP, "if layer == 0 else", "if layer >= 0 else"),
        Bug("the last MTP layer drafts nothing", "specexp.lm.heads.mtp", "return len(self.module.layers)", "return max(1, len(self.module.layers) - 1)"),
        Bug("a chain is drafted by its first MTP layer", MTP, "layer = self._model.num_layers - 1, max(0, length - self.known)", "layer = self._model.num_layers - 1, 0"),
    ],
    ("lm/test_dflash.py",): [
        Bug("a block reads what enters the layers", DFLASH_CONFIG, "[layer + (layer == total - 1) for layer in layers]", "[max(0, layer - 1) for layer in layers]"),
        Bug("a block's last layer is read before the norm", DFLASH_CONFIG, "[layer + (layer == total - 1) for layer in layers]", "list(layers)"),
        Bug("keys of a block are kept", READING, "layer.keys, layer.values = layer.keys[:, :, :num], layer.values[:, :, :num]", "pass"),
        Bug("a key of a block is kept", READING, "layer.keys[:, :, :num], layer.values[:, :, :num]", "layer.keys[:, :, : num + 1], layer.values[:, :, : num + 1]"),
        Bug("a block's positions begin at each feed", DFLASH_SESSION, "torch.arange(start, before + model.block_size", "torch.arange(before + model.block_size - start"),
        Bug("a block stands a place further", DFLASH_SESSION, "self.states.of(start, before, self.text)", "self.states.of(max(0, start - 1), before - (start > 0), self.text)"),
        Bug("a block begins with the token before", DFLASH_SESSION, "self.tokens[before:length]", "self.tokens[max(0, before - 1) : max(1, length - 1)]"),
        Bug("another token stands for what is not drafted", DFLASH, "[self.module.config.mask_token_id]", "[self.module.config.mask_token_id + 1]"),
        Bug("a block's last token is not drafted", DFLASH_SESSION, "return x[0, 1:]", "return x[0, 1:-1]"),
        Bug("a token is drafted by the row before its own", DFLASH_SESSION, "return x[0, 1:]", "return x[0, :-1]"),
        Bug("an unlikely token is not the last one", DFLASH, "num = (enough + 1).clamp", "num = (enough + 2).clamp"),
        Bug("a block drafts an EOS before the minimum", DFLASH, "without(self.logits(states), banned)", "self.logits(states)"),
    ],
    ("lm/test_dflash_layouts.py",): [
        Bug("speculators' numbers are those of outputs", DFLASH_CONFIG, "[number - 1 for number in entered]", "list(entered)"),
        Bug("angles are the module's default", DFLASH_CONFIG, '"hidden_act", "rms_norm_eps", "rope_parameters",', '"hidden_act", "rms_norm_eps",'),
        Bug("norms have the module's default", DFLASH_CONFIG, '"hidden_act", "rms_norm_eps", "rope_parameters",', '"hidden_act", "rope_parameters",'),
        Bug("layers are read in ascending order", DFLASH_CONFIG, "return list(self.values.target_layer_ids)", "return sorted(self.values.target_layer_ids)"),
        Bug("entries of dflash_config that are not known are passed over", DFLASH_CONFIG, "allowed = PLAIN.get(name, ())", "allowed = PLAIN.get(name)"),
        Bug("weights that are not known are passed over", DFLASH, 'set(result["unexpected_keys"]) - read.copies', "set()"),
    ],
    ("evaluation/test_memories.py",): [
        Bug("suffixes of another prompt are continued", DRAFTING, "state.suffixes = state.suffixes or SuffixIndex(state.earlier)", 'state.suffixes = vars(self).setdefault("suffixes", SuffixIndex(state.earlier))'),
        Bug("an output goes on in the next one", MEMORIES, "        memory.begin()\n", ""),
        Bug("a setting without a memory sees other prompts", MEMORIES, '.suffix_memory != "run"', '.suffix_memory == ""'),
        Bug("a memory holds another repeat's outputs", MEMORIES, " or memory.repeat != repeat", ""),
        Bug("a prompt sees later ones", MEMORIES, " or memory.done > group", ""),
    ],
}  # fmt: skip

ROPE = "specexp.lm.hf.rope"

FACTORS = "specexp.lm.blocks.long_factors"
CAPTURED = "specexp.lm.native.graph_capture"
OWN, BUCKETED, GRAPHS, DRAFTING, HF, TREE_MASK = (
    "specexp.lm.native.native_forward", "specexp.lm.native.bucketed_forward", "specexp.lm.native.cuda_graphs", "specexp.lm.native.draft_loop", "specexp.lm.hf.hf_model",
    "specexp.lm.hf.tree_mask",
)  # fmt: skip

ROPE_BUGS = [
    Bug("the boundary is a token late", ROPE, "place >= self._boundary", "place > self._boundary"),
    Bug("the boundary is a token early", ROPE, "place >= self._boundary", "place >= self._boundary - 1"),
    Bug("a piece before the boundary is turned by the short factors", FACTORS, "torch.cat([positions, positions.new_full((positions.shape[0], 1), boundary)], dim=1)", "torch.cat([positions, positions[:, -1:]], dim=1)"),
    Bug("a tree past the boundary is turned by the long factors in both caches", FACTORS, "positions.clamp(max=boundary - 1)", "positions"),
    Bug("a cache is not cut back", ROPE, "for cache in self._caches.values():", "for cache in list(self._caches.values())[1:]:"),
    Bug("what a cache lacks is not fed", ROPE, "cache.feed(self._tokens[cache.length :], rows", "cache.feed(self._tokens[start:], rows"),
    Bug("a path is kept in the order of a chain", ROPE, "[slot for slot in slots if slot < cache.length]", "list(range(length, length + len(slots)))"),
    Bug("tokens of a path are those of a chain", ROPE, "self._tokens[kept]]", "self._tokens[length : length + len(slots)]]"),
    Bug("all rows are those of the long factors", ROPE, "return torch.where(chosen, many, few), torch", "return many, torch"),
    Bug("both caches of the native forward have the short factors", OWN, "angles(long=True)", "angles()"),
    Bug("both caches of the native forward are the long ones", HF, "self.native.beyond if long else self.native", "self.native.beyond"),
    Bug("a tree's rows count slots", ROPE, "slot if slot < base else base + branches.depths[slot - base]", "slot"),
]  # fmt: skip

LINEAR, ROTARY, PARTS, DESCRIPTION, BLOCK, NORMS, FEED_FORWARD, FAMILIES, LAYER_INPUTS = (
    f"specexp.lm.blocks.{name}"
    for name in (
        "linear",
        "rotary",
        "module_parts",
        "description",
        "block",
        "norms",
        "feed_forward",
        "families",
        "layer_inputs",
    )
)

FORWARD_BUGS = [
    Bug("Qwen2's biases are dropped", LINEAR, "                bias[start:stop] = part.bias\n", ""),
    Bug("the window of one piece is one too wide", KV, "seen = j <= i if not window else (j <= i) & (j > i - window)", "seen = j <= i if not window else (j <= i) & (j >= i - window)"),
    Bug("the window of several tokens is one too wide", ATTENTION, "mask = pool.buffers.causal_mask(num, start, window, group)", "mask = pool.buffers.causal_mask(num, start, window + (window > 0 and num > 1), group)"),
    Bug("a tree's window is one too wide", ATTENTION, "sees & (at[None, :] > positions[:, None] - window) if window", "sees & (at[None, :] >= positions[:, None] - window) if window"),
    Bug("the window of rows together is one too wide", ATTENTION, "(column if at is None else at[:, None, :]) > positions", "(column if at is None else at[:, None, :]) >= positions"),
    Bug("a recorded window is one too wide", BUCKETED, "self._columns > slots[:, None] - window", "self._columns >= slots[:, None] - window"),
    Bug("a window in full layers, too", DESCRIPTION, "if kind == FULL or not getattr(", "if not getattr("),
    Bug("a plain step has no window", ATTENTION, "elif num > 1 or (window and self.stop > window):", "elif num > 1:"),
    Bug("a tree of transformers' has a window in every layer", TREE_MASK, "0 if kind == FULL else window", "window"),
    Bug("the MLP has attention's norm", BLOCK, "else self._norm_if_any(before_mlp)", "else self._norm_if_any(before_attention)"),
    Bug("the last norm is not applied", OWN, "return self._final_norm(x)", "return x"),
    Bug("the output projection's bias is dropped", BLOCK, "out=self._linear([attention.out])", "out=Linear(joined([attention.out])[0], None, self._pack)"),
    Bug("few rows go without a bias", LINEAR, "if (self.packed is not None and num >= PACK_ROWS) or self.bias is not None:", "if self.packed is not None and num >= PACK_ROWS:"),
    Bug("gate and up are exchanged", PARTS, '(("gate_proj", "up_proj"), "down_proj")', '(("up_proj", "gate_proj"), "down_proj")'),
    Bug("angles begin anew where their table grows", ROTARY, "positions = torch.arange(self._length, device", "positions = torch.arange(self._length) % CHUNK + torch.zeros(1, dtype=torch.int64, device"),
    Bug("the other half turns", ROTARY, "torch.stack([-sin, sin], axis)", "torch.stack([sin, -sin], axis)"),
    Bug("a long piece has the mask of another start", KV, "if made_for != shift:", "if made_for < 0:"),
    Bug("masks begin a column early", KV, "left - start : left + num]", "left - start - 1 : left + num - 1]"),
    Bug("a path is kept backwards", KV, "here.index_select(1, kept)", "here.index_select(1, kept.flip(0))"),
    Bug("a draft's steps all stand at its first", DRAFTING, "session.step(tokens, at, angles) if", "session.step(tokens, start, angles) if"),
    Bug("a draft's recorded steps all stand at its first", "specexp.lm.native.recorded_draft", "            start = start + (1 if step else num)\n", ""),
    Bug("a draft that catches up begins after its padding", "specexp.lm.native.recorded_draft", "start + (1 if step else num)", "start + fed.shape[0] // num.shape[0]"),
    Bug("a draft that catches up follows its padding", "specexp.lm.native.recorded_draft", "x.index_select(0, first + num - 1)", "x.index_select(0, first + x.shape[0] // rows - 1)"),
    Bug("padding of a recording counts as fed", GRAPHS, "        self.pool.lengths[0] = start + num\n        # The", "        self.pool.lengths[0] = start + size\n        # The"),
    Bug("answers of a recording are its padding's", GRAPHS, "wanted = slice(num - rows, num)", "wanted = slice(size - rows, size)"),
    Bug("recordings outlive their buffers", CAPTURED, "            self.kept.clear()\n", ""),
    Bug("heads that share a key have the first one's mask", BUCKETED, "mask[:, None].expand(-1, group, -1).reshape(-1, mask.shape[1])", "mask.repeat(group, 1)"),
]  # fmt: skip

# By the model of `block_cases` that shows it.
HARNESS, HARNESS_SCORES, HARNESS_ENDS = (f"specexp.lm_eval.{name}" for name in ("model", "scoring", "generation"))
# Bugs that tests/harness must catch, in the environment of `make test-lm-eval`.
HARNESS_BUGS = [
    Bug(
        "a string is looked for in as many tokens as it takes",
        HARNESS_ENDS,
        "add_special_tokens=False)) + MORE_TOKENS",
        "add_special_tokens=False))",
    ),
    Bug(
        "an output ends only where its last tokens are a string",
        HARNESS_ENDS,
        "any(string in text for string in strings)",
        "any(string == text for string in strings)",
    ),
    Bug(
        "all strings have the shortest one's tokens",
        HARNESS_ENDS,
        "[-max(self.windows, default=1) :]",
        "[-min(self.windows, default=1) :]",
    ),
    Bug("a long prompt loses its end", HARNESS, "ids[-space:]", "ids[:space]"),
    Bug("texts of a batch are in the order of decoding", HARNESS, "index = order[place]", "index = place"),
    Bug("repeats of a document share their draws", HARNESS, "map(str, (*key, times[key]))", "map(str, key)"),
    Bug(
        "the string that ends a text is in it",
        HARNESS,
        "postprocess_generated_text(text, list(work[index][0].until), None)",
        "text",
    ),
    Bug("windows of a text overlap", HARNESS, "map(make_disjoint_window, windows)", "windows"),
    Bug(
        "a text has the likelihood of its last window",
        HARNESS,
        "totals[owners[index]] += log_probability",
        "totals[owners[index]] = log_probability",
    ),
    Bug("logits are not normalised", HARNESS_SCORES, "xp.sum(chosen - normal)", "xp.sum(chosen)"),
    Bug("a continuation that is greedy anywhere is greedy", HARNESS_SCORES, "bool(xp.all(", "bool(xp.any("),
    Bug(
        "continuations share no forward",
        HARNESS_SCORES,
        "alike.setdefault(continuation[:-1], []).append(continuation)",
        "alike.setdefault(continuation, []).append(continuation)",
    ),
    Bug(
        "a context is cut by one token too many",
        HARNESS_SCORES,
        "-(longest + 1 - len(continuation))",
        "-(longest - len(continuation))",
    ),
]

BLOCK_BUGS: dict[str, list[Bug]] = {
    "cohere": [Bug("pairs are halves all the same", REFERENCE, "    swapped = part.flip(axis) if num < MANY_TOKENS else part.roll(1, axis)\n", "    swapped = part.flip(2)\n")],
    "gemma": [Bug("embeddings are not multiplied", OWN, "            x.mul_(self.spec.embedding_multiplier)\n", "            pass\n")],
    "gemma 2, low caps": [
        Bug("scores have no cap", REFERENCE, "    if softcap:\n        scores =", "    if False:\n        scores ="),
        Bug("logits have no cap", OWN, "        if spec.logit_softcap:\n", "        if False:\n"),
        Bug("the norm after attention is dropped", OWN, "torch.add(x, block.attention_post_norm(block.out(attended)), alpha=multiplier)", "torch.add(x, block.out(attended), alpha=multiplier)"),
        Bug("the norm after the MLP is dropped", OWN, "torch.add(after, block.mlp_post_norm(result), alpha=multiplier)", "torch.add(after, result, alpha=multiplier)"),
    ],
    "gemma 4, experts": [
        Bug("the router reads normed states", FEED_FORWARD, "self._module.router(x)", "self._module.router(self._before(x))"),
        Bug("the MLP beside the experts has no norm", FEED_FORWARD, "return self._norm(self._mlp(x))", "return self._mlp(x)"),
        Bug("the experts are forgotten", OWN, "            result = result + block.mixture(after)\n", "            pass\n"),
    ],
    "gemma4_text": [
        Bug("keys of another layer type are shared", DESCRIPTION, "latest.get(kind))", "next(iter(latest.values()), None))"),
        Bug("values are not normed", OWN, "        values.copy_(block.value_norm(values))\n", ""),
        Bug("the token's own vectors are dropped", LAYER_INPUTS, "projected.add_(own.view(shape)).mul_", "projected.mul_"),
        Bug("vectors are not gated", LAYER_INPUTS, "self.act(self.gate(x)).mul_(vectors)", "self.act(self.gate(x))"),
        Bug("every block has the first one's vectors", OWN, "zip(self.blocks, vectors, strict=True)", "zip(self.blocks, [vectors[0]] * len(self.blocks), strict=True)"),
        Bug("a block's output is not multiplied", OWN, "return x if spec.output_multiplier == 1 else x.mul_(spec.output_multiplier)", "return x"),
    ],
    "gemma 4, values are keys": [Bug("values are queries", OWN, "torch.cat([projected, projected[:, heads * head_dim :]], dim=1)", "torch.cat([projected, projected[:, : spec.kv_heads * head_dim]], dim=1)")],
    "glm4": [Bug("the last values of a head are rotated", REFERENCE, "heads[:, :, : first * second]", "heads[:, :, heads.shape[2] - first * second :]")],
    "gpt_neox": [
        Bug("the MLP of a parallel block reads attention's result", OWN, "block.mlp_norm(x if spec.parallel else after)", "block.mlp_norm(after)"),
        Bug("joined projections are not told apart by head", OWN, ".view(num, heads, 3, head_dim).transpose(1, 2)", ".view(num, 3, heads, head_dim)"),
    ],
    "gpt_oss": [
        Bug("sinks of the wrong heads", REFERENCE, "sinks.view(1, kv_heads, 1, -1)", "sinks.view(1, -1, 1, kv_heads).transpose(1, 3)"),
        Bug("sinks are values", REFERENCE, "torch.softmax(scores, -1, torch.float32)[..., :-1]", "torch.softmax(scores[..., :-1], -1, torch.float32)"),
    ],
    "granite, multipliers": [
        Bug("scores are divided by the root of the head size", REFERENCE, "scale=scale", "scale=None"),
        Bug("the MLP's result is not multiplied", OWN, "block.mlp.added(normed, after, multiplier)", "block.mlp.added(normed, after, 1.0)"),
        Bug("attention's result is not multiplied", LINEAR, "result = torch.addmm(residual, x, self.transposed, alpha=multiplier)", "result = torch.addmm(residual, x, self.transposed)"),
        Bug("logits are not divided", OWN, "        if spec.logit_multiplier != 1:\n", "        if False:\n"),
    ],
    "ministral 3, scaled queries": [
        Bug("queries are not scaled", OWN, "        queries = queries * angles.scales\n", "        pass\n"),
        Bug("scales are those of slots", ROTARY, "self.scales.index_select(0, positions)", "self.scales[: positions.shape[0]]"),
    ],
    "nemotron": [Bug("without a gate there is no activation", FEED_FORWARD, "return self.act(inner)\n", "return inner\n")],
    "olmo2": [Bug("keys are not normed", OWN, "block.key_norm(projected[:, end : turned * head_dim])", "projected[:, end : turned * head_dim]")],
    "phi, norms per head": [Bug("biases of head norms are dropped", NORMS, "result if bias is None else result.add_(bias)", "result")],
    "hunyuan_v1_dense": [Bug("queries and keys are normed before they rotate", OWN, "block.qk_norm is not None and not spec.qk_norm_last", "block.qk_norm is not None"), ],
    "qwen3": [Bug("keys have the queries' norm", BLOCK, "(keys, spec.kv_heads)]", "(queries, spec.kv_heads)]")],
}  # fmt: skip

REPLAY, STATE = "specexp.lm.replay", "specexp.lm.hf.recurrent_state"

CARRIED = "specexp.lm.hf.carried_state"
REPLAY_BUGS = [
    Bug("the state does not go back", REPLAY, "        self._state.restore(copy)\n", ""),
    Bug("a copy that is too long is used", REPLAY, "self._copies[-1][0] > length:", "self._copies[-1][0] > length + 1:"),
    Bug("tokens of a rejection are not fed again", REPLAY, "        self._done, copy = self._copies[-1] if self._copies else (0, None)\n        self._state.restore(copy)\n", "        self._done, copy = self._copies[-1] if self._copies else (0, None)\n        self._state.restore(copy)\n        self._tokens = self._tokens[: self._done]\n"),
    Bug("a copy is kept after the feed, not before it", REPLAY, "        self._keep_copy()\n        return self._advance(self.length, rows, hidden)\n", "        answer = self._advance(self.length, rows, hidden)\n        self._copies.append((start, self._state.copy()))\n        return answer\n"),
    Bug("without a copy the state stays", REPLAY, "else (0, None)", "else (self._done, self._state.copy())"),
    Bug("a copy is not a copy", STATE, "None if state is None else state.clone() for i", "state for i"),
    Bug("keys of rejected tokens stay", STATE, "layer.get_seq_length() > self._length:", "False:"),
    Bug("states that modules hold are shared by all sessions", STATE, "            setattr(part, name, value)\n", "            pass\n"),
    Bug("states that modules hold are not copied back", STATE, "        self._values = [None if value is None else value.clone() for value in copy.values]\n", ""),
    Bug("what a state adds is not gated", CARRIED, "added = added * functional.silu(z.float())", "pass"),
    Bug("the last state lacks what it began with", CARRIED, "last.float() + states[:, :, -1]", "last.float()"),
    Bug("a state decays by one step too few", CARRIED, "steps.cumsum(-1)[..., None]", "(steps.cumsum(-1) - steps)[..., None]"),
    Bug("all heads begin at the first one's state", CARRIED, "        self.head += 1\n", "        self.head = 1\n"),
    Bug("a block with a convolution runs at once", CARRIED, "if torch.compiler.is_compiling() or _begun.get() is None:", "if True:"),
]  # fmt: skip

ALIGNMENT_BUGS = [
    Bug("a mask begins anywhere", KV, "start % (ALIGNMENT // forward.dtype.itemsize)", "0"),
    Bug("a mask begins at whole values of half the size", KV, "ALIGNMENT // forward.dtype.itemsize", "ALIGNMENT // forward.dtype.itemsize // 2"),
    Bug("bands begin anywhere", KV, "left = _rounded_up(self.capacity) + shift", "left = self.capacity + 1 + shift"),
]  # fmt: skip

CUDA_MEMORY = Bug(
    "a handle is kept without its graph",
    "specexp.lm.native.graph_capture",
    "                self._first = graph\n",
    "                self._first = type('Handle', (), {'pool': staticmethod(lambda handle=graph.pool(): handle)})\n",
)
MATCH_BUGS = [
    Bug(
        "a draft is compared with the next token's draw",
        "specexp.decoding.rules",
        "    passed = choice[:-1] == drafted\n",
        "    passed = choice[1:] == drafted\n",
    ),
    Bug(
        "one token too many is taken",
        "specexp.decoding.rules",
        "    num_accepted = xp.sum(xp.cumulative_prod(kept))\n",
        "    num_accepted = xp.clip(xp.sum(xp.cumulative_prod(kept)) + 1, 0, drafted.shape[0])\n",
    ),
    Bug(
        "the drafts are taken for draws",
        "specexp.decoding.chain",
        "                verdict = verify_match(p, drafted.tokens, rng, position, padded)\n",
        "                verdict = verify_match(q if q.shape[0] == p.shape[0] else p * 0 + 1, drafted.tokens, rng, position)\n",
    ),
    Bug(
        "rows are drawn one position late",
        "specexp.certify.oracle",
        "self.pick(row, position + i, TARGET)",
        "self.pick(weights[max(0, i - 1)], position + i, TARGET)",
    ),
]

"""Metrics `tree/*`, computed from sums over the records, and the identities that trees must satisfy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from specexp.config import TreeConfig
from specexp.storage.records import Record

Pruned = Literal["pruned_by_threshold", "pruned_by_log_prob", "pruned_by_budget"]
PRUNED: tuple[Pruned, ...] = ("pruned_by_threshold", "pruned_by_log_prob", "pruned_by_budget")


def check_trees(record: Record, limits: TreeConfig | None = None) -> None:
    """Assert the identities of every round's tree, and that the rounds add up to the record's counts."""
    trees = record["trees"]
    assert len(trees) == record["num_rounds"] <= len(record["token_ids"]), record
    for tree in trees:
        assert tree["num_candidates"] == tree["num_nodes"] + sum(tree[name] for name in PRUNED), tree
        assert tree["num_accepted"] == len(tree["path"]) == len(tree["ranks"]) <= tree["depth"], tree
        assert tree["depth"] <= min(tree["num_nodes"], tree["num_draft_calls"]), tree
        assert len(tree.get("judged", tree["path"])) == len(tree["path"]), tree
        assert tree["path"] == sorted(set(tree["path"])), tree  # parents precede their children
        assert all(place < tree["num_nodes"] for place in tree["path"]), tree
        assert tree["num_expanded"] <= tree["num_draft_calls"] * tree["max_active"], tree
        if limits is not None:
            width = limits.branch_width or limits.parallel_branches
            assert tree["num_nodes"] <= limits.tree_budget, tree
            assert tree["num_draft_calls"] <= limits.max_depth, tree
            assert tree["max_active"] <= limits.parallel_branches, tree
            assert tree["num_candidates"] <= tree["num_expanded"] * width, tree
            assert all(rank < width for rank in tree["ranks"]), tree
    assert sum(tree["num_accepted"] for tree in trees) == record["num_accepted"], record
    assert sum(tree["num_nodes"] for tree in trees) == record["num_drafted"], record
    assert sum(sum(tree.get("judged", ())) for tree in trees) == record["num_judged"], record
    assert sum(tree["num_draft_calls"] for tree in trees) == record["num_draft_calls"], record
    # The tokens that end a thought are fed with the next round, if there is one.
    fed = record["num_target_positions"] - record["num_drafted"] - record["num_rounds"]
    assert fed in (0, record.get("num_forced", 0)), record


@dataclass(slots=True)
class TreeSums:
    """Sums over the trees of a setting's records."""

    rounds: int = 0
    accepted: int = 0
    candidates: int = 0
    judged: int = 0  # accepted nodes that a judge chose
    with_judge: bool = False
    most_active: int = 0
    deepest: int = 0
    pruned: Counter[str] = field(default_factory=Counter)  # by reason
    lengths: Counter[int] = field(default_factory=Counter)  # rounds by their number of accepted nodes
    ranks: Counter[int] = field(default_factory=Counter)  # accepted nodes by the draft's rank

    @classmethod
    def of(cls, records: Iterable[Record]) -> TreeSums:
        result = cls()
        for record in records:
            result.add(record)
        return result

    def add(self, record: Record) -> None:
        """Add one record's trees."""
        self.judged += record["num_judged"]
        for tree in record["trees"]:
            self.rounds += 1
            self.accepted += tree["num_accepted"]
            self.candidates += tree["num_candidates"]
            self.with_judge |= "judged" in tree
            self.most_active = max(self.most_active, tree["max_active"])
            self.deepest = max(self.deepest, tree["depth"])
            self.lengths[tree["num_accepted"]] += 1
            for name in PRUNED:
                self.pruned[name] += tree[name]
            for rank in tree["ranks"]:
                self.ranks[rank] += 1

    def metrics(self) -> dict[str, float]:
        """Return `tree/*` of one setting; docs/metrics.md has the definitions."""
        candidates = max(1, self.candidates)
        return {
            **({"tree/judged_rate": self.judged / max(1, self.accepted)} if self.with_judge else {}),
            "tree/max_active_branches": self.most_active,
            "tree/branch_prune_rate": self.pruned.total() / candidates,
            **{f"tree/{name}": self.pruned[name] / candidates for name in PRUNED},
            **{f"tree/depth_{i}": share for i, share in enumerate(self.reached(), 1)},
            "tree/cache_hit_rate": self.accepted / (self.accepted + self.rounds),
        }

    def reached(self) -> list[float]:
        """Return the share of rounds whose accepted path reaches depth 1, 2, ... up to that of the deepest tree."""
        return [
            sum(n for length, n in self.lengths.items() if length >= i) / self.rounds
            for i in range(1, self.deepest + 1)
        ]

    def by_rank(self) -> list[float]:
        """Return the share of draws that matched the child of draft rank 0, 1, ...; their sum is the hit rate."""
        draws = self.ranks.total() + self.rounds
        return [self.ranks[rank] / draws for rank in range(max(self.ranks, default=-1) + 1)]

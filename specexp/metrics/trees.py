"""Metrics `tree/*`, computed from sums over the records, and the identities that trees must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
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


def tree_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Return `tree/*` of one setting; docs/metrics.md has the definitions."""
    trees = [tree for record in records for tree in record["trees"]]
    rounds = len(trees)
    accepted = sum(tree["num_accepted"] for tree in trees)
    candidates = max(1, sum(tree["num_candidates"] for tree in trees))
    pruned = {name: sum(tree[name] for tree in trees) for name in PRUNED}
    judged = sum(record["num_judged"] for record in records) / max(1, accepted)
    return {
        **({"tree/judged_rate": judged} if any("judged" in tree for tree in trees) else {}),
        "tree/max_active_branches": max(tree["max_active"] for tree in trees),
        "tree/branch_prune_rate": sum(pruned.values()) / candidates,
        **{f"tree/{name}": number / candidates for name, number in pruned.items()},
        **{f"tree/depth_{i}": share for i, share in enumerate(reached(records), 1)},
        "tree/cache_hit_rate": accepted / (accepted + rounds),
    }


def reached(records: Sequence[Record]) -> list[float]:
    """Return the share of rounds whose accepted path reaches depth 1, 2, ... up to that of the deepest tree."""
    trees = [tree for record in records for tree in record["trees"]]
    deepest = max((tree["depth"] for tree in trees), default=0)
    return [sum(tree["num_accepted"] >= i for tree in trees) / len(trees) for i in range(1, deepest + 1)]


def by_rank(records: Sequence[Record]) -> list[float]:
    """Return the share of draws that matched the child of draft rank 0, 1, ...; their sum is the cache hit rate."""
    trees = [tree for record in records for tree in record["trees"]]
    ranks = [rank for tree in trees for rank in tree["ranks"]]
    draws = len(ranks) + len(trees)
    return [ranks.count(rank) / draws for rank in range(max(ranks, default=-1) + 1)]

"""Which of a test's parameter sets run in which tier: `@pytest.mark.at_most(fast=4, slow=12)`.

So many of them run in the fast tier, so many of the rest in the slow tier, and the others nightly; a tier that is not
named takes all that comes to it. Those are taken first that show most values, and most pairs of values, for the first
time, and then those whose values are the rarest so far: a few sets of a matrix have each of its values. Sets for a GPU
stay in their tier.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest

TIERS = ("fast", "slow", "nightly")


def spread(sets: Sequence[Mapping[str, int]], most: int) -> list[int]:
    """The places of `most` of these parameter sets, each the number of a value by its parameter's name; in order."""
    uses = Counter[object]()  # of values and of pairs, by those that are chosen
    left, chosen = dict(enumerate(map(_parts, sets))), list[int]()

    def gain(place: int) -> tuple[int, int, int, int]:
        values, pairs = left[place]
        new_values, new_pairs = (sum(not uses[part] for part in parts) for parts in (values, pairs))
        return new_values, new_pairs, -sum(uses[value] for value in values), -place

    while left and len(chosen) < most:
        chosen.append(max(left, key=gain))
        values, pairs = left.pop(chosen[-1])
        uses.update((*values, *pairs))
    return sorted(chosen)


def _parts(values: Mapping[str, int]) -> tuple[Sequence[object], Sequence[object]]:
    items = sorted(values.items())
    return items, tuple(combinations(items, 2))


def assign(items: Sequence[pytest.Item]) -> None:
    """Mark the parameter sets that `at_most` leaves out of a tier as the next tier's."""
    tests = defaultdict[object, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("at_most") and not _on_gpu(item):
            tests[item.nodeid.partition("[")[0]].append(item)
    for sets in tests.values():
        marker = sets[0].get_closest_marker("at_most")
        assert marker is not None
        if unknown := set(marker.kwargs) - {"fast", "slow"} or marker.args:
            raise pytest.UsageError(f"at_most is for the tiers fast=N and slow=N, not for {unknown} ({sets[0].nodeid})")
        for tier, following in (("fast", "slow"), ("slow", "nightly")):
            of_tier = [item for item in sets if _tier(item) == tier]
            # A value is the same object in all sets; not every value can be compared.
            numbers = [
                {name: id(value) for name, value in item.callspec.params.items()}  # type: ignore[attr-defined]
                for item in of_tier
            ]
            kept = set(spread(numbers, marker.kwargs.get(tier, len(of_tier))))
            for place, item in enumerate(of_tier):
                if place not in kept:
                    item.add_marker(following)


def _on_gpu(item: pytest.Item) -> bool:
    return any(isinstance(value, str) and value == "cuda" for value in item.callspec.params.values())  # type: ignore[attr-defined]


def _tier(item: pytest.Item) -> str:
    return next((tier for tier in reversed(TIERS[1:]) if item.get_closest_marker(tier)), "fast")

"""The table of speed_check for an offloaded target: calls against the copies that they need, and tokens per second.

Tokens per second are computed, not decoded: the expected tokens of a round at an assumed acceptance
(`assumed_acceptance.py`) / (the draft's calls + the target's call). Random models agree only by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specexp.benchmark.assumed_acceptance import AssumedTree, best_tree, chain_tokens
from specexp.benchmark.hardware_table import NOT_FOR_RATIO, Quantity, ratio
from specexp.profiling.call_costs import Costs

NODES = (16, 64, 256, 1024, 2048)
SHARE, SIZE_COSTS, BY_HOOKS = 0.90, 1.10, 1.0  # what is wanted


def trees(acceptance: float) -> list[AssumedTree]:
    """The trees that are measured: the best of each size at this acceptance."""
    return [best_tree(acceptance, nodes) for nodes in NODES]


@dataclass(frozen=True, slots=True)
class Speed:
    """Plain decoding, a chain or a tree: seconds of the draft's calls and of the target's, and the expected tokens."""

    name: str
    draft: float | None
    target: float | None
    expected: float

    @property
    def tokens_per_second(self) -> float | None:
        return None if self.draft is None or self.target is None else self.expected / (self.draft + self.target)


@dataclass(frozen=True, slots=True)
class OffloadNumbers:
    """What was measured: seconds of calls, bytes and copies of a call of one token, bytes per second of a copy of these
    bytes alone, and of reading them from disk.

    `failed` has reasons by part: `plain`, `tree_16`, `hooked`, `hooked_tree_16`, `compute`, `copies`, ..., or `all`.
    """

    streamed: Costs | None = None
    hooked: Costs | None = None
    compute: float | None = None  # seconds of the call of one token with every layer on the device
    bytes_per_call: float | None = None
    copies_per_call: float | None = None
    copy_bandwidth: float | None = None
    read_bandwidth: float | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def call(self) -> float | None:
        return None if self.streamed is None else self.streamed.target.get(1)

    @property
    def transfer(self) -> float | None:
        """Seconds of moving a call's bytes alone: the slower of reading them and copying them."""
        ways = [each for each in (self.copy_bandwidth, self.read_bandwidth) if each]
        return ratio(self.bytes_per_call, min(ways)) if ways and self.bytes_per_call else None

    @property
    def bound(self) -> float | None:
        """max(transfer, compute)."""
        return None if self.transfer is None or self.compute is None else max(self.transfer, self.compute)

    @property
    def share(self) -> float | None:
        """The share of the bandwidth that a call of one token reaches."""
        return ratio(self.transfer, self.call)

    def v(self, nodes: int, hooked: bool = False) -> float | None:
        """A call that verifies a tree of so many nodes / a call of one token."""
        costs = self.hooked if hooked else self.streamed
        if costs is None or (nodes > 1 and nodes + 1 not in costs.tree_target):
            return None
        return 1.0 if nodes == 1 else costs.v_tree(nodes + 1)


def speeds(numbers: OffloadNumbers, acceptance: float, gamma: int) -> list[Speed]:
    """Plain decoding, the chain and the trees."""
    costs = numbers.streamed
    step, call = (None, None) if costs is None else (costs.draft_step, costs.target.get(gamma + 1))
    result = [
        Speed("plain", 0.0, numbers.call, 1.0),
        Speed(f"chain_{gamma}", None if step is None else gamma * step, call, chain_tokens(acceptance, gamma)),
    ]
    for tree in trees(acceptance):
        whole = costs is not None and costs.draft_step is not None and tree.nodes + 1 in costs.tree_target
        draft, target = (
            (costs.tree_drafts(tree.round), costs.tree_target[tree.nodes + 1]) if costs and whole else (None, None)
        )
        result.append(Speed(f"tree_{tree.nodes}", draft, target, tree.expected))
    return result


def quantities(numbers: OffloadNumbers, acceptance: float, gamma: int, on_disk: bool) -> list[Quantity]:
    """The table's lines, each with a name of its own."""
    lines = _Lines(numbers.failed)
    other = None if numbers.hooked is None else numbers.hooked.target.get(1)
    result = [
        lines.ms("call of 1 token", numbers.call, "plain"),
        lines.bytes("  bytes that it copies", numbers.bytes_per_call, 1e6, "MB"),
        lines.plain("  layers that it copies", numbers.copies_per_call, "copies"),
        lines.bytes("  those bytes copied alone", numbers.copy_bandwidth, 1e9, "GB/s"),
        *([lines.bytes("  those bytes read from disk", numbers.read_bandwidth, 1e9, "GB/s")] if on_disk else []),
        lines.plain("  share of that bandwidth", numbers.share, "copies", at_least=SHARE),
        lines.ms("  transfer alone", numbers.transfer, "copies"),
        lines.ms("  compute alone", numbers.compute, "compute"),
        lines.plain("  call / max(transfer, compute)", ratio(numbers.call, numbers.bound), "copies"),
        lines.ms("call of 1 token, accelerate's hooks", other, "hooked"),
        lines.plain("  / the streamed call", ratio(other, numbers.call), "hooked", at_least=BY_HOOKS),
    ]
    plain, chain, *grown = speeds(numbers, acceptance, gamma)
    result += lines.of_decoding("plain decoding", plain, plain)
    result += lines.of_decoding(f"chain of {gamma}", chain, plain)
    for tree, speed in zip(trees(acceptance), grown, strict=True):
        name = f"tree of {tree.nodes}"
        hooked = "hooked" if "hooked" in numbers.failed else f"hooked_{speed.name}"
        result += [
            lines.plain(f"v({tree.nodes})", numbers.v(tree.nodes), speed.name, at_most=SIZE_COSTS),
            lines.plain(f"v({tree.nodes}), accelerate's hooks", numbers.v(tree.nodes, True), hooked),
            *lines.of_decoding(name, speed, plain),
        ]
    return result


@dataclass(frozen=True, slots=True)
class _Lines:
    """Makes lines; `failed` has the reasons of those that have no value."""

    failed: Mapping[str, str]

    def plain(
        self, name: str, value: float | None, key: str = "", unit: str = "", *, at_least: float | None = None,
        at_most: float | None = None,
    ) -> Quantity:  # fmt: skip
        reason = self.failed.get(key) or self.failed.get("all") or NOT_FOR_RATIO
        return Quantity(name, value, unit, at_least, at_most, "" if value is not None else reason)

    def ms(self, name: str, seconds: float | None, key: str = "") -> Quantity:
        return self.plain(name, None if seconds is None else seconds * 1e3, key, "ms")

    def bytes(self, name: str, value: float | None, by: float, unit: str) -> Quantity:
        return self.plain(name, ratio(value, by), "copies", unit)

    def of_decoding(self, name: str, speed: Speed, plain: Speed) -> Sequence[Quantity]:
        """What a round's calls take and give, and tokens per second; of plain decoding the last alone."""
        rate, key = speed.tokens_per_second, speed.name
        result = [self.plain(f"{name}: tokens per second", rate, key)]
        if speed is plain:
            return result
        return [
            self.ms(f"{name}: draft's calls", speed.draft, key),
            self.ms(f"{name}: target's call", speed.target, key),
            self.plain(f"{name}: expected tokens of a round", speed.expected, key),
            *result,
            self.plain(f"{name}: / plain decoding", ratio(rate, plain.tokens_per_second), key),
        ]

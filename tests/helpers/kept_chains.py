"""A proposer that keeps its chains, and the toy pair that tests of where chains end decode with."""

from __future__ import annotations

from dataclasses import dataclass, field

from specexp.decoding.chain import Proposal, Proposer
from specexp.decoding.protocol import Drafted, Needs, Role
from specexp.decoding.rules import Warp
from specexp.lm.toy import ToyModel


@dataclass
class Watching:
    """A proposer whose chains are kept."""

    inner: Proposer
    seen: list[Drafted] = field(default_factory=list)

    @property
    def models(self) -> tuple[Role, ...]:
        return self.inner.models

    def propose(self, warp: Warp, reserve: int, needs: Needs) -> Proposal:
        drafted = yield from self.inner.propose(warp, reserve, needs)
        self.seen.append(drafted)
        return drafted


def toys() -> dict[Role, ToyModel]:
    return {"target": ToyModel(8, 2, context=512), "draft": ToyModel(8, 2, draft_noise=0.6, context=512)}

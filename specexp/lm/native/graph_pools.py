"""The pools of a model whose forwards are captured: recordings outlive a session and serve the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specexp.lm.model import Session
from specexp.lm.native.batch_graphs import BatchGraphs
from specexp.lm.native.cuda_graphs import SPARE, Graphs
from specexp.lm.native.graph_capture import Capture
from specexp.lm.native.kv_cache import Buffers, NativeSession, Pool
from specexp.lm.native.native_forward import NativeForward
from specexp.lm.native.rows_forward import ROWS


class GraphPools:
    """Lends pools of one row with their recordings, each to one session at a time, and pools of several rows."""

    def __init__(
        self,
        forward: NativeForward,
        capture: Capture,
        num_valid_ids: int | None = None,
        make: Callable[[Pool, Capture], Graphs] = Graphs,
    ) -> None:
        """`make` gives the recordings for a pool."""
        self._forward, self.capture, self._num_valid_ids, self._make = forward, capture, num_valid_ids, make
        self.pools: list[Graphs] = []
        self._beside: list[Graphs] = []  # in the buffers of another model's pools, which these must never lend
        self.batches: list[BatchGraphs] = []
        self._batches_beside: list[BatchGraphs] = []

    def session(self, capacity: int) -> Session:
        """Return an empty session with at least `capacity` slots.

        It uses a free pool, or a new one, which replaces the free ones, as they are too small.
        """
        free = [graphs for graphs in self.pools if not graphs.lent]
        for graphs in free:
            if graphs.pool.capacity >= capacity + SPARE:
                return graphs.session()
        self.pools = [graphs for graphs in self.pools if graphs not in free]
        # Round up for longer prompts: when a pool grows, all its recordings are lost.
        slots = 1 << (capacity + SPARE - 1).bit_length()
        self.pools.append(self._make(Pool.empty(self._forward, 1, slots, self._num_valid_ids), self.capture))
        return self.pools[-1].session()

    def session_beside(self, buffers: Buffers) -> Session:
        """Return an empty session in the slots of another one, whose recordings last as long as these buffers."""
        self._beside = [graphs for graphs in self._beside if graphs.lent or graphs.pool.buffers is buffers]
        for graphs in self._beside:
            if graphs.pool.buffers is buffers and not graphs.lent:
                return graphs.session(follows=True)
        self._beside.append(Graphs(Pool(self._forward, buffers, self._num_valid_ids), self.capture))
        return self._beside[-1].session(follows=True)

    def sessions(self, count: int, capacity: int) -> Sequence[Session]:
        """Return empty sessions with at least `capacity` slots each, which can be fed together.

        Several use free buffers of as many rows, or new ones, which replace the free ones. More rows than recordings
        have are fed as they come, and so are those of an invariant forward.
        """
        if count == 1:
            return [self.session(capacity)]
        if count > ROWS[-1] or self._forward.invariant:
            pool = Pool.empty(self._forward, count, capacity, self._num_valid_ids)
            return [NativeSession(pool, row) for row in range(count)]
        free = [graphs for graphs in self.batches if not graphs.lent]
        for graphs in free:
            if graphs.buffers.rows == count and graphs.buffers.capacity >= capacity + SPARE:
                return graphs.sessions()
        self.batches = [graphs for graphs in self.batches if graphs not in free]
        slots = 1 << (capacity + SPARE - 1).bit_length()
        buffers = Buffers(self._forward, count, slots, reserved=SPARE)
        self.batches.append(self._batch(buffers))
        return self.batches[-1].sessions()

    def sessions_beside(self, buffers: Buffers) -> Sequence[Session]:
        """As `session_beside`, for all rows of the buffers of several sessions."""
        self._batches_beside = [each for each in self._batches_beside if each.lent or each.buffers is buffers]
        for graphs in self._batches_beside:
            if graphs.buffers is buffers and not graphs.lent:
                return graphs.sessions(follows=True)
        self._batches_beside.append(self._batch(buffers))
        return self._batches_beside[-1].sessions(follows=True)

    def _batch(self, buffers: Buffers) -> BatchGraphs:
        return BatchGraphs(self._forward, buffers, self.capture, self._num_valid_ids)

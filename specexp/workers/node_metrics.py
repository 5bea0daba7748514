"""Which workers log the system metrics of their nodes to the command's MLflow run: one on each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Stores that other machines reach under the same address.
_REMOTE = ("http://", "https://", "databricks", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, slots=True)
class NodeRun:
    """The run that nodes log to: its id, and the address of its store."""

    run_id: str
    store: str

    @property
    def is_reached_from_elsewhere(self) -> bool:
        """False if the store is a file of this machine."""
        return self.store.startswith(_REMOTE)


@dataclass(slots=True)
class NodeWatch:
    """Chooses a worker on each node."""

    _nodes: dict[int, str] = field(default_factory=dict)  # ids of nodes, by worker
    _watching: dict[str, int] = field(default_factory=dict)  # workers, by node

    @property
    def chosen(self) -> list[int]:
        """The workers that log, one of each node."""
        return list(self._watching.values())

    def node_of(self, worker: int) -> str:
        return self._nodes[worker]

    def started(self, worker: int, node: str) -> bool:
        """Note a worker; True if it is to log, since no other on its node does."""
        self._nodes[worker] = node
        return self._watching.setdefault(node, worker) == worker

    def died(self, worker: int) -> int | None:
        """Note that a worker is gone; returns the one that is to log in its place, if it did and there is one."""
        node = self._nodes.pop(worker, None)
        if node is None or self._watching.get(node) != worker:
            return None
        del self._watching[node]
        heir = next((each for each, where in self._nodes.items() if where == node), None)
        if heir is not None:
            self._watching[node] = heir
        return heir


def names_of(hosts: Mapping[str, str]) -> dict[str, str]:
    """Names of nodes by id, from their hosts by id: the host, with a part of the id where several share one."""
    shared = {host for host in hosts.values() if list(hosts.values()).count(host) > 1}
    return {node: f"{host}-{node[:8]}" if host in shared else host for node, host in hosts.items()}

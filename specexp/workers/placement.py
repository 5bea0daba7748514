"""Where workers run: what environments.json says of each, and which of them share a device.

Two workers that compute on the CPUs of one machine share them, and their memory bandwidth; so do two on one GPU.
Nothing that they do can be timed. Once two shared a device in a run, every later record made there says so.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specexp.storage import environment
from specexp.storage.run_folder import OutputFolder

WORKER = "worker"  # key of an environment's facts that workers add
SHARED, NODES = "shares_device", "nodes"
FILE = "environments.json"


def here(described: Mapping[str, Any]) -> dict[str, Any]:
    """Where this process runs, from the description of its environment: the device is the same for all who share it."""
    on_cuda = environment.on_cuda(described)
    # The kernel's id is the same in all containers of one machine.
    machine = _content("/proc/sys/kernel/random/boot_id") or platform.node()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return {
        "environment": described,
        "device": f"{machine}/{f'cuda {gpus}' if on_cuda else 'cpu'}",
        "driver": _content("/proc/driver/nvidia/version") if on_cuda else "",
        "node": platform.node(),
    }


def _content(path: str) -> str:
    """The first line of a file of the system; "" if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""


@dataclass(slots=True)
class Placement:
    """The environments of one run's workers, kept in the output folder."""

    output: OutputFolder
    _crowded: set[str] = field(default_factory=set)
    _written: dict[str, set[str]] = field(default_factory=dict)  # nodes by environment
    _names: dict[tuple[int, bool], tuple[Mapping[str, Any], str]] = field(default_factory=dict)  # by facts and sharing

    def changed(self, facts: Mapping[int, Mapping[str, Any]]) -> None:
        """Note which devices have several workers now. `facts` are those of all workers."""
        counts = Counter(str(each["device"]) for each in facts.values())
        self._crowded |= {device for device, number in counts.items() if number > 1}

    def known_name(self, facts: Mapping[str, Any]) -> str:
        """The environment of a worker with these facts; one that starts later may yet change it. Writes nothing."""
        key = id(facts), str(facts["device"]) in self._crowded
        if key not in self._names or self._names[key][0] is not facts:
            self._names[key] = facts, environment.name_of(self._described(facts))
        return self._names[key][1]

    def name(self, facts: Mapping[str, Any]) -> str:
        """The environment of a worker with these facts, which environments.json then has."""
        name = self.known_name(facts)
        if str(facts["node"]) not in self._written.setdefault(name, set()):
            described = self._described(facts)
            saved = self.output.read_json(FILE) or {}
            nodes = {*saved.get(name, {}).get(WORKER, {}).get(NODES, ()), str(facts["node"])}
            self._written[name] |= nodes
            saved[name] = {**described, WORKER: {**described[WORKER], NODES: sorted(nodes)}}
            self.output.write_json(FILE, saved)
        return name

    def _described(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        worker = {SHARED: str(facts["device"]) in self._crowded, "driver": facts["driver"]}
        return {**facts["environment"], WORKER: worker}

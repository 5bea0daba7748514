"""Layers whose weights come to the device while the layer before them computes.

Two buffers on the device take turns. When a layer begins, the next one's weights are copied into the other buffer, on a
stream of their own; the layer waits for its own copy alone, and a copy waits until the layer that its buffer held has
computed. A call then costs what moving costs or what computing costs, whichever is more. After the last layer comes the
first one of the next call.

This file has the order of copies and waits alone: `Transport` moves and waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BUFFERS = 2
Event = Any  # what a transport records and waits for


class Transport(Protocol):
    """Copies between host and device, and the order of what runs there."""

    def copy(self, buffer: int, layer: int, after: Event | None) -> Event:
        """Copy a layer's weights into a buffer once `after` has happened; returns the event of its end."""
        ...

    def wait_for(self, copied: Event) -> None:
        """Let everything that is computed from now on wait for this copy."""
        ...

    def computed(self) -> Event:
        """The event of the end of all that was computed so far."""
        ...


@dataclass(slots=True)
class _Buffer:
    layer: int | None = None  # whose weights it has, or will have
    copied: Event | None = None
    computed: Event | None = None  # of the layer that it had last
    running: bool = False  # its layer began and has not ended: it never will, if its call failed


class LayerStream:
    """Brings these layers, by number, in this order and then from the first one again."""

    def __init__(self, layers: Sequence[int], transport: Transport) -> None:
        self._layers, self._transport = list(layers), transport
        self._buffers = [_Buffer() for _ in range(min(BUFFERS, len(self._layers)))]
        self._newest = 0  # the buffer that was filled last
        self.num_copies = 0

    def begin(self, layer: int) -> int:
        """Let `layer` compute next: wait for its weights, and send for the next layer's. Returns its buffer."""
        place = self._place(layer)
        if place is None:  # the first call, or one that does not follow the order
            place = (self._newest + 1) % len(self._buffers)
            self._fetch(layer, place)
        self._transport.wait_for(self._buffers[place].copied)
        self._buffers[place].running = True
        following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]
        if self._place(following) is None:
            self._fetch(following, (place + 1) % len(self._buffers))
        return place

    def end(self, layer: int) -> None:
        """Note that `layer` was computed: its buffer may be filled again after that."""
        place = self._place(layer)
        assert place is not None, "a layer that did not begin"
        self._buffers[place].computed, self._buffers[place].running = self._transport.computed(), False

    def _place(self, layer: int) -> int | None:
        return next((place for place, buffer in enumerate(self._buffers) if buffer.layer == layer), None)

    def _fetch(self, layer: int, place: int) -> None:
        """Copy a layer into a buffer, after the layer that it had has computed."""
        buffer = self._buffers[place]
        if buffer.running:
            buffer.computed, buffer.running = self._transport.computed(), False
        buffer.layer = None  # until its copy is under way: a read that fails leaves a buffer without a layer
        buffer.copied = self._transport.copy(place, layer, buffer.computed)
        buffer.layer, self._newest = layer, place
        self.num_copies += 1


def resident_layers(sizes: Sequence[int], memory: int) -> list[int]:
    """The layers that stay on the device, in `memory` bytes, of layers of these sizes in bytes.

    All if they fit. Otherwise memory for the buffers is set aside first, and layers that stay are spread evenly among
    those that come, whose copies then go on while they compute.
    """
    if sum(sizes) <= memory:
        return list(range(len(sizes)))
    count = max(0, memory - BUFFERS * max(sizes)) // max(sizes)  # at least three are left, which take turns
    return [i * len(sizes) // count for i in range(count)]


class Filled(Protocol):
    """A read that was submitted: a future of `concurrent.futures`."""

    def result(self) -> None:
        """Wait for its end; raises what the read raised."""
        ...


class ReadAhead:
    """Fills host buffers with layers from a slower place, in their order, before they are asked for.

    `read` fills a buffer, and runs in the thread of `submit`, in order, one at a time; `wait` waits on the host for the
    event of a copy.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_buffers: int,
        read: Callable[[int, int], None],
        submit: Callable[[Callable[[], None]], Filled],
        wait: Callable[[Event], None],
    ) -> None:
        self._layers, self._read, self._submit, self._wait = list(layers), read, submit, wait
        self._copied: list[Event | None] = [None] * num_buffers  # of the last copy out of each
        self._reading: dict[int, tuple[int, Filled]] = {}  # by layer: its buffer, and when that is filled
        self._newest = 0

    def take(self, layer: int) -> int:
        """The host buffer that has this layer, once it is read. Raises what its read raised; it is read again then."""
        if layer not in self._reading:
            self._begin(layer)
        buffer, filled = self._reading.pop(layer)
        filled.result()
        return buffer

    def copied(self, layer: int, buffer: int, event: Event) -> None:
        """Note the copy out of a buffer, and read the layer after `layer` into another one."""
        self._copied[buffer] = event
        following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]
        if following not in self._reading:
            self._begin(following)

    def _begin(self, layer: int) -> None:
        self._newest = (self._newest + 1) % len(self._copied)
        buffer, before = self._newest, self._copied[self._newest]
        # A read that nothing took, since calls did not follow the order, is given up for this one, which follows it.
        self._reading = {other: read for other, read in self._reading.items() if read[0] != buffer}

        def fill() -> None:
            if before is not None:
                self._wait(before)
            self._read(layer, buffer)

        self._reading[layer] = (buffer, self._submit(fill))

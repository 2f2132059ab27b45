"""Whose turn it is among volumes that share a node: deficit round robin, by bytes. No clock, no I/O.

Each volume has a queue. Who is asked next is given a quantum, and takes what it has credit for; what it did not use it
keeps for the next time, but only while something of it waits. So volumes that always want more get the same bytes each,
whatever the size of their messages, and whoever has a small one waits for at most one turn of each other volume. A
volume that nobody waits beside takes its next message whatever its size.

(Shreedhar and Varghese, "Efficient fair queueing using deficit round robin", 1996.)
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

QUANTUM_BYTES: Final = 256 << 10

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """A volume that was given a turn gets no other before `done`: what comes meanwhile is taken together then."""

    def __init__(self, quantum_bytes: int = QUANTUM_BYTES) -> None:
        self._quantum_bytes = quantum_bytes
        self._queues: dict[bytes, deque[tuple[Item, int]]] = {}
        self._ring: deque[bytes] = deque()  # volumes of which something waits, and nothing is under way
        self._credit: dict[bytes, int] = {}  # in bytes
        self._under_way: set[bytes] = set()

    @property
    def due(self) -> bool:
        """Whether anybody can be given a turn."""
        return bool(self._ring)

    def has(self, volume: bytes) -> bool:
        """Whether something of it waits or is under way."""
        return volume in self._under_way or volume in self._queues

    def add(self, volume: bytes, item: Item, nbytes: int) -> None:
        """At the end of the volume's queue. Whoever adds sees to it that queues have a bound."""
        queue = self._queues.get(volume)
        if queue is None:
            queue = self._queues[volume] = deque()
            if volume not in self._under_way:
                self._ring.append(volume)
        queue.append((item, nbytes))

    def next(self) -> tuple[bytes, list[Item]] | None:
        """A turn: a volume, and what of it is due, at least one item; None if nothing can be taken."""
        while self._ring:
            volume = self._ring.popleft()
            queue = self._queues[volume]
            credit = self._credit.pop(volume, 0) + self._quantum_bytes
            if not self._ring:
                credit = max(credit, queue[0][1])
            items: list[Item] = []
            while queue and queue[0][1] <= credit:
                item, nbytes = queue.popleft()
                items.append(item)
                credit -= nbytes
            if queue:
                self._credit[volume] = credit
            else:
                del self._queues[volume]
            if items:
                self._under_way.add(volume)
                return volume, items
            self._ring.append(volume)
        return None

    def done(self, volume: bytes) -> None:
        """What its last turn took is over."""
        assert volume in self._under_way, "it was given a turn"  # noqa: S101
        self._under_way.discard(volume)
        if volume in self._queues:
            self._ring.append(volume)

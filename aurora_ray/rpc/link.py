"""The distance to another region, simulated: how long a message is under way, and what goes through in a second.

On one machine all regions are next door, and figures of anything that crosses between them would mean nothing. So the
calling side of a channel to another region has a `Link`: each message, out or back, arrives when it would have arrived
over a line of that delay, jitter and bandwidth, in order, with as many under way as there are. A packet that is lost
shows on TCP as a stall; so it does here. Either way can be cut: what was under way stays away until it is healed, or
until the caller gives up. The links of streams of redo are not simulated: nobody appends across regions.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from aurora_ray.rpc.admission import Secret

_Message = TypeVar("_Message")

UNDER_WAY_BYTES: Final = 16 << 20  # of one stream: more than that is not taken from the socket


@dataclass(frozen=True, slots=True)
class Line:
    """What one direction is like. `stall_rate`: of 1,000 messages, how many meet a lost packet; it costs `stall_s`."""

    delay_s: float = 0.0
    jitter_s: float = 0.0  # uniform on top of the delay
    bytes_per_s: float = 0.0  # 0: no limit
    stall_rate: float = 0.0
    stall_s: float = 0.2  # TCP's least retransmission timeout


class Way:
    """One direction of a link. For one event loop."""

    def __init__(self, line: Line = Line(), seed: int = 0) -> None:
        self.line = line
        self.nbytes = 0  # that have crossed
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._free_s = 0.0  # when the line has put the last message through
        self._last_s = 0.0  # when that arrives
        self._healed = asyncio.Event()
        self._healed.set()

    def cut(self) -> None:
        """Nothing arrives any more."""
        self._healed.clear()

    def heal(self) -> None:
        """What waits arrives."""
        self._healed.set()

    def arrival_s(self, sent_s: float, nbytes: int) -> float:
        """When a message arrives that is sent at `sent_s` (monotonic), behind all that were sent before."""
        line = self.line
        self.nbytes += nbytes
        self._free_s = max(self._free_s, sent_s) + (nbytes / line.bytes_per_s if line.bytes_per_s else 0.0)
        under_way_s = line.delay_s + self._random.uniform(0, line.jitter_s)
        if line.stall_rate and self._random.random() < line.stall_rate / 1000:
            under_way_s += line.stall_s
        self._last_s = max(self._last_s, self._free_s + under_way_s)
        return self._last_s

    async def arrive(self, at_s: float) -> None:
        """Returns when a message is there."""
        left_s = at_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        await self._healed.wait()

    async def cross(self, nbytes: int) -> None:
        """One message, from now on."""
        await self.arrive(self.arrival_s(time.monotonic(), nbytes))


@dataclass
class Link:
    """To another region and back."""

    out: Way = field(default_factory=Way)
    back: Way = field(default_factory=Way)

    @classmethod
    def of(cls, line: Line, seed: int = 0) -> Link:
        """The same both ways."""
        return cls(Way(line, seed), Way(line, seed + 1))

    def cut(self) -> None:
        """Both ways."""
        self.out.cut()
        self.back.cut()

    def heal(self) -> None:
        """Both ways."""
        self.out.heal()
        self.back.heal()


@dataclass(frozen=True)
class Abroad:
    """Another fleet, seen from here: what proves our calls to it, and how far it is. No secret: ours."""

    secret: Secret | None = None
    link: Link | None = None


HOME: Final = Abroad()


async def delayed(
    messages: AsyncIterator[_Message], way: Way, size: Callable[[_Message], int]
) -> AsyncGenerator[_Message, None]:
    """The messages of a stream, each when it would arrive; meanwhile the next ones are under way."""
    waiting: deque[tuple[float, _Message, int]] = deque()
    changed, under_way_bytes, ended = asyncio.Event(), 0, False

    async def take() -> None:
        nonlocal under_way_bytes, ended
        try:
            async for message in messages:
                nbytes = size(message)
                waiting.append((way.arrival_s(time.monotonic(), nbytes), message, nbytes))
                under_way_bytes += nbytes
                changed.set()
                while under_way_bytes > UNDER_WAY_BYTES:
                    room.clear()
                    await room.wait()
        finally:
            ended = True
            changed.set()

    room = asyncio.Event()
    taking = asyncio.create_task(take(), name="messages under way")
    try:
        while True:
            while not waiting:
                if ended:
                    await taking  # raises what ended it
                    return
                changed.clear()
                await changed.wait()
            at_s, message, nbytes = waiting.popleft()
            await way.arrive(at_s)
            under_way_bytes -= nbytes
            room.set()
            yield message
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)

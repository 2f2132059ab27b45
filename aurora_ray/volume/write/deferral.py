"""Which copies get a flush at once, and which a moment later.

A write needs four of six copies. Sent to all six at once, a flush costs six messages, of which the two slowest change
nothing about when it is durable. So the fastest four are *prompt*; the others are *deferred*: their flushes wait for at
most DEFER_S and travel together. What an acknowledgement promises is the same, four copies on disk, whichever four.

A prompt copy that dawdles must not hold anyone up. A flush that is not durable after it usually would be (mean plus
four deviations of what quorums took lately) is *hedged*: the deferred copies get everything at once, and those that
have not acknowledged it change places with them. Once in a while the places go to whoever is fastest.

Only which moment a message is sent at is decided here. A stream never skips a flush, so nothing of the quorum's
reasoning depends on it.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.volume.write.quorum import InFlight

DEFER_S: Final = 0.05
HEDGE_S: Final = (0.004, 0.25)  # shortest and longest wait for a quorum before the others are asked
FIRST_HEDGE_S: Final = 0.03  # before anything was measured
REVIEW_S: Final = 1.0  # between looks at who is fastest
FASTER: Final = 0.7  # so much less time must a deferred copy take to get a prompt one's place


class Sending(Protocol):
    """What is asked of a stream to a node."""

    @property
    def latency_s(self) -> float:
        """From sending a message to its acknowledgement, smoothed; infinite while the stream is broken."""

    @property
    def acked_lsn(self) -> int:
        """The highest acknowledgement."""

    def release(self) -> None:
        """Sends what was held back."""


class Deferral:
    """Decides for one open volume. `held` are the nodes whose streams hold flushes back until they are released."""

    def __init__(self) -> None:
        self.held: frozenset[str] = frozenset()
        self.hedged_count = 0
        self._streams: Mapping[str, Sending] = {}
        self._prompt_count = 0
        self._mean_s = 0.0
        self._deviation_s = 0.0
        self._reviewed_s = 0.0
        self._release: asyncio.TimerHandle | None = None
        self._hedge: asyncio.TimerHandle | None = None
        self._oldest: InFlight | None = None
        self._loop = asyncio.get_running_loop()

    def arrange(self, streams: Mapping[str, Sending], azs: Mapping[str, str], prompt_count: int | None) -> None:
        """These nodes hold the same groups; `prompt_count` of them are a quorum of each. None: hold nothing back."""
        self._release_held()
        self._streams = streams
        if prompt_count is None:
            self._prompt_count, self.held = 0, frozenset()
            return
        self._prompt_count = prompt_count
        # To begin with, one of each zone before the second of any.
        seen: dict[str, int] = {}
        order = {}
        for node in sorted(streams):
            order[node] = seen[azs[node]] = seen.get(azs[node], 0) + 1
        ranked = sorted(streams, key=lambda node: (math.isinf(streams[node].latency_s), order[node], node))
        self.held = frozenset(ranked[prompt_count:])

    def close(self) -> None:
        """Ends the timers."""
        for timer in (self._release, self._hedge):
            if timer is not None:
                timer.cancel()

    # ---- what happens to flushes

    def on_submit(self, oldest: InFlight) -> None:
        """A flush went to the streams; `oldest` is the first that is not durable."""
        if not self.held:
            return
        self._oldest = oldest
        if self._release is None:
            self._release = self._loop.call_later(DEFER_S, self._on_release)
        if self._hedge is None:
            self._hedge = self._loop.call_later(self.hedge_s, self._on_hedge)

    def on_durable(self, took_s: float, oldest: InFlight | None) -> None:
        """A flush became durable after `took_s`; `oldest` as above, or None if everything is durable."""
        self._oldest = oldest
        if not self._mean_s:
            self._mean_s, self._deviation_s = took_s, took_s / 2
            return
        # What was late enough to be hedged counts as just that late: a few stalls of a disk would otherwise put the
        # hedge off for the next ones. A disk that is slow from now on still moves the bound, within some dozen flushes.
        took_s = min(took_s, self.hedge_s)
        self._deviation_s += (abs(took_s - self._mean_s) - self._deviation_s) / 16
        self._mean_s += (took_s - self._mean_s) / 32

    @property
    def hedge_s(self) -> float:
        """After how long a flush is hedged."""
        if not self._mean_s:
            return FIRST_HEDGE_S
        return min(max(self._mean_s + 4 * self._deviation_s, HEDGE_S[0]), HEDGE_S[1])

    # ---- timers

    def _on_release(self) -> None:
        self._release = None
        self._release_held()
        now_s = self._loop.time()
        if now_s - self._reviewed_s >= REVIEW_S:
            self._reviewed_s = now_s
            self._review()

    def _on_hedge(self) -> None:
        self._hedge = None
        if self._oldest is None or not self.held:
            return
        end = self._oldest.end
        left_s = self._oldest.submitted_s + self.hedge_s - self._loop.time()
        if left_s > 0:
            self._hedge = self._loop.call_later(left_s, self._on_hedge)
            return
        self.hedged_count += 1
        self._release_held()
        self._swap_laggards(end)

    def _release_held(self) -> None:
        for node in self.held:
            if (stream := self._streams.get(node)) is not None:
                stream.release()

    # ---- places

    def _swap_laggards(self, end: int) -> None:
        """Prompt copies without the flush that ends at `end` give their places to sound deferred ones."""
        streams = self._streams
        laggards = sorted(
            (node for node in streams if node not in self.held and streams[node].acked_lsn < end),
            key=lambda node: -streams[node].latency_s,
        )
        sound = sorted(
            (node for node in self.held if node in streams and not math.isinf(streams[node].latency_s)),
            key=lambda node: streams[node].latency_s,
        )
        for out, into in zip(laggards, sound, strict=False):
            self.held = self.held - {into} | {out}

    def _review(self) -> None:
        """The slowest prompt copy changes places with the fastest deferred one if that is clearly faster."""
        streams = self._streams
        prompt = [node for node in streams if node not in self.held]
        held = [node for node in self.held if node in streams]
        if not prompt or not held:
            return
        slowest = max(prompt, key=lambda node: streams[node].latency_s)
        fastest = min(held, key=lambda node: streams[node].latency_s)
        if streams[fastest].latency_s < FASTER * streams[slowest].latency_s:
            self.held = self.held - {fastest} | {slowest}

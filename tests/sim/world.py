"""A virtual network and clock: events in time order, chance from one seed, nothing else."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TRACE_LINES = 60


@dataclass(frozen=True)
class Weather:
    """How bad it is; drawn once a seed."""

    loss: float
    duplicates: float
    stragglers: float  # messages that take a hundred times as long
    crash_in_handler: float
    dies_recovering: float  # a writer, at each answer once it has decided
    partial_append: float  # a writer's message that reaches the node although its connection has broken

    @classmethod
    def draw(cls, rng: random.Random) -> Weather:
        return cls(
            loss=rng.choice([0.0, 0.02, 0.1, 0.3]),
            duplicates=rng.choice([0.0, 0.05, 0.2]),
            stragglers=rng.choice([0.0, 0.02, 0.1]),
            crash_in_handler=rng.choice([0.0, 0.0, 0.005, 0.02]),
            dies_recovering=rng.choice([0.0, 0.0, 0.05, 0.3]),
            partial_append=rng.choice([0.0, 0.5, 1.0]),
        )


CALM = Weather(0.0, 0.0, 0.0, 0.0, 0.0, 0.5)


class World:
    """The clock (seconds), the events to come, and who cannot reach whom."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.weather = Weather.draw(self.rng)
        self.cut_off: set[str] = set()
        self.steps = 0
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self._events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, delay_s: float, action: Callable[..., Any], *args: Any) -> None:
        """Calls `action` later."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._count, action, args))

    def run(self, until_s: float) -> None:
        """Lets time pass."""
        events = self._events
        while events and events[0][0] <= until_s:
            self.now_s, _, action, args = heapq.heappop(events)
            self.steps += 1
            action(*args)
        self.now_s = until_s

    def say(self, text: str) -> None:
        """Remembers a line of what happened, for the report of a failure."""
        self.trace.append(f"{self.now_s:8.3f} {text}")

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def delay_s(self) -> float:
        """How long a message takes."""
        delay = self.rng.expovariate(1000) + 0.0002
        return delay * 100 if self.chance(self.weather.stragglers) else delay

    def send(self, src: str, dst: str, deliver: Callable[..., Any], *args: Any) -> None:
        """A message outside of streams: may be lost, doubled, late and overtaken."""
        for _ in range(2 if self.chance(self.weather.duplicates) else 1):
            if src in self.cut_off or dst in self.cut_off or self.chance(self.weather.loss):
                continue
            self.after(self.delay_s(), deliver, *args)

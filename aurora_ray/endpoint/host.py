"""All endpoints of a fleet in one process: told as a whole where each listens and where its sessions go.

Whoever tells it keeps the state; this one keeps nothing but open ports. Told the same again it changes nothing, told
again after a restart it listens on the same ports as before. Orders carry a generation, and those of an owner who was
replaced are refused (see `Relay.set_targets`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from aurora_ray import telemetry
from aurora_ray.endpoint.relay import ANY_PROTOCOL, HOLD_S, ClientProtocol, Relay, RelayStats, Target
from aurora_ray.errors import AuroraError, FencedError, PortInUseError, UsageError

_log = logging.getLogger(__name__)

_SESSIONS: Final = telemetry.gauge("aurora_endpoint_open_sessions", "Sessions, relayed or handed over.", ("endpoint",))
_HELD: Final = telemetry.gauge("aurora_endpoint_held_sessions", "Connections that wait for a target.", ("endpoint",))


@dataclass(frozen=True, slots=True)
class EndpointOrder:
    """One endpoint: where it listens and, in order of no importance, where its sessions go. `hold_s`: for how long new
    ones wait for a target (None: as at all); it changes without cutting any."""

    name: str
    host: str
    port: int
    targets: tuple[Target, ...] = ()
    fallback: tuple[Target, ...] = ()
    protocol: ClientProtocol = ANY_PROTOCOL
    hold_s: float | None = None


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What became of an order. `problem` is empty if it is in force; `stats` since its port was opened."""

    name: str
    port: int
    problem: str = ""
    port_taken: bool = False  # the problem is that something else listens there
    stats: RelayStats = field(default_factory=RelayStats)


@dataclass(slots=True)
class _Endpoint:
    relay: Relay
    order: EndpointOrder


class EndpointHost:
    """Any thread may call."""

    def __init__(self, *, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._endpoints: dict[str, _Endpoint] = {}
        self._generation = 0

    def apply(self, orders: Sequence[EndpointOrder], generation: int) -> tuple[EndpointState, ...]:
        """These are the endpoints from now on; others are closed. One that cannot be had holds up no other.

        Sessions of withdrawn targets have been reset when it returns. Raises FencedError for an old generation.
        """
        names = [order.name for order in orders]
        if len(set(names)) != len(names):
            raise UsageError(f"an endpoint was ordered twice: {', '.join(sorted(names))}")
        with self._lock:
            if generation < self._generation:
                raise FencedError(f"endpoint orders of generation {generation} are refused: there were later ones")
            self._generation = generation
            for name in self._endpoints.keys() - set(names):
                self._close(name)
            # First where sessions are cut, which never waits for anything, then what may take its time.
            ordered = sorted(orders, key=lambda order: order.name not in self._endpoints)
            states = {order.name: self._apply_one(order, generation) for order in ordered}
        return tuple(states[name] for name in names)

    def _apply_one(self, order: EndpointOrder, generation: int) -> EndpointState:
        existing = self._endpoints.get(order.name)
        try:
            if existing is not None and _made_of(existing.order) != _made_of(order):
                self._close(order.name)
                existing = None
            if existing is None:
                existing = self._endpoints[order.name] = self._open(order)
            if (existing.order.targets, existing.order.fallback) != (order.targets, order.fallback):
                _log.info("%s leads to %s", order.name, _words(order))
            if existing.order.hold_s != order.hold_s:
                existing.relay.set_hold(self._held_for_s(order))
            existing.relay.set_targets(order.targets, generation, order.fallback)
            existing.order = order
        except AuroraError as error:
            return EndpointState(order.name, order.port, str(error), isinstance(error, PortInUseError))
        return EndpointState(order.name, existing.relay.port, stats=existing.relay.stats())

    def withdraw(self, names: Sequence[str], generation: int) -> tuple[str, ...]:
        """From now on these endpoints lead nowhere, and whoever comes is held: all of them, unless one is in use. The
        names of those that are; then all is as before. No session is cut. Raises FencedError for an old generation."""
        with self._lock:
            if generation < self._generation:
                raise FencedError(f"endpoint orders of generation {generation} are refused: there were later ones")
            there = {name: self._endpoints[name] for name in names if name in self._endpoints}
            used: tuple[str, ...] = ()
            for name, endpoint in there.items():
                if not endpoint.relay.set_targets((), generation, unless_used=True):
                    used = (name,)
                    break
            for endpoint in there.values():
                if not used:
                    endpoint.order = replace(endpoint.order, targets=(), fallback=())
                else:
                    endpoint.relay.set_targets(endpoint.order.targets, generation, endpoint.order.fallback)
            return used

    def held(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of these endpoints at which somebody waits."""
        with self._lock:
            there = {name: self._endpoints[name] for name in names if name in self._endpoints}
        return tuple(name for name, endpoint in there.items() if endpoint.relay.stats().held)

    def states(self) -> tuple[EndpointState, ...]:
        """The endpoints that listen, with their counters."""
        with self._lock:
            return tuple(EndpointState(n, e.relay.port, stats=e.relay.stats()) for n, e in self._endpoints.items())

    def close(self) -> None:
        """Closes all endpoints and resets their sessions."""
        with self._lock:
            for name in list(self._endpoints):
                self._close(name)

    def _open(self, order: EndpointOrder) -> _Endpoint:
        relay = Relay(hold_s=self._held_for_s(order), protocol=order.protocol)
        port = relay.start(order.host, order.port)
        _SESSIONS.labels(order.name).set_function(lambda: relay.stats().open)
        _HELD.labels(order.name).set_function(lambda: relay.stats().held)
        _log.info("%s listens on %s, port %d", order.name, order.host, port)
        return _Endpoint(relay, order)

    def _held_for_s(self, order: EndpointOrder) -> float:
        return self._hold_s if order.hold_s is None else order.hold_s

    def _close(self, name: str) -> None:
        _SESSIONS.remove(name)
        _HELD.remove(name)
        self._endpoints.pop(name).relay.close()
        _log.info("%s is closed", name)


def _made_of(order: EndpointOrder) -> tuple[object, ...]:
    """What cannot be changed while it listens."""
    return order.host, order.port, order.protocol


def _words(order: EndpointOrder) -> str:
    targets = order.targets or order.fallback
    return ", ".join(f"{target.host}:{target.port}" for target in targets) or "nothing: connections are held"

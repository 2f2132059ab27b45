"""TCP ports for clusters: which are given out, and which are free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.network import claim_port
from aurora_ray.errors import ConfigurationError
from aurora_ray.replication.succession import SLOTS

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet

FIRST_PORT: Final = 15432  # below the ports that the kernel hands out, so that nobody else gets ours by accident
PORTS: Final = 1000
PORTS_OF_A_REGION: Final = PORTS // SLOTS


def free_ports(fleet: Fleet, host: str, count: int, *, after: int = 0) -> list[int]:
    """Ports that no cluster has and on which this machine can listen now, those above `after` first.

    Without it, those first that are this region's: on one machine, another region that is down keeps its own, which
    nobody listens at meanwhile, and comes back with them. Raises ConfigurationError if there are too few.
    """
    after = after or before_those_of(max((c.membership.slot for c in fleet.clusters if c.membership), default=0))
    taken = {port for c in fleet.clusters for port in (*c.endpoint_ports().values(), *(i.port for i in c.instances))}
    free: list[int] = []
    for port in _in_turn(after):
        if port not in taken:
            with suppress(ConfigurationError):
                free.append(claim_port(host, port))
        if len(free) == count:
            return free
    raise ConfigurationError(f"too few of the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are free")


def before_those_of(slot: int) -> int:
    """The port after which those of a region begin, by its slot in a global cluster."""
    return FIRST_PORT + slot * PORTS_OF_A_REGION - 1


def _in_turn(after: int) -> Iterator[int]:
    ports = range(FIRST_PORT, FIRST_PORT + PORTS)
    yield from (port for port in ports if port > after)
    yield from (port for port in ports if port <= after)

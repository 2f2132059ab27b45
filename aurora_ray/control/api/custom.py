"""Custom endpoints of a cluster, by a user's word: declared first, then the loop has them opened, or closed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.control.model.custom_endpoints import endpoint_of, with_endpoint
from aurora_ray.control.observe.endpoints import endpoint_name
from aurora_ray.control.report.events import EventKind
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.control.model.custom_endpoints import CustomEndpoint
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane

    FreePorts = Callable[[Fleet, int], list[int]]


async def create(plane: ControlPlane, name: str, wanted: CustomEndpoint, *, free: FreePorts, timeout_s: float) -> None:
    """Declares an endpoint of the cluster `name` (its port is given out), and waits until it listens. The same again
    changes nothing.

    Raises UsageError for instances that there are not, one of that name that is another, or one too many;
    ConfigurationError if its port cannot be had.
    """

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        if any(replace(each, port=0) == wanted for each in cluster.custom_endpoints):
            return fleet  # also if one of its instances is gone by now
        for instance_id in (*wanted.members, *wanted.excluded):
            cluster.instance(instance_id)
        (port,) = free(fleet, 1)
        endpoints = with_endpoint(cluster.custom_endpoints, replace(wanted, port=port))
        return fleet.with_cluster(replace(cluster, custom_endpoints=endpoints))

    endpoint = wanted.name
    await plane.commit(change)
    plane.events.note(EventKind.CLUSTER, name, f"endpoint {endpoint} of {name} was declared", name)
    plane.notify()

    def listens() -> bool:
        cluster = plane.fleet.cluster(name)
        if (problem := plane.endpoints.problem(cluster)) and not plane.endpoints.taken(cluster):
            raise ConfigurationError(problem)
        port = endpoint_of(cluster.custom_endpoints, endpoint).port
        return plane.endpoints.listens(endpoint_name(name, endpoint), port)

    await plane.wait_until(listens, timeout_s, f"opening endpoint {endpoint}")


async def delete(plane: ControlPlane, name: str, endpoint: str, timeout_s: float) -> dict[str, Any]:
    """Forgets an endpoint and waits until it is closed: its sessions end. Raises UsageError."""
    endpoint_of(plane.fleet.cluster(name).custom_endpoints, endpoint)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        kept = tuple(each for each in cluster.custom_endpoints if each.name != endpoint)
        return fleet.with_cluster(replace(cluster, custom_endpoints=kept))

    await plane.commit(change)
    plane.events.note(EventKind.CLUSTER, name, f"endpoint {endpoint} of {name} was deleted", name)
    plane.notify()
    told = endpoint_name(name, endpoint)
    await plane.wait_until(lambda: not plane.endpoints.told(told), timeout_s, f"closing endpoint {endpoint}")
    return {"cluster": name, "endpoint": endpoint, "deleted": True}

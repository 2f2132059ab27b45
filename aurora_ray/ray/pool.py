"""What instances hold of their machines, in half ACUs: a pool of placement groups, a bundle of CPU and memory each.

A bundle takes what an actor with the same resources would: Ray's scheduler gives it to nobody else, and the cluster
autoscaler sees it, while it waits for a place, as it sees an actor that waits. But it is no process, of which a pool of
32 would cost 2 to 3 GB. Groups are detached and named by fleet, instance and machine, so they outlive whoever made
them, and the next control plane finds them; their names say all that is known of them.

A machine that has no more gives what it has: what Ray finds no place for, in several tries, or is not there within
ROOM_WITHIN_S, is taken back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import ray
import ray._private.state
import ray.util
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from aurora_ray.control.model.runtime import NoPlaceError, Room
from aurora_ray.engine.sizes import ACU_BYTES, ACU_STEP
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

AZ_PREFIX: Final = "az:"  # of the custom resources that a machine of an AZ has
CRUMB: Final = 0.001
ROOM_WITHIN_S: Final = 4.0
NO_PLACE_AFTER_S: Final = 0.8
LOOK_EVERY_S: Final = 0.005
CALL_TIMEOUT_S: Final = 10.0
_THERE: Final = ("CREATED", "RESCHEDULING")
_REMOVED: Final = "REMOVED"
_NO_PLACE: Final = ("NO_RESOURCES", "INFEASIBLE")


class _Group(NamedTuple):
    """`there`: it has its place."""

    name: str
    instance_id: str
    host: str
    there: bool


class Pools:
    """Of a fleet. Belongs to one event loop. Calls raise NoPlaceError when Ray does not answer."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{namespace}/acu/"
        self._turn = asyncio.Lock()

    async def held(self) -> dict[str, float]:
        """ACUs by instance, wherever they are."""
        found: dict[str, float] = {}
        for group in await self._called(self._groups):
            if group.there:
                found[group.instance_id] = found.get(group.instance_id, 0.0) + ACU_STEP
        return found

    async def hold(self, instance_id: str, host: str, acu: float, cpus_per_acu: float) -> float:
        """Has an instance hold so much of a machine, and nothing of any other; what it holds then, if there is no more
        room."""
        async with self._turn:
            return await self._called(lambda: self._hold(instance_id, host, round(acu / ACU_STEP), cpus_per_acu))

    async def rooms(self, cpus_per_acu: float) -> list[Room]:
        """What each machine that lives has left."""
        return await self._called(lambda: _rooms(cpus_per_acu))

    def _hold(self, instance_id: str, host: str, halves: int, cpus_per_acu: float) -> float:
        mine = [group for group in self._groups() if group.instance_id == instance_id]
        here = sorted(group.name for group in mine if group.there and group.host == host)
        others = [group.name for group in mine if group.name not in here]  # of those that wait, nobody waits for any
        for name in [*others, *here[halves:]]:
            remove_placement_group(ray.util.get_placement_group(name))
        kept = here[:halves]
        bundle = {"CPU": ACU_STEP * cpus_per_acu, "memory": ACU_STEP * ACU_BYTES, f"node:{host}": CRUMB}
        numbers = (n for n in range(2 * halves + len(here) + 1) if self._name(instance_id, host, n) not in here)
        asked = [
            placement_group([bundle], name=self._name(instance_id, host, next(numbers)), lifetime="detached")
            for _ in range(halves - len(kept))
        ]
        began_s = time.monotonic()
        placed = [_is_placed(group, began_s) for group in asked]
        for group, there in zip(asked, placed, strict=True):
            if not there:
                remove_placement_group(group)
        return (len(kept) + sum(placed)) * ACU_STEP

    def _name(self, instance_id: str, host: str, number: int) -> str:
        return f"{self._prefix}{instance_id}@{host}/{number:03}"

    def _groups(self) -> list[_Group]:
        table: dict[str, dict[str, Any]] = placement_group_table()
        found = []
        for group in table.values():
            name, state = str(group["name"]), str(group["state"])
            if name.startswith(self._prefix) and state != _REMOVED:
                instance_id, _, rest = name.removeprefix(self._prefix).partition("@")
                found.append(_Group(name, instance_id, rest.rpartition("/")[0], state in _THERE))
        return found

    async def _called(self, work: Callable[[], T]) -> T:
        """What Ray's blocking calls answer."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.to_thread(work)
        except TimeoutError:
            raise NoPlaceError(f"Ray does not say within {CALL_TIMEOUT_S:g} s what is held of its machines") from None
        except AuroraError:
            raise
        except Exception as error:
            raise NoPlaceError(f"Ray does not say what is held of its machines: {error}") from error


def _rooms(cpus_per_acu: float) -> list[Room]:
    # (Ray's public ways to ask for this add all machines up, or need its dashboard.)
    free = ray._private.state.available_resources_per_node()
    rooms = []
    for machine in ray.nodes():
        if machine["Alive"]:
            left = free.get(machine["NodeID"], {})
            halves = min(left.get("memory", 0) / ACU_BYTES, left.get("CPU", 0) / cpus_per_acu) // ACU_STEP
            azs = (name.removeprefix(AZ_PREFIX) for name in machine["Resources"] if name.startswith(AZ_PREFIX))
            rooms.append(Room(machine["NodeManagerAddress"], tuple(sorted(azs)), halves * ACU_STEP))
    return rooms


def _is_placed(group: PlacementGroup, began_s: float) -> bool:
    """As soon as that is known. Ray may not have found a place at its first try for what was just given back."""
    while True:
        now: dict[str, Any] = placement_group_table(group)
        if now["state"] in _THERE:
            return True
        took_s = time.monotonic() - began_s
        found_none = now["stats"]["scheduling_state"] in _NO_PLACE and took_s >= NO_PLACE_AFTER_S
        if found_none or took_s >= ROOM_WITHIN_S:
            return False
        time.sleep(LOOK_EVERY_S)

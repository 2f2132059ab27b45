"""An instance goes on on another machine; what is declared while a process there is got ready goes first."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_ray.compute.commands import WriteBack
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.moving import MoveInstance, Moves
from aurora_ray.control.decide.readers import with_writer
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen
from aurora_ray.control.model.runtime import Room, Short
from aurora_ray.control.model.state import DBInstance, Fleet
from aurora_ray.control.perform.moving import move_instance
from tests.control.fleets import running_fleet

MOVE = MoveInstance("it needs more", "demo", "demo-1", "there", "b", 4.0)


class Place:
    """An instance that serves, and what is declared; `meanwhile`: what becomes of that while another process starts."""

    def __init__(self, meanwhile: Callable[["Place"], object] = lambda _: None, *, fails: bool = False) -> None:
        fleet = running_fleet()
        reader = DBInstance("demo-2", Role.READER, "b", 9, 1)
        cluster = fleet.clusters[0]
        instances = (*cluster.instances, reader)
        self.fleet: Fleet = fleet.with_cluster(replace(cluster, instances=instances, capacity=Capacity(0, 8)))
        self.did: list[object] = []
        process = SimpleNamespace(host="here", do=self._note, end=self._end)
        self.instance = SimpleNamespace(
            seen=InstanceSeen(InstancePhase.AVAILABLE, role=Role.WRITER),
            process=process,
            end_is_seen=lambda: True,
            stopping=lambda: None,
        )
        self._meanwhile, self._fails = meanwhile, fails
        config = SimpleNamespace(data_dir=Path("data"), engine_user="")
        runtime = SimpleNamespace(ready_instance=self._ready)
        self.means: Any = SimpleNamespace(
            config=config,
            declared=SimpleNamespace(commit=self._commit),
            processes=SimpleNamespace(instances={"demo-1": self.instance}, runtime=runtime),
            events=SimpleNamespace(note=lambda *told: self.did.append(told[2])),
            leaves=lambda instance_id: self.did.append(("leaves", instance_id)),
            say=lambda _: None,
            notify=lambda: None,
        )
        self.means.declared.fleet = self.fleet

    def declare(self, fleet: Fleet) -> None:
        self.fleet = self.means.declared.fleet = fleet

    async def _ready(self, instance_id: str, az: str, _: object, host: str) -> None:
        self.did.append(("ready", instance_id, az, host))
        if self._fails:
            raise TimeoutError
        self._meanwhile(self)

    async def _note(self, command: object) -> None:
        self.did.append(type(command))

    async def _end(self, **_: object) -> None:
        self.did.append("end")

    async def _commit(self, change: Callable[[Fleet], Fleet]) -> Awaitable[None] | None:
        self.declare(change(self.fleet))
        return None


READY = ("ready", "demo-1", "b", "there")


async def test_a_process_there_comes_first_and_its_end_is_an_outage_that_was_wanted() -> None:
    place = Place()
    await move_instance(place.means, MOVE)
    told = "moves from machine here to there: it needs more"
    assert place.did == [READY, WriteBack, told, ("leaves", "demo-1"), "end"]
    assert place.fleet.cluster("demo").instance("demo-1").az == "b"


def fails_over(place: Place) -> None:
    place.declare(with_writer(place.fleet, "demo", "demo-2"))


def pauses(place: Place) -> None:
    place.declare(place.fleet.with_cluster(replace(place.fleet.cluster("demo"), paused_since_s=1.0)))


def ends(place: Place) -> None:
    place.instance.seen = InstanceSeen(InstancePhase.ENDED)


def starts_anew(place: Place) -> None:
    place.means.processes.instances["demo-1"] = SimpleNamespace(seen=place.instance.seen, process=None)


@pytest.mark.parametrize("meanwhile", [fails_over, pauses, ends, starts_anew])
async def test_what_comes_meanwhile_goes_first(meanwhile: Callable[[Place], object]) -> None:
    place = Place(meanwhile)
    await move_instance(place.means, MOVE)
    assert place.did == [READY, WriteBack]
    declared = place.fleet.cluster("demo").instance("demo-1")
    assert declared.az == "a"
    assert declared.role is (Role.READER if meanwhile is fails_over else Role.WRITER)


def gets_another_tier(place: Place) -> None:
    cluster = place.fleet.cluster("demo")
    place.declare(place.fleet.with_instance("demo", replace(cluster.instance("demo-1"), promotion_tier=7)))


async def test_what_else_is_declared_of_it_meanwhile_stays() -> None:
    place = Place(gets_another_tier)
    await move_instance(place.means, MOVE)
    declared = place.fleet.cluster("demo").instance("demo-1")
    assert (declared.az, declared.promotion_tier) == ("b", 7)


async def test_without_a_process_there_nothing_ends() -> None:
    place = Place(fails=True)
    with pytest.raises(TimeoutError):
        await move_instance(place.means, MOVE)
    assert place.did == [READY]


def test_a_machine_in_none_of_the_fleets_azs_has_no_room_for_it() -> None:
    short = Short(4.0, 6.0, (Room("head", (), 8.0), Room("there", ("b",), 1.0)))
    instance = running_fleet().clusters[0].writer()
    place, why = Moves().look(instance, short, ("a", "b", "c"), 0.0)
    assert place is None
    assert why == "no machine has room for 6 ACU, the most that another one has is 1"

"""A process in waiting for anyone: one at a time, taken once, noted before it is used, ended if nobody takes it."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aurora_ray.compute.config import EngineChoice
from aurora_ray.control.model.runtime import NoPlaceError
from aurora_ray.ray.runtime import RayRuntime
from aurora_ray.ray.waiting import Waiting
from tests.support.polling import poll_until


@dataclass(eq=False)
class Idle:
    name: str
    az: str
    well: bool = True
    aborted: bool = False
    asked: asyncio.Event | None = None

    async def offers(self, az: str) -> bool:
        if self.asked is not None:
            await self.asked.wait()
        return az == self.az

    async def answers(self, timeout_s: float) -> bool:
        return self.well

    async def abort(self) -> None:
        self.aborted = True


@dataclass
class Notes:
    noted: dict[str, str] = field(default_factory=dict)
    is_away: bool = False

    async def note(self, name: str, instance_id: str) -> None:
        self.noted[name] = instance_id
        if self.is_away:
            raise OSError("no answer")

    async def forget(self, name: str, instance_id: str) -> None:
        self.noted.pop(name, None)

    async def names_of(self, instance_id: str) -> list[str]:
        return [name for name, whose in self.noted.items() if whose == instance_id]

    async def all(self) -> dict[str, str]:
        return self.noted


@dataclass
class House:
    """Where processes are made."""

    notes: Notes = field(default_factory=Notes)
    made: list[Idle] = field(default_factory=list)
    full: bool = False

    def __post_init__(self) -> None:
        self.waiting = Waiting(self._make, self.notes, after_s=0)

    async def _make(self, name: str, az: str) -> Idle:
        if self.full:
            raise NoPlaceError("no machine has room")
        self.made.append(Idle(name, az))
        return self.made[-1]

    async def has_one(self, az: str = "a") -> Idle:
        count = len(self.made)
        self.waiting.make_later(az)
        await poll_until(lambda: len(self.made) > count, what="one is made")
        await asyncio.sleep(0)
        return self.made[-1]


async def test_it_is_taken_once_and_noted_before() -> None:
    house = House()
    one = await house.has_one()
    house.waiting.make_later("a")
    await asyncio.sleep(0.01)  # not synchronisation: long enough for a second one, which nobody needs
    assert house.made == [one]
    assert await house.waiting.take("copy-1", "a") is one
    assert house.notes.noted == {one.name: "copy-1"}
    assert await house.waiting.take("copy-2", "a") is None
    assert not one.aborted
    await house.waiting.close()
    assert not one.aborted


async def test_of_two_that_take_at_once_one_gets_it() -> None:
    house = House()
    one = await house.has_one()
    one.asked = asyncio.Event()
    takes = [asyncio.create_task(house.waiting.take(f"copy-{n}", "a")) for n in range(2)]
    await asyncio.sleep(0)
    one.asked.set()
    assert [await take for take in takes] == [one, None]


async def test_one_elsewhere_stays_and_one_without_an_answer_is_ended() -> None:
    house = House()
    one = await house.has_one("b")
    assert await house.waiting.take("copy-1", "a") is None
    assert not one.aborted
    one.well = False
    assert await house.waiting.take("copy-1", "b") is None
    assert one.aborted
    assert house.notes.noted == {}


async def test_what_may_be_noted_or_not_is_nobodys() -> None:
    house = House()
    one = await house.has_one()
    house.notes.is_away = True
    with pytest.raises(OSError, match="no answer"):
        await house.waiting.take("copy-1", "a")
    assert one.aborted, "else it would be copy-1's for the next control plane, and idle for this one"


async def test_without_room_there_is_none_and_its_end_leaves_none() -> None:
    house = House(full=True)
    house.waiting.make_later("a")
    await asyncio.sleep(0.01)  # not synchronisation: its one try
    house.full = False
    one = await house.has_one()
    await house.waiting.close()
    assert one.aborted
    assert await house.waiting.take("copy-1", "a") is None


async def test_one_that_is_not_of_the_az_gives_way_to_one_that_was_made_meanwhile() -> None:
    house = House()
    one = await house.has_one("b")
    one.asked = asyncio.Event()
    taking = asyncio.create_task(house.waiting.take("copy-1", "a"))
    await asyncio.sleep(0)
    other = await house.has_one("a")
    one.asked.set()
    assert await taking is None
    assert one.aborted
    assert await house.waiting.take("copy-2", "a") is other


@pytest.mark.parametrize("small", [False, True])
async def test_a_small_fleet_has_none(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, asked = RayRuntime("fleet", small=small), list[str]()

    async def taken(*_: object) -> object:
        return object()

    monkeypatch.setattr(runtime._spares, "take", taken)
    monkeypatch.setattr(runtime._waiting, "make_later", asked.append)
    await runtime.start_instance("demo-1", "a", EngineChoice("postgres", "18", Path("data")))
    assert asked == ([] if small else ["a"])

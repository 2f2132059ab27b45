"""Processes in waiting: taken when they fit and answer, ended otherwise; nothing depends on them."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from aurora_ray.compute.config import EngineChoice
from aurora_ray.control.model.runtime import NoPlaceError, ProcessGoneError
from aurora_ray.ray.spares import Spares, instance_of, names
from tests.support.polling import poll_until

CHOICE = EngineChoice("postgres", "18", Path("data"))


@dataclass(eq=False)
class Waiting:
    az: str
    host: str = ""
    well: bool = True
    aborted: bool = False

    async def answers(self, timeout_s: float) -> bool:
        return self.well

    async def abort(self) -> None:
        self.aborted = True


@dataclass
class Maker:
    made: list[Waiting] = field(default_factory=list)
    full: bool = False

    async def __call__(self, instance_id: str, az: str, choice: EngineChoice, host: str) -> Waiting:
        if self.full:
            raise NoPlaceError("no machine has room")
        self.made.append(Waiting(az, host))
        return self.made[-1]


async def waiting_for(spares: Spares[Waiting], maker: Maker, az: str = "a") -> Waiting:
    spares.make_later("demo-1", az, CHOICE)
    count = len(maker.made)
    await poll_until(lambda: len(maker.made) > count, what="a spare is made")
    await asyncio.sleep(0)
    return maker.made[-1]


async def test_a_spare_is_taken_once() -> None:
    maker = Maker()
    spares = Spares(maker, after_s=0)
    spare = await waiting_for(spares, maker)
    assert await spares.take("demo-2", "a", CHOICE) is None
    assert await spares.take("demo-1", "a", CHOICE) is spare
    assert await spares.take("demo-1", "a", CHOICE) is None
    assert not spare.aborted


async def test_one_elsewhere_or_without_an_answer_is_ended() -> None:
    maker = Maker()
    spares = Spares(maker, after_s=0)
    elsewhere = await waiting_for(spares, maker, "b")
    assert await spares.take("demo-1", "a", CHOICE) is None
    ill = await waiting_for(spares, maker)
    ill.well = False
    assert await spares.take("demo-1", "a", CHOICE) is None
    assert elsewhere.aborted
    assert ill.aborted


async def test_with_its_instance_it_goes_whether_it_was_made_or_not() -> None:
    maker = Maker()
    spares = Spares(maker, after_s=0)
    spare = await waiting_for(spares, maker)
    await spares.drop("demo-1")
    assert spare.aborted
    spares.make_later("demo-1", "a", CHOICE)
    await spares.drop("demo-1")
    await asyncio.sleep(0)
    assert len(maker.made) == 1


async def test_before_a_move_there_is_one_where_it_goes() -> None:
    maker = Maker()
    spares = Spares(maker, after_s=0)
    here = await waiting_for(spares, maker)
    await spares.ready("demo-1", "b", CHOICE)
    await spares.ready("demo-1", "b", CHOICE)
    assert here.aborted
    assert [each.az for each in maker.made] == ["a", "b"]
    assert await spares.take("demo-1", "b", CHOICE) is maker.made[-1]


async def test_a_move_to_a_machine_needs_one_on_that_machine() -> None:
    maker = Maker()
    spares = Spares(maker, after_s=0)
    somewhere = await waiting_for(spares, maker)
    for _ in range(2):
        await spares.ready("demo-1", "a", CHOICE, "there")
    assert somewhere.aborted
    assert [each.host for each in maker.made] == ["", "there"]
    await spares.ready("demo-1", "a", CHOICE)
    assert await spares.take("demo-1", "a", CHOICE) is maker.made[-1]


async def test_without_room_there_is_none() -> None:
    maker = Maker(full=True)
    spares = Spares(maker, after_s=0)
    spares.make_later("demo-1", "a", CHOICE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert await spares.take("demo-1", "a", CHOICE) is None


def test_names_go_both_ways() -> None:
    for name in names("instance-", "demo-1"):
        assert instance_of("instance-", name) == "demo-1"


@dataclass
class TwoNames:
    """As in Ray: a name is taken from the beginning of a start on, and found by whoever looks for it."""

    begun: dict[str, Waiting] = field(default_factory=dict)
    pause: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, instance_id: str, az: str, choice: EngineChoice, host: str) -> Waiting:
        if instance_id in self.begun:
            raise ProcessGoneError("it is still there and cannot be started anew yet")
        process = self.begun[instance_id] = Waiting(az)
        await self.pause.wait()
        return process

    async def existing(self) -> Waiting:
        return self.begun["demo-1"]


async def test_two_moves_at_once_never_make_the_spare_and_the_writer_one() -> None:
    maker = TwoNames()
    spares = Spares(maker)
    first = asyncio.create_task(spares.ready("demo-1", "b", CHOICE))
    second = asyncio.create_task(spares.ready("demo-1", "b", CHOICE))
    taking = asyncio.create_task(spares.take("demo-1", "b", CHOICE, maker.existing))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not taking.done(), "it does not find by its name what is being made for another"
    maker.pause.set()
    await asyncio.gather(first, second)
    writer = await taking
    maker.begun.clear()
    await spares.ready("demo-1", "c", CHOICE)
    assert writer is not None
    assert not writer.aborted


async def test_one_that_is_being_made_elsewhere_is_not_waited_for() -> None:
    maker = TwoNames()
    spares = Spares(maker, after_s=0)
    spares.make_later("demo-1", "b", CHOICE)
    await poll_until(lambda: maker.begun, what="it is begun")
    other = Waiting("a")

    async def otherwise() -> Waiting:
        return other

    assert await spares.take("demo-1", "a", CHOICE, otherwise) is other

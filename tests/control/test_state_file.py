"""Versions of the declared state: their form, and saves of any outcome in any order."""

from dataclasses import replace
from random import Random
from uuid import UUID

import pytest

from aurora_ray.control.model import state_file
from aurora_ray.control.model.codec import pack
from aurora_ray.control.model.state import Fleet
from aurora_ray.control.model.state_file import HEADER, STATE_BYTES_MAX, VERSIONS_KEPT, frame, unframe
from aurora_ray.control.model.store import ControlStore
from aurora_ray.errors import MalformedError, QuorumLostError
from tests.control.fleets import running_fleet
from tests.control.state_volume import MemoryVolume, memory_spec, write_first_format

PAGE = 512
VOLUME_ID = UUID(int=7)


def test_framing() -> None:
    for size in (0, 1, PAGE - HEADER.size, PAGE - HEADER.size + 1, 10 * PAGE):
        state = Random(size).randbytes(size)
        pages = frame(state, 9, 1.5, PAGE)
        assert all(len(page) == PAGE for page in pages)
        assert unframe(b"".join(pages), 9) == (state, 1.5)
        assert len(pages) == state_file._pages_needed(pages[0], PAGE, first_format=False)
    with pytest.raises(MalformedError, match="is the limit"):
        frame(bytes(STATE_BYTES_MAX + 1), 1, 0.0, PAGE)


def test_every_flipped_byte_is_noticed() -> None:
    content = b"".join(frame(b"state" * 200, 3, 1.0, PAGE))
    end = HEADER.size + 1000
    for at in range(end):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        with pytest.raises(MalformedError):
            unframe(bytes(damaged), 3)
    for cut in (0, 7, HEADER.size, end - 1):
        with pytest.raises(MalformedError):
            unframe(content[:cut], 3)
    with pytest.raises(MalformedError):
        unframe(content, 4)


@pytest.mark.parametrize("seeds", [range(at, at + 20) for at in range(0, 60, 20)], ids=str)
async def test_saves_of_any_outcome_leave_the_newest_durable_state_or_a_later_one(seeds: range) -> None:
    for seed in seeds:
        await _random_saves(Random(seed))


async def _random_saves(random: Random) -> None:
    first_format = random.random() < 0.3
    base = replace(running_fleet(), revision=0)
    flushes = [write_first_format(pack(base), PAGE)] if first_format else []
    volume = MemoryVolume(memory_spec(VOLUME_ID, PAGE), flushes)
    saved: list[Fleet] = [base] if first_format else []  # in the order of their flushes
    for _ in range(random.randrange(1, 5)):
        store = await ControlStore._load(volume, choice=None, even_damaged=False)  # type: ignore[arg-type]
        assert (store.loaded.fleet if store.loaded else None) == (saved[-1] if saved else None)
        assert not store.damaged
        for _ in range(random.randrange(30)):
            await _random_save(random, store, volume, saved)
        kept = random.randint(volume.acknowledged, len(volume.flushes))
        volume, saved = volume.crashed(kept), saved[:kept]
    store = await ControlStore._load(volume, choice=None, even_damaged=False)  # type: ignore[arg-type]
    versions = await store.versions()
    assert [version.fleet for version in versions] == saved[: -VERSIONS_KEPT - 1 : -1]


async def _random_save(random: Random, store: ControlStore, volume: MemoryVolume, saved: list[Fleet]) -> None:
    base = running_fleet()
    clusters = tuple(replace(base.clusters[0], name=f"c{n}") for n in range(random.randrange(1, 5)))
    fleet = replace(base, clusters=clusters, revision=random.randrange(1, 1 << 30))
    volume.next_outcome = random.choice(("durable", "durable", "unknown", "refused"))
    if volume.next_outcome == "durable":
        await store.save(fleet)
    else:
        with pytest.raises(QuorumLostError):
            await store.save(fleet)
    if volume.next_outcome != "refused":
        saved.append(fleet)

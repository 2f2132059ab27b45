"""A node that was away catches up by itself: from its peers' log, or by a copy if that does not reach back."""

import random
from contextlib import suppress

import pytest

from aurora_ray.log.record import Record, create, extent, page_full, size
from aurora_ray.volume.write.volume import Volume
from tests.chaos.agreement import check_agreement
from tests.chaos.conftest import MakeStack
from tests.support.polling import poll_until
from tests.support.stack import PAGE_BYTES, Stack
from tests.support.stack_view import counters_of, state_of

AWAY = "b1"
FILE = 1
PAGES = 512
TRIES = 8
# Everything that is coalesced may go at once.
FORGETFUL = {
    "layer-bytes": 256 << 10,
    "idle-layer-bytes": 1 << 10,
    "idle-s": 0.1,
    "background-interval-s": 0.05,
    "gossip-interval-s": 0.1,
    "retention-s": 0.0,
    "retention-bytes": 0,
    "lease-s-max": 0.0,
}


def file_records() -> list[Record]:
    """A file of PAGES pages, without content."""
    extents = [extent(FILE, number, 0) for number in range(-(-PAGES // 64))]
    return [create(FILE, b"data", 0o600), *extents, size(FILE, PAGES * PAGE_BYTES)]


async def write(volume: Volume, choose: random.Random, flushes: int) -> int:
    """Flushes of a few random pages; the LSN of the last."""
    lsn = 0
    for _ in range(flushes):
        pages = choose.sample(range(PAGES), 8)
        lsn = await volume.append([page_full(FILE, page, choose.randbytes(PAGE_BYTES), group=0) for page in pages])
    return lsn


async def catches_up(stack: Stack, lsn: int, timeout_s: float = 30) -> None:
    node = stack.nodes[AWAY].address

    async def there() -> bool:
        state = await state_of(node, stack.spec)
        return state is not None and state.scl >= lsn

    await poll_until(there, timeout_s, interval_s=0.05, what=f"{AWAY} is complete up to {lsn}")
    await check_agreement(stack.spec, stack.addresses, random.Random(1), timeout_s=timeout_s)


@pytest.mark.parametrize("writer_goes_on", [True, False])
async def test_from_the_log_of_its_peers(make_stack: MakeStack, writer_goes_on: bool) -> None:
    stack = make_stack()
    stack.start_nodes()
    await stack.create_volume()
    choose = random.Random(1)
    volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
    await volume.append(file_records())
    stack.kill_nodes([AWAY])
    lsn = await write(volume, choose, 20)
    await volume.close()
    if writer_goes_on:
        # A new epoch, too, of which the node knows nothing.
        volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
        stack.nodes[AWAY].start()
        lsn = await write(volume, choose, 20)
        await catches_up(stack, lsn)
        await volume.close()
    else:
        stack.nodes[AWAY].start()
        await catches_up(stack, lsn)
        assert (await counters_of(stack.nodes[AWAY].address))["repaired_batches"] == 20


async def test_by_a_copy_although_it_is_killed_while_it_copies(make_stack: MakeStack) -> None:
    stack = make_stack(node_options=FORGETFUL)
    stack.start_nodes()
    await stack.create_volume()
    choose = random.Random(2)
    volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
    await volume.append(file_records())
    behind = await write(volume, choose, 5)
    stack.kill_nodes([AWAY])
    lsn = await write(volume, choose, 60)
    others = [node.address for name, node in stack.nodes.items() if name != AWAY]

    async def forgotten() -> bool:
        states = [await state_of(node, stack.spec) for node in others]
        return all(state is not None and state.floor_lsn > behind for state in states)

    def copies_now() -> bool:
        return any((stack.nodes[AWAY].data_dir / "volumes").glob("*/*.incoming"))

    killed = 0
    for _ in range(TRIES):
        await poll_until(forgotten, 30, interval_s=0.05, what="no peer keeps the log that the node lacks")
        stack.nodes[AWAY].start()
        with suppress(AssertionError):  # it may be done between two looks: then it is made to lack something again
            await poll_until(copies_now, 2, interval_s=0.001)
        stack.nodes[AWAY].kill()
        killed += copies_now()
        if killed == 2:
            break
        if not copies_now():
            behind, lsn = lsn, await write(volume, choose, 60)
    assert killed == 2, "it was killed while it copied"
    await volume.close()
    stack.nodes[AWAY].start()
    await catches_up(stack, lsn)

    # It counts again: with two others away, it makes the fourth.
    stack.kill_nodes(["a1", "c2"])
    volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
    lsn = await write(volume, choose, 5)
    stack.revive_nodes()
    await catches_up(stack, lsn)
    await volume.close()

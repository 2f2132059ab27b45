"""Storage nodes whose disk fills up: writes wait, nothing is lost, and they go on by themselves when there is room."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from aurora_ray.volume.write.volume import Volume
from tests.chaos.agreement import check_agreement
from tests.chaos.conftest import MakeStack
from tests.chaos.test_return import file_records, write
from tests.support.polling import poll_until, poll_until_blocking
from tests.support.stack_view import counters_of, state_of
from tests.support.timing import scaled
from tests.support.tmpfs import small_disk

MIB = 1 << 20
FULL = ("a1", "b2", "c1")
DISK_BYTES = 96 * MIB
ROW_BYTES = MIB // 2
ROWS_MAX = 400
WATCHED_S = 1.5
START_TIMEOUT_S = 20.0


# With a reserve the node stops in time; without one RocksDB runs into the wall.
@pytest.mark.chaos
@pytest.mark.postgres
@pytest.mark.timeout(240)
@pytest.mark.parametrize("reserve_bytes", [16 * MIB, 0])
async def test_three_full_disks(make_stack: MakeStack, reserve_bytes: int) -> None:
    stack = make_stack(node_options={"disk-reserve-bytes": reserve_bytes})
    with ExitStack() as cleanup:
        # Before anything else, so that it is done after everything else.
        disks = [cleanup.enter_context(small_disk(stack.nodes[node].data_dir, DISK_BYTES)) for node in FULL]
        cleanup.callback(stack.close)
        stack.start_nodes()
        await stack.create_volume()
        stack.writer.open()
        session = cleanup.enter_context(closing(stack.connect()))
        pool = cleanup.enter_context(ThreadPoolExecutor(1))
        session.execute("CREATE TABLE t (id int PRIMARY KEY, content bytea)")
        choose = random.Random(1)
        acked = 0
        while True:
            content = choose.randbytes(ROW_BYTES)
            waiting = pool.submit(session.execute, "INSERT INTO t VALUES (%s, %s)", [acked, content])
            try:
                waiting.result(scaled(10))
            except TimeoutError:
                break
            acked += 1
            assert acked < ROWS_MAX, "the disks do not fill up"
        counters = [await counters_of(stack.nodes[node].address) for node in FULL]
        assert all(each["refused_disk_full"] for each in counters), counters
        await asyncio.sleep(WATCHED_S)  # not synchronisation: nothing may happen for a while
        assert not waiting.done(), "a commit was acknowledged although three disks are full"

        for disk in disks:
            disk.resize(8 * DISK_BYTES)
        waiting.result(scaled(60))
        session.execute("INSERT INTO t VALUES (-1, '')")

        # What was full can be killed and comes back whole.
        stack.power_cut()
        stack.revive_nodes()
        stack.writer.open()
        await check_agreement(stack.spec, stack.addresses, random.Random(1), timeout_s=60)
        with stack.connect() as again:
            ids = [row[0] for row in again.execute("SELECT id FROM t WHERE length(content) > 0 ORDER BY id")]
            assert ids == list(range(acked + 1))


@pytest.mark.allowed_logs(
    "append stream: storage node a1: (less than the reserve|group 0 could not be written|the log)"
)
async def test_killed_while_full(make_stack: MakeStack) -> None:
    """A node that is killed with a full disk says what it lacks, and catches up when there is room."""
    stack = make_stack(node_options={"disk-reserve-bytes": 0, "gossip-interval-s": 0.1})
    node = stack.nodes[FULL[0]]
    with ExitStack() as cleanup:
        disk = cleanup.enter_context(small_disk(node.data_dir, 24 * MIB))
        cleanup.callback(stack.close)
        stack.start_nodes()
        await stack.create_volume()
        volume = await Volume.open(stack.spec, stack.addresses, timeout_s=20)
        await volume.append(file_records())
        choose = random.Random(3)
        for _ in range(200):
            await write(volume, choose, 10)
            if (await counters_of(node.address)).get("refused_disk_full"):
                break
        else:
            pytest.fail("the disk does not fill up")
        disk.fill_up(MIB // 4)  # RocksDB met the wall with a large write, and may have some room left for small ones
        node.kill()
        node.begin()
        await asyncio.to_thread(poll_until_blocking, lambda: node.first_line() or not node.alive, START_TIMEOUT_S)
        if not node.alive:
            assert "storage node a1 does not start" in node.log_tail(1)
            assert "No space left on device" in node.log_tail(1)
        lsn = await write(volume, choose, 5)
        disk.resize(512 * MIB)
        if not node.alive:
            node.start()

        async def complete() -> bool:
            state = await state_of(node.address, stack.spec)
            return state is not None and state.scl >= lsn

        await poll_until(complete, 30, interval_s=0.1, what="the node has caught up")
        await check_agreement(stack.spec, stack.addresses, random.Random(1), timeout_s=30)
        await volume.close()

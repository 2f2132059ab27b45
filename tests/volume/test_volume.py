"""A writer and six real storage nodes: durability, nodes that come and go, shape."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import NodeTimeoutError, OutOfRangeError, QuorumLostError, UsageError
from aurora_ray.log.record import create, size
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.write.volume import Volume
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, PAGE, Cluster, encoded_flush, pages

if TYPE_CHECKING:
    from aurora_ray.volume.read.pages import PageRun

# gRPC's server, when it is stopped with streams open
pytestmark = pytest.mark.allowed_logs("due to server stop")


def image(run: PageRun) -> bytes:
    return run.pages.rstrip(b"\0")


async def test_what_is_written_is_read(cluster: Cluster) -> None:
    seen: list[int] = []
    volume = await cluster.open()
    volume.durable.listen(seen.append)
    assert (volume.epoch, volume.vdl, volume.tail_lsn) == (1, 0, 0)
    first = await volume.append([create(1, b"first"), size(1, 2 * PAGE), *pages((0, b"one"), (1, b"two"))])
    second = await volume.append(pages((0, b"three")))
    assert volume.vdl == second
    assert seen == [first, second]
    runs = await volume.read_pages([PageRange(0, 1, 0, 3), PageRange(0, 9, 0, 1)])
    assert [run.kinds for run in runs] == [b"\1\1\0", b"\0"]
    assert runs[0].pages[:PAGE].rstrip(b"\0") == b"three"
    assert image((await volume.read_pages([PageRange(0, 1, 0, 1)], first))[0]) == b"one"
    table = await volume.read_file_table()
    entry = table.lookup(b"first")
    assert entry is not None
    assert entry.size == 2 * PAGE
    with pytest.raises(OutOfRangeError, match="not durable"):
        await volume.read_pages([PageRange(0, 1, 0, 1)], second + 8)


async def test_submit_is_durable_in_order(cluster: Cluster) -> None:
    volume = await cluster.open()
    for number in range(200):
        volume.redo.submit(encoded_flush(volume, pages((number % 7, b"%d" % number))))
    assert volume.redo.inflight_bytes > 0
    await volume.durable.wait_for(volume.tail_lsn, timeout_s=20)
    assert volume.redo.inflight_bytes == 0
    assert volume.stats()["messages"] < 6 * 200
    assert image((await volume.read_pages([PageRange(0, 1, 3, 1)]))[0]) == b"199"


async def test_a_flush_out_of_order_is_refused(cluster: Cluster) -> None:
    volume = await cluster.open()
    flush = encoded_flush(volume, pages((0, b"x")))
    volume.redo.submit(flush)
    with pytest.raises(UsageError, match="cannot follow"):
        volume.redo.submit(flush)
    await volume.durable.wait_for(flush.end, timeout_s=10)


async def test_two_nodes_down_goes_on_and_they_catch_up(cluster: Cluster) -> None:
    volume = await cluster.open()
    await cluster.stop("b1", "c2")
    for number in range(20):
        await volume.append(pages((number, b"x" * 100)), timeout_s=10)
    await cluster.start("b1", "c2")
    await volume.update_nodes(cluster.addresses)
    lsn = await volume.append(pages((0, b"last")))
    await poll_until(lambda: all(cluster.segment(node).scl == lsn for node in NODES), what="all six are complete")
    assert len({tuple(cluster.log(node)) for node in NODES}) == 1


async def test_three_nodes_down_waits_and_resumes(cluster: Cluster) -> None:
    volume = await cluster.open()
    before = await volume.append(pages((0, b"before")))
    await cluster.stop("a1", "b1", "c1")
    volume.redo.submit(encoded_flush(volume, pages((0, b"waiting"))))
    with pytest.raises(QuorumLostError, match="not known yet"):
        await volume.durable.wait_for(volume.tail_lsn, timeout_s=0.5)
    assert volume.vdl == before
    assert image((await volume.read_pages([PageRange(0, 1, 0, 1)]))[0]) == b"before"
    await cluster.start("b1")
    await volume.update_nodes(cluster.addresses)
    await volume.durable.wait_for(volume.tail_lsn, timeout_s=10)
    assert image((await volume.read_pages([PageRange(0, 1, 0, 1)]))[0]) == b"waiting"


async def test_a_node_that_restarts_where_it_was_is_found_again(cluster: Cluster) -> None:
    volume = await cluster.open()
    await cluster.stop("a1", "b1", "c1")
    volume.redo.submit(encoded_flush(volume, pages((0, b"x"))))
    await cluster.start("c1")
    await volume.durable.wait_for(volume.tail_lsn, timeout_s=10)


async def test_flushes_that_touch_two_groups_and_a_group_added_later(two_groups: Cluster) -> None:
    cluster = two_groups
    volume = await cluster.open()
    await volume.append([*pages((0, b"zero")), *pages((1, b"one"), group=1)])
    await volume.append(pages((2, b"one again"), group=1))
    middle = volume.vdl
    spec = await volume.members.add_group(GroupPlacement(2, NODES))
    await volume.append([*pages((3, b"two"), group=2), *pages((4, b"zero again"))])
    runs = await volume.read_pages([PageRange(2, 1, 3, 1), PageRange(0, 1, 0, 1), PageRange(1, 1, 1, 2)])
    assert [run.kinds for run in runs] == [b"\1", b"\1", b"\1\1"]
    assert image(runs[0]) == b"two"
    assert volume.redo.durable_tails == {0: volume.vdl, 1: middle, 2: volume.vdl}

    with pytest.raises(UsageError, match=r"groups \[2\]"):
        await cluster.open()
    cluster.spec = spec
    again = await cluster.open()
    assert again.vdl == volume.vdl
    assert again.redo.end.tails == volume.redo.durable_tails
    assert image((await again.read_pages([PageRange(2, 1, 3, 1)]))[0]) == b"two"
    await again.append([*pages((5, b"x")), *pages((6, b"y"), group=1), *pages((7, b"z"), group=2)])


async def test_a_group_on_other_nodes_than_the_rest(cluster: Cluster) -> None:
    volume = await cluster.open()
    await volume.append(pages((0, b"zero")))
    cluster.spec = await volume.members.add_group(GroupPlacement(1, ("a1", "b1", "c1")))
    for number in range(10):
        await volume.append([*pages((number, b"zero")), *pages((number, b"one"), group=1)])
    assert cluster.segment("a1", 1).scl == volume.vdl
    assert (cluster.spec.volume_id.bytes, 1) not in cluster.servers["a2"].node.segments
    again = await cluster.open()
    assert again.redo.end.tails == {0: volume.vdl, 1: volume.vdl}
    await again.append(pages((3, b"more"), group=1))


async def test_a_reader_reads_from_a_group_that_was_added_since(cluster: Cluster) -> None:
    volume = await cluster.open()
    lsn = await volume.append(pages((0, b"zero")))
    await poll_until(lambda: all(cluster.segment(node).vdl == lsn for node in NODES), what="every node knows the VDL")
    reader = await VolumeReader.open(cluster.spec, cluster.addresses, timeout_s=10)
    await volume.members.add_group(GroupPlacement(1, NODES))
    lsn = await volume.append(pages((1, b"one"), group=1))
    reader.advance(lsn, {1: lsn})
    assert image((await reader.read_pages([PageRange(1, 1, 1, 1)]))[0]) == b"one"
    await reader.close()


async def test_nodes_learn_the_vdl_while_nothing_is_written(cluster: Cluster) -> None:
    volume = await cluster.open()
    lsn = await volume.append(pages((0, b"x")))
    await poll_until(lambda: all(cluster.segment(node).vdl == lsn for node in NODES), what="every node knows the VDL")


async def test_reading_as_of_an_lsn_needs_no_epoch(cluster: Cluster) -> None:
    volume = await cluster.open()
    first = await volume.append([create(1, b"f"), *pages((0, b"one"))])
    second = await volume.append(pages((0, b"two")))
    await poll_until(lambda: any(cluster.segment(node).vdl == second for node in NODES), what="the VDL is known")
    await cluster.stop("a1", "a2", "b1")
    for lsn, content in ((first, b"one"), (None, b"two")):
        reader = await VolumeReader.open(cluster.spec, cluster.addresses, lsn=lsn, timeout_s=10)
        try:
            assert reader.read_lsn == (lsn or second)
            assert image((await reader.read_pages([PageRange(0, 1, 0, 1)]))[0]) == content
            assert (await reader.read_file_table()).lookup(b"f") is not None
        finally:
            await reader.close()
    with pytest.raises(OutOfRangeError, match="not durable"):
        await VolumeReader.open(cluster.spec, cluster.addresses, lsn=second + 8, timeout_s=10)
    assert volume.epoch == 1


async def test_reads_go_round_nodes_that_are_down(cluster: Cluster) -> None:
    volume = await cluster.open(az="a")
    await volume.append(pages((0, b"here")))
    await cluster.stop("a1", "a2", "b1", "b2", "c1")
    for _ in range(20):
        assert image((await volume.read_pages([PageRange(0, 1, 0, 1)], timeout_s=10))[0]) == b"here"
    await cluster.stop("c2")
    with pytest.raises(QuorumLostError, match="no copy of group 0"):
        await volume.read_pages([PageRange(0, 1, 0, 1)], timeout_s=0.3)


async def test_a_slow_copy_is_hedged(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await cluster.open(az="a")
    await volume.append(pages((0, b"here")))
    never = asyncio.Event()
    for node in ("a1", "a2"):
        client = volume._nodes[node]

        async def stuck(*_: object) -> None:
            await never.wait()

        monkeypatch.setattr(client, "read_pages", stuck)
    for _ in range(5):
        assert image((await volume.read_pages([PageRange(0, 1, 0, 1)], timeout_s=10))[0]) == b"here"
    assert volume.stats()["hedged_reads"] >= 1


@pytest.mark.allowed_logs(r"was damaged on the way", r"do not answer what was asked", r"checksums came with")
@pytest.mark.parametrize("damage", ["page", "kind", "crcs", "short"])
async def test_an_answer_that_was_damaged_is_asked_of_another_copy(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    volume = await cluster.open(az="a")
    await volume.append(pages((0, b"here")))
    for node in ("a1", "a2"):
        client = volume._nodes[node]

        async def flipped(*args: Any, real: Any = client.read_pages) -> Any:
            reply = await real(*args)
            if damage == "page":
                reply.pages = reply.pages[:100] + b"!" + reply.pages[101:]
            elif damage == "kind":
                reply.kinds = b"\0"
            elif damage == "crcs":
                reply.crcs = b""
            else:
                reply.pages = reply.pages[:-1]
            return reply

        monkeypatch.setattr(client, "read_pages", flipped)
    for _ in range(5):
        assert image((await volume.read_pages([PageRange(0, 1, 0, 1)], timeout_s=10))[0]) == b"here"
    assert volume.stats()["damaged_reads"] >= 1


async def test_reads_at_the_same_moment_go_to_several_copies(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_ray.volume.read.pages.HEDGE_S", (5.0, 5.0))
    monkeypatch.setattr("aurora_ray.volume.read.pages.FIRST_HEDGE_S", 5.0)
    volume = await cluster.open()
    await volume.append(pages(*((page, b"x") for page in range(60))))
    await volume.read_pages([PageRange(0, 1, 0, 1)])
    for latency in volume.reads._latencies.values():  # how this machine disturbed that is not what is tested
        latency.mean_s = 0.001
    counters = {node: server.node.counters for node, server in cluster.servers.items()}
    before = {node: each["read_pages"] for node, each in counters.items()}
    await asyncio.gather(*(volume.read_pages([PageRange(0, 1, page, 1)]) for page in range(60)))
    served = [each["read_pages"] - before[node] for node, each in counters.items()]
    assert sum(served) == 60
    assert sum(count >= 5 for count in served) >= 4  # the other two may not have the flush yet


async def test_a_closed_volume_ends_its_waits(cluster: Cluster) -> None:
    volume = await cluster.open()
    await cluster.stop("a1", "b1", "c1")
    volume.redo.submit(encoded_flush(volume, pages((0, b"x"))))
    waiting = asyncio.create_task(volume.durable.wait_for(volume.tail_lsn, timeout_s=30))
    await asyncio.sleep(0)
    await volume.close()
    with pytest.raises(Exception, match="unknown outcome"):
        await waiting


async def test_a_volume_needs_four_nodes_to_be_created(cluster: Cluster) -> None:
    await cluster.stop("a1", "b1", "c1")
    other = Cluster(cluster._directory)
    with pytest.raises(QuorumLostError, match=r"too few nodes created groups \[0\]"):
        await Volume.create(other.spec, cluster.addresses, timeout_s=2)


async def test_a_copy_that_fails_as_another_answers_leaves_nothing_unheard(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await cluster.open(az="a")
    await volume.append(pages((0, b"here")))
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    read = volume._nodes["a2"].read_pages
    reply, waiting = None, False

    async def asked(*arguments: Any) -> Any:
        """Whoever is asked first fails as soon as the second answers: which copies they are is not said."""
        nonlocal reply, waiting
        if not waiting:
            waiting = True
            await hedged.wait()
            raise NodeTimeoutError("too late")
        reply = reply or await read(*arguments)
        hedged.set()
        await asyncio.sleep(0)  # both end in the loop's next round
        return reply

    for node in NODES:
        monkeypatch.setattr(volume._nodes[node], "read_pages", asked)
    for _ in range(20):  # which of the two is looked at first is not said
        hedged, waiting = asyncio.Event(), False
        assert image((await volume.read_pages([PageRange(0, 1, 0, 1)], timeout_s=10))[0]) == b"here"
        volume.reads._latencies.clear()
    gc.collect()
    assert not unheard

"""Opening a volume that somebody else had: nothing acknowledged is lost, the old writer changes nothing any more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import FencedError, MalformedError, QuorumLostError
from aurora_ray.log.batch import decode_header
from aurora_ray.log.flush import Flush
from aurora_ray.log.wire import join_append
from aurora_ray.storage.disk.keys import lsn_key
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.volume_node import VolumeNode
from tests.support.inbox import Inbox
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, encoded_flush, pages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.volume.write.volume import Volume


async def put_directly(cluster: Cluster, nodes: Iterable[str], batches: list[bytes]) -> None:
    """Brings batches to some nodes only, as a writer that dies while sending would."""
    for node in nodes:
        client = VolumeNode(cluster.nodes[node], cluster.spec.volume_id.bytes)
        inbox = Inbox()
        call = await client.append(inbox)
        call.send_message(join_append(batches))
        await inbox.next()
        call.cancel()
        await client.close()


def partial(volume: Volume, content: bytes, *, groups: tuple[int, ...] = (0,)) -> tuple[int, dict[int, bytes]]:
    """The end and the batches of a flush, as if submitted, but kept here."""
    records = [record for group in groups for record in pages((0, content), group=group)]
    flush = encoded_flush(volume, records)
    volume.redo.end.advance(flush)
    return flush.end, flush.batches


async def all_agree(cluster: Cluster, lsn: int, group: int = 0) -> None:
    await poll_until(
        lambda: all(cluster.segment(node, group).scl == lsn for node in cluster.servers), what=f"all are at {lsn}"
    )
    logs = {node: cluster.log(node, group) for node in cluster.servers}
    assert len({tuple(log) for log in logs.values()}) == 1, {
        node: [end for end, _ in log] for node, log in logs.items()
    }


async def content(volume: Volume, group: int = 0) -> bytes:
    return (await volume.read_pages([PageRange(group, 1, 0, 1)]))[0].pages.rstrip(b"\0")


async def test_an_orderly_takeover(cluster: Cluster) -> None:
    first = await cluster.open()
    lsn = await first.append(pages((0, b"kept")))
    await first.close()
    second = await cluster.open()
    assert (second.epoch, second.vdl, second.tail_lsn) == (2, lsn, lsn)
    assert second.redo.end.tails == {0: lsn}
    assert await content(second) == b"kept"
    await second.append(pages((0, b"more")))
    await all_agree(cluster, second.vdl)


async def test_the_old_writer_is_fenced_and_changes_nothing(cluster: Cluster) -> None:
    fenced = asyncio.Event()
    first = await cluster.open(on_fenced=fenced.set)
    await first.append(pages((0, b"first")))
    second = await cluster.open()
    lsn = await second.append(pages((0, b"second")))
    with pytest.raises(FencedError, match="fenced"):
        await first.append(pages((0, b"too late")), timeout_s=10)
    assert fenced.is_set()
    with pytest.raises(FencedError):
        first.redo.submit(Flush(first.tail_lsn, first.tail_lsn + 8, {}))
    with pytest.raises(FencedError):  # beyond its tail: it may have been fenced before it could submit anything
        await first.durable.wait_for(first.tail_lsn + 8, timeout_s=1)
    assert await content(second) == b"second"
    assert second.vdl == lsn
    await all_agree(cluster, lsn)
    assert all(decode_header(batch).epoch == 2 for end, batch in cluster.log("a1") if end > first.vdl)


async def test_an_idle_writer_learns_that_it_was_replaced(cluster: Cluster) -> None:
    fenced = asyncio.Event()
    await cluster.open(on_fenced=fenced.set)
    await cluster.open()
    async with asyncio.timeout(10):
        await fenced.wait()


async def test_waits_that_are_open_end_with_the_fence(cluster: Cluster) -> None:
    first = await cluster.open()
    await cluster.stop("a1", "b1", "c1")
    first.redo.submit(encoded_flush(first, pages((0, b"x"))))
    waiting = asyncio.create_task(first.durable.wait_for(first.tail_lsn, timeout_s=30))
    await asyncio.sleep(0)
    await cluster.start("a1", "b1", "c1")
    second = await cluster.open()
    done, _ = await asyncio.wait([waiting], timeout=20)
    assert done
    error = waiting.exception()
    # It may have become durable before the seal; if not, the writer is told that it was fenced.
    assert error is None or isinstance(error, FencedError)
    if error is None:
        assert second.vdl >= first.tail_lsn


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
async def test_a_tail_on_some_copies_ends_one_way_everywhere(cluster: Cluster, copies: int) -> None:
    first = await cluster.open()
    acked = await first.append(pages((0, b"acknowledged")))
    await first.close()
    ends = []
    for number in range(3):
        end, batches = partial(first, b"tail %d" % number)
        await put_directly(cluster, NODES[:copies], [batches[0]])
        ends.append(end)
    second = await cluster.open()
    assert second.vdl in [acked, *ends]
    if copies >= 3:
        assert second.vdl == ends[-1]
    assert sum(cluster.segment(node).vdl == second.vdl for node in NODES) >= 4
    expected = b"acknowledged" if second.vdl == acked else b"tail %d" % ends.index(second.vdl)
    assert await content(second) == expected
    lsn = await second.append(pages((1, b"next")))
    await all_agree(cluster, lsn)
    third = await cluster.open()
    assert third.vdl == lsn
    assert await content(third) == expected


async def test_a_flush_that_lacks_one_group_never_happened(two_groups: Cluster) -> None:
    cluster = two_groups
    first = await cluster.open()
    acked = await first.append([*pages((0, b"zero")), *pages((0, b"one"), group=1)])
    await first.close()
    _, half = partial(first, b"half", groups=(0, 1))
    await put_directly(cluster, NODES, [half[0]])
    _, after = partial(first, b"after")
    await put_directly(cluster, NODES, [after[0]])
    second = await cluster.open()
    assert second.vdl == acked
    assert [await content(second, group) for group in (0, 1)] == [b"zero", b"one"]
    lsn = await second.append(pages((0, b"new"), group=1))
    await all_agree(cluster, lsn, group=1)
    await all_agree(cluster, acked, group=0)


async def test_a_flush_whose_groups_lie_on_different_copies_is_completed(two_groups: Cluster) -> None:
    cluster = two_groups
    first = await cluster.open()
    await first.append([*pages((0, b"zero")), *pages((0, b"one"), group=1)])
    await first.close()
    end, both = partial(first, b"both", groups=(0, 1))
    await put_directly(cluster, NODES[:3], [both[0]])
    await put_directly(cluster, NODES[3:], [both[1]])
    second = await cluster.open()
    assert second.vdl == end
    assert [await content(second, group) for group in (0, 1)] == [b"both", b"both"]


async def test_a_node_that_missed_epochs_comes_back(cluster: Cluster) -> None:
    first = await cluster.open()
    acked = await first.append(pages((0, b"acknowledged")))
    await first.close()
    _, lost = partial(first, b"only here")
    await put_directly(cluster, ["c2"], [lost[0]])
    await cluster.stop("c2")
    second = await cluster.open()
    assert second.vdl == acked
    await second.append(pages((0, b"second")))
    third = await cluster.open()
    await third.append(pages((0, b"third")))
    await cluster.start("c2")
    await third.update_nodes(cluster.addresses)
    lsn = await third.append(pages((0, b"fourth")))
    await all_agree(cluster, lsn)
    await cluster.stop("a1", "a2")
    assert await content(third) == b"fourth"


async def test_one_after_the_other_many_times(cluster: Cluster) -> None:
    lsn = 0
    for epoch in range(1, 8):
        volume = await cluster.open()
        assert (volume.epoch, volume.vdl) == (epoch, lsn)
        if epoch % 2:
            lsn = await volume.append(pages((0, b"%d" % epoch)))
    await all_agree(cluster, lsn)
    client = VolumeNode(cluster.nodes["a1"], cluster.spec.volume_id.bytes)
    (state,) = await client.state(5)
    await client.close()
    assert len(state.truncations) == 4  # one for each place where a log ended, not one for each epoch


async def test_recoveries_that_compete(cluster: Cluster) -> None:
    first = await cluster.open()
    acked = await first.append(pages((0, b"acknowledged")))
    volumes = await asyncio.gather(*(cluster.open(timeout_s=30) for _ in range(3)))
    assert len({volume.epoch for volume in volumes}) == 3
    assert all(volume.vdl == acked for volume in volumes)
    newest = max(volumes, key=lambda volume: volume.epoch)
    lsn = await newest.append(pages((0, b"the last one wins")))
    for volume in volumes:
        if volume is not newest:
            with pytest.raises(FencedError):
                await volume.append(pages((0, b"no")), timeout_s=10)
    await all_agree(cluster, lsn)


async def test_recovery_waits_for_a_fourth_node(cluster: Cluster) -> None:
    first = await cluster.open()
    acked = await first.append(pages((0, b"acknowledged")))
    await first.close()
    await cluster.stop("a1", "a2", "b1")
    with pytest.raises(QuorumLostError, match="did not open within"):
        await cluster.open(timeout_s=0.7)
    opening = asyncio.create_task(cluster.open(timeout_s=30))
    await cluster.start("b1")
    assert (await opening).vdl == acked


async def test_a_writer_bears_two_nodes_that_promised_elsewhere(cluster: Cluster) -> None:
    volume = await cluster.open()
    for node in ("a1", "b1"):
        client = VolumeNode(cluster.nodes[node], cluster.spec.volume_id.bytes)
        assert (await client.seal(99, b"o" * 16, 5))[0]
        await client.close()
    for number in range(5):
        await volume.append(pages((number, b"x")), timeout_s=10)
    client = VolumeNode(cluster.nodes["c1"], cluster.spec.volume_id.bytes)
    assert (await client.seal(99, b"o" * 16, 5))[0]
    await client.close()
    with pytest.raises(FencedError):
        await volume.append(pages((9, b"x")), timeout_s=10)
    again = await cluster.open()
    assert again.epoch == 100


@pytest.mark.allowed_logs(r"damaged here", r"gives no answer of use")
@pytest.mark.parametrize("damaged", [1, 2])
async def test_copies_with_a_batch_that_is_none_keep_no_volume_from_opening(cluster: Cluster, damaged: int) -> None:
    """They are as good as away, know it, and are mended."""
    volume = await cluster.open()
    await volume.append(pages((0, b"x")))
    lsn = await volume.append(pages((1, b"y")))
    await poll_until(lambda: all(cluster.segment(node).scl == lsn for node in NODES), what="all have it")
    await volume.close()
    patients = NODES[:damaged]
    for node in patients:
        segment = cluster.segment(node)
        flipped = bytearray(cluster.log(node)[-1][1])
        flipped[8] ^= 0x40  # in its header
        segment._vdl = segment.box.vdl = 0  # as if nothing had told it that this is durable
        segment.store.append_log([(lsn_key(lsn), bytes(flipped))])
    volume = await cluster.open()
    assert (await volume.read_pages([PageRange(0, 1, 1, 1)]))[0].pages.rstrip(b"\0") == b"y"
    for node in patients:
        server = cluster.servers[node].node
        assert server.counters["damaged_log"] == 1
        await poll_until(lambda server=server: not server.damage.segments(), what="it is mended")
        assert server.counters["repaired_log"] + server.counters["copied_segments"] >= 1
    for node in NODES[-2:]:
        await cluster.stop(node)
    await volume.append(pages((2, b"z")))  # with the ones that were mended


@pytest.mark.allowed_logs(r"gives no answer of use", r"refuses what we send")
async def test_an_answer_that_makes_no_sense_is_as_good_as_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = {"a1": MalformedError("garbage"), "c2": ValueError("more than protobuf can hold")}

    def spoilt(real: Any) -> Any:
        async def call(self: VolumeNode, *args: Any) -> Any:
            reply = await real(self, *args)
            if self.node.node_id in garbage:
                raise garbage[self.node.node_id]
            return reply

        return call

    with monkeypatch.context() as patched:
        for name in ("state", "seal", "truncate", "catch_up"):
            patched.setattr(VolumeNode, name, spoilt(getattr(VolumeNode, name)))
        volume = await cluster.open()
    await volume.append(pages((0, b"x")))

"""A stateful test of forks on a node: whatever is written, forked, dropped, coalesced, collected and restarted, in
whatever order, each volume's content at each LSN that it shows is what its own records make of it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aurora_ray.log import record as rec
from aurora_ray.log.wire import join_append
from aurora_ray.storage.node import epochs
from aurora_ray.storage.node.fork import ForkOrder, fork
from aurora_ray.storage.node.node import Node
from aurora_ray.storage.pages.coalesce import coalesce
from aurora_ray.storage.pages.folding import fold_next
from aurora_ray.storage.pages.garbage import collect
from aurora_ray.storage.pages.reading import read_file_table, read_pages
from aurora_ray.storage.pages.sweeping import sweep
from aurora_ray.storage.server.append import Appender
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import OWNER, PAGE_SIZE, Writer, config

if TYPE_CHECKING:
    from collections.abc import Coroutine

FILES, PAGES = (7, 8), 5
VOLUMES_MAX = 6

number = st.integers(0, 1 << 20)


class Forks(RuleBasedStateMachine):
    """`volumes`: a writer each, which is also the model. They are chosen by numbers, modulo how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="aurora-forks-")
        self.loop = asyncio.new_event_loop()
        self.node = self.started()
        self.volumes: list[Writer] = []

    def started(self) -> Node:
        node = Node(config(Path(self.directory.name)), time.time)
        node.open()
        return node

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def chosen(self, which: int) -> Writer:
        return self.volumes[which % len(self.volumes)]

    def segment(self, writer: Writer) -> Any:
        return self.node.segments[writer.volume, 0]

    def opened(self, writer: Writer) -> None:
        """As its first recovery leaves it."""
        volume = self.node.volume(writer.volume)
        assert epochs.seal(volume, pb.SealRequest(volume=writer.volume, epoch=writer.epoch, owner=OWNER)).promised
        request = pb.TruncateRequest(volume=writer.volume, epoch=writer.epoch, owner=OWNER, vdl=writer.lsn)
        request.truncations.add(epoch=writer.epoch, lsn=writer.lsn)
        epochs.truncate(volume, request)
        self.volumes.append(writer)

    @initialize()
    def begin(self) -> None:
        writer = Writer()
        self.node.create_segments(writer.volume, PAGE_SIZE, [0], ["n1"])
        self.opened(writer)
        self.write(0, [1, 2, 3, 4])

    @rule(which=number, what=st.lists(number, min_size=1, max_size=4))
    def write(self, which: int, what: list[int]) -> None:
        writer = self.chosen(which)
        records = [rec.create(file, b"f%d" % file) for file in FILES] if not writer.lsn else []
        for each in what:
            file, page = FILES[each % 2], each // 2 % PAGES
            if each % 7 == 3:
                records.append(rec.truncate(file, each % (PAGES * PAGE_SIZE)))
            elif each % 3:
                records.append(rec.page_delta(file, page, [(each % 900, b"%d" % each)]))
            else:
                records.append(rec.page_full(file, page, b"%d " % each * 30))
            records.append(rec.size(file, PAGES * PAGE_SIZE))
        Appender(self.node).store(join_append(writer.flush(*records)))
        self.segment(writer).learn_vdl(writer.lsn)

    @rule(which=number, what=st.lists(number, min_size=4, max_size=8))
    def write_a_layer(self, which: int, what: list[int]) -> None:
        for at in range(0, len(what), 2):
            self.write(which, what[at : at + 2])
        self.coalesce(which)

    @precondition(lambda self: len(self.volumes) < VOLUMES_MAX)
    @rule(which=number, where=number)
    def fork(self, which: int, where: int) -> None:
        writer = self.chosen(which)
        ends = [end for end in writer.ends if end and end >= self.segment(writer).meta.floor_lsn]
        child = writer.fork(ends[where % len(ends)])
        order = ForkOrder(
            child.volume, writer.volume, child.lsn, writer.epoch, {0: child.lsn}, ("n1",), writer.epoch + 1
        )
        self.run(fork(self.node, order))
        self.opened(child)

    @precondition(lambda self: len(self.volumes) > 1)
    @rule(which=number)
    def drop(self, which: int) -> None:
        writer = self.volumes.pop(which % len(self.volumes))
        grave = self.node.drop_volume(writer.volume, "a test")
        self.run(self.node.graveyard.purge([grave]))

    @rule(which=number)
    def coalesce(self, which: int) -> None:
        segment = self.segment(self.chosen(which))
        if segment.meta.unswept:
            self.run(sweep(segment))
        self.run(coalesce(segment, 1 << 30, []))

    @rule(which=number, layer=number)
    def collect(self, which: int, layer: int) -> None:
        segment = self.segment(self.chosen(which))
        layers = segment.meta.layers
        if layers:
            self.run(collect(segment, layers[layer % len(layers)].end_lsn))
        self.run(fold_next(segment))

    @rule(which=number)
    def merge(self, which: int) -> None:
        self.run(self.segment(self.chosen(which)).store.compact_pages(thorough=True))

    @rule()
    def restart(self) -> None:
        self.node.close()
        self.node = self.started()

    @invariant()
    def every_fork_equals_the_model(self) -> None:
        for writer in self.volumes:
            segment = self.segment(writer)
            assert segment.scl == writer.lsn
            shown = [end for end in writer.ends if end >= segment.meta.floor_lsn]
            for lsn in {shown[0], shown[len(shown) // 2], shown[-1]}:
                self.run(self.check(writer, lsn))

    async def check(self, writer: Writer, lsn: int) -> None:
        segment = self.segment(writer)
        for file in FILES:
            found = await read_pages(segment, lsn, [(file, 0, PAGES)])
            assert found == [writer.page_at(lsn, file, page) for page in range(PAGES)], (lsn, file)
        assert (await read_file_table(segment, lsn, [])).pack() == writer.table_at(lsn).pack(), lsn

    def teardown(self) -> None:
        self.node.close()
        self.loop.close()
        self.directory.cleanup()


TestForks = Forks.TestCase
TestForks.settings = settings(
    max_examples=3,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink a failure would take minutes
)


class MoreForks(Forks):
    """The same, for some minutes."""


TestMoreForks = pytest.mark.long(MoreForks.TestCase)
TestMoreForks.settings = settings(parent=TestForks.settings, max_examples=30)

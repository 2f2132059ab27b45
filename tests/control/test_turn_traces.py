"""A change of a global cluster's primary is one trace: from its declaration to the first write, in both regions."""

import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace

from aurora_ray import telemetry
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import OpenInstance, StartNode
from aurora_ray.control.decide.regional import AskToMakeWay, Drain
from aurora_ray.control.model.regional import Membership
from aurora_ray.control.model.state import DBCluster
from aurora_ray.control.perform.regions import with_owner
from aurora_ray.control.report.turns import Turns
from aurora_ray.replication.turnover import Turnover, Way
from aurora_ray.telemetry.spanreader import StoredSpan, read_traces
from aurora_ray.telemetry.waterfall import summarise, waterfall
from tests.control.fleets import running_fleet

EAST, WEST = "us-east-1", "eu-west-1"
GENERATION = 17
TURN = Turnover(Way.SWITCHOVER, EAST, WEST, GENERATION)
ASK = AskToMakeWay("switchover", "demo", EAST, GENERATION)
DRAIN = Drain("no writer is left", "demo", GENERATION)
OPEN = OpenInstance("it shall serve", "demo", "demo-1", False)
NODE = StartNode("it does not run", "us-east-1a-1")
SECOND_NS = 10**9


class Region:
    """What a control plane's traces are told of; `clock` is common to all regions."""

    def __init__(self, clock: SimpleNamespace, *, secondary: bool) -> None:
        fleet = running_fleet()
        cluster = replace(fleet.clusters[0], membership=Membership("g", 1, EAST))
        self.clock, self.written = clock, True
        self.declared = SimpleNamespace(fleet=fleet)
        self.becomes(with_owner(cluster, Role.REPLICATOR) if secondary else cluster)
        self.leads = False
        self._works: list[Coroutine[Any, Any, None]] = []
        process = SimpleNamespace(do=self._first_write)
        processes = SimpleNamespace(
            instances={"demo-1": SimpleNamespace(process=process)},
            tasks=SimpleNamespace(start=lambda work, _: self._works.append(work)),
        )
        parts: Any = (self.declared, processes, SimpleNamespace(serves=lambda _: self.leads))
        self.turns = Turns(*parts, clock_ns=lambda: clock.now_ns)

    @property
    def cluster(self) -> DBCluster:
        found: DBCluster = self.declared.fleet.clusters[0]
        return found

    def becomes(self, cluster: DBCluster) -> None:
        self.declared.fleet = self.declared.fleet.with_cluster(cluster)

    def turns_to(self, turnover: Turnover | None) -> None:
        assert self.cluster.membership is not None
        self.becomes(replace(self.cluster, membership=replace(self.cluster.membership, turnover=turnover)))
        self.turns.watch()

    def is_promoted(self) -> None:
        cluster = replace(self.cluster, succession=(*self.cluster.succession, (100, GENERATION)))
        self.becomes(with_owner(cluster, Role.WRITER))

    async def _first_write(self, _: object) -> tuple[int, int]:
        if not self.written:
            raise TimeoutError
        self.clock.now_ns += SECOND_NS
        return self.clock.now_ns, 200

    async def writes(self) -> None:
        for work in self._works:
            await work

    def carries_out(self, action: Any) -> None:
        with self.turns.around(action), telemetry.span(type(action).__name__):
            self.clock.now_ns += SECOND_NS


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    telemetry.configure("test", span_dir=tmp_path)
    yield tmp_path
    telemetry.shutdown()


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now_ns=time.time_ns())


def traces(directory: Path) -> list[list[StoredSpan]]:
    telemetry.flush()
    return list(read_traces(directory).values())


def names(spans: list[StoredSpan]) -> list[str]:
    return [row.span.name for row in waterfall(spans) if row.span is not None]


async def test_both_regions_are_in_one_trace_to_the_first_write(directory: Path, clock: SimpleNamespace) -> None:
    west, east = Region(clock, secondary=True), Region(clock, secondary=False)
    west.turns_to(TURN)
    with west.turns.around(ASK), telemetry.span("AskToMakeWay"):
        east.turns.joined("demo", GENERATION)
    east.carries_out(DRAIN)
    with west.turns.around(NODE):
        assert not trace.get_current_span().is_recording(), "a storage node is none of its business"
    west.is_promoted()
    west.turns_to(None)
    west.carries_out(OPEN)
    west.leads = True
    west.turns.watch()
    await west.writes()

    (spans,) = traces(directory)
    assert sorted(names(spans)) == ["AskToMakeWay", "Drain", "OpenInstance", "turn", "turn.first_write"]
    told = summarise(spans)
    assert (told.name, told.whole, told.error) == ("turn", True, None)
    assert told.duration_ms == pytest.approx(3000, abs=1)
    assert (told.attributes["aurora.region.to"], told.attributes["aurora.first_write"]) == (WEST, True)
    assert west.turns._active == {}

    east.becomes(replace(east.cluster, succession=(*east.cluster.succession, (100, GENERATION))))
    east.turns.watch()
    east.carries_out(OPEN)
    assert len(traces(directory)) == 2, "what it does once it follows is none of that"


async def test_one_that_nobody_writes_after_ends_with_the_endpoint(directory: Path, clock: SimpleNamespace) -> None:
    west = Region(clock, secondary=True)
    west.written = False
    west.turns_to(TURN)
    west.is_promoted()
    west.turns_to(None)
    west.leads = True
    clock.now_ns += SECOND_NS
    west.turns.watch()
    await west.writes()
    (spans,) = traces(directory)
    assert summarise(spans).duration_ms == pytest.approx(1000, abs=1)
    assert summarise(spans).attributes["aurora.first_write"] is False


def test_one_that_is_given_up_says_so(directory: Path, clock: SimpleNamespace) -> None:
    west = Region(clock, secondary=True)
    west.turns_to(TURN)
    west.turns_to(None)
    (spans,) = traces(directory)
    assert summarise(spans).error == "it was given up"


def test_of_a_cluster_that_goes_meanwhile_nothing_is_kept(directory: Path, clock: SimpleNamespace) -> None:
    west = Region(clock, secondary=True)
    west.turns_to(TURN)
    west.declared.fleet = replace(west.declared.fleet, clusters=())
    west.turns.watch()
    (spans,) = traces(directory)
    assert summarise(spans).whole
    assert west.turns._active == {}

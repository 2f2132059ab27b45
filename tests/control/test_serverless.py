"""Who gets how much capacity, who is paused and who is woken: decided from what is declared and seen."""

from dataclasses import replace
from typing import Any

import pytest

from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.compute.role import Role
from aurora_ray.control.decide import reconcile
from aurora_ray.control.decide.moving import AGAIN_AFTER_S, MOVE_AFTER_S, MoveInstance
from aurora_ray.control.decide.serverless import (
    KEEP_PROCESSES_OF,
    KEEP_PROCESSES_S,
    EndpointUse,
    FitPool,
    LookAtPools,
    PauseCluster,
    ResumeCluster,
    ScaleInstance,
    Serverless,
    fitted,
    keeps_awake,
    start_acu,
)
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.observed import CapacityUse, InstancePhase, InstanceSeen, Observed
from aurora_ray.control.model.runtime import Room, Short
from aurora_ray.control.model.state import DBInstance, Fleet
from aurora_ray.control.observe.known import Instance
from tests.control.fleets import running_fleet

WALL_S = 1_000_000.0
RULE = Capacity(0, 8, 30)


def used(acu: float, cpus: float = 0.0, *, at_s: float = 0.0, room: float = 64.0) -> CapacityUse:
    return CapacityUse(at_s, acu, room, 0.25, cpus, 0.0, 0.0, cache_full=False)


def serving(role: Role, capacity: CapacityUse | None, sessions: int | None = 0) -> InstanceSeen:
    return InstanceSeen(InstancePhase.AVAILABLE, role=role, connections=sessions, capacity=capacity)


def declared(rule: Capacity | None, *, paused_since_s: float = 0.0, tiers: tuple[int, ...] = ()) -> Fleet:
    fleet = running_fleet()
    fleet = fleet.with_initialised(fleet.clusters[0].volume.volume_id)
    readers = tuple(DBInstance(f"demo-{n + 2}", Role.READER, "b", 9 + n, tier) for n, tier in enumerate(tiers))
    cluster = fleet.clusters[0]
    return fleet.with_cluster(
        replace(cluster, instances=(*cluster.instances, *readers), capacity=rule, paused_since_s=paused_since_s)
    )


def wanted(
    fleet: Fleet,
    seen: dict[str, InstanceSeen],
    *,
    by: Serverless | None = None,
    use: EndpointUse | None = EndpointUse(),  # noqa: B008
    held: tuple[str, ...] = (),
    now_s: float = 0.0,
) -> list[reconcile.Action]:
    uses = {"demo": use} if use is not None else {}
    return list((by or Serverless()).wanted(fleet, seen, uses, held, now_s, WALL_S))


WRITER = {"demo-1": serving(Role.WRITER, used(0.5))}


def test_a_cluster_without_bounds_is_left_alone() -> None:
    assert wanted(declared(None), {"demo-1": serving(Role.WRITER, None)}) == []
    (back,) = wanted(declared(None), WRITER)
    assert isinstance(back, ScaleInstance)
    assert back.acu == 0


def test_an_instance_with_a_size_gets_the_least_capacity_first() -> None:
    (first,) = wanted(declared(Capacity(2, 8)), {"demo-1": serving(Role.WRITER, None)})
    assert isinstance(first, ScaleInstance)
    assert (first.instance_id, first.acu) == ("demo-1", 2)


@pytest.mark.parametrize(
    ("stats", "news"),
    [
        ({"cpus": 0.12}, True),
        ({"cpus": 0.02, "held_back_rate": 0.2}, True),
        ({"cpus": 0.02, "misses_rate": 300, "cache_budget_bytes": 100, "cached_bytes": 100}, True),
        ({"cpus": 0.09}, False),
        ({"cpus": 0.12, "looked_at_s": 10.0}, False),
    ],
    ids=["CPU", "held back", "cache", "calm", "known"],
)
def test_a_look_that_shows_a_need_is_news_and_others_are_not(stats: dict[str, float], news: bool) -> None:
    process: Any = None  # it is not asked
    status = InstanceStatus(
        IncarnationPhase.AVAILABLE, pid=10, stats={"acu": 0.5, "cpus_per_acu": 0.25, "looked_at_s": 10.0}
    )
    instance = Instance(process)
    instance.became_available(status, 0.0)
    assert instance.told(replace(status, stats={**status.stats, "looked_at_s": 10.2, **stats})) is news


def test_readers_of_the_first_tiers_follow_the_writer_and_others_do_not() -> None:
    seen = {"demo-1": serving(Role.WRITER, used(4))}
    seen |= {f"demo-{n}": serving(Role.READER, used(1)) for n in (2, 3, 4)}
    steps = wanted(declared(Capacity(1, 8), tiers=(0, 1, 2)), seen)
    assert {(s.instance_id, s.acu) for s in steps if isinstance(s, ScaleInstance)} == {("demo-2", 4), ("demo-3", 4)}


def test_a_machine_without_room_is_the_bound_and_is_named() -> None:
    serverless = Serverless()
    (step,) = wanted(declared(Capacity(1, 64)), {"demo-1": serving(Role.WRITER, used(4, 1.0, room=6))}, by=serverless)
    assert isinstance(step, ScaleInstance)
    assert step.acu == 6
    assert "its machine has no more" in serverless.reason("demo-1")


def test_nothing_is_paused_that_is_used_or_has_not_been_idle_for_its_time() -> None:
    serverless, fleet = Serverless(), declared(RULE)
    assert wanted(fleet, WRITER, by=serverless, now_s=0) == []
    assert wanted(fleet, WRITER, by=serverless, now_s=29) == []
    (pause,) = wanted(fleet, WRITER, by=serverless, now_s=30)
    assert isinstance(pause, PauseCluster)
    for keeps in (EndpointUse(open=1), EndpointUse(held=1), EndpointUse(accepted=5), None):
        assert wanted(fleet, WRITER, by=serverless, use=keeps, now_s=40) == []
        assert serverless.awake("demo") != ()
        assert wanted(fleet, WRITER, by=serverless, use=keeps and replace(keeps, open=0, held=0), now_s=41) == []
    busy = {"demo-1": serving(Role.WRITER, used(0.5), sessions=2)}
    assert wanted(fleet, busy, by=serverless, now_s=100) == []
    awake = Serverless()
    for now_s in (0, 300, 10_000):
        assert wanted(declared(Capacity(0.5, 8)), WRITER, by=awake, now_s=now_s) == []


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({}, "demo-1 does not serve yet"),
        ({"demo-1": InstanceSeen(InstancePhase.OPENING)}, "demo-1 does not serve yet"),
        ({"demo-1": serving(Role.WRITER, used(1), sessions=None)}, "are not known yet"),
        ({"demo-1": serving(Role.WRITER, used(1), sessions=3)}, "3 sessions on demo-1"),
    ],
)
def test_what_keeps_it_awake_is_said(seen: dict[str, InstanceSeen], says: str) -> None:
    fleet = declared(RULE)
    assert says in " ".join(keeps_awake(fleet, fleet.clusters[0], seen))


def test_storage_that_needs_a_writer_keeps_it_awake_and_wakes_it() -> None:
    for paused_since_s in (0.0, WALL_S - 1):
        fleet = declared(RULE, paused_since_s=paused_since_s)
        going = fleet.with_replacement(fleet.clusters[0].volume.groups[0].node_ids[0])
        assert "being replaced" in " ".join(keeps_awake(going, going.clusters[0], WRITER))
        woken = wanted(going, {}) if paused_since_s else []
        assert all(isinstance(action, ResumeCluster) for action in woken)
        assert bool(woken) is bool(paused_since_s)


def test_a_paused_cluster_is_woken_by_who_waits_and_by_another_minimum_and_by_nothing_else() -> None:
    paused = declared(RULE, paused_since_s=WALL_S - 10)
    assert wanted(paused, {}) == []
    assert wanted(paused, {}, held=("other",)) == []
    (resume,) = wanted(paused, {}, held=("demo",))
    assert isinstance(resume, ResumeCluster)
    (raised,) = wanted(declared(Capacity(0.5, 8), paused_since_s=WALL_S - 10), {})
    assert isinstance(raised, ResumeCluster)
    assert "its minimum is not 0" in raised.why


def test_processes_of_a_paused_cluster_end_after_a_while() -> None:
    idle = {"demo-1": InstanceSeen(InstancePhase.ENDED)}
    assert wanted(declared(RULE, paused_since_s=WALL_S - KEEP_PROCESSES_S + 1), idle) == []
    (stop,) = wanted(declared(RULE, paused_since_s=WALL_S - KEEP_PROCESSES_S), idle)
    assert isinstance(stop, reconcile.StopInstance)


def test_processes_stay_of_those_that_were_paused_last_only() -> None:
    fleet = declared(RULE)
    (cluster,) = fleet.clusters
    many = [
        replace(
            cluster,
            name=f"tenant{number}",
            paused_since_s=WALL_S - number,
            instances=(DBInstance(f"tenant{number}-1", Role.WRITER, "a", 100 + number, 1),),
        )
        for number in range(2 * KEEP_PROCESSES_OF)
    ]
    idle = {f"tenant{number}-1": InstanceSeen(InstancePhase.ENDED) for number in range(2 * KEEP_PROCESSES_OF)}
    ended = wanted(replace(fleet, clusters=tuple(many)), idle)
    assert all(isinstance(action, reconcile.StopInstance) for action in ended)
    assert [a.instance_id for a in ended if isinstance(a, reconcile.StopInstance)] == [
        f"tenant{number}-1" for number in range(KEEP_PROCESSES_OF, 2 * KEEP_PROCESSES_OF)
    ]


def test_the_engines_of_a_paused_cluster_end_and_nobody_starts_others() -> None:
    fleet = declared(RULE, paused_since_s=WALL_S)

    def kinds(seen: dict[str, InstanceSeen]) -> list[type[reconcile.Action]]:
        plan = reconcile.decide(fleet, Observed(instances=seen, control_open=True), 0.0)
        return [type(a) for a in plan.actions if not isinstance(a, reconcile.StartNode | reconcile.TellNodes)]

    assert kinds(WRITER) == [reconcile.PauseInstance]
    assert kinds({"demo-1": InstanceSeen(InstancePhase.ENDED)}) == []
    assert kinds({}) == []


@pytest.mark.parametrize(("last", "begins"), [(0, 1), (0.5, 1), (3.5, 3.5), (99, 8), (2.7, 2.5)])
def test_an_instance_begins_with_what_it_had_within_the_bounds(last: float, begins: float) -> None:
    assert start_acu(Capacity(1, 8), last) == begins


def test_what_is_held_of_machines_becomes_what_is_in_force() -> None:
    fleet = declared(Capacity(1, 8))
    serves = {"demo-1": serving(Role.WRITER, used(2))}

    def fits(seen: dict[str, InstanceSeen], held: dict[str, float] | None, short: tuple[str, ...] = ()) -> list[float]:
        return [a.acu for a in fitted(fleet, seen, held, short) if isinstance(a, FitPool)]

    assert fits(serves, {}) == [2]
    assert fits(serves, {"demo-1": 4.0}) == [2]
    assert fits(serves, {"demo-1": 2.0, "gone-1": 1.0}) == [0]
    assert fits(serves, {"demo-1": 1.0}, ("demo-1",)) == []
    assert fits({"demo-1": InstanceSeen(InstancePhase.OPENING)}, {"demo-1": 4.0}) == []
    assert fits({"demo-1": InstanceSeen(InstancePhase.ENDED)}, {"demo-1": 4.0}) == [0]
    assert isinstance(next(fitted(fleet, serves, None)), LookAtPools)


def test_where_the_machine_has_no_more_nothing_is_decided_that_it_cannot_have() -> None:
    fleet, by = declared(Capacity(1, 8)), Serverless()
    busy = {"demo-1": serving(Role.WRITER, used(2, 0.6))}
    assert list(by.wanted(fleet, busy, {}, (), 0, WALL_S, {"demo-1": Short(2.0, 4.0)})) == []
    assert "it needs a machine with more room: of this one it holds 2 ACU" in by.reason("demo-1")
    (up,) = by.wanted(fleet, {"demo-1": serving(Role.WRITER, used(2, 0.6, at_s=1))}, {}, (), 1, WALL_S)
    assert isinstance(up, ScaleInstance)
    assert up.acu > 2


def test_it_moves_when_that_lasts_to_a_machine_that_has_room_and_not_again_at_once() -> None:
    fleet, by = declared(Capacity(1, 8)), Serverless()
    roomy = Short(2.0, 4.0, (Room("near", ("a",), 3.5), Room("far", ("b",), 6.0), Room("abroad", ("z",), 99.0)))

    def at(now_s: float, short: Short | None = roomy, cpus: float = 0.6) -> list[reconcile.Action]:
        busy = {"demo-1": serving(Role.WRITER, used(2, cpus, at_s=now_s))}
        return list(by.wanted(fleet, busy, {}, (), now_s, WALL_S, {"demo-1": short} if short is not None else {}))

    for now_s in range(10):
        assert at(now_s) == []
    assert "it moves to machine far if that lasts" in by.reason("demo-1")
    (asks,) = at(10, None)
    assert isinstance(asks, ScaleInstance), "in between it asks again"
    for now_s in range(11, int(MOVE_AFTER_S)):
        assert at(now_s, Short(2.0, 4.0, (Room("near", ("a",), 3.5),))) == []
    assert "no machine has room for 4 ACU, the most that another one has is 3.5" in by.reason("demo-1")
    (move,) = at(MOVE_AFTER_S)
    assert isinstance(move, MoveInstance)
    assert (move.host, move.az, move.acu) == ("far", "b", 4)
    for now_s in range(int(MOVE_AFTER_S) + 1, int(MOVE_AFTER_S + AGAIN_AFTER_S)):
        assert at(now_s) == []
    assert "a move began less than 120 s ago" in by.reason("demo-1")
    (again,) = at(MOVE_AFTER_S + AGAIN_AFTER_S)
    assert isinstance(again, MoveInstance)
    assert at(1000) == []
    assert "if that lasts" in by.reason("demo-1"), "it had what it wanted in between"


def test_a_machine_that_is_too_small_as_a_whole_is_left_for_a_larger_one() -> None:
    fleet, by = declared(Capacity(1, 64)), Serverless()
    fleet = replace(fleet, nodes=tuple(replace(node, host=node.az) for node in fleet.nodes))
    busy = {"demo-1": serving(Role.WRITER, used(6, 1.5, room=6))}
    (asks,) = by.wanted(fleet, busy, {}, (), 0, WALL_S)
    assert isinstance(asks, ScaleInstance), "what is wanted is asked for, so that it is known where it could be had"
    assert asks.acu == 9
    for now_s in range(1, int(MOVE_AFTER_S) + 2):
        busy = {"demo-1": serving(Role.WRITER, used(6, 1.5, room=6, at_s=now_s))}
        moves = list(by.wanted(fleet, busy, {}, (), now_s, WALL_S, {"demo-1": Short(6, 9, (Room("b", ("b",), 20),))}))
    (move,) = moves
    assert isinstance(move, MoveInstance)
    assert (move.host, move.acu) == ("b", 9)


def test_a_machine_of_its_own_az_is_preferred() -> None:
    fleet, by = declared(Capacity(1, 8)), Serverless()
    short = Short(2.0, 2.5, (Room("far", ("b",), 9.0), Room("near", ("c", "a"), 2.5)))
    for now_s in range(int(MOVE_AFTER_S) + 1):
        busy = {"demo-1": serving(Role.WRITER, used(2, 0.6, at_s=now_s))}
        moves = list(by.wanted(fleet, busy, {}, (), now_s, WALL_S, {"demo-1": short}))
    (move,) = moves
    assert isinstance(move, MoveInstance)
    assert (move.host, move.az) == ("near", "a")


def test_a_provisioned_instance_keeps_its_size_and_the_others_scale() -> None:
    fleet = declared(Capacity(1, 8), tiers=(0, 2))
    cluster = fleet.clusters[0]
    writer = replace(cluster.writer(), provisioned=True, memory_bytes=5 << 30)
    fleet = fleet.with_instance("demo", writer)
    seen = {"demo-1": serving(Role.WRITER, None)} | {f"demo-{n}": serving(Role.READER, used(1)) for n in (2, 3)}
    (follows,) = (s for s in wanted(fleet, seen) if isinstance(s, ScaleInstance))
    assert (follows.instance_id, follows.acu) == ("demo-2", 2.5), "the first tiers have what the writer has"
    (back,) = (s for s in wanted(fleet, WRITER) if isinstance(s, ScaleInstance))
    assert (back.instance_id, back.acu) == ("demo-1", 0)
    reader = replace(cluster.readers()[1], provisioned=True)
    mixed = declared(Capacity(1, 8), tiers=(0, 2)).with_instance("demo", reader)
    seen |= {"demo-1": serving(Role.WRITER, used(2)), "demo-3": serving(Role.READER, None)}
    assert [s.instance_id for s in wanted(mixed, seen) if isinstance(s, ScaleInstance)] == ["demo-2"]


def test_provisioned_instances_and_replication_slots_keep_it_awake() -> None:
    fleet = declared(RULE)
    assert list(keeps_awake(fleet, fleet.clusters[0], WRITER)) == []
    slots = {"demo-1": serving(Role.WRITER, replace(used(0.5), slots=2))}
    assert list(keeps_awake(fleet, fleet.clusters[0], slots)) == ["2 replication slots on demo-1"]
    fleet = fleet.with_instance("demo", replace(fleet.clusters[0].writer(), provisioned=True))
    assert list(keeps_awake(fleet, fleet.clusters[0], WRITER)) == ["demo-1 is provisioned, and never stops"]

"""Who goes on as the writer in place, and when: decisions, what endpoints are told meanwhile, and what is done."""

from dataclasses import replace

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.promoting import MakeWriter, PromoteInstance, ahead, why_not
from aurora_ray.control.decide.readers import with_readers, with_writer
from aurora_ray.control.decide.reconcile import Action, ChangeRole, OpenInstance, decide
from aurora_ray.control.model.attempt import Attempt
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen, Observed
from aurora_ray.control.model.state import ClusterPhase, DBCluster, Fleet
from aurora_ray.control.observe.endpoints import driver_orders, orders_for
from tests.control.fleets import NODES, addresses, observed, running_fleet, volume_id
from tests.control.test_endpoints import THREE, roles
from tests.control.test_endpoints import seen as instances_of

NOW_S = 1000.0
ENDED = InstanceSeen(InstancePhase.ENDED, "the engine was killed")


def with_two() -> Fleet:
    return with_readers(
        running_fleet(), "demo", 2, tier=1, memory_bytes=0, ports=lambda _, count: list(range(16000, 16000 + count))
    )


def serving(fleet: Fleet, role: Role) -> InstanceSeen:
    return InstanceSeen(
        InstancePhase.AVAILABLE,
        told=addresses(),
        groups=frozenset({0}),
        free_bytes=1 << 30,
        role=role,
        volume_id=str(volume_id(fleet)),
        lag_ms=5.0,
    )


def seen(fleet: Fleet, nodes: tuple[str, ...] = NODES, lost: str = "", **named: InstanceSeen | None) -> Observed:
    state = observed(fleet, nodes)
    cluster = fleet.cluster("demo")
    there: dict[str, InstanceSeen | None] = {i.instance_id: serving(fleet, i.role) for i in cluster.instances}
    there |= {name.replace("_", "-"): each for name, each in named.items()}
    found = {name: each for name, each in there.items() if each is not None}
    return replace(state, instances=found, lost=frozenset({lost} - {""}))


def actions(fleet: Fleet, state: Observed) -> list[Action]:
    first = ahead(fleet, state)
    state = replace(state, held=state.held | first.waiting)
    plan = decide(fleet, state, NOW_S, ahead=first.wanted)
    return [each for each in plan.actions if each.key.startswith(f"{Kind.INSTANCE}:")]


@pytest.mark.parametrize("gone", [None, ENDED])
def test_a_lost_writer_has_the_best_reader_declared_in_its_place(gone: InstanceSeen | None) -> None:
    fleet = with_two()
    (make,) = actions(fleet, seen(fleet, lost="demo-1", demo_1=gone))
    assert isinstance(make, MakeWriter)
    assert (make.instance_id, make.target) == ("demo-1", "demo-2")


@pytest.mark.parametrize("lag_ms", [None, 2500.0])
def test_a_reader_that_is_far_behind_does_not_go_on_in_place(lag_ms: float | None) -> None:
    fleet = with_two()
    late = replace(serving(fleet, Role.READER), lag_ms=lag_ms)
    (open_,) = actions(fleet, seen(fleet, lost="demo-1", demo_1=ENDED, demo_2=late, demo_3=late))
    assert isinstance(open_, OpenInstance)


def test_a_writer_that_was_ended_by_somebodys_will_is_opened_again() -> None:
    fleet = with_two()
    (open_,) = actions(fleet, seen(fleet, demo_1=ENDED))
    assert isinstance(open_, OpenInstance)


def test_a_writer_that_serves_or_opens_is_not_replaced() -> None:
    fleet = with_two()
    assert actions(fleet, seen(fleet, lost="demo-1")) == []
    assert actions(fleet, seen(fleet, lost="demo-1", demo_1=InstanceSeen(InstancePhase.OPENING))) == []


def test_without_a_reader_that_can_its_place_is_opened_anew() -> None:
    fleet = with_two()
    elsewhere = replace(serving(fleet, Role.READER), volume_id="another one")
    for two in (ENDED, elsewhere):
        found = actions(fleet, seen(fleet, lost="demo-1", demo_1=ENDED, demo_2=two, demo_3=two))
        assert not any(isinstance(each, MakeWriter | PromoteInstance) for each in found)
        assert any(isinstance(each, OpenInstance) and each.instance_id == "demo-1" for each in found)
    failed = seen(fleet, lost="demo-1", demo_1=ENDED)
    failed = replace(failed, attempts={key(Kind.INSTANCE, "demo-2"): Attempt(1, 0.0, "it failed")})
    assert not any(isinstance(each, MakeWriter) for each in actions(fleet, failed))


def test_who_is_to_be_the_writer_waits_for_the_one_before_and_for_a_quorum() -> None:
    fleet = with_writer(with_two(), "demo", "demo-3")
    reads, writes = serving(fleet, Role.READER), serving(fleet, Role.WRITER)
    (change,) = actions(fleet, seen(fleet, demo_1=writes, demo_3=reads))
    assert isinstance(change, ChangeRole)
    assert change.instance_id == "demo-1"
    assert actions(fleet, replace(seen(fleet, demo_1=writes, demo_3=reads), busy=frozenset({change.key}))) == []
    (promote,) = actions(fleet, seen(fleet, demo_1=ENDED, demo_3=reads))
    assert isinstance(promote, PromoteInstance)
    assert promote.instance_id == "demo-3"
    few = seen(fleet, NODES[:3], demo_1=ENDED, demo_3=reads)
    assert not any(isinstance(each, PromoteInstance | ChangeRole) for each in actions(fleet, few))


@pytest.mark.parametrize("before", [ENDED, InstanceSeen(InstancePhase.IDLE), None])
def test_readers_that_have_yet_to_open_wait_for_a_promotion_and_open_after_it(before: InstanceSeen | None) -> None:
    """Whether it comes to something or not. Those that serve, or are about to, are left alone."""
    fleet = with_writer(with_two(), "demo", "demo-3")
    reads, writes = serving(fleet, Role.READER), serving(fleet, Role.WRITER)
    opening = InstanceSeen(InstancePhase.OPENING, role=Role.READER)
    for other in (reads, opening):
        state = seen(fleet, demo_1=before, demo_2=other, demo_3=reads)
        (promote,) = actions(fleet, state)
        assert isinstance(promote, PromoteInstance)
        assert ahead(fleet, state).waiting == {key(Kind.INSTANCE, "demo-1")}
        assert actions(fleet, replace(state, busy=frozenset({promote.key}))) == [], "it is under way"
    (reader,) = actions(fleet, seen(fleet, demo_1=before, demo_3=writes))
    assert (type(reader) is OpenInstance, reader.key) == (before is not None, key(Kind.INSTANCE, "demo-1"))
    failed = seen(fleet, demo_1=before, demo_3=ENDED)
    assert {each.key for each in actions(fleet, failed)} == {key(Kind.INSTANCE, n) for n in ("demo-1", "demo-3")}
    assert ahead(fleet, failed).waiting == frozenset()


def test_readers_do_not_wait_for_a_promotion_that_cannot_be_yet() -> None:
    """For the writer before it, or for storage: that may take long."""
    fleet = with_writer(with_two(), "demo", "demo-3")
    reads, writes = serving(fleet, Role.READER), serving(fleet, Role.WRITER)
    behind_another = seen(fleet, demo_1=writes, demo_2=ENDED, demo_3=reads)
    assert ahead(fleet, behind_another).waiting == {key(Kind.INSTANCE, "demo-3")}
    without_a_quorum = seen(fleet, NODES[:3], demo_1=ENDED, demo_2=ENDED, demo_3=reads)
    assert ahead(fleet, without_a_quorum).waiting == {key(Kind.INSTANCE, "demo-3")}


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "mysql"},
        {"phase": ClusterPhase.DELETING},
        {"paused_since_s": 1.0},
        {"repairs": ("roles",)},
    ],
)
def test_what_an_opening_does_besides_is_left_to_one(changes: dict[str, object]) -> None:
    fleet = with_writer(with_two(), "demo", "demo-3")
    cluster: DBCluster = replace(fleet.cluster("demo"), **changes)  # type: ignore[arg-type]
    assert not why_not(fleet.cluster("demo"))
    assert why_not(cluster)
    fleet = fleet.with_cluster(cluster)
    state = seen(fleet, demo_1=ENDED, demo_3=serving(fleet, Role.READER))
    assert ahead(fleet, state).wanted == ()


def test_endpoints_keep_the_sessions_of_who_is_becoming_the_writer() -> None:
    before = roles(*THREE)
    after = with_writer(before, "demo", "r1")
    instances = instances_of(before, {})
    instances["w"].ended("it was killed")
    at = ("127.0.0.1", "127.0.0.1")
    orders = {order.name: order for order in orders_for(after, instances, *at, in_place=True)}
    assert [target.port for target in orders["demo/reader"].targets] == [3]
    assert orders["demo/reader"].fallback == (), "what is led to readers is led to another one"
    assert orders["demo/cluster"].targets == ()
    instances["r2"].ended("it was killed")
    orders = {order.name: order for order in orders_for(after, instances, *at, in_place=True)}
    assert orders["demo/reader"].targets == ()
    (same,) = orders["demo/reader"].fallback
    assert same.port == 2
    own = {order.name: order for order in driver_orders(after, instances, *at, in_place=True)}
    assert own["demo/driver/r1"].targets == (same,)
    later = {order.name: order for order in orders_for(after, instances_of(after, {}), *at, in_place=True)}
    assert later["demo/cluster"].targets == (same,)
    assert same in later["demo/reader"].fallback
    instances["r1"].stopping()
    orders = {order.name: order for order in orders_for(after, instances, *at, in_place=True)}
    assert orders["demo/reader"].fallback == ()

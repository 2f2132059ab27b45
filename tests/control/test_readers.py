"""Readers as decisions: where they go, when they are opened, who becomes the writer, and what happens on the way."""

from dataclasses import replace
from random import Random

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.readers import (
    failover_target,
    place_reader,
    reader_of,
    with_readers,
    with_writer,
    without_reader,
)
from aurora_ray.control.decide.reconcile import (
    Action,
    AddGroup,
    ChangeRole,
    OpenInstance,
    StartInstance,
    StopInstance,
    TellInstance,
    decide,
)
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen, Observed
from aurora_ray.control.model.scaling import READERS_MAX
from aurora_ray.control.model.state import ClusterPhase, DBInstance, Fleet
from aurora_ray.errors import UsageError
from tests.control.fleets import AZS, NODES, addresses, observed, running_fleet

NOW_S = 1000.0
FOLLOWS = InstanceSeen(InstancePhase.AVAILABLE, told=addresses(), groups=frozenset({0}), role=Role.READER)
WRITES = replace(FOLLOWS, role=Role.WRITER, free_bytes=1 << 30)


def ports(_: Fleet, count: int) -> list[int]:
    return list(range(16000, 16000 + count))


def with_two(count: int = 2, **options: int) -> Fleet:
    return with_readers(running_fleet(), "demo", count, **{"tier": 1, "memory_bytes": 0, **options}, ports=ports)


def seen(fleet: Fleet, nodes: tuple[str, ...] = NODES, **instances: InstanceSeen | None) -> Observed:
    """The writer and all readers are as declared, but for those named (with `_` for `-`; None: no process)."""
    state = observed(fleet, nodes)
    there = {i.instance_id: FOLLOWS for i in fleet.cluster("demo").readers()} | dict(state.instances)
    named = {name.replace("_", "-"): each for name, each in instances.items()}
    told = {name: replace(each, told=state.addresses()) for name, each in there.items()}
    return replace(state, instances={n: s for n, s in {**told, **named}.items() if s is not None})


def actions(fleet: Fleet, state: Observed) -> list[Action]:
    return list(decide(fleet, state, NOW_S).actions)


# ---- where they go


def test_readers_are_spread_and_keep_away_from_the_writers_zone_while_others_are_free() -> None:
    cluster = with_two(6).cluster("demo")
    assert cluster.writer().az == "a"
    assert [reader.az for reader in cluster.readers()] == ["b", "c", "a", "b", "c", "a"]
    assert [reader.instance_id for reader in cluster.readers()] == [f"demo-{number}" for number in range(2, 8)]


def test_a_zone_that_lost_its_readers_is_filled_first() -> None:
    fleet = without_reader(with_two(4), "demo-3")
    assert place_reader(AZS, fleet.cluster("demo")) == "c"


def test_no_name_is_used_twice() -> None:
    fleet = without_reader(with_two(2), "demo-3")
    fleet = with_readers(fleet, "demo", 1, tier=0, memory_bytes=1 << 30, ports=ports)
    newest = fleet.cluster("demo").readers()[-1]
    assert (newest.instance_id, newest.promotion_tier, newest.memory_bytes) == ("demo-4", 0, 1 << 30)
    assert unpack(pack(fleet)) == fleet


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    fleet = with_two(READERS_MAX)
    with pytest.raises(UsageError, match="has 15 readers and can have 15: 1 more are too many"):
        with_readers(fleet, "demo", 1, tier=1, memory_bytes=0, ports=ports)
    with pytest.raises(UsageError, match=r"from 0 .* to 15, not 16"):
        with_two(1, tier=16)
    with pytest.raises(UsageError, match="demo-1 is the writer of demo"):
        without_reader(fleet, "demo-1")
    with pytest.raises(UsageError, match="no instance 'demo-99'"):
        reader_of(fleet, "demo-99")
    with pytest.raises(UsageError, match="has no instance 'other-2'"):
        with_writer(fleet, "demo", "other-2")
    deleting = fleet.with_cluster(replace(running_fleet().cluster("demo"), phase=ClusterPhase.DELETING))
    with pytest.raises(UsageError, match="is being deleted"):
        with_readers(deleting, "demo", 1, tier=1, memory_bytes=0, ports=ports)


# ---- starting, opening, ending


def test_nothing_to_do_when_readers_follow() -> None:
    fleet = with_two()
    assert actions(fleet, seen(fleet)) == []


def test_a_reader_is_started_and_opened_beside_a_writer_that_is_left_alone() -> None:
    fleet = with_two()
    (start,) = actions(fleet, seen(fleet, demo_2=None))
    assert isinstance(start, StartInstance)
    assert start.instance_id == "demo-2"
    (open_,) = actions(fleet, seen(fleet, demo_2=InstanceSeen(InstancePhase.IDLE)))
    assert isinstance(open_, OpenInstance)
    assert open_.instance_id == "demo-2"


def test_a_reader_needs_a_read_quorum_and_no_writer() -> None:
    fleet = with_two(1)
    gone = {"demo_1": InstanceSeen(InstancePhase.ENDED), "demo_2": InstanceSeen(InstancePhase.IDLE)}
    three = decide(fleet, seen(fleet, NODES[:3], **gone), NOW_S)
    assert [a.instance_id for a in three.actions if isinstance(a, OpenInstance)] == ["demo-2"]
    two = decide(fleet, seen(fleet, NODES[:2], **gone), NOW_S)
    assert not [a for a in two.actions if isinstance(a, OpenInstance)]
    assert any("demo-2 is not opened" in note and "3 are needed" in note for note in two.notes)


def test_a_reader_waits_until_a_writer_has_served_on_a_new_volume() -> None:
    fleet = with_two(1)
    volume = replace(fleet.cluster("demo").volume, initialised=False)
    fleet = fleet.with_volume(volume)
    state = seen(fleet, demo_1=InstanceSeen(InstancePhase.OPENING), demo_2=InstanceSeen(InstancePhase.IDLE))
    plan = decide(fleet, state, NOW_S)
    assert plan.actions == ()
    assert "demo-2 is not opened: no writer has served yet" in plan.notes


def test_a_reader_that_nobody_declares_any_more_is_ended_and_no_other() -> None:
    fleet = with_two()
    (stop,) = actions(without_reader(fleet, "demo-2"), seen(fleet))
    assert isinstance(stop, StopInstance)
    assert stop.instance_id == "demo-2"


def test_all_instances_end_with_their_cluster() -> None:
    fleet = with_two()
    deleting = fleet.with_cluster(replace(fleet.cluster("demo"), phase=ClusterPhase.DELETING))
    assert {a.instance_id for a in actions(deleting, seen(fleet)) if isinstance(a, StopInstance)} == {
        "demo-1",
        "demo-2",
        "demo-3",
    }


def test_readers_are_told_where_nodes_answer_and_of_groups_after_the_writer() -> None:
    fleet = with_two(1)
    (tell,) = actions(fleet, seen(fleet, demo_2=replace(FOLLOWS, told=())))
    assert isinstance(tell, TellInstance)
    assert tell.instance_id == "demo-2"
    volume = fleet.cluster("demo").volume
    second = replace(volume.groups[0], group=1)
    grown = fleet.with_volume(replace(volume, groups=(*volume.groups, second)))
    (add,) = actions(grown, seen(grown))
    assert isinstance(add, AddGroup)
    assert add.instance_id == "demo-1"
    (add,) = actions(grown, seen(grown, demo_1=replace(WRITES, groups=frozenset({0, 1}))))
    assert isinstance(add, AddGroup)
    assert add.instance_id == "demo-2"


# ---- roles


def test_a_change_of_roles_ends_both_and_opens_the_next_writer_after_the_last() -> None:
    fleet = with_writer(with_two(), "demo", "demo-3")
    both = actions(fleet, seen(fleet, demo_1=WRITES, demo_2=FOLLOWS, demo_3=FOLLOWS))
    assert [(type(a), a.instance_id) for a in both if isinstance(a, ChangeRole)] == [
        (ChangeRole, "demo-1"),
        (ChangeRole, "demo-3"),
    ]
    assert len(both) == 2, "demo-2 is left alone"
    ended = InstanceSeen(InstancePhase.ENDED)
    stopping = seen(fleet, demo_1=replace(WRITES, phase=InstancePhase.STOPPING), demo_2=FOLLOWS, demo_3=ended)
    going = replace(stopping, busy=frozenset({key(Kind.INSTANCE, "demo-1")}))
    assert actions(fleet, going) == []
    assert any("demo-1, the writer before, has not ended yet" in n for n in decide(fleet, going, NOW_S).notes)
    killed = actions(fleet, stopping)  # its end is not in order: the seal shuts it out
    assert [a.instance_id for a in killed if isinstance(a, OpenInstance)] == ["demo-3"]
    opened = actions(fleet, seen(fleet, demo_1=ended, demo_2=FOLLOWS, demo_3=ended))
    assert [a.instance_id for a in opened if isinstance(a, OpenInstance)] == ["demo-1", "demo-3"]


def test_roles_are_not_changed_before_the_declared_state_is_known() -> None:
    fleet = with_writer(with_two(1), "demo", "demo-2")
    state = replace(seen(fleet, demo_1=WRITES, demo_2=FOLLOWS), control_open=False)
    assert not [a for a in actions(fleet, state) if isinstance(a, ChangeRole)]


def reader(name: str, tier: int = 1, memory: int = 1) -> DBInstance:
    return DBInstance(name, Role.READER, "b", 16000, tier, memory << 30)


@pytest.mark.parametrize(
    ("readers", "lags", "chosen"),
    [
        ([], {}, None),
        ([reader("demo-2"), reader("demo-3")], {"demo-2": 1.0, "demo-3": 1.0}, "demo-2"),
        ([reader("demo-2"), reader("demo-3", tier=0)], {"demo-2": 0.0, "demo-3": 900.0}, "demo-3"),
        ([reader("demo-2"), reader("demo-3", memory=2)], {"demo-2": 0.0, "demo-3": 900.0}, "demo-3"),
        ([reader("demo-2"), reader("demo-3")], {"demo-2": 5.0, "demo-3": 2.0}, "demo-3"),
        ([reader("demo-2"), reader("demo-3")], {"demo-2": None, "demo-3": 900.0}, "demo-3"),
        ([reader("demo-2", tier=0), reader("demo-3", tier=15)], {"demo-3": 3.0}, "demo-3"),  # demo-2 does not serve
    ],
)
def test_the_target_is_chosen_by_tier_then_size_then_lag(
    readers: list[DBInstance], lags: dict[str, float | None], chosen: str | None
) -> None:
    fleet = running_fleet()
    cluster = replace(fleet.cluster("demo"), instances=(fleet.cluster("demo").writer(), *readers))
    follow = {name: replace(FOLLOWS, lag_ms=lag_ms) for name, lag_ms in lags.items()}
    target = failover_target(cluster, {"demo-1": WRITES, **follow})
    assert (target.instance_id if target is not None else None) == chosen


def _any_world(choose: Random) -> tuple[Fleet, Observed]:
    """Anything that a control plane may come upon: roles that were changed, and instances at any stage as anything."""
    fleet = with_two(choose.randrange(4))
    ids = [i.instance_id for i in fleet.cluster("demo").instances]
    if len(ids) > 1 and choose.random() < 0.5:
        fleet = with_writer(fleet, "demo", choose.choice(ids[1:]))
    roles = (Role.WRITER, Role.READER)
    found = {
        name: replace(WRITES, phase=choose.choice(list(InstancePhase)), role=choose.choice(roles))
        for name in ids
        if choose.random() < 0.9
    }
    up = tuple(sorted(choose.sample(NODES, choose.randrange(2, 7))))
    state = seen(fleet, up, **{name.replace("-", "_"): found.get(name) for name in ids})
    busy = frozenset(key(Kind.INSTANCE, name) for name in ids if choose.random() < 0.2)
    return fleet, replace(state, busy=busy, control_open=choose.random() < 0.9)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_there_is_nobody_is_opened_beside_a_writer_that_is_to_end_in_order(seed: int) -> None:
    choose, opened, changed = Random(seed), 0, 0
    for _ in range(300):
        fleet, state = _any_world(choose)
        cluster = fleet.cluster("demo")
        for action in actions(fleet, state):
            if not isinstance(action, OpenInstance | ChangeRole):
                continue
            there = state.instances[action.instance_id]
            role = cluster.instance(action.instance_id).role
            if isinstance(action, ChangeRole):
                changed += 1
                assert there.phase is InstancePhase.AVAILABLE
                assert there.role is not role
                continue
            opened += 1
            assert there.phase in (InstancePhase.IDLE, InstancePhase.ENDED)
            others = {n: s for n, s in state.instances.items() if n != action.instance_id}
            assert role is Role.READER or not [n for n, s in others.items() if s.serves(Role.WRITER)]
            assert len(state.nodes) >= (4 if role is Role.WRITER else 3)
            assert state.control_open
    assert opened > 30, "the worlds are too much alike"
    assert changed > 30, "the worlds are too much alike"

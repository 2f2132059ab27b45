"""Forks in the declared state: what is decided about them, and what of the past is whose."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from aurora_ray.control.api import cloning
from aurora_ray.control.decide import forks, graveyard, reconcile
from aurora_ray.control.decide.forks import FollowVolume, ForgetPast, KeepHistory, forked, in_force_at, with_rewound
from aurora_ray.control.decide.reconcile import CreateSegments
from aurora_ray.control.model.attempt import Attempt
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen
from aurora_ray.control.model.origins import Mark, Origin
from aurora_ray.control.model.state import Fleet
from aurora_ray.control.model.store import volume_spec
from aurora_ray.engine.machine import Machine
from aurora_ray.errors import ConfigurationError, UsageError
from tests.control.fleets import NODES, observed, running_fleet

ORIGIN_LSN = 4800


def rewound(fleet: Fleet, at_s: float) -> Fleet:
    parent = fleet.cluster("demo").volume
    volume = forked(parent, Origin(parent.volume_id, ORIGIN_LSN, 3, ((0, ORIGIN_LSN),), 7, 5), uuid4())
    return with_rewound(fleet, "demo", parent.volume_id, volume, at_s)


def orders(fleet: Fleet, node_id: str, *, failed: bool = False) -> list[reconcile.SegmentOrder]:
    error = Attempt(1, 0.0, "it cannot be forked")
    seen = observed(fleet, attempts={key(Kind.SEGMENTS, node_id): error} if failed else {})
    actions = reconcile.decide(fleet, seen, 10.0).actions
    return [o for a in actions if isinstance(a, CreateSegments) and a.node_id == node_id for o in a.segments]


def test_the_state_keeps_origins_pasts_and_marks() -> None:
    fleet = rewound(running_fleet(), 100.0)
    cluster = replace(fleet.cluster("demo"), marks=(Mark("here", uuid4(), 8, 5.0),), until_s=3.0, window_s=60)
    fleet = fleet.with_cluster(cluster)
    assert unpack(pack(fleet)) == fleet
    spec = volume_spec(cluster.volume)
    assert spec.lineage == (cluster.past[0].volume.volume_id.bytes, ORIGIN_LSN)


def test_a_node_forks_and_gets_an_empty_copy_only_if_it_cannot_and_enough_have() -> None:
    fleet = rewound(running_fleet(), 100.0)
    volume = fleet.cluster("demo").volume
    assert [(o.origin, o.empty) for o in orders(fleet, "a-1", failed=True)] == [(volume.origin, False)]
    for node_id in NODES[2:]:
        fleet = fleet.with_created(node_id, {volume.volume_id: (0,)})
    assert [(o.origin, o.empty) for o in orders(fleet, "a-1")] == [(volume.origin, False)]
    assert [(o.origin, o.empty) for o in orders(fleet, "a-1", failed=True)] == [(volume.origin, True)]


def test_instances_follow_their_clusters_volume_and_are_not_changed_before() -> None:
    fleet = rewound(running_fleet(), 100.0)
    cluster = fleet.cluster("demo")
    old, new = str(cluster.past[0].volume.volume_id), str(cluster.volume.volume_id)
    for volume_id, expected in ((old, ["demo-1"]), (new, []), ("", [])):
        instance = InstanceSeen(InstancePhase.AVAILABLE, volume_id=volume_id, groups=frozenset({0}), free_bytes=0)
        actions = list(forks.wanted(fleet, observed(fleet, instance=instance), 101.0))
        assert [a.instance_id for a in actions if isinstance(a, FollowVolume)] == expected
        grows = [
            a for a in reconcile.decide(fleet, observed(fleet, instance=instance), 1.0).actions if a.kind == "grow"
        ]
        assert bool(grows) == (volume_id != old)


def test_a_time_belongs_to_the_volume_that_was_in_force_then() -> None:
    fleet = running_fleet()
    first = fleet.cluster("demo").volume
    fleet = rewound(fleet, 100.0)
    second = fleet.cluster("demo").volume
    cluster = rewound(fleet, 200.0).cluster("demo")
    found = [in_force_at(cluster, time_s) for time_s in (50.0, 99.9, 100.0, 199.9, 200.0, 900.0)]
    assert found == [first, first, second, second, cluster.volume, cluster.volume]


def test_the_past_is_given_up_when_its_time_is_over_and_with_its_cluster() -> None:
    fleet = running_fleet()
    fleet = rewound(fleet.with_cluster(replace(fleet.cluster("demo"), window_s=60)), 100.0)
    past = fleet.cluster("demo").past[0].volume
    for now_s, expected in ((159.0, []), (160.0, [past.volume_id])):
        actions = forks.wanted(fleet, observed(fleet), now_s)
        assert [a.volume_id for a in actions if isinstance(a, ForgetPast)] == expected
    forgotten = forks.without_past(fleet, "demo", past.volume_id)
    assert [v.volume_id for v in forgotten.dropped_volumes] == [past.volume_id]
    assert not forgotten.cluster("demo").past
    deleted = graveyard.with_deleted(fleet, "demo", 0.0)
    gone = deleted.without_deleted(str(fleet.cluster("demo").volume.volume_id))
    assert {v.volume_id for v in gone.dropped_volumes} == {past.volume_id, fleet.cluster("demo").volume.volume_id}


def test_a_rewind_that_somebody_else_was_ahead_of_changes_nothing() -> None:
    fleet = running_fleet()
    before = fleet.cluster("demo").volume
    fleet = rewound(fleet, 100.0)
    late = forked(before, Origin(before.volume_id, 8, 3, ((0, 8),)), uuid4())
    assert with_rewound(fleet, "demo", before.volume_id, late, 101.0) == fleet


def test_nodes_are_told_for_how_long_to_keep_history_once_they_have_said_how_they_do() -> None:
    fleet = running_fleet()
    cluster = fleet.cluster("demo")
    seen = observed(fleet)
    assert not [a for a in forks.wanted(fleet, seen, 1.0) if isinstance(a, KeepHistory)]
    volume_id = cluster.volume.volume_id
    kept, other = (volume_id, cluster.window_s, cluster.window_log_bytes), (volume_id, 0, 0)
    nodes = {
        node_id: replace(node, retention=frozenset({kept if node_id == "a-1" else other}))
        for node_id, node in seen.nodes.items()
    }
    actions = [a for a in forks.wanted(fleet, replace(seen, nodes=nodes), 1.0) if isinstance(a, KeepHistory)]
    assert {a.node_id for a in actions} == {*NODES} - {"a-1"}
    assert {a.wanted for a in actions} == {(kept,)}


def test_labels_are_words() -> None:
    assert cloning.is_label("before-upgrade_2.1")
    assert not any(map(cloning.is_label, ("", "two words", "-x", "x" * 65)))


def test_a_clone_has_its_sources_size_where_nobody_was_given_that_yet() -> None:
    fleet, machine = running_fleet(), Machine(8 << 30, 2.0)
    writer = replace(fleet.cluster("demo").writer(), memory_bytes=2 << 30)
    fleet = fleet.with_instance("demo", writer)
    assert cloning.size_for(fleet, 2 << 30, machine) == 2 << 30
    assert cloning.size_for(fleet, 5 << 30, machine) == 0  # of six that instances can have


async def test_a_clone_can_be_of_another_minor_version_of_the_series_only() -> None:
    source = running_fleet().cluster("demo")
    assert await cloning.programs_for(source, None, None) is None
    there = await cloning.programs_for(source, source.engine_version, None)
    assert there == await cloning.programs_for(source, None, there)
    with pytest.raises(UsageError, match="a clone of it cannot be of 16"):
        await cloning.programs_for(source, "16", None)
    with pytest.raises(ConfigurationError):
        await cloning.programs_for(source, "18.999", None)


def test_a_deleted_parent_is_kept_until_what_was_forked_of_it_is_there() -> None:
    fleet = rewound(running_fleet(), 100.0)
    past, child = fleet.cluster("demo").past[0].volume, fleet.cluster("demo").volume
    fleet = forks.without_past(fleet, "demo", past.volume_id)

    def dropped(fleet: Fleet) -> set[str]:
        actions = reconcile.decide(fleet, observed(fleet), 1.0).actions
        return {a.node_id for a in actions if isinstance(a, reconcile.DropVolumes) if past.volume_id in a.volume_ids}

    assert not dropped(fleet)
    assert any("until what was forked" in note for note in reconcile.decide(fleet, observed(fleet), 1.0).notes)
    for node_id in NODES[:3]:
        fleet = fleet.with_created(node_id, {child.volume_id: (0,)})
    assert not dropped(fleet)
    assert dropped(fleet.with_created(NODES[3], {child.volume_id: (0,)})) == {*NODES}


def test_the_source_of_a_clone_is_the_declared_one_before_any_that_was_deleted() -> None:
    fleet = running_fleet()
    first = fleet.cluster("demo")
    assert graveyard.source(fleet, "demo") == first
    fleet = graveyard.with_deleted(fleet, "demo", 60.0)
    assert graveyard.source(fleet, "demo") == first
    second = replace(first, volume=replace(first.volume, volume_id=uuid4()))
    fleet = fleet.with_cluster(second)
    assert graveyard.source(fleet, "demo") == second
    assert graveyard.source(fleet, str(first.volume.volume_id)) == first
    with pytest.raises(UsageError, match="no cluster"):
        graveyard.source(fleet, "other")

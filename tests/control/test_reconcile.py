"""What the reconciler decides, as scenarios."""

from dataclasses import replace

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import (
    Action,
    AddGroup,
    AllocateGroup,
    CreateSegments,
    DropVolumes,
    ForgetCluster,
    OpenControl,
    OpenInstance,
    StartInstance,
    StartNode,
    StopInstance,
    TellInstance,
    TellNodes,
    decide,
)
from aurora_ray.control.model.attempt import RETRY_FIRST_S, RETRY_MAX_S, RETRY_PERMANENT_S, Attempt
from aurora_ray.control.model.bootstrap import new_fleet
from aurora_ray.control.model.codec import pack
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen, Observed
from aurora_ray.control.model.state import ClusterPhase, DBInstance, Fleet
from aurora_ray.control.observe.space import limit_troubles
from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import VOLUME_BYTES_MAX
from aurora_ray.troubles import TroubleCode
from tests.control.fleets import (
    AZS,
    GROUP_BYTES,
    NODES,
    addresses,
    created,
    observed,
    running_fleet,
    volume_id,
    with_cluster,
    without_instance,
)

NOW_S = 1000.0


def kinds(fleet: Fleet, state: Observed) -> list[type[Action]]:
    return [type(action) for action in decide(fleet, state, NOW_S).actions]


def test_nothing_to_do_when_all_is_as_declared() -> None:
    fleet = running_fleet()
    plan = decide(fleet, observed(fleet), NOW_S)
    assert plan.actions == ()
    assert plan.notes == ()


def test_from_nothing_every_node_is_started_at_once() -> None:
    plan = decide(new_fleet("somewhere", AZS), Observed(), NOW_S)
    assert [action.node_id for action in plan.actions if isinstance(action, StartNode)] == list(NODES)
    assert "0 of the 6 copies" in plan.notes[0]


def test_a_dead_node_is_started_and_the_others_learn_that_it_is_gone() -> None:
    fleet = running_fleet()
    state = observed(fleet)
    state = replace(state, nodes={node: seen for node, seen in state.nodes.items() if node != "b-1"})
    start, tell, tell_writer = decide(fleet, state, NOW_S).actions
    assert isinstance(start, StartNode)
    assert start.node_id == "b-1"
    assert isinstance(tell, TellNodes)
    assert len(tell.node_ids) == 5
    assert isinstance(tell_writer, TellInstance)


def test_a_node_that_came_back_elsewhere_is_made_known() -> None:
    fleet = running_fleet()
    state = observed(fleet)
    moved = replace(state.nodes["a-1"], address="127.0.0.1:1", told=())
    state = replace(state, nodes={**state.nodes, "a-1": moved})
    tell, tell_writer = decide(fleet, state, NOW_S).actions
    assert isinstance(tell, TellNodes)
    assert tell.node_ids == NODES
    assert dict(tell.addresses)["a-1"] == "127.0.0.1:1"
    assert isinstance(tell_writer, TellInstance)


def test_the_control_volume_opens_with_four_copies_and_not_with_three() -> None:
    fleet = created(new_fleet("somewhere", AZS))
    four = replace(observed(fleet, NODES[:4], control_open=False), instances={})
    three = replace(observed(fleet, NODES[:3], control_open=False), instances={})
    assert OpenControl in kinds(fleet, four)
    assert OpenControl not in kinds(fleet, three)


def test_segments_are_made_where_they_never_were() -> None:
    fleet = with_cluster(created(new_fleet("somewhere", AZS)), initialised=False)
    orders = [a for a in decide(fleet, observed(fleet), NOW_S).actions if isinstance(a, CreateSegments)]
    assert [order.node_id for order in orders] == list(NODES)
    assert orders[0].segments[0].volume_id == volume_id(fleet)
    assert orders[0].segments[0].members == NODES


def test_segments_that_were_lost_are_never_made_anew() -> None:
    fleet = running_fleet()
    state = observed(fleet)
    wiped = replace(state.nodes["c-2"], segments=frozenset())
    plan = decide(fleet, replace(state, nodes={**state.nodes, "c-2": wiped}), NOW_S)
    assert plan.actions == ()
    assert "c-2 lacks its copies of 2 protection groups" in plan.notes[0]


@pytest.mark.parametrize("phase", [InstancePhase.IDLE, InstancePhase.ENDED])
def test_an_instance_without_engine_is_opened(phase: InstancePhase) -> None:
    fleet = running_fleet()
    (action,) = decide(fleet, observed(fleet, instance=InstanceSeen(phase, "killed by signal 9")), NOW_S).actions
    assert isinstance(action, OpenInstance)
    assert "killed by signal 9" in action.why
    assert not action.initialise


@pytest.mark.parametrize("phase", [InstancePhase.OPENING, InstancePhase.STOPPING])
def test_an_instance_on_its_way_is_left_alone(phase: InstancePhase) -> None:
    fleet = running_fleet()
    assert kinds(fleet, observed(fleet, instance=InstanceSeen(phase))) == []


def test_a_new_volume_is_initialised() -> None:
    fleet = created(with_cluster(new_fleet("somewhere", AZS), initialised=False))
    (action,) = decide(fleet, observed(fleet, instance=InstanceSeen(InstancePhase.IDLE)), NOW_S).actions
    assert isinstance(action, OpenInstance)
    assert action.initialise


def test_an_instance_waits_for_a_write_quorum_and_says_so() -> None:
    fleet = running_fleet()
    state = observed(fleet, NODES[:3], InstanceSeen(InstancePhase.ENDED))
    plan = decide(fleet, state, NOW_S)
    assert not [action for action in plan.actions if isinstance(action, OpenInstance)]
    assert any("3 of the 6 copies of group 0 run, 4 are needed" in note for note in plan.notes)


def test_an_instance_is_not_opened_before_the_control_state_is_loaded() -> None:
    fleet = running_fleet()
    state = observed(fleet, instance=InstanceSeen(InstancePhase.IDLE), control_open=False)
    assert kinds(fleet, state) == [OpenControl]


def test_a_lost_process_is_started_again_even_without_storage() -> None:
    fleet = running_fleet()
    assert StartInstance in kinds(fleet, without_instance(observed(fleet, ())))


def test_no_action_while_one_of_its_key_is_busy() -> None:
    fleet = running_fleet()
    state = observed(fleet, instance=InstanceSeen(InstancePhase.ENDED), busy=frozenset({"instance:demo-1"}))
    assert kinds(fleet, state) == []


def test_a_failed_action_waits_and_says_why() -> None:
    fleet = running_fleet()
    attempts = {"instance:demo-1": Attempt(1, NOW_S + 1, "port 15432 is in use")}
    state = observed(fleet, instance=InstanceSeen(InstancePhase.ENDED), attempts=attempts)
    plan = decide(fleet, state, NOW_S)
    assert plan.actions == ()
    assert "port 15432 is in use" in plan.notes[0]
    assert [type(a) for a in decide(fleet, state, NOW_S + 1).actions] == [OpenInstance]


def test_attempts_double_their_delay_up_to_a_bound() -> None:
    attempt = None
    delays = []
    for _ in range(20):
        attempt = Attempt.after_failure(attempt, "no", retryable=True, now_s=NOW_S)
        delays.append(attempt.not_before_s - NOW_S)
    assert delays[:3] == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S]
    assert delays[-1] == RETRY_MAX_S
    permanent = Attempt.after_failure(None, "no account", retryable=False, now_s=NOW_S)
    assert permanent.permanent
    assert permanent.not_before_s == NOW_S + RETRY_PERMANENT_S


def test_a_volume_grows_before_it_is_full() -> None:
    fleet = running_fleet()
    full = InstanceSeen(InstancePhase.AVAILABLE, "", addresses(), frozenset({0}), free_bytes=GROUP_BYTES // 8)
    (allocate,) = decide(fleet, observed(fleet, instance=full), NOW_S).actions
    assert isinstance(allocate, AllocateGroup)
    assert allocate.group == 1


def test_a_writer_that_is_still_opening_is_given_room_once_it_has_mounted_its_volume() -> None:
    fleet = running_fleet()
    volume = fleet.cluster("demo").volume
    begins = InstanceSeen(InstancePhase.OPENING, "", addresses())
    mounted = replace(begins, groups=frozenset({0}), free_bytes=0, volume_id=str(volume.volume_id))
    assert kinds(fleet, observed(fleet, instance=begins)) == []
    assert kinds(fleet, observed(fleet, instance=mounted)) == [AllocateGroup]
    grown = fleet.with_volume(replace(volume, groups=(*volume.groups, replace(volume.groups[0], group=1))))
    assert kinds(grown, observed(grown, instance=begins)) == []
    assert kinds(grown, observed(grown, instance=mounted)) == [AddGroup]
    for other in (replace(mounted, volume_id="another"), replace(mounted, role=Role.READER)):
        assert kinds(fleet, observed(fleet, instance=other)) == []


def test_a_volume_grows_up_to_its_limit_which_is_told() -> None:
    fleet = running_fleet()
    full = InstanceSeen(InstancePhase.AVAILABLE, "", addresses(), frozenset({0}), free_bytes=GROUP_BYTES // 8)
    seen = observed(fleet, instance=full)
    for limit_bytes, kinds_ in ((2 * GROUP_BYTES, [AllocateGroup]), (2 * GROUP_BYTES - 1, []), (1, [])):
        plan = decide(fleet, replace(seen, volume_limit_bytes=limit_bytes), NOW_S)
        assert [type(action) for action in plan.actions] == kinds_
        troubles = [trouble.code for trouble in limit_troubles(fleet, {"demo-1": full}, limit_bytes)]
        assert troubles == ([] if kinds_ else [TroubleCode.VOLUME_FULL])
        assert any("as far as it may" in note for note in plan.notes) is not bool(kinds_)


def test_a_volume_at_the_limit_of_all_has_a_small_declaration() -> None:
    fleet = running_fleet()
    volume = fleet.cluster("demo").volume
    count = VOLUME_BYTES_MAX // (10 << 30)
    groups = tuple(replace(volume.groups[0], group=group, created_on=NODES) for group in range(count))
    large = replace(volume, group_bytes=10 << 30, groups=groups)
    assert not large.may_grow(VOLUME_BYTES_MAX)
    more_bytes = len(pack(fleet.with_volume(large))) - len(pack(fleet))
    assert more_bytes / 128 < 16 << 10, "state bytes per TiB"


def test_a_group_is_given_to_the_writer_once_four_nodes_have_it() -> None:
    fleet = running_fleet()
    volume = fleet.cluster("demo").volume
    second = replace(volume.groups[0], group=1, created_on=NODES[:3])
    full = InstanceSeen(InstancePhase.AVAILABLE, "", addresses(), frozenset({0}), free_bytes=0)
    three = fleet.with_volume(replace(volume, groups=(volume.groups[0], second)))
    assert kinds(three, observed(three, instance=full)) == [CreateSegments] * 3
    four = three.with_created("b-2", {volume.volume_id: (1,)})
    assert kinds(four, observed(four, instance=full)) == [CreateSegments, CreateSegments, AddGroup]


def test_deleting_stops_forgets_and_drops_in_that_order() -> None:
    fleet = running_fleet()
    cluster = replace(fleet.cluster("demo"), phase=ClusterPhase.DELETING)
    fleet = fleet.with_cluster(cluster)
    assert kinds(fleet, observed(fleet)) == [StopInstance]
    assert kinds(fleet, without_instance(observed(fleet))) == [ForgetCluster]
    gone = fleet.without_cluster("demo")
    state = without_instance(observed(fleet))
    drops = decide(gone, state, NOW_S).actions
    assert [type(action) for action in drops] == [DropVolumes] * 6
    for node in NODES:
        gone = gone.without_dropped(node, {cluster.volume.volume_id})
    assert gone.dropped_volumes == ()


def test_an_instance_that_nobody_declared_is_stopped_but_only_when_the_state_is_known() -> None:
    fleet = created(new_fleet("somewhere", AZS))
    assert kinds(fleet, observed(fleet)) == [StopInstance]
    assert kinds(fleet, observed(fleet, control_open=False)) == [OpenControl]


# ---- kinds of instance


def with_another(fleet: Fleet, role: Role) -> Fleet:
    cluster = fleet.cluster("demo")
    return fleet.with_cluster(replace(cluster, instances=(*cluster.instances, DBInstance("demo-2", role, "b", 15440))))


@pytest.mark.parametrize("role", [Role.STATIC, Role.REPLICA])
@pytest.mark.parametrize("phase", [None, InstancePhase.IDLE, InstancePhase.ENDED])
def test_what_nothing_can_run_is_not_opened(role: Role, phase: InstancePhase | None) -> None:
    fleet = with_another(running_fleet(), role)
    state = observed(fleet)
    if phase is not None:
        state = replace(state, instances={**state.instances, "demo-2": InstanceSeen(phase)})
    plan = decide(fleet, state, NOW_S)
    assert plan.actions == ()
    assert f"demo-2 of demo is not started: nothing can run a {role} yet" in plan.notes


def test_there_is_one_writer_at_most() -> None:
    with pytest.raises(UsageError, match="more than one writer"):
        with_another(running_fleet(), Role.WRITER)

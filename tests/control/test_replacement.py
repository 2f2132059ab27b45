"""When a storage node is replaced, and by which steps: scenarios for the rules, without a clock or a process."""

from dataclasses import replace
from uuid import UUID

import pytest

from aurora_ray.control.decide import replacement
from aurora_ray.control.decide.ailing import SETTLED_S, AilingNodes
from aurora_ray.control.decide.reconcile import Action, OpenInstance, StartNode, decide
from aurora_ray.control.decide.replacement import (
    CancelReplacement,
    ChangeMembers,
    NotePlacements,
    RemoveNode,
    ReplaceNode,
    ReplaceRules,
)
from aurora_ray.control.model.bootstrap import new_fleet
from aurora_ray.control.model.observed import Ailing, Ailment, InstancePhase, InstanceSeen, NodeSeen, Observed
from aurora_ray.control.model.placement import place_group
from aurora_ray.control.model.state import CONTROL_VOLUME_ID, ClusterPhase, Fleet
from aurora_ray.volume.spec import GroupPlacement
from tests.control.fleets import AZS, NODES, created, observed, running_fleet, volume_id

NOW_S = 1000.0
RULES = ReplaceRules(unreachable_after_s=300, data_gone_after_s=10)
OLD, NEW = "b-1", "b-3"
LEFT = tuple(node for node in NODES if node != OLD)
NEXT = tuple(NEW if node == OLD else node for node in NODES)
BEGUN = GroupPlacement(0, NODES, NEXT)
DONE = GroupPlacement(0, NEXT)


def ill(node: str, for_s: float, ailment: Ailment = Ailment.UNREACHABLE, *, over: bool = False) -> dict[str, Ailing]:
    return {node: Ailing(ailment, NOW_S - for_s, over)}


def wanted(fleet: Fleet, state: Observed) -> list[Action]:
    further = replacement.wanted(fleet, state, NOW_S, RULES)
    kinds = (ReplaceNode, CancelReplacement, ChangeMembers, NotePlacements, RemoveNode)
    return [a for a in decide(fleet, state, NOW_S, further=further).actions if isinstance(a, kinds)]


def only(fleet: Fleet, state: Observed) -> Action:
    (action,) = wanted(fleet, state)
    return action


def replacing() -> Fleet:
    return running_fleet().with_replacement(OLD)


def away(fleet: Fleet, *nodes: str, **more: object) -> Observed:
    """The old node has no process; these others run."""
    return observed(fleet, nodes or (*LEFT, NEW), ailing=ill(OLD, 400), **more)


def moved(fleet: Fleet, placement: GroupPlacement, *volumes: UUID) -> Fleet:
    for volume in volumes or (CONTROL_VOLUME_ID, volume_id(fleet)):
        fleet = fleet.with_placements(volume, [placement])
    return fleet


# ---- when


@pytest.mark.parametrize(
    ("ailment", "for_s", "replaced"),
    [
        (Ailment.UNREACHABLE, 299, False),
        (Ailment.UNREACHABLE, 300, True),
        (Ailment.DATA_GONE, 9, False),
        (Ailment.DATA_GONE, 10, True),
    ],
)
def test_a_node_is_waited_for_and_then_replaced(ailment: Ailment, for_s: float, replaced: bool) -> None:
    fleet = running_fleet()
    state = observed(fleet, LEFT, ailing=ill(OLD, for_s, ailment))
    assert [type(a) for a in wanted(fleet, state)] == ([ReplaceNode] if replaced else [])


def test_while_it_is_away_it_is_started_again_and_again_as_well() -> None:
    fleet = replacing()
    plan = decide(fleet, away(fleet, *LEFT), NOW_S)
    assert [a.node_id for a in plan.actions if isinstance(a, StartNode)] == [OLD, NEW]


def test_one_that_is_just_back_is_neither_replaced_nor_forgiven() -> None:
    fleet = running_fleet()
    assert wanted(fleet, observed(fleet, ailing=ill(OLD, 400, over=True))) == []
    assert [type(a) for a in wanted(replacing(), observed(replacing(), ailing=ill(OLD, 400, over=True)))] == []


def test_nothing_is_replaced_before_the_state_is_known() -> None:
    fleet = running_fleet()
    assert wanted(fleet, observed(fleet, LEFT, control_open=False, ailing=ill(OLD, 400))) == []


def test_of_several_the_one_that_has_been_away_longest_is_replaced_and_no_other_meanwhile() -> None:
    fleet = running_fleet()
    both = {**ill("a-1", 350), **ill(OLD, 400)}
    state = observed(fleet, ("a-2", "b-2", "c-1", "c-2"), ailing=both)
    action = only(fleet, state)
    assert isinstance(action, ReplaceNode)
    assert action.node_id == OLD
    began = fleet.with_replacement(OLD)
    assert wanted(began, observed(began, ("a-2", "b-2", "c-1", "c-2"), ailing=both)) == []


def test_without_a_write_quorum_nothing_is_replaced_and_it_says_so() -> None:
    fleet = running_fleet()
    state = observed(fleet, ("a-2", "b-2", "c-2"), ailing=ill(OLD, 400))
    plan = decide(fleet, state, NOW_S, further=replacement.wanted(fleet, state, NOW_S, RULES))
    assert any("cannot be replaced yet: too few copies" in note for note in plan.notes)
    assert wanted(fleet, state) == []


def test_an_az_that_is_away_as_a_whole_is_waited_for() -> None:
    fleet = running_fleet()
    state = observed(fleet, ("a-1", "a-2", "c-1", "c-2"), ailing={**ill("b-1", 900), **ill("b-2", 900)})
    plan = decide(fleet, state, NOW_S, further=replacement.wanted(fleet, state, NOW_S, RULES))
    assert wanted(fleet, state) == []
    assert "storage node b-2 is waited for: none answers in AZ b" in plan.notes
    one_more = observed(fleet, ("a-1", "b-2", "c-1", "c-2"), ailing={**ill("b-1", 900), **ill("a-2", 400)})
    action = only(fleet, one_more)
    assert isinstance(action, ReplaceNode)


def test_a_control_plane_that_is_cut_off_itself_replaces_nobody() -> None:
    fleet = running_fleet()
    state = observed(fleet, ailing={node: Ailing(Ailment.UNREACHABLE, NOW_S - 900) for node in NODES})
    deaf = {node: replace(seen, silent=True) for node, seen in state.nodes.items()}
    assert wanted(fleet, replace(state, nodes=deaf)) == []
    three_left = {node: replace(seen, silent=node not in ("a-1", "b-1", "c-1")) for node, seen in state.nodes.items()}
    assert wanted(fleet, replace(state, nodes=three_left)) == []


def test_a_copy_that_is_gone_does_not_count_for_that_quorum() -> None:
    fleet = running_fleet()
    state = observed(fleet, ("a-2", "b-2", "c-1", "c-2"), ailing=ill(OLD, 400))
    empty = replace(state.nodes["c-2"], segments=frozenset())
    assert wanted(fleet, replace(state, nodes={**state.nodes, "c-2": empty})) == []


# ---- the steps


def test_a_new_node_is_of_the_same_az_and_its_name_is_new() -> None:
    fleet = replacing()
    assert (fleet.node(NEW).az, fleet.node(NEW).replaces) == ("b", OLD)
    again = fleet.without_replacement(NEW).without_node(NEW).with_replacement(OLD)
    assert again.replacements() == {OLD: "b-4"}


def test_each_volume_begins_once_the_new_node_runs_and_is_known() -> None:
    fleet = replacing()
    assert wanted(fleet, away(fleet, *LEFT)) == []
    control, demo = wanted(fleet, away(fleet))
    assert isinstance(control, ChangeMembers)
    assert isinstance(demo, ChangeMembers)
    assert (control.volume_id, control.instance_id) == (CONTROL_VOLUME_ID, "")
    assert (demo.volume_id, demo.instance_id) == (volume_id(fleet), "demo-1")
    assert control.placement == demo.placement == BEGUN
    assert control.filled == ""
    uninformed = away(fleet)
    writer = replace(uninformed.instances["demo-1"], told=())
    assert [a.key for a in wanted(fleet, replace(uninformed, instances={"demo-1": writer}))] == [control.key]


def test_what_a_writer_says_is_noted_before_its_next_step() -> None:
    fleet = replacing()
    state = away(fleet)
    ahead = replace(state.instances["demo-1"], placements=(BEGUN,))
    control, demo = wanted(fleet, replace(state, instances={"demo-1": ahead}))
    assert isinstance(control, ChangeMembers)
    assert demo == NotePlacements(demo.why, volume_id(fleet), (BEGUN,))
    noted = fleet.with_placements(volume_id(fleet), [BEGUN])
    group = noted.cluster("demo").volume.groups[0]
    assert group.placement == BEGUN
    assert set(group.created_on) == {*NODES, NEW}


def test_a_commit_asks_for_a_new_node_that_is_filled() -> None:
    fleet = moved(replacing(), BEGUN)
    control, demo = wanted(fleet, away(fleet))
    for action in (control, demo):
        assert isinstance(action, ChangeMembers)
        assert (action.placement, action.filled) == (DONE, NEW)
    assert wanted(fleet, away(fleet, *LEFT)) == []


def test_what_holds_nothing_any_more_is_removed_and_all_is_as_before() -> None:
    fleet = moved(moved(replacing(), BEGUN), DONE)
    assert only(fleet, away(fleet)) == RemoveNode(f"storage node {OLD} holds nothing any more", OLD)
    fleet = fleet.without_node(OLD)
    plan = decide(fleet, observed(fleet, NEXT), NOW_S)
    assert plan.actions == ()
    assert fleet.node(NEW).replaces == ""
    assert fleet.cluster("demo").volume.groups[0].node_ids == NEXT


def test_a_process_of_a_node_that_was_forgotten_is_ended() -> None:
    fleet = running_fleet()
    state = observed(fleet, (*NODES, NEW))
    assert only(fleet, state) == RemoveNode(f"storage node {NEW} is not declared", NEW)
    assert wanted(fleet, replace(state, control_open=False)) == []


def test_a_node_that_an_older_state_does_not_know_keeps_its_copies() -> None:
    fleet = running_fleet()
    state = observed(fleet, (*NODES, NEW))
    stranger = state.nodes[NEW]
    copy = frozenset({(volume_id(fleet), 0)})

    def notes(stranger: NodeSeen, **more: object) -> tuple[str, ...]:
        seen = replace(state, nodes={**state.nodes, NEW: stranger}, **more)
        assert wanted(fleet, seen) == []
        return decide(fleet, seen, NOW_S, further=replacement.wanted(fleet, seen, NOW_S, RULES)).notes

    left_alone = f"storage node {NEW} is not declared, and is left alone: nobody vouches that its copies can go"
    assert left_alone in notes(replace(stranger, segments=frozenset({(UUID(int=7), 0)})))
    assert left_alone in notes(replace(stranger, silent=True))
    no_writer = {"demo-1": InstanceSeen(InstancePhase.OPENING)}
    assert left_alone in notes(replace(stranger, segments=copy), instances=no_writer)
    given_away = replace(state, nodes={**state.nodes, NEW: replace(stranger, segments=copy)})
    assert only(fleet, given_away) == RemoveNode(f"storage node {NEW} is not declared", NEW)


def test_a_volume_without_a_writer_waits_and_keeps_the_old_node() -> None:
    fleet = moved(moved(replacing(), BEGUN), DONE, CONTROL_VOLUME_ID)
    state = replace(away(fleet), instances={"demo-1": InstanceSeen(InstancePhase.ENDED)})
    plan = decide(fleet, state, NOW_S, further=replacement.wanted(fleet, state, NOW_S, RULES))
    assert any("demo cannot move before its writer is available" in note for note in plan.notes)
    assert OpenInstance in [type(a) for a in plan.actions]
    assert wanted(fleet, state) == []


def test_new_groups_go_to_the_new_node() -> None:
    fleet = replacing()
    assert place_group(1, AZS, fleet.nodes, fleet.volumes()).node_ids[2:4] == (NEW, "b-2")


def test_a_cluster_that_is_being_deleted_is_not_moved() -> None:
    fleet = replacing()
    fleet = fleet.with_cluster(replace(fleet.cluster("demo"), phase=ClusterPhase.DELETING))
    action = only(fleet, away(fleet))
    assert isinstance(action, ChangeMembers)
    assert action.volume_id == CONTROL_VOLUME_ID


# ---- taking it back


def test_an_old_node_that_is_well_again_ends_it_all() -> None:
    fleet = moved(replacing(), BEGUN)
    cancel, *_ = wanted(fleet, observed(fleet, (*NODES, NEW)))
    assert isinstance(cancel, CancelReplacement)
    fleet = fleet.without_replacement(NEW)
    control, demo = wanted(fleet, observed(fleet, (*NODES, NEW)))
    for action in (control, demo):
        assert isinstance(action, ChangeMembers)
        assert (action.placement, action.filled) == (GroupPlacement(0, NODES), "")
    fleet = moved(fleet, GroupPlacement(0, NODES))
    assert only(fleet, observed(fleet, (*NODES, NEW))) == RemoveNode(f"storage node {NEW} holds nothing any more", NEW)


def test_once_something_was_committed_there_is_no_way_back() -> None:
    fleet = moved(moved(replacing(), BEGUN), DONE, CONTROL_VOLUME_ID)
    action = only(fleet, observed(fleet, (*NODES, NEW)))
    assert isinstance(action, ChangeMembers)
    assert action.placement == DONE


def test_a_new_node_that_is_lost_itself_makes_room_for_another() -> None:
    fleet = moved(replacing(), BEGUN)
    both = {**ill(OLD, 900), **ill(NEW, 400)}
    cancel, *_ = wanted(fleet, observed(fleet, LEFT, ailing=both))
    assert isinstance(cancel, CancelReplacement)
    fleet = fleet.without_replacement(NEW)
    assert {type(a) for a in wanted(fleet, observed(fleet, LEFT, ailing=both))} == {ChangeMembers}
    fleet = moved(fleet, GroupPlacement(0, NODES))
    assert only(fleet, observed(fleet, LEFT, ailing=both)) == RemoveNode(
        f"storage node {NEW} holds nothing any more", NEW
    )
    fleet = fleet.without_node(NEW)
    action = only(fleet, observed(fleet, LEFT, ailing=ill(OLD, 900)))
    assert isinstance(action, ReplaceNode)


def test_a_new_node_that_is_lost_with_the_only_claim_to_a_copy_is_replaced_in_its_turn() -> None:
    fleet = moved(moved(replacing(), BEGUN), DONE, CONTROL_VOLUME_ID).without_replacement(NEW)
    assert not fleet.node(NEW).leaving
    fleet = moved(fleet, GroupPlacement(0, NODES), volume_id(fleet))
    state = observed(fleet, LEFT, ailing={**ill(OLD, 900), **ill(NEW, 400)})
    action = only(fleet, state)
    assert isinstance(action, ReplaceNode)
    assert action.node_id == OLD
    fleet = moved(fleet.with_replacement(OLD).without_replacement("b-4").without_node("b-4"), DONE, volume_id(fleet))
    assert fleet.holds(NEW)


def test_a_commit_that_nobody_noted_keeps_the_new_node() -> None:
    fleet = moved(replacing(), BEGUN).without_replacement(NEW)
    assert fleet.node(NEW).leaving
    assert not moved(fleet, DONE).node(NEW).leaving


# ---- who is ill


def test_who_is_ill_and_since_when() -> None:
    fleet, bed = running_fleet(), AilingNodes()
    well, without = observed(fleet).nodes, observed(fleet, LEFT).nodes
    assert bed.look(fleet, well, 0.0) == {}
    assert bed.look(fleet, without, 1.0) == {OLD: Ailing(Ailment.UNREACHABLE, 1.0)}
    assert bed.look(fleet, without, 9.0) == {OLD: Ailing(Ailment.UNREACHABLE, 1.0)}
    assert bed.look(fleet, well, 10.0) == {OLD: Ailing(Ailment.UNREACHABLE, 1.0, over=True)}
    silent = {**well, OLD: replace(well[OLD], silent=True)}
    assert bed.look(fleet, silent, 11.0) == {OLD: Ailing(Ailment.UNREACHABLE, 1.0)}
    assert bed.look(fleet, well, 11.1 + SETTLED_S) == {}
    assert bed.look(fleet, without, 20.0) == {OLD: Ailing(Ailment.UNREACHABLE, 20.0)}


def test_lost_data_is_another_matter_than_absence_unless_it_is_coming_back() -> None:
    fleet, bed = running_fleet(), AilingNodes()
    well, without = observed(fleet).nodes, observed(fleet, LEFT).nodes
    empty = {**well, OLD: replace(well[OLD], segments=frozenset())}
    assert bed.look(fleet, without, 1.0)[OLD].ailment is Ailment.UNREACHABLE
    assert bed.look(fleet, empty, 3.0) == {OLD: Ailing(Ailment.DATA_GONE, 3.0)}
    refilling = {**well, OLD: replace(empty[OLD], refilling=well[OLD].segments)}
    assert bed.look(fleet, refilling, 4.0)[OLD].over
    assert bed.look(fleet, refilling, 4.1 + SETTLED_S) == {}


def test_segments_that_were_never_made_are_not_lost() -> None:
    fleet = new_fleet("somewhere", AZS)
    assert AilingNodes().look(fleet, observed(created(fleet)).nodes, 0.0) == {}
    assert AilingNodes().look(fleet, observed(fleet).nodes, 0.0) == {}

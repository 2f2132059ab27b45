"""The declared state and its serialised form."""

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import pytest

from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.backups import BackupPlan, RestorePlan
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.placement import default_nodes, place_group, place_instance
from aurora_ray.control.model.regional import LostTail, Membership, Peer
from aurora_ray.control.model.state import Fleet, StorageNode
from aurora_ray.errors import ConfigurationError, MalformedError, UsageError
from aurora_ray.replication.residency import Policy
from aurora_ray.replication.turnover import Turnover, Way
from tests.control.fleets import AZS, NODES, created, running_fleet, volume_id


def test_round_trip() -> None:
    fleet = running_fleet().without_cluster("demo")
    assert unpack(pack(fleet)) == fleet
    assert unpack(pack(running_fleet())).clusters[0].superuser_password == "secret"  # noqa: S105


def test_parameters_and_repairs_are_kept() -> None:
    fleet = running_fleet()
    cluster = replace(fleet.clusters[0], parameters=(("jit", "on"),), repairs=("roles:1",))
    assert unpack(pack(fleet.with_cluster(cluster))).clusters[0] == cluster


@pytest.mark.allowed_logs("sealed with another secret")
def test_backups_and_restores_are_kept_and_a_state_of_format_3_has_none() -> None:
    fleet = running_fleet()
    demo = fleet.clusters[0]
    restoring = replace(demo.volume, initialised=False, restore=RestorePlan("s3://b", "fleet/volume", 8, "/key"))
    changed = fleet.with_cluster(replace(demo, volume=restoring, backup=BackupPlan("/backups", "/key", 86400)))
    assert unpack(pack(changed)) == changed
    assert changed.clusters[0].is_restored_now()
    old = unpack((Path(__file__).parent / "data" / "state-format-3.msgpack").read_bytes())
    assert (old.clusters[0].name, old.clusters[0].backup, old.clusters[0].volume.restore) == ("demo", None, None)
    assert unpack(pack(old)) == old


@pytest.mark.allowed_logs("sealed with another secret")
def test_capacities_and_pauses_are_kept_and_a_state_of_format_4_has_none() -> None:
    fleet = running_fleet()
    changed = fleet.with_cluster(replace(fleet.clusters[0], capacity=Capacity(0, 4, 30), paused_since_s=1.5))
    assert unpack(pack(changed)) == changed
    old = unpack((Path(__file__).parent / "data" / "state-format-4.msgpack").read_bytes())
    assert (old.clusters[0].name, old.clusters[0].capacity, old.clusters[0].paused_since_s) == ("demo", None, 0)
    assert unpack(pack(old)) == old


def test_a_newer_format_is_refused_with_advice() -> None:
    document = msgpack.unpackb(pack(running_fleet()))
    with pytest.raises(ConfigurationError, match="use the newer version"):
        unpack(msgpack.packb({**document, "format": 99}))


def test_fields_of_later_and_earlier_versions() -> None:
    fleet = running_fleet()
    document = msgpack.unpackb(pack(fleet))
    document["fleet"]["something_new"] = 1
    del document["fleet"]["dropped_volumes"]
    del document["fleet"]["clusters"][0]["cache_bytes"]
    assert unpack(msgpack.packb(document)) == fleet


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x80", msgpack.packb({"format": 1, "fleet": {}}), b"\x93\x01"])
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack(garbage)


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(running_fleet())


def test_unknown_names_are_errors_that_help() -> None:
    with pytest.raises(UsageError, match="aurora create orders"):
        running_fleet().cluster("orders")
    with pytest.raises(UsageError, match="a-1, a-2"):
        running_fleet().node("x")


def test_created_is_noted_once_and_dropped_volumes_go_when_the_last_node_has_forgotten_them() -> None:
    fleet = running_fleet()
    again = fleet.with_created("a-1", {volume_id(fleet): (0,)})
    assert again == fleet
    gone = fleet.without_cluster("demo")
    for node in NODES[:-1]:
        gone = gone.without_dropped(node, {volume_id(fleet)})
        assert len(gone.dropped_volumes) == 1
    assert gone.without_dropped(NODES[-1], {volume_id(fleet)}).dropped_volumes == ()


# ---- placement


def test_two_copies_in_each_az_on_the_nodes_with_the_least() -> None:
    nodes = (*default_nodes(AZS), StorageNode("a-3", "a"))
    volume = created(running_fleet()).cluster("demo").volume
    group = place_group(1, AZS, nodes, [volume])
    assert group.node_ids == ("a-3", "a-1", "b-1", "b-2", "c-1", "c-2")
    assert group.created_on == ()


def test_too_few_nodes_or_azs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="AZ c has 1"):
        place_group(0, AZS, default_nodes(AZS)[:5], [])
    with pytest.raises(ConfigurationError, match="needs 3 AZs"):
        default_nodes(("a", "b"))


def test_instances_go_where_there_are_fewest() -> None:
    assert place_instance(AZS, []) == "a"
    assert place_instance(AZS, ["a", "a", "b"]) == "c"


# ---- the bootstrap file


def test_bootstrap_file_round_trip(tmp_path: Path) -> None:
    fleet = created(running_fleet()).with_node(StorageNode("a-1", "a", "10.0.0.1"))
    bootstrap.save(tmp_path, fleet)
    loaded = bootstrap.load(tmp_path)
    assert loaded == replace(fleet, clusters=(), revision=0)
    assert (tmp_path / bootstrap.FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_bootstrap_file_knows_a_change_of_members_that_is_under_way(tmp_path: Path) -> None:
    fleet = created(running_fleet()).with_replacement("b-1")
    placement = replace(
        fleet.control_volume.groups[0].placement, next_node_ids=("a-1", "a-2", "b-3", "b-2", *NODES[4:])
    )
    fleet = fleet.with_placements(fleet.control_volume.volume_id, [placement])
    bootstrap.save(tmp_path, fleet)
    loaded = bootstrap.load(tmp_path)
    assert loaded is not None
    assert loaded.control_volume.groups[0].placement == placement
    assert [node.node_id for node in loaded.nodes] == [*NODES, "b-3"]
    assert unpack(pack(fleet)) == fleet


@pytest.mark.parametrize("value", ["inf", "nan", "8192.5", "true", "0", "-1", '"8192"'])
def test_bootstrap_file_with_a_count_that_is_none(tmp_path: Path, value: str) -> None:
    bootstrap.save(tmp_path, _fleet())
    path = tmp_path / bootstrap.FILE_NAME
    path.write_text(path.read_text().replace("page_size = 8192", f"page_size = {value}"))
    with pytest.raises(ConfigurationError, match="is damaged"):
        bootstrap.load(tmp_path)


def test_bootstrap_file_is_absent_or_whole(tmp_path: Path) -> None:
    assert bootstrap.load(tmp_path) is None
    assert not bootstrap.exists(tmp_path)
    for text in ("fleet_id = ", 'fleet_id = "x"', "", "nodes = 3"):
        (tmp_path / bootstrap.FILE_NAME).write_text(text)
        with pytest.raises(ConfigurationError, match="is damaged"):
            bootstrap.load(tmp_path)


def test_bootstrap_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        bootstrap.save(tmp_path / "file", _fleet())


def _fleet() -> Fleet:
    return running_fleet()


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.allowed_logs("was sealed with another secret")
def test_a_state_of_before_there_were_global_clusters_is_of_one_region_and_of_the_first_generation(number: int) -> None:
    """5 was saved by 183be49."""
    fleet = unpack((Path(__file__).parent / "data" / f"state-format-{number}.msgpack").read_bytes())
    cluster = fleet.cluster("demo")
    assert (cluster.succession, cluster.generation, cluster.membership) == (((0, 0),), 0, None)
    assert not cluster.is_secondary
    assert unpack(pack(fleet)) == fleet
    assert msgpack.unpackb(pack(fleet))["format"] == 7


@pytest.mark.allowed_logs("was sealed with another secret")
def test_a_state_of_format_5_is_read_whole() -> None:
    fleet = unpack((Path(__file__).parent / "data" / "state-format-5.msgpack").read_bytes())
    demo, again = fleet.cluster("demo"), fleet.cluster("again")
    assert [instance.role for instance in demo.instances] == ["writer", "reader", "backup"]
    assert (demo.backup, len(demo.past), demo.marks[0].label) == (BackupPlan("/backups", "/key", 86400), 1, "m")
    assert demo.volume.origin is not None
    assert again.volume.restore == RestorePlan("s3://b", "fleet/volume", 8, "/key")


@pytest.mark.allowed_logs("was sealed with another secret")
def test_a_state_of_format_6_lets_data_lie_anywhere_and_a_policy_is_kept() -> None:
    fleet = unpack((Path(__file__).parent / "data" / "state-format-6.msgpack").read_bytes())
    demo = fleet.cluster("demo")
    assert demo.membership is not None
    assert (demo.membership.name, demo.residency.restricts) == ("g", False)
    assert (demo.backup, demo.generation) == (BackupPlan("/backups", "/key", 86400), 17)
    policy = Policy(frozenset({"eu-west-1"}), frozenset({"EU", "CH"}))
    changed = fleet.with_cluster(replace(demo, residency=policy, backup=BackupPlan("/b", location="eu-west-1")))
    assert unpack(pack(changed)) == changed


def test_a_global_cluster_is_kept_and_the_secrets_of_its_regions_are_sealed() -> None:
    peer = Peer("eu-west-1", 1, str(UUID(int=1)), "127.0.0.1:1", "/there", "ab" * 32)
    turnover = Turnover(Way.SWITCHOVER, "somewhere", "eu-west-1", 17, 5, reached=True)
    tail = LostTail(UUID(int=2), 3, 9, 0, 1.0)
    known = Membership("g", 0, "somewhere", (peer,), 4, turnover, 17, 9, (tail,), {"rpo_ms": 1.0})
    fleet = running_fleet()
    cluster = replace(fleet.cluster("demo"), membership=known, succession=((0, 0), (9, 17)))
    packed = pack(fleet.with_cluster(cluster))
    assert unpack(packed).cluster("demo") == cluster
    assert peer.secret.encode() not in packed
    assert peer.secret not in repr(cluster)


@pytest.mark.parametrize("turns", [[], [[0, 5], [1, 5]], [[5, 0], [1, 1]]])
def test_turns_that_do_not_ascend_are_refused(turns: list[list[int]]) -> None:
    document = msgpack.unpackb(pack(running_fleet()))
    document["fleet"]["clusters"][0]["succession"] = turns
    with pytest.raises(MalformedError):
        unpack(msgpack.packb(document))

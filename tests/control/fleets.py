"""Declared fleets for tests of decisions."""

from dataclasses import replace
from uuid import UUID, uuid4

from aurora_ray.compute.role import Role
from aurora_ray.control.model.bootstrap import new_fleet
from aurora_ray.control.model.observed import Addresses, InstancePhase, InstanceSeen, NodeSeen, Observed
from aurora_ray.control.model.placement import place_group
from aurora_ray.control.model.state import CONTROL_VOLUME_ID, DBCluster, DBInstance, Fleet, Group, VolumeState
from aurora_ray.volume.spec import GroupPlacement

AZS = ("a", "b", "c")
NODES = ("a-1", "a-2", "b-1", "b-2", "c-1", "c-2")
GROUP_BYTES = 1 << 30


def created(fleet: Fleet) -> Fleet:
    """All segments exist where they shall."""
    for volume in fleet.volumes():
        groups = tuple(replace(group, created_on=group.node_ids) for group in volume.groups)
        fleet = fleet.with_volume(replace(volume, groups=groups))
    return fleet


def with_cluster(fleet: Fleet, name: str = "demo", *, initialised: bool = True) -> Fleet:
    volume = VolumeState(uuid4(), 8192, GROUP_BYTES, (_group(fleet),), initialised)
    writer = DBInstance(f"{name}-1", Role.WRITER, "a", 15432)
    return fleet.with_cluster(DBCluster(name, "postgres", "18", "", 15432, "secret", volume, (writer,)))


def running_fleet() -> Fleet:
    """A cluster called demo, everything made; its control volume has the id that all had once."""
    fleet = new_fleet("somewhere", AZS)
    known = replace(fleet.control_volume, volume_id=CONTROL_VOLUME_ID)
    return created(with_cluster(replace(fleet, control_volume=known)))


def addresses(nodes: tuple[str, ...] = NODES) -> Addresses:
    return tuple((node, f"127.0.0.1:9{ord(node[0])}{node[2:]}") for node in sorted(nodes))


def observed(
    fleet: Fleet,
    nodes: tuple[str, ...] = NODES,
    instance: InstanceSeen | None = None,
    *,
    control_open: bool = True,
    **more: object,
) -> Observed:
    """These nodes run, know each other and have what they were given; the writer is as told (default: available)."""
    told = addresses(nodes)
    segments = {
        node: frozenset((v.volume_id, g.group) for v in fleet.volumes() for g in v.groups if node in g.created_on)
        for node in nodes
    }
    seen = {node: NodeSeen(dict(told)[node], 100, "host", told, segments[node]) for node in nodes}
    if instance is None:
        instance = InstanceSeen(InstancePhase.AVAILABLE, told=told, groups=frozenset({0}), free_bytes=GROUP_BYTES)
        if fleet.clusters:
            instance = replace(instance, placements=placements(fleet.clusters[0].volume))
    instances = {"demo-1": instance}
    more = {"control_placements": placements(fleet.control_volume), **more}
    return Observed(nodes=seen, instances=instances, control_open=control_open, **more)  # type: ignore[arg-type]


def placements(volume: VolumeState) -> tuple[GroupPlacement, ...]:
    """As the volume's writer tells them when nothing has changed."""
    return tuple(group.placement for group in volume.groups)


def without_instance(state: Observed) -> Observed:
    return replace(state, instances={})


def volume_id(fleet: Fleet) -> UUID:
    return fleet.cluster("demo").volume.volume_id


def _group(fleet: Fleet) -> Group:
    return place_group(0, fleet.azs, fleet.nodes, fleet.volumes())

"""Where copies and instances go. Pure functions of the declared fleet.

A protection group has six copies, two in each of three AZs. Among the nodes of an AZ those with the fewest groups are
taken, ties by name, so that placement is the same wherever and whenever it is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from aurora_ray.control.model.state import Fleet, Group, StorageNode, VolumeState
from aurora_ray.errors import ConfigurationError
from aurora_ray.log.sizes import AZ_COUNT, COPIES_PER_AZ, WRITE_QUORUM


def default_nodes(azs: Sequence[str]) -> tuple[StorageNode, ...]:
    """Two storage nodes in each AZ, named after it. Raises ConfigurationError unless there are three AZs."""
    if len(set(azs)) != AZ_COUNT:
        raise ConfigurationError(f"A region needs {AZ_COUNT} AZs, this one has {', '.join(azs) or 'none'}.")
    return tuple(StorageNode(f"{az}-{number}", az) for az in azs for number in range(1, COPIES_PER_AZ + 1))


def place_group(group: int, azs: Sequence[str], nodes: Sequence[StorageNode], volumes: Iterable[VolumeState]) -> Group:
    """Six members for a new group. Raises ConfigurationError when an AZ has too few nodes.

    Nodes that are being replaced, or that leave, get nothing new.
    """
    replaced = {node.replaces for node in nodes}
    staying = [node for node in nodes if not node.leaving and node.node_id not in replaced]
    load: Counter[str] = Counter()
    for volume in volumes:
        for existing in volume.groups:
            load.update(existing.node_ids)
    members: list[str] = []
    for az in azs:
        candidates = sorted((n.node_id for n in staying if n.az == az), key=lambda node_id: (load[node_id], node_id))
        if len(candidates) < COPIES_PER_AZ:
            raise ConfigurationError(f"AZ {az} has {len(candidates)} storage nodes, {COPIES_PER_AZ} are needed.")
        members.extend(candidates[:COPIES_PER_AZ])
    return Group(group, tuple(members))


def place_instance(azs: Sequence[str], used_azs: Sequence[str]) -> str:
    """The AZ with the fewest instances, in the region's order."""
    load = Counter(used_azs)
    return min(azs, key=lambda az: (load[az], azs.index(az)))


def place_next(fleet: Fleet) -> str:
    """The AZ of the next cluster's writer. Temporary clusters do not count, so that one goes where the last one was."""
    used = [instance.az for cluster in fleet.clusters if not cluster.until_s for instance in cluster.instances]
    return place_instance(fleet.azs, used)


def az_to_start(declared: str, azs: Sequence[str], running: Iterable[str], ran_before: Iterable[str]) -> str:
    """The AZ for an instance's new process: the declared one, unless its storage nodes ran and none of them does now
    (`running` and `ran_before` are AZs, one entry a node); then the one with the most, in the region's order."""
    up = Counter(running)
    if up[declared] or declared not in ran_before or not up:
        return declared
    return min(azs, key=lambda az: (-up[az], azs.index(az)))


def quorum_up(group: Group, up: set[str], quorum: int = WRITE_QUORUM) -> bool:
    """Whether enough members of the group run; of both sets while they change."""
    return all(sum(node_id in up for node_id in nodes) >= quorum for nodes in group.placement.sets)

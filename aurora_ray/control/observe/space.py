"""What storage nodes say of their disks, as troubles: no room, shortened history, lost copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.control.decide.reconcile import nearly_out_of_room
from aurora_ray.troubles import Trouble, TroubleCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aurora_ray.control.model.observed import InstanceSeen
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.storage.v1 import storage_pb2 as pb

REFUSING = ("full", "failing")  # SpaceState of a node that takes no redo


def limit_troubles(fleet: Fleet, instances: Mapping[str, InstanceSeen], limit_bytes: int) -> Iterator[Trouble]:
    """Of the clusters whose volumes are nearly full and must not grow."""
    for cluster in fleet.clusters:
        volume, seen = cluster.volume, instances.get(cluster.writer().instance_id)
        nearly_full = seen is not None and nearly_out_of_room(volume, seen)
        if seen is not None and nearly_full and not volume.may_grow(limit_bytes):
            left, limit = (seen.free_bytes or 0) >> 20, limit_bytes >> 20
            sentence = (
                f"its volume may not grow beyond {limit} MiB, of which {left} MiB are left: what does not fit gets"
                " 'no space left on device'; drop what is not needed, or raise AURORA_VOLUME_LIMIT_BYTES and start anew"
            )
            yield Trouble(TroubleCode.VOLUME_FULL, cluster.name, sentence)


def space_troubles(states: Mapping[str, pb.StateReply]) -> Iterator[Trouble]:
    """Of the nodes that answered, by id."""
    for node_id, state in sorted(states.items()):
        space = state.space
        free, reserve = f"{space.free_bytes / 1e6:.0f} MB", f"{space.reserve_bytes / 1e6:.0f} MB"
        if space.state == "full":
            sentence = (
                f"the disk has {free} free, the reserve is {reserve}: it takes no redo until there is room; "
                "make some, and it goes on by itself"
            )
            yield Trouble(TroubleCode.DISK_FULL, node_id, sentence)
        elif space.state == "failing":
            sentence = (
                f"writes to its disk fail ({free} are free): it takes no redo and tries again each second; "
                "see its log, and the kernel's; a copy that cannot be read for a minute is taken from its peers instead"
            )
            yield Trouble(TroubleCode.DISK_FULL, node_id, sentence)
        elif space.state == "gone":
            sentence = (
                "its data directory is not there: what it held counts as lost and is copied from the other nodes "
                "once the directory can be made anew; see why it was removed"
            )
            yield Trouble(TroubleCode.DIRECTORY_GONE, node_id, sentence)
        elif space.state == "low":
            sentence = f"the disk has {free} free; below {reserve} it takes no redo: make room"
            yield Trouble(TroubleCode.NODE_WITHOUT_SPACE, node_id, sentence)
        if space.HasField("history_share") and space.history_share < 1:
            sentence = (
                f"the disk has {free} free: it keeps {space.history_share:.0%} of the history beyond the least that"
                " clusters' windows ask for, so they can be rewound less far; make room, or shorten them"
                " (`aurora backtrack NAME --window-log`)"
            )
            yield Trouble(TroubleCode.HISTORY_SHORTENED, node_id, sentence)
        lost = sum(len(volume.lost_groups) for volume in state.volumes)
        if lost:
            sentence = (
                f"lost {lost} of its copies (damaged, removed, or not readable) and gets them back from its peers; "
                "if this comes again, its disk is bad: replace it"
            )
            yield Trouble(TroubleCode.COPY_LOST, node_id, sentence)

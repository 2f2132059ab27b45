"""What storage nodes say of their disks, as troubles: no room, copies that were lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.troubles import Trouble, TroubleCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aurora_ray.storage.v1 import storage_pb2 as pb

REFUSING = ("full", "failing")  # SpaceState of a node that takes no redo


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
        lost = sum(len(volume.lost_groups) for volume in state.volumes)
        if lost:
            sentence = (
                f"lost {lost} of its copies (damaged, removed, or not readable) and gets them back from its peers; "
                "if this comes again, its disk is bad: replace it"
            )
            yield Trouble(TroubleCode.COPY_LOST, node_id, sentence)

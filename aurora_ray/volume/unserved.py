"""A volume that nobody serves, and that is kept: what a rewind left, what a deleted cluster had. Its copies move when a
storage node is replaced, like all others; what its writer would do for that, whoever asks for it does here.

It is opened as by its next writer, which shuts out whoever had it, takes the step, and is closed again. Between two
steps nobody has it open: the storage nodes fill an empty copy by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec


async def change_members(
    spec: VolumeSpec, nodes: Sequence[NodeAddress], wanted: GroupPlacement, filled: str, timeout_s: float
) -> tuple[GroupPlacement, ...]:
    """One step of a change of a group's members, as `Members.try_step`; who holds the volume's groups then.

    If they are others than `spec` says, because an earlier step was not noted, that is all that comes of it. Raises as
    `Volume.open` and `Members.change_placement`.
    """
    volume = await Volume.open(spec, nodes, timeout_s=timeout_s)
    try:
        found = volume.spec.placements[wanted.group]
        if found not in (spec.placements[wanted.group], wanted):
            return volume.spec.groups
        return await volume.members.try_step(wanted, filled)
    finally:
        await volume.close()

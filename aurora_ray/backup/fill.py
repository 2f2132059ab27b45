"""A volume made out of a backup: pages as of an LSN as redo that ends at that LSN, as a copy in a new region begins.

It can be broken off anywhere and goes on from the volume's durable end, so that alone says whether it is whole: nobody
has to note anything. What is restored never changes under it, since a backup's history is what was durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.errors import MalformedError
from aurora_ray.replication.seeding import SeedProgress, fill, last_record
from aurora_ray.replication.sides import RegionalVolume

if TYPE_CHECKING:
    from aurora_ray.backup.source import BackupSource
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
    from aurora_ray.volume.write.volume import Volume


class _NoNotes:
    """Whoever declared the volume has declared all groups that the backup names."""

    async def place(self, group: int) -> GroupPlacement:
        """Raises MalformedError: it would be one that the backup did not name."""
        raise MalformedError(f"the backup has pages of group {group}, which it did not name")

    async def note_spec(self, spec: VolumeSpec) -> None:
        """The copies know it."""

    async def note_succession(self, succession: object) -> None:
        """There is none."""


def is_whole(volume: Volume, lsn: int) -> bool:
    """Whether a volume that is open for writing, and is to be restored as of `lsn`, is."""
    return volume.tail_lsn >= lsn


async def fill_volume(
    source: BackupSource, volume: Volume, nodes: tuple[NodeAddress, ...], progress: SeedProgress
) -> None:
    """Returns once `volume`, open for writing, durably holds what `source` reads. Raises StorageError, BackupError."""
    if not is_whole(volume, source.read_lsn):
        last = await last_record(RegionalVolume(volume.spec, nodes), volume.tail_lsn)
        await fill(source, volume, last, _NoNotes(), progress)

"""One volume's backup in a bucket: framed objects, manifests that are put in turn."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.backup import frame, manifest
from aurora_ray.backup.bucket import NoObjectError
from aurora_ray.backup.manifest import Manifest, manifest_name, manifest_number
from aurora_ray.errors import BackupError, FencedError, MalformedError, UsageError

if TYPE_CHECKING:
    from aurora_ray.backup.bucket import Bucket, Found
    from aurora_ray.backup.frame import Key
    from aurora_ray.backup.manifest import Chunk

TRIES: Final = 5


class Store:
    """Objects of one volume; names are relative to its place."""

    def __init__(self, bucket: Bucket, place: str, key: Key | None) -> None:
        """`place`: <fleet>/<volume>."""
        self.place = place
        self._bucket, self._key = bucket, key

    async def put(self, name: str, content: bytes) -> int:
        """A new object; its bytes. What is tried again is the same object under the same name. Raises BackupError."""
        data = await self.wrap(name, content)
        await self._bucket.put(f"{self.place}/{name}", data)
        return len(data)

    async def put_raw(self, name: str, data: bytes) -> None:
        """An object whose parts are wrapped already."""
        await self._bucket.put(f"{self.place}/{name}", data)

    async def get(self, name: str) -> bytes:
        """Raises NoObjectError, BackupError, MalformedError, ConfigurationError."""
        return await self.unwrap(name, await self._bucket.get(f"{self.place}/{name}"))

    async def get_part(self, name: str, at: int, nbytes: int, inner: str) -> bytes:
        """What was wrapped as `inner` and put among others into one object."""
        return await self.unwrap(inner, await self._bucket.get_part(f"{self.place}/{name}", at, nbytes))

    async def wrap(self, name: str, content: bytes) -> bytes:
        """As it lies there; not in the event loop's time."""
        return await asyncio.to_thread(frame.wrap, f"{self.place}/{name}", content, self._key)

    async def unwrap(self, name: str, data: bytes) -> bytes:
        """The inverse."""
        return await asyncio.to_thread(frame.unwrap, f"{self.place}/{name}", data, self._key)

    async def listing(self, prefix: str = "") -> list[Found]:
        """Objects, names relative to the volume's place."""
        below = f"{self.place}/{prefix}".rstrip("/")
        skip = len(self.place) + 1
        return [each._replace(name=each.name[skip:]) for each in await self._bucket.listing(below)]

    async def delete(self, names: list[str]) -> None:
        """Removes objects."""
        await self._bucket.delete(f"{self.place}/{name}" for name in names)

    def beside(self, volume: str) -> Store:
        """The backup of another volume of the same fleet, in the same bucket and with the same key."""
        return Store(self._bucket, f"{self.place.partition('/')[0]}/{volume}", self._key)

    async def neighbours(self) -> list[Store]:
        """Those of all other volumes of the fleet that have one here. Raises BackupError."""
        fleet, _, own = self.place.partition("/")
        return [self.beside(volume) for volume in await self._bucket.directories(fleet) if volume != own]

    async def forget_place(self) -> None:
        """After its last object has gone: nothing is left of it to be listed."""
        await self._bucket.forget_directory(self.place)

    # ---- manifests

    async def newest(self) -> Manifest | None:
        """The manifest that counts; None if there is no backup. Raises BackupError, MalformedError."""
        for _ in range(TRIES):
            numbers = [n for each in await self.listing("manifest") if (n := manifest_number(each.name)) is not None]
            if not numbers:
                return None
            try:
                return manifest.unpack(await self.get(manifest_name(max(numbers))))
            except NoObjectError:  # newer ones came, and it went
                continue
        raise BackupError(f"the manifests of {self.place} change faster than they can be read: try again")

    async def present(self) -> Manifest:
        """The manifest that counts. Raises as `newest`, and UsageError if there is no backup."""
        found = await self.newest()
        if found is None:
            raise UsageError(f"there is no backup in {self.place}")
        return found

    async def put_manifest(self, wanted: Manifest) -> None:
        """Puts it under its number. Raises FencedError if somebody else has put one there.

        A put whose answer was lost is found to have succeeded: no two manifests that are put are the same.
        """
        name = manifest_name(wanted.number)
        data = await self.wrap(name, manifest.pack(wanted))
        for attempt in range(TRIES):
            try:
                if await self._bucket.put_new(f"{self.place}/{name}", data):
                    return
            except BackupError:
                if attempt == TRIES - 1:
                    raise
                await asyncio.sleep(2**attempt / 10)
            else:
                there = await self._bucket.get(f"{self.place}/{name}")
                if there == data:
                    return
                raise FencedError(f"fenced: somebody else writes the backup of {self.place} by now")

    async def chunks(self, of: Manifest, after_lsn: int, up_to_lsn: int) -> list[Chunk]:
        """The log that a restore needs: from `after_lsn` up to where `up_to_lsn` is in it. Raises as `get`, and
        MalformedError if there is a gap."""
        pages = [page for page in of.pages if page.end > after_lsn and page.start < up_to_lsn]
        found = [c for page in pages for c in manifest.unpack_chunks(await self.get(page.name))]
        found = [c for c in (*found, *of.chunks) if c.end > after_lsn and c.start < up_to_lsn]
        end = after_lsn
        for chunk in found:
            if chunk.start > end:
                raise MalformedError(f"the backup of {self.place} has no log from {end} to {chunk.start}")
            end = chunk.end
        if end < up_to_lsn:
            raise MalformedError(f"the backup of {self.place} has no log from {end} to {up_to_lsn}")
        return found


def new_owner() -> str:
    """A name that nobody else has: of one opening of a backup for writing."""
    return secrets.token_hex(6)


async def claim(store: Store, begun: Manifest) -> Manifest:
    """Opens a backup for writing: the newest manifest with our name on it, and what `begun` says of the cluster and of
    retention, not ended; `begun` itself if there is none. From now on who wrote before adds nothing.

    Raises BackupError, FencedError if others do the same at this moment.
    """
    newest = await store.newest()
    if newest is None:
        claimed = begun
    else:
        claimed = newest.next(
            begun.owner,
            subject=begun.subject,
            retention_s=begun.retention_s,
            groups=tuple(sorted({*newest.groups, *begun.groups})),
            written_s=time.time(),
            ended_s=0.0,
        )
    await store.put_manifest(claimed)
    return claimed

"""What a place for backups has, and where a moment lies in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.backup import chunks
from aurora_ray.backup.ended import kept_until_s
from aurora_ray.backup.store import Store
from aurora_ray.errors import AuroraError, BackupError, OutOfRangeError, UsageError
from aurora_ray.volume.origin import describe_time

if TYPE_CHECKING:
    from aurora_ray.backup.bucket import Bucket
    from aurora_ray.backup.frame import Key
    from aurora_ray.backup.manifest import Manifest

AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A volume's backup. `manifest` is None and `problem` says why if it cannot be read."""

    store: Store
    manifest: Manifest | None
    problem: str = ""

    def report(self) -> dict[str, Any]:
        """For people and for JSON: nothing secret."""
        fleet, _, volume = self.store.place.partition("/")
        found: dict[str, Any] = {"fleet": fleet, "volume": volume, "problem": self.problem}
        now = self.manifest
        if now is None:
            return found
        ranges, subject = now.ranges(), now.subject
        images = {image.lsn: image.time_us for image in now.images}
        return found | {
            "cluster": subject.cluster,
            "engine": subject.engine,
            "engine_version": subject.engine_version,
            "memory_bytes": subject.memory_bytes or None,
            "readers": subject.readers,
            "retention_s": now.retention_s,
            "begun_s": now.begun_s,
            "kept_until_s": kept_until_s(now),
            "earliest": describe_time(images[ranges[0][0]]) if ranges else None,
            "latest": describe_time(now.end_us) if ranges else None,
            "ranges": [{"from_lsn": first, "to_lsn": last} for first, last in ranges],
            "marks": [{"label": label, "lsn": lsn} for label, lsn in subject.marks],
            "log_bytes": sum(c.nbytes for c in now.chunks) + sum(p.nbytes for p in now.pages),
            "page_bytes": now.images[-1].nbytes if now.images else 0,
        }


async def entries(bucket: Bucket, key: Key | None) -> list[Entry]:
    """All backups in a place, the newest of a cluster last. Raises BackupError."""
    places = [f"{fleet}/{volume}" for fleet in await bucket.directories() for volume in await bucket.directories(fleet)]
    found: list[Entry] = []
    for at in range(0, len(places), AT_ONCE):
        found += await asyncio.gather(*(_entry(bucket, place, key) for place in places[at : at + AT_ONCE]))
    return sorted(found, key=lambda each: (each.manifest.begun_s if each.manifest else 0.0, each.store.place))


async def _entry(bucket: Bucket, place: str, key: Key | None) -> Entry:
    store = Store(bucket, place, key)
    try:
        manifest = await store.newest()
    except AuroraError as error:
        return Entry(store, None, str(error))
    return Entry(store, manifest, "" if manifest is not None else "it has no manifest")


@dataclass(frozen=True, slots=True)
class Found:
    """A moment in a backup: the end of a flush, and when that was written."""

    store: Store
    manifest: Manifest
    lsn: int
    time_us: int


async def find(found: list[Entry], cluster: str, time_us: int | None, lsn: int | None, mark: str | None) -> Found:
    """Where a moment of a cluster lies (none given: the latest). Raises UsageError, OutOfRangeError, which names what
    can be had, BackupError, ConfigurationError."""
    own = _of_cluster(found, cluster)
    if mark is not None:
        marked = [(e, at) for e in own for label, at in e[1].subject.marks if label == mark]
        if not marked:
            known = sorted({label for _, each in own for label, _ in each.subject.marks})
            raise UsageError(f"no backup has a mark {mark!r} (there is: {', '.join(known) or 'none'})")
        (store, manifest), lsn = marked[-1]
        return await _at_lsn(store, manifest, lsn)
    if time_us is None:
        store, manifest = own[-1]
        ranges = manifest.ranges()
        if not ranges:
            raise OutOfRangeError(
                f"nothing of {manifest.subject.cluster} can be restored yet: its first image is not done"
            )
        return await _at_lsn(store, manifest, ranges[-1][1] if lsn is None else lsn)
    for store, manifest in reversed(own):
        images = [image for image in manifest.images if image.time_us <= time_us]
        if images:
            return await _at_time(store, manifest, time_us)
    earliest = min((image.time_us for _, each in own for image in each.images), default=0)
    raise OutOfRangeError(
        f"nothing is backed up from before {describe_time(time_us)}: what can be restored begins at"
        f" {describe_time(earliest)}"
    )


def _of_cluster(found: list[Entry], cluster: str) -> list[tuple[Store, Manifest]]:
    readable = [(each.store, each.manifest) for each in found if each.manifest is not None]
    names = sorted({manifest.subject.cluster for _, manifest in readable})
    if not readable:
        problems = next((each.problem for each in found if each.problem), "")
        raise (
            BackupError(f"no backup can be read there: {problems}")
            if problems
            else UsageError("there is no backup there")
        )
    if not cluster and len(names) > 1:
        raise UsageError(f"there are backups of {', '.join(names)}: say of which with --cluster")
    own = [(store, manifest) for store, manifest in readable if cluster in ("", manifest.subject.cluster)]
    if not own:
        raise UsageError(f"there is no backup of a cluster {cluster!r} (there is: {', '.join(names)})")
    return own


async def _at_lsn(store: Store, manifest: Manifest, lsn: int) -> Found:
    """The last flush that ends at or below `lsn`."""
    image = manifest.image_for(lsn)
    best = Found(store, manifest, image.lsn, image.time_us)
    if lsn == image.lsn:
        return best
    last = (await store.chunks(manifest, image.lsn, lsn))[-1:]
    for chunk in last:
        flushes = chunks.unpack(await store.get(chunk.name), chunk.start, chunk.end)
        for end, time_us in chunks.flush_ends(flushes):
            if best.lsn < end <= lsn:
                best = Found(store, manifest, end, time_us)
        if best.lsn < chunk.start and chunk.start > image.lsn:
            best = Found(store, manifest, chunk.start, chunk.first_us)
    return best


async def _at_time(store: Store, manifest: Manifest, time_us: int) -> Found:
    """The last flush that was written by then, as far as it can be restored."""
    for first, reach in reversed(manifest.ranges()):
        images = [image for image in manifest.images if first <= image.lsn <= reach and image.time_us <= time_us]
        if not images:
            continue
        best = Found(store, manifest, images[-1].lsn, images[-1].time_us)
        log = [c for c in await store.chunks(manifest, best.lsn, reach) if c.first_us <= time_us]
        for chunk in log[-1:]:
            flushes = chunks.unpack(await store.get(chunk.name), chunk.start, chunk.end)
            for end, written_us in chunks.flush_ends(flushes):
                if end > best.lsn and written_us <= time_us:
                    best = Found(store, manifest, end, written_us)
        return best
    raise OutOfRangeError(f"nothing is backed up from before {describe_time(time_us)}: {manifest.describe()}")

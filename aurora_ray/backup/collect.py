"""Garbage in a bucket: what no restore can need. Nothing is removed that is not proven to be worthless.

An object is removed only if all of this holds:

1. the newest manifest does not name it, nor does it lie in a page of the catalogue that this names;
2. it is no part of what we are putting there: it has another owner's name, or is log or an image of no later LSN than
   what the manifest has already;
3. after the listing in which it was seen, the manifest was still ours. So nobody else has begun to write before, and
   whoever begins later names only what our manifests name, and what is put there after the listing;
4. no restore was under way after that manifest had been put. One that begins later reads that manifest or a newer one.

So a collector may die at any point, or be paused for a day and go on, and what is named is there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgpack  # type: ignore[import-untyped]

from aurora_ray.backup.bucket import NoObjectError
from aurora_ray.backup.manifest import MANIFESTS_KEPT, manifest_number, owner_of
from aurora_ray.errors import UNDECODABLE, AuroraError, FencedError

if TYPE_CHECKING:
    from aurora_ray.backup.manifest import Manifest
    from aurora_ray.backup.store import Store


async def collect(store: Store, ours: Manifest) -> list[str]:
    """Removes garbage; its names. `ours`: the newest manifest, which we have put. Nothing else is put meanwhile.

    Raises FencedError if it is not the newest any more, BackupError.
    """
    if await _held(store):
        return []
    seen = await store.listing()
    newest = await store.newest()
    if newest is None or (newest.number, newest.owner) != (ours.number, ours.owner):
        raise FencedError(f"fenced: somebody else writes the backup of {store.place} by now")
    garbage = garbage_of(ours, [each.name for each in seen])
    await store.delete(garbage)
    return garbage


def garbage_of(ours: Manifest, names: list[str]) -> list[str]:
    """Of these names, those of objects that nobody can need. Pure."""
    named = ours.objects()
    garbage = []
    for name in names:
        number = manifest_number(name) if name.startswith("manifest/") else None
        if number is not None:
            if number <= ours.number - MANIFESTS_KEPT:
                garbage.append(name)
            continue
        owner = owner_of(name)
        if owner and name not in named and not _paged(ours, name) and (owner != ours.owner or _is_past(ours, name)):
            garbage.append(name)
    return garbage


def _is_past(ours: Manifest, name: str) -> bool:
    """Whether something of ours was put before this manifest, so that it will not be named any more."""
    kind, _, rest = name.partition("/")
    if kind == "log":
        return int(rest.split("-")[1]) <= ours.end_lsn
    return kind == "pages" or (bool(ours.images) and int(rest.partition("-")[0]) <= ours.images[-1].lsn)


def _paged(ours: Manifest, name: str) -> bool:
    """Whether a chunk may be one that a page of the catalogue names."""
    kind, _, rest = name.partition("/")
    if kind != "log":
        return False
    start, end, _ = rest.split("-")
    return any(page.start <= int(start) and int(end) <= page.end for page in ours.pages)


async def _held(store: Store) -> bool:
    """Whether a restore is under way. One that has not said so for a long time is over."""
    over, held = [], False
    for each in await store.listing("holds"):
        try:
            until_s = float(msgpack.unpackb(await store.get(each.name))["until_s"])
        except NoObjectError:
            continue  # it has ended
        except (AuroraError, *UNDECODABLE, msgpack.UnpackException):
            held = True  # it cannot be said
            continue
        if until_s > time.time():
            held = True
        else:
            over.append(each.name)
    await store.delete(over)
    return held

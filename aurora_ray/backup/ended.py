"""Backups that nobody will go on with: of a volume that a rewind replaced, or of a cluster that is gone for good.

Such a backup counts for as long as history was to be kept: what was before the rewind, or in the cluster, can be
restored from it. Then all of it is garbage. That is proven by what it says itself, never by what somebody else does not
know of it (an older control state knows fewer volumes than there are, another fleet none of ours):

1. its newest manifest says since when it has *ended*. Only who knows for certain that the volume has no writer any
   more, and will have none, puts that there: for a rewound cluster the backup of the volume that it has now, for a
   deleted one the control plane, when it gives the volume up;
2. more time than history is to be kept for has gone by since then, and since the last moment in it. A rewound cluster
   may be given a longer retention later, so what it left is kept for the longest that there is;
3. no restore is under way.

Whoever begins to write it again all the same claims it, and with that takes its end back (`store.claim`).

**Removing it.** First a manifest is put that names nothing any more; then goes what nobody names, as anywhere
(`collect.py`); then the manifests, the newest last. So it can be broken off anywhere and begun again, a restore that
begins meanwhile is refused or finds all that it needs, and a writer that begins meanwhile is not harmed: its manifest
has a higher number.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from aurora_ray.backup.collect import collect
from aurora_ray.backup.manifest import manifest_name, manifest_number
from aurora_ray.backup.store import new_owner
from aurora_ray.errors import AuroraError, FencedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.backup.manifest import Manifest
    from aurora_ray.backup.store import Store

_log = logging.getLogger(__name__)


async def end(store: Store, ended_s: float, keep_s: int = 0) -> bool:
    """Notes that nobody writes the volume any more, since `ended_s` (Unix time), and that history is to be kept for
    `keep_s` at least; whether that was news.

    Raises BackupError, MalformedError, ConfigurationError for another key, FencedError if somebody writes it after all.
    """
    newest = await store.newest()
    if newest is None or newest.ended_s:
        return False
    retention_s = max(newest.retention_s, keep_s)
    await store.put_manifest(newest.next(new_owner(), ended_s=ended_s, retention_s=retention_s))
    return True


def kept_until_s(manifest: Manifest) -> float | None:
    """Until when something in it is to be kept (Unix time); None: it goes on."""
    if not manifest.ended_s:
        return None
    return max(manifest.ended_s, manifest.end_us / 1e6) + manifest.retention_s


async def remove_over(stores: Iterable[Store]) -> list[str]:
    """Removes those of these backups that are over; their places. One that cannot be read, or is written by somebody,
    is left as it is."""
    removed = []
    for store in stores:
        try:
            if await _remove_if_over(store):
                removed.append(store.place)
        except AuroraError as error:
            _log.info("the backup in %s is left as it is: %s", store.place, error)
    return removed


async def _remove_if_over(store: Store) -> bool:
    newest = await store.newest()
    until_s = kept_until_s(newest) if newest is not None else None
    if newest is None or until_s is None or time.time() <= until_s:
        return False
    ours = newest
    if ours.objects() or ours.chunks:
        ours = newest.next(new_owner(), images=(), pages=(), chunks=())
        await store.put_manifest(ours)
    await collect(store, ours)
    left = await store.listing()
    numbers = [n for each in left if (n := manifest_number(each.name)) is not None]
    if len(numbers) < len(left):
        return False  # a restore is under way, or something lies there that is not ours to judge
    if max(numbers) != ours.number:
        raise FencedError(f"fenced: somebody else writes the backup of {store.place} by now")
    await store.delete([manifest_name(number) for number in sorted(numbers)[:-1]])
    await store.delete([manifest_name(ours.number)])
    await store.forget_place()
    return True

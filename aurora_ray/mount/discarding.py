"""Old mounts out of the way: renamed at once, removed when there is time.

On a disk that is busy with the storage nodes' syncs, removing thousands of files, some of them large and not written
back yet, takes seconds. Whoever opens the volume next must not wait for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import Final

SWEEP_AFTER_S: Final = 10.0  # by then an engine that was started on the new mount has recovered
_WAITING_MAX: Final = 4  # so many may wait to be removed; beyond that the newcomer is removed at once


def unfinished(directory: Path) -> Path:
    """A name for what is to become `directory`, never used before; what keeps it is removed by the next sweep."""
    return directory.with_name(f"{directory.name}.new-{time.time_ns()}")


def waiting(directory: Path, what: str) -> Path:
    """A name for what may become `directory` later, if it is `what` then; otherwise the next sweep removes it."""
    return directory.with_name(f"{directory.name}.ready-{what}")


def in_waiting(directory: Path) -> list[Path]:
    """What has such a name, whole or not."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(directory.parent.glob(f"{directory.name}.ready-*"))
    return []


def set_aside(directory: Path) -> Path | None:
    """Renames a directory, so that its name is free; its new name, or None if there is nothing to remove any more.

    Raises OSError.
    """
    target = directory.with_name(f"{directory.name}.old-{time.time_ns()}")
    crowded = len(_waiting(directory)) >= _WAITING_MAX
    try:
        directory.rename(target)
    except FileNotFoundError:
        return None
    if crowded:
        remove(target)
        return None
    return target


def remove(directory: Path) -> None:
    """With all that is in it; what cannot be removed stays for the next sweep."""
    shutil.rmtree(directory, ignore_errors=True)


async def sweep(directory: Path, after_s: float = SWEEP_AFTER_S) -> None:
    """Removes, after a while, whatever was set aside from this name by now."""
    doomed = [*_waiting(directory), *in_waiting(directory)]
    if doomed:
        await asyncio.sleep(after_s)
    for each in doomed:
        await asyncio.to_thread(remove, each)


def _waiting(directory: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(directory.parent.glob(f"{directory.name}.[on][le][dw]-*"))
    return []

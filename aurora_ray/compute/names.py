"""The names of an instance's next mount, kept in waiting while the present one serves (see mount/localtree.py).

To make them takes longer than all else that a failover takes together, on a disk that its storage nodes keep busy; so
it is done before, slowly. They follow the volume: how many lag behind it is what the next mount has left to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError
from aurora_ray.mount.localtree import leave_in_waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.log.filetable import FileTable

AFTER_S: Final = 5.0  # the opening: whoever was held meanwhile has its turn first
EVERY_S: Final = 60.0
PAUSE_FACTOR: Final = 500  # or so many times as long as it took a storage node to give the table of files
AT_ONCE: Final = 32  # files; then others have their turn, for
REST_FACTOR: Final = 3  # times as long as these took, at most
REST_S: Final = 0.25

_log = logging.getLogger(__name__)


class _Ended(Exception):  # noqa: N818 - it is no error
    """Nobody wants them any more."""


class NamesInWaiting:
    """Of one incarnation; belongs to one event loop. `read` gives the volume's table of files as of now."""

    def __init__(
        self, read: Callable[[], Awaitable[FileTable]], mount_dir: Path, volume: str, account: EngineAccount
    ) -> None:
        self._read, self._mount_dir, self._volume = read, mount_dir, volume
        self._owner = (account.uid, account.gid) if account.switch else (None, None)
        self._ended = False
        self._began_s = 0.0  # with the files that are being made
        self._keeping = asyncio.create_task(self._keep(), name=f"names in waiting of {volume}")

    async def close(self) -> None:
        """What is in waiting stays; what is being made goes, a moment later."""
        self._ended = True
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self) -> None:
        pause_s = AFTER_S
        while True:
            await asyncio.sleep(pause_s)
            began_s = time.monotonic()
            try:
                table = await self._read()
                pause_s = max(EVERY_S, PAUSE_FACTOR * (time.monotonic() - began_s))
                await asyncio.to_thread(self._make, table)
            except AuroraError as error:  # the next mount is made without
                _log.info("the names of the next mount of %s are not in waiting: %s", self._volume, error)
                pause_s = max(pause_s, EVERY_S)

    def _make(self, table: FileTable) -> None:
        self._began_s = time.monotonic()
        leave_in_waiting(table, self._mount_dir, self._volume, *self._owner, made=self._rest, at_once=AT_ONCE)

    def _rest(self, _: int) -> None:
        if self._ended:
            raise _Ended
        took_s = time.monotonic() - self._began_s
        time.sleep(min(REST_FACTOR * took_s, REST_S))
        self._began_s = time.monotonic()

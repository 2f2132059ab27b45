"""Puts the writer's configuration files into a standby's data directory and has the server read them."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from aurora_ray.engine.tree_edit import Edit
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aurora_ray.engine.process import EngineProcess

_log = logging.getLogger(__name__)


class Takeover:
    """`server` gives the process that shall read them, if it runs.

    It takes a tenth of a second, so it is done beside the feed: one after the other, and only the newest content.
    """

    def __init__(
        self, edit: Callable[[Sequence[Edit]], Awaitable[None]], server: Callable[[], EngineProcess | None]
    ) -> None:
        self._edit, self._server = edit, server
        self._pending: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def take(self, contents: Mapping[str, str]) -> None:
        """These files (name -> content) shall be as they are with the writer."""
        self._pending.update(contents)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="take over configuration files")

    async def _run(self) -> None:
        while self._pending:
            edits = [Edit(name, content) for name, content in self._pending.items()]
            self._pending.clear()
            try:
                await self._edit(edits)
            except AuroraError as error:
                _log.warning("%s are not as they are with the writer: %s", [edit.path for edit in edits], error)
            else:
                if (process := self._server()) is not None:
                    process.send(signal.SIGHUP)

    async def wait_idle(self) -> None:
        """Returns when all that was taken is there; by then nothing more is taken."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Ends what is going on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

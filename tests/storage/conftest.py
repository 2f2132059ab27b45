"""Storage servers on demand."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.storage.harness import ServerHandle, config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


CRASH_POINTS: dict[str, int] = {}  # by sequence, as far as `test_crash_points.py` has run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many crash points were tried."""
    if CRASH_POINTS:
        said = ", ".join(f"{name} {count}" for name, count in CRASH_POINTS.items())
        terminalreporter.write_line(f"crash points of a storage node: {sum(CRASH_POINTS.values())} ({said})")


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await start("n1", retention_bytes=…)` starts a server; all are stopped at the end."""
    started: list[ServerHandle] = []

    async def start_server(
        node_id: str = "n1", *, server: dict[str, Any] | None = None, **settings: Any
    ) -> ServerHandle:
        handle = ServerHandle(config(tmp_path, node_id, **settings), **(server or {}))
        await handle.start()
        started.append(handle)
        return handle

    yield start_server
    for handle in started:
        with contextlib.suppress(Exception):
            await handle.stop()

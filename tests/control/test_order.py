"""When several instances are to open, the writer goes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.perform import order
from aurora_ray.errors import QuorumLostError
from tests.control.local_runtime import LocalInstance, LocalRuntime
from tests.control.test_plane import started
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceConfig, Opened

pytestmark = pytest.mark.allowed_logs(r".*")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Role]]:
    """Who was opened as what, in order."""
    seen: list[tuple[str, Role]] = []
    opens = LocalInstance.open

    async def notes(instance: LocalInstance, config: InstanceConfig) -> Opened:
        seen.append((config.instance_id, config.role))
        return await opens(instance, config)

    monkeypatch.setattr(LocalInstance, "open", notes)
    return seen


async def test_when_roles_change_the_next_writer_opens_before_the_one_before(
    runtime: LocalRuntime, opened: list[tuple[str, Role]]
) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.add_readers("demo", 1, tier=1, memory_bytes=0, timeout_s=20)
        await running.api.wait_available("demo", 20)
        await poll_until(lambda: ("demo-2", Role.READER) in opened, what="the reader is there")
        opened.clear()
        await running.api.failover("demo", "demo-2", 20)
        await poll_until(lambda: len(opened) == 2, what="both are open")
    assert opened == [("demo-2", Role.WRITER), ("demo-1", Role.READER)]


async def test_a_writer_that_cannot_open_holds_up_no_reader_for_long(
    runtime: LocalRuntime, opened: list[tuple[str, Role]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "LOOKS", 5)
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.add_readers("demo", 1, tier=1, memory_bytes=0, timeout_s=20)
        await poll_until(lambda: ("demo-2", Role.READER) in opened, what="the reader is there")
        fails = LocalInstance.open

        async def opens(instance: LocalInstance, config: InstanceConfig) -> Opened:
            if config.role is Role.WRITER:
                raise QuorumLostError("no")
            return await fails(instance, config)

        monkeypatch.setattr(LocalInstance, "open", opens)
        opened.clear()
        runtime.instances["demo-1"].kill_engine()
        runtime.instances["demo-2"].kill_engine()
        await poll_until(lambda: ("demo-2", Role.READER) in opened, what="the reader is there again")

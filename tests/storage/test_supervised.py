"""One failure ends no long work of a node, and what is in memory follows the disk."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from aurora_ray.control.observe.space import space_troubles
from aurora_ray.errors import ConfigurationError, StorageError
from aurora_ray.log import record as rec
from aurora_ray.log.segment_rules import Truncation, install
from aurora_ray.storage.disk.rocks import Batch, ReadFailedError, WriteFailedError
from aurora_ray.storage.node.node import READ_FAILURES_MAX, REOPEN_FOR_S
from aurora_ray.storage.node.volume import UNREADABLE_STARTS, NodeVolume
from aurora_ray.storage.segment.meta import SegmentMeta
from aurora_ray.storage.supervised import end, in_thread, supervised
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.house.source import package_modules, parse, qualified_calls, where
from tests.storage.harness import OWNER, Writer, introduce
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable

EIO = RuntimeError("IO error: While pread offset 4096 len 4096: 000012.sst: Input/output error")

pytestmark = pytest.mark.allowed_logs(r"fail", r"damaged here", r"the disk is")


async def test_work_that_fails_goes_on() -> None:
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 4:
            raise EIO

    counters = Counter[str]()
    await supervised("test", work, counters, pause_s=(0.001, 0.002))
    assert (rounds, counters["failed_test"]) == (4, 3)


async def test_the_same_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Exception] = [EIO, EIO, ValueError("other"), EIO]

    async def work() -> None:
        if failures:
            raise failures.pop()

    await supervised("test", work, Counter(), pause_s=(0.001, 0.002))
    assert len(caplog.records) == 3


async def test_work_that_is_cancelled_ends() -> None:
    task = asyncio.create_task(supervised("test", asyncio.Event().wait, Counter()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_an_error_took_the_place_of_is_repeated() -> None:
    async def work() -> None:
        try:
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError
        except OSError:  # as rounds do, to go on with the next item
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await asyncio.wait_for(end([task], again_s=0.01), 10)
    assert task.cancelled()


async def test_what_waits_for_a_thread_is_cancelled_when_that_is_over() -> None:
    begun, go, over = threading.Event(), threading.Event(), False

    def work() -> None:
        nonlocal over
        begun.set()
        assert go.wait(10)
        over = True

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over


async def test_in_thread_gives_results_and_raises_errors() -> None:
    assert await in_thread(int, "7") == 7
    with pytest.raises(ValueError, match="seven"):
        await in_thread(int, "seven")


FAILING = {
    "disk": ("node", "check_disk"),
    "lane-idle": ("background", "_tend"),
    "gossip": ("gossip", "round"),
    "repairs": ("node.damage", "segments"),
    "scrub": ("scrubber", "round"),
}


async def test_no_failure_ends_what_a_node_does_for_long(start: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("aurora_ray.storage.supervised.PAUSE_S", (0.001, 0.002))
    monkeypatch.setattr(supervised, "__kwdefaults__", {"pause_s": (0.001, 0.002)})
    server = await start(background_interval_s=0.01, gossip_interval_s=0.01, scrub_interval_s=0.01)
    await Writer().open(server)
    assert server.server.long_work().keys() == FAILING.keys() - {"disk", "lane-idle"} | {"background"}
    calls: Counter[str] = Counter()

    def failing(name: str) -> Callable[..., Any]:
        def fail(*_: object) -> None:
            calls[name] += 1
            raise EIO

        return fail

    for name, (where_, method) in FAILING.items():
        target: Any = server.server
        for part in where_.split("."):
            target = getattr(target, part)
        monkeypatch.setattr(target, method, failing(name))
    server.server.node.damage.found.set()
    await poll_until(lambda: all(calls[name] >= 1 for name in FAILING), what="each was met")
    server.server.node.damage.found.set()
    await poll_until(lambda: all(calls[name] >= 2 for name in FAILING), what="each goes on")
    assert not any(task.done() for task in server.server._tasks)


def test_every_task_that_storage_starts_is_supervised_or_short() -> None:
    """A task that ends by an exception ends in silence. Those named here are awaited by whoever started them."""
    awaited = {"Gossip.catch_up", "fork", "_leases", "Background.reclaim_once"}
    wrong = []
    for path, module in package_modules():
        if not module.startswith("aurora_ray.storage."):
            continue
        tree = parse(path)
        for scope, call in _tasks_in(tree):
            argument = ast.unparse(call.args[0])
            if not argument.startswith(("supervised(", "supervision")) and scope not in awaited:
                wrong.append(f"{where(path, call)}: {scope} starts {argument}")
    assert not wrong, "use storage/supervised.py:\n" + "\n".join(wrong)


def _tasks_in(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    found = []
    scopes: list[tuple[str, ast.AST]] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            scopes += [(f"{node.name}.{method.name}", method) for method in node.body if hasattr(method, "name")]
        elif hasattr(node, "name"):
            scopes.append((node.name, node))
    for scope, node in scopes:
        found += [(scope, call) for call, name in qualified_calls(node) if name.endswith("create_task")]
    return found


# ---- memory and disk


def test_metadata_changes_as_a_whole_only() -> None:
    """Nothing assigns to a field of it: a change is a new value, which `Segment.commit` writes first."""
    names = {field.name for field in dataclasses.fields(SegmentMeta)}
    wrong = []
    for path, module in package_modules():
        if module.startswith("aurora_ray.storage."):
            targets = [target for node in ast.walk(parse(path)) for target in _targets(node)]
            wrong += [
                f"{where(path, target)}: {ast.unparse(target)}"
                for target in targets
                if isinstance(target, ast.Attribute)
                and target.attr in names
                and ast.unparse(target.value).endswith("meta")
            ]
    assert not wrong, "use Segment.commit:\n" + "\n".join(wrong)
    assert isinstance(SegmentMeta(512).layers, tuple)


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []


async def annulled_case(start: Callable[..., Any]) -> tuple[Any, Writer, int]:
    """A copy with one good flush and one that the recovery at epoch 2 will annul."""
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.page_full(1, 0, b"GOOD")))
    end = writer.lsn
    await server.send(writer.flush(rec.page_full(1, 0, b"ANNULLED")))
    await server.seal(writer, 2)
    return server, writer, end


def failing_once(monkeypatch: Any, owner: Any, name: str, *, after: bool = False, at: int = 1) -> None:
    """The call number `at` of a method fails, before or after its work is done."""
    real, calls = getattr(owner, name), 0

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != at:
            return real(*args)
        if after:
            real(*args)
        raise EIO

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_history_counts_only_once_it_is_installed(start: Callable[..., Any], monkeypatch: Any, at: int) -> None:
    server, writer, end = await annulled_case(start)
    segment = server.segment(writer)
    failing_once(monkeypatch, segment.store, "log_entries", at=at)
    with pytest.raises(StorageError, match="could not be written"):
        await server.truncate(writer, [(1, 0), (2, end)])
    assert server.segment(writer) is not segment  # opened anew: what the disk says
    server.server.node.check_disk()
    reply = await server.truncate(writer, [(1, 0), (2, end)])
    assert (reply.segments[0].installed_epoch, reply.segments[0].scl) == (2, end)
    assert (await server.pages(writer, end + 1000, 1, count=1))[0].rstrip(b"\0") == b"GOOD"


@pytest.mark.parametrize("after", [False, True])
async def test_what_could_not_be_written_is_not_in_force(
    start: Callable[..., Any], monkeypatch: Any, after: bool
) -> None:
    server, writer, end = await annulled_case(start)
    segment = server.segment(writer)
    before = segment.meta
    with monkeypatch.context() as patched:
        failing_once(patched, Batch, "write_synced", after=after)
        with pytest.raises(WriteFailedError):
            segment.take_over(install(before.epochs, 2, OWNER, [Truncation(2, end)]), end)
    assert segment.meta is before
    assert segment.scl > end


async def test_an_unexpected_failure_of_a_call_says_so_and_counts(start: Callable[..., Any], monkeypatch: Any) -> None:
    server = await start()
    monkeypatch.setattr(server.server.node, "volume", lambda _: 1 / 0)
    with pytest.raises(StorageError, match="unexpected ZeroDivisionError"):
        await server.seal(Writer(), 1)
    assert server.server.node.counters["unexpected_errors"] == 1


async def test_a_segment_that_cannot_be_read_again_and_again_is_lost(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.page_full(1, 0, b"x")))
    node, key = server.server.node, (writer.volume, 0)
    for _ in range(READ_FAILURES_MAX - 1):
        before = server.segment(writer)
        node.note_failure(ReadFailedError(key, EIO))
        assert server.segment(writer) is not before
        assert not node.disk_full
    node.note_failure(ReadFailedError(key, EIO))
    assert node.volumes[writer.volume].lost == {0}


async def test_a_segment_that_its_disk_does_not_open_is_tried_for_a_minute_and_then_lost(
    start: Callable[..., Any], monkeypatch: Any
) -> None:
    now_s = 1e9
    server = await start(server={"clock": lambda: now_s})
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.page_full(1, 0, b"x")))
    node, volume = server.server.node, server.server.node.volumes[writer.volume]
    with monkeypatch.context() as patched:
        patched.setattr(volume, "reopen", Mock(side_effect=EIO))
        node.note_failure(ReadFailedError((writer.volume, 0), EIO))
        for _ in range(100):
            node.check_disk()
        assert node.space().state == "failing"
        now_s += REOPEN_FOR_S - 1
        node.check_disk()
        assert not volume.lost
        now_s += 1
        node.check_disk()
    assert volume.lost == {0}
    assert node.space().state != "failing"
    (trouble,) = space_troubles({"n1": await server.stub.State(pb.StateRequest())})
    assert trouble.code == "copy_lost"


async def test_a_segment_that_its_disk_does_not_give_back_keeps_the_node_down_for_a_few_starts(
    start: Callable[..., Any], monkeypatch: Any
) -> None:
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.page_full(1, 0, b"x")))
    await server.stop()
    with monkeypatch.context() as patched:
        patched.setattr(NodeVolume, "open_segment", Mock(side_effect=EIO))
        for _ in range(UNREADABLE_STARTS - 1):
            with pytest.raises(ConfigurationError, match="Input/output error"):
                await server.restart_stopped()
        await server.restart_stopped()
    assert server.server.node.volumes[writer.volume].lost == {0}


async def test_one_segment_that_fails_keeps_gossip_from_no_other(start: Callable[..., Any], monkeypatch: Any) -> None:
    ahead, behind = await start("n1"), await start("n2")
    writers = [await Writer().open(ahead, behind) for _ in range(2)]
    for writer in writers:
        await ahead.send(writer.flush(rec.page_full(1, 0, b"x")))
    await introduce(ahead, behind)
    for failing, other in (writers, writers[::-1]):
        with monkeypatch.context() as patched:
            failing_once(patched, behind.segment(failing).store, "append_log")
            await behind.server.gossip.exchange("n1")
        assert behind.segment(other).scl == other.lsn
        behind.server.node.check_disk()


async def test_what_a_killed_scrubber_left_goes_at_the_start(start: Callable[..., Any]) -> None:
    server = await start()
    left = server.config.data_dir / "copies" / "left"
    left.mkdir(parents=True)
    (left / "file").write_bytes(b"x")
    await server.restart()
    assert not left.exists()

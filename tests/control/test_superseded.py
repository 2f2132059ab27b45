"""Who was fenced by whom: a control plane by its successor, a writer by another. One thing is not the other."""

from __future__ import annotations

import pytest

from aurora_ray.control.model.runtime import SupersededError
from aurora_ray.errors import FencedError
from aurora_ray.ray.control import give_way
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import Running, new_plane, started
from tests.control.test_takeover import left_behind
from tests.support.polling import poll_until

pytestmark = pytest.mark.allowed_logs(r".*")


async def test_a_writer_that_is_fenced_is_opened_again_by_the_same_control_plane(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        runtime.errors.append(FencedError("a higher epoch exists: another writer has the volume"))
        instance = runtime.instances["demo-1"]
        instance.kill_engine()
        await poll_until(lambda: len(instance.configs) == 3, what="it is opened once more")
        await running.api.wait_available("demo", 20)
        assert not running.task.done()


async def test_one_that_was_superseded_says_so_and_tells_nothing_old(runtime: LocalRuntime) -> None:
    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await first.api.wait_available("demo", 20)
    async with started(runtime) as second:
        await second.api.wait_open(20)
        await poll_until(first.task.done, what="the first one ends by itself")
        with pytest.raises(SupersededError):
            await first.api.status("demo")
        with pytest.raises(SupersededError):
            await first.api.delete("demo", 5)
        assert (await second.api.clusters())[0]["cluster"] == "demo"
    await left_behind(first)


async def test_what_is_left_of_a_control_actor_ends_itself_alone_and_only_for_a_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aurora_ray.ray.control.GIVE_WAY_EVERY_S", 0.0)
    answers = ["", "mine", "mine", "", "another"]
    ended: list[int] = []

    async def ask() -> str:
        return answers.pop(0)

    await give_way("mine", ask, lambda: ended.append(len(answers)))
    assert ended == [0]

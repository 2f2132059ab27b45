"""Parameters are checked, declared and told; repairs are declared, made at the next opening, and made once."""

import pytest

from aurora_ray.errors import UsageError
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import started
from tests.support.polling import poll_until

pytestmark = [pytest.mark.postgres, pytest.mark.allowed_logs(r".*")]


async def test_parameters(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        done = await running.api.set_parameters("demo", {"Max-Connections": "300", "jit": "on"})
        assert [(one["name"], one["applies"]) for one in done] == [
            ("max_connections", "pending-reboot"),
            ("jit", "dynamic"),
        ]
        assert runtime.instances["demo-1"].parameters == {"jit": "on", "max_connections": "300"}
        with pytest.raises(UsageError, match="fixed by the storage"):
            await running.api.set_parameters("demo", {"work_mem": "1MB", "fsync": "off"})
        await running.api.set_parameters("demo", {"jit": None})
        assert running.plane.fleet.cluster("demo").parameters == (("max_connections", "300"),)
        assert (await running.api.status("demo"))["parameters"] == {"max_connections": "300"}
        runtime.instances["demo-1"].kill_engine()
        await poll_until(lambda: len(runtime.instances["demo-1"].configs) == 2, what="it is opened again")
        assert runtime.instances["demo-1"].configs[-1].parameters == (("max_connections", "300"),)


async def test_repairs(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        with pytest.raises(UsageError, match="there is: settings, access"):
            await running.api.repair("demo", ["everything"], 20)
        await running.api.repair("demo", ["roles", "access"], 20)
        instance = runtime.instances["demo-1"]
        assert [repair.partition(":")[0] for repair in instance.configs[-1].repairs] == ["roles", "access"]
        assert running.plane.fleet.cluster("demo").repairs == ()
        instance.kill_engine()
        await poll_until(lambda: len(instance.configs) == 2, what="it is opened again")
        assert instance.configs[-1].repairs == ()

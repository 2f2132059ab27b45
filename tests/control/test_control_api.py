"""The control API over gRPC: the command line's client against a real server, and callers who may not call."""

import asyncio
import gc
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.api.client import PROGRESS_EVERY_S, ControlClient, NotRunningError
from aurora_ray.control.api.server import ControlServer
from aurora_ray.control.model.custom_endpoints import CustomKind
from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.control.model.scaling import ReaderScaling, ScalingMetric
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.errors import ConfigurationError, NodeUnreachableError, QuorumLostError, UsageError
from aurora_ray.rpc.admission import OURS, ImpostorError, Secret
from aurora_ray.rpc.channel import open_channel
from aurora_ray.rpc.secret_file import FILE_NAME
from aurora_ray.rpc.status import CONTROL
from aurora_ray.troubles import TroubleCode
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import Running, started
from tests.support.polling import poll_until

pytestmark = pytest.mark.allowed_logs(r".*")


@asynccontextmanager
async def served(runtime: LocalRuntime) -> AsyncIterator[tuple[Running, ControlServer, ControlClient]]:
    directory = runtime.directory
    (directory / FILE_NAME).write_text(OURS.secret.to_text())
    (directory / FILE_NAME).chmod(0o600)
    async with started(runtime) as running:
        server = ControlServer(running.plane, running.api)
        await server.start()
        client = await asyncio.to_thread(ControlClient.connect, directory, 10.0)
        try:
            yield running, server, client
        finally:
            await asyncio.to_thread(client.close)
            await server.stop()


async def test_a_client_asks_all_that_people_ask(runtime: LocalRuntime) -> None:
    async with served(runtime) as (running, _, client):

        async def ask(call: Any, *arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(call, *arguments, **options)

        assert await ask(client.create, "demo", timeout_s=20.0)
        assert not await ask(client.create, "demo", exist_ok=True, timeout_s=20.0)
        said: list[str] = []
        status = await ask(client.wait_available, "demo", timeout_s=20.0, progress=said.append)
        assert status["state"] == "available"
        assert status == json.loads(json.dumps(await running.api.status("demo"))) | {
            key: status[key] for key in ("instances", "storage_nodes", "volume")
        }
        assert [cluster["cluster"] for cluster in await ask(client.clusters)] == ["demo"]
        assert (await ask(client.info))["fleet_id"] == str(running.plane.fleet.fleet_id)
        assert "aurora_cluster_up" in await ask(client.metrics)
        assert any("control state is open" in sentence for _, sentence in await ask(client.trail))
        added = await ask(client.add_readers, "demo", 2, tier=3, timeout_s=20.0)
        assert added == {"cluster": "demo", "instances": ["demo-2", "demo-3"]}
        instances = (await ask(client.status, "demo"))["instances"]
        assert [(i["id"], i["role"], i["tier"]) for i in instances][1:] == [
            ("demo-2", "reader", 3),
            ("demo-3", "reader", 3),
        ]
        assert [cluster["readers"] for cluster in await ask(client.clusters)] == [2]
        made = await ask(client.create_endpoint, "demo", "reports", CustomKind.READER, members=["demo-3"])
        assert (made["name"], made["members"]) == ("reports", ["demo-3"])
        assert (await ask(client.status, "demo"))["endpoints"]["custom"][0]["port"] == made["port"]
        with pytest.raises(UsageError, match="has no instance 'demo-9'"):
            await ask(client.create_endpoint, "demo", "more", CustomKind.ANY, excluded=["demo-9"])
        with pytest.raises(UsageError, match="has no custom endpoint 'more'"):
            await ask(client.delete_endpoint, "demo", "more")
        assert (await ask(client.delete_endpoint, "demo", "reports"))["deleted"]
        with pytest.raises(UsageError, match="demo-1 is the writer of demo"):
            await ask(client.remove_reader, "demo-1", timeout_s=20.0)
        assert (await ask(client.remove_reader, "demo-2", timeout_s=20.0))["removed"]
        await poll_until(lambda: "HoldHorizon" in runtime.instances["demo-1"].heard, what="readers' horizons are told")
        assert "ReplicaStatus" in runtime.instances["demo-3"].heard
        done = await ask(client.failover, "demo", "demo-3", timeout_s=20.0)
        assert [(i["id"], i["role"]) for i in done["instances"]] == [("demo-1", "reader"), ("demo-3", "writer")]
        assert "WriteBack" in runtime.instances["demo-1"].heard, "what its end would have to write"
        assert "WriteBack" not in runtime.instances["demo-3"].heard
        rule = ReaderScaling(1, 3, ScalingMetric.CONNECTIONS, 100.0)
        assert (await ask(client.autoscale_readers, "demo", rule))["scaling"]["metric"] == "connections"
        assert (await ask(client.status, "demo"))["scaling"] == rule.report()
        assert (await ask(client.autoscale_readers, "demo", None))["scaling"] is None
        struck = await ask(client.chaos, "kill", "node:a-1", "demo", 30.0)
        assert struck[0]["target"] == "node:a-1"
        await ask(client.chaos, "resume", "node:a-1", "demo", None)
        await ask(client.delete, "demo", timeout_s=20.0)
        assert [deleted["cluster"] for deleted in await ask(client.graveyard)] == ["demo"]
        assert await ask(client.restore, "demo", "again", timeout_s=20.0) == "again"


async def test_errors_arrive_as_what_they_are_and_in_the_words_they_were_said_in(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(runtime) as (running, _, client):
        await running.api.wait_open(20)
        with pytest.raises(UsageError, match=r"^there is no cluster 'nobody'"):
            await asyncio.to_thread(client.status, "nobody")
        for error in (ConfigurationError("no engine"), QuorumLostError("took too long"), UsageError("no")):

            async def fails(*_: Any, error: Exception = error, **__: Any) -> None:
                raise error

            monkeypatch.setattr(ControlApi, "clusters", fails)
            with pytest.raises(type(error), match=f"^{error}$"):
                await asyncio.to_thread(client.clusters)


async def test_nobody_is_answered_without_the_secret(runtime: LocalRuntime) -> None:
    async with served(runtime) as (running, server, client):
        await running.api.wait_open(20)
        revision = running.plane.fleet.revision
        assert (runtime.directory / ADDRESS_FILE).stat().st_mode & 0o777 == 0o600
        for method in pb.DESCRIPTOR.services_by_name["Control"].methods:
            async with grpc.aio.insecure_channel(client.address) as channel:
                call: Any = channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(b"", timeout=10)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with open_channel(client.address, CONTROL, Secret.new()) as channel:
            delete = channel.unary_unary("/aurora_ray.control.v1.Control/Info")
            with pytest.raises(ImpostorError):  # one with another secret believes no answer, either
                await delete(b"", timeout=10)
        assert server.refused == len(pb.DESCRIPTOR.services_by_name["Control"].methods) + 2, (
            "it tried again, for the challenge"
        )
        assert running.plane.fleet.revision == revision
        assert [t.subject for t in running.plane.troubles() if t.code is TroubleCode.CALLER_REFUSED] == [CONTROL]


async def test_a_copy_of_a_data_directory_leads_to_no_fleet(runtime: LocalRuntime, tmp_path: Path) -> None:
    async with served(runtime):
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in (ADDRESS_FILE, FILE_NAME):
            shutil.copy2(runtime.directory / name, copy / name)
        with pytest.raises(NotRunningError, match="it is that of"):
            await asyncio.to_thread(ControlClient.connect, copy, 0.0)


async def test_a_control_plane_that_is_loading_its_state_is_waited_for(runtime: LocalRuntime) -> None:
    async with served(runtime) as (running, _, _):
        await running.api.create("demo", timeout_s=20)
    async with served(runtime) as (running, _, client):
        assert not running.plane.is_open
        with pytest.raises(UsageError, match="demo-9"):
            await asyncio.to_thread(client.chaos, "kill", "reader:demo-9", "demo", None)
        assert running.plane.is_open


async def test_a_long_call_that_is_cut_off_fails_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    class CutOff(ControlClient):
        """Both calls that are under way end with the control plane."""

        async def _ask(self, method: str, request: Any, timeout_s: float) -> Any:
            lasts_s = 0.0 if method == "Trail" else PROGRESS_EVERY_S
            await asyncio.sleep(lasts_s)  # not synchronisation: how long the call takes
            raise NodeUnreachableError("gone")

    (tmp_path / FILE_NAME).write_text(Secret.new().to_text())
    (tmp_path / FILE_NAME).chmod(0o600)
    client = await asyncio.to_thread(CutOff, tmp_path, "127.0.0.1:1")
    with pytest.raises(NotRunningError, match="gone"):
        await asyncio.to_thread(client.wait_available, "demo")
    await asyncio.to_thread(client.close)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_where_nobody_answers_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="of an older version"):
        ControlClient.connect(tmp_path, 0.0)
    (tmp_path / ADDRESS_FILE).write_text("{")
    with pytest.raises(NotRunningError, match="does not say where"):
        ControlClient.connect(tmp_path, 0.0)
    (tmp_path / FILE_NAME).write_text(Secret.new().to_text())
    (tmp_path / FILE_NAME).chmod(0o600)
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"address": "127.0.0.1:1"}))
    with pytest.raises(NotRunningError, match="does not answer"):
        ControlClient.connect(tmp_path, 0.0)

"""The fleet's metrics over HTTP: what a scraper gets, and what becomes of a port that is taken."""

import asyncio
import socket
import urllib.error
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aurora_ray.control.plane import ControlPlane
from aurora_ray.control.report.metrics_port import FIRST_PORT, PORTS, MetricsPort
from aurora_ray.log.wire import join_append
from aurora_ray.volume.spec import NodeAddress
from aurora_ray.volume.volume_node import VolumeNode
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import started
from tests.support.inbox import Inbox
from tests.support.polling import poll_until

pytestmark = pytest.mark.allowed_logs(r".*")


def _get(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  (our own server)
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read().decode()


async def _append_garbage(plane: ControlPlane, node_id: str) -> None:
    client = VolumeNode(NodeAddress(node_id, "a", plane.processes.nodes[node_id].seen.address), bytes(16))
    call = await client.append(Inbox())
    call.send_message(join_append([b"no batch"]))
    assert (await call.ended()).code is grpc.StatusCode.INVALID_ARGUMENT
    await client.close()


async def test_a_scraper_gets_all_that_is_promised(runtime: LocalRuntime, free_port: int) -> None:
    async with started(runtime) as running:
        plane = running.plane
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        await poll_until(lambda: len(plane.processes.nodes) == 6)
        await plane.metrics_port.open(free_port)
        assert (await running.api.status("demo"))["metrics"] == f"http://127.0.0.1:{free_port}/metrics"
        await _append_garbage(plane, "b-1")
        status, kind, text = await asyncio.to_thread(_get, f"http://127.0.0.1:{free_port}/metrics")
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        for name in (
            "aurora_cluster_vdl_bytes",
            "aurora_cluster_epoch",
            "aurora_storage_lag_bytes",
            "aurora_storage_promised_epoch",
            "aurora_storage_repair_copied_bytes",
            "aurora_endpoint_sessions_open",
        ):
            assert name in families
        refused = {(s.labels["node"], s.labels["reason"]): s.value for s in families["aurora_storage_refused"].samples}
        assert refused["b-1", "malformed"] == 1
        lags = [sample.value for sample in families["aurora_storage_lag_bytes"].samples]
        assert len(lags) == 12, "two volumes on six nodes"
        assert min(lags) == 0
        assert (await asyncio.to_thread(_get, f"http://127.0.0.1:{free_port}/"))[0] == 404
    assert plane.metrics_port.url is None


async def test_a_port_in_use_is_a_note_and_no_more(runtime: LocalRuntime, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        async with started(runtime) as running:
            await running.api.create("demo", timeout_s=20)
            await running.plane.metrics_port.open(free_port)
            status = await running.api.status("demo")
            assert status["metrics"] is None
            assert any(f":{free_port} " in note for note in status["notes"])


async def test_the_default_is_the_first_free_port_and_0_is_none(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        first, second, none = (MetricsPort(running.plane.metrics, running.plane.say) for _ in range(3))
        await first.open(None)
        await second.open(None)
        await none.open(0)
        taken = [int(str(each.url).split(":")[2].split("/")[0]) for each in (first, second)]
        assert FIRST_PORT <= taken[0] < taken[1] < FIRST_PORT + PORTS
        assert none.url is None
        first.close()
        second.close()

"""Metrics: the registry's rules, the Prometheus text, and the endpoint that serves it."""

import asyncio
import socket
import uuid

import pytest

from aurora_ray import telemetry
from aurora_ray.errors import ConfigurationError


def unique(what: str) -> str:
    """A metric name of this test's own: the registry is the process's."""
    return f"aurora_test{uuid.uuid4().hex}_{what}"


def test_the_same_name_is_the_same_metric() -> None:
    name = unique("refused_appends")
    telemetry.counter(name, "Appends refused.", ["reason"]).labels("fenced").inc()
    telemetry.counter(name, "Appends refused.", ["reason"]).labels("fenced").inc(2)
    assert f'{name}_total{{reason="fenced"}} 3.0'.encode() in telemetry.exposition()


def test_a_name_cannot_change_its_meaning() -> None:
    name = unique("lag_bytes")
    telemetry.gauge(name, "Lag.")
    with pytest.raises(ValueError, match="another kind"):
        telemetry.counter(name, "Lag.")
    with pytest.raises(ValueError, match="with the labels"):
        telemetry.gauge(name, "Lag.", ["node"])


@pytest.mark.parametrize("name", ["lag_bytes", "aurora_lag", "aurora_Lag_bytes", "aurora_lag-bytes_x", ""])
def test_names_have_a_form(name: str) -> None:
    with pytest.raises(ValueError, match="aurora_<area>_<what>_<unit>"):
        telemetry.gauge(name, "Lag.")


def test_histograms_count_into_buckets() -> None:
    name = unique("latency_seconds")
    latency = telemetry.histogram(name, "Latency.", buckets=(0.001, 0.01))
    for value_s in (0.0005, 0.002, 5.0):
        latency.observe(value_s)
    text = telemetry.exposition().decode()
    assert f'{name}_bucket{{le="0.01"}} 2.0' in text
    assert f'{name}_bucket{{le="+Inf"}} 3.0' in text
    assert f"{name}_created" not in text


async def request(port: int, text: bytes) -> bytes:
    """What the server answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_endpoint_serves_metrics_and_nothing_else() -> None:
    telemetry.gauge(unique("vdl_bytes"), "VDL.").set(42)
    async with await telemetry.serve_metrics() as server:
        port = server.sockets[0].getsockname()[1]
        head, _, body = (await request(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"_vdl_bytes 42.0" in body
        assert b" 404 " in await request(port, b"GET / HTTP/1.1\r\n\r\n")
        assert b" 405 " in await request(port, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert await request(port, b"GET /" + b"x" * 10_000 + b"\r\n\r\n") == b"", "too long: closed, not answered"


async def test_a_port_in_use_is_a_clear_error(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(ConfigurationError, match=f":{free_port} "):
        await telemetry.serve_metrics(port=free_port)


async def test_what_is_dear_is_rendered_once_for_all_who_ask() -> None:
    count = 0

    async def dear() -> bytes:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        return b"dear %d" % count

    kept, fresh = telemetry.Rendered(dear, kept_s=60), telemetry.Rendered(dear, kept_s=0)
    assert set(await asyncio.gather(*(kept() for _ in range(5)))) == {b"dear 1"}
    assert await fresh() != await fresh()


@pytest.mark.allowed_logs("could not be rendered")
async def test_what_cannot_be_rendered_is_an_error() -> None:
    async def broken() -> bytes:
        raise ConnectionError("no luck")

    async with await telemetry.serve_metrics(render=broken) as server:
        port = server.sockets[0].getsockname()[1]
        answer = await request(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b" 500 " in answer
        assert b"no luck" not in answer

"""Ports that something else took keep nobody down."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.control.model.bootstrap import new_fleet
from aurora_ray.control.model.regional import Membership
from aurora_ray.control.perform import ports
from aurora_ray.control.perform.ports import free_ports
from aurora_ray.engine.network import claim_port
from aurora_ray.errors import ConfigurationError, PortInUseError
from tests.control.fleets import AZS, with_cluster
from tests.control.local_runtime import LocalInstance, LocalRuntime
from tests.control.test_plane import started

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceConfig, Opened
    from aurora_ray.control.model.state import Fleet


@pytest.mark.allowed_logs(r".*")
async def test_an_instance_whose_port_was_taken_gets_another(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = LocalInstance.open

    async def open_(instance: LocalInstance, config: InstanceConfig) -> Opened:
        await asyncio.to_thread(claim_port, config.host, config.port)
        return await opens(instance, config)

    monkeypatch.setattr(LocalInstance, "open", open_)
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        before = running.plane.fleet.cluster("demo")
        with socket.create_server(("127.0.0.1", before.writer().port)):
            runtime.instances["demo-1"].kill()
            await asyncio.sleep(0)
            await running.plane.wait_until(lambda: "demo-1" not in running.plane.processes.instances, 5, "its end")
            await running.api.wait_available("demo", 20)
            after = running.plane.fleet.cluster("demo")
            assert after.writer().port not in (before.writer().port, before.port, before.reader_port)
            assert (after.port, after.reader_port) == (before.port, before.reader_port), "clients know these"
            assert runtime.instances["demo-1"].configs[-1].port == after.writer().port


def test_a_port_that_is_free_and_nobodys_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST_PORT", first)
        monkeypatch.setattr(ports, "PORTS", 200)
        with pytest.raises(PortInUseError, match="in use"):
            claim_port("127.0.0.1", first)
        (port,) = free_ports(new_fleet("somewhere", AZS), "127.0.0.1", 1)
        assert port > first
        (other,) = free_ports(new_fleet("somewhere", AZS), "127.0.0.1", 1, after=port)
        assert other > port
    monkeypatch.setattr(ports, "FIRST_PORT", 15432)
    monkeypatch.setattr(ports, "PORTS", 1)
    with pytest.raises(ConfigurationError, match="too few"):
        free_ports(with_cluster(new_fleet("somewhere", AZS)), "127.0.0.1", 1)


def test_regions_take_no_ports_of_one_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at those meanwhile."""
    monkeypatch.setattr(ports, "claim_port", lambda _, port: port)
    east = with_cluster(new_fleet("us-east-1", AZS))
    first = free_ports(east, "127.0.0.1", 4)
    west = with_member(with_cluster(new_fleet("eu-west-1", AZS)), slot=1)
    second = free_ports(west, "127.0.0.1", 4)
    assert min(second) == ports.before_those_of(1) + 1 > max(first)
    assert free_ports(west, "127.0.0.1", 1, after=second[-1]) == [second[-1] + 1]
    last = free_ports(with_member(west, slot=15), "127.0.0.1", ports.PORTS_OF_A_REGION)
    assert max(last) < ports.FIRST_PORT + ports.PORTS


def with_member(fleet: Fleet, slot: int) -> Fleet:
    return fleet.with_cluster(replace(fleet.cluster("demo"), membership=Membership("g", slot, "us-east-1")))

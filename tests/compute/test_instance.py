"""One incarnation after the other in one process: what is kept in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from aurora_ray.compute import instance as module
from aurora_ray.compute.config import EngineChoice, IncarnationPhase, InstanceConfig, InstanceStatus, Opened, Outcome
from aurora_ray.compute.instance import Instance
from aurora_ray.engine.network import claim_port
from aurora_ray.errors import PortInUseError
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = VolumeSpec(uuid4(), 8192, 1 << 20, (GroupPlacement(0, tuple(f"n{number}" for number in range(6))),))


class Listens:
    """Takes its port for a moment, as an engine does at its start."""

    def __init__(self, config: InstanceConfig) -> None:
        self._config = config
        self._phase = IncarnationPhase.SEALING

    async def start(self) -> Opened:
        claim_port(self._config.host, self._config.port)
        self._phase = IncarnationPhase.AVAILABLE
        return Opened(1, 1, 1, self._config.port, {})

    def status(self) -> InstanceStatus:
        return InstanceStatus(self._phase)

    async def stop(self, *_: Any, **__: Any) -> Outcome:
        self._phase = IncarnationPhase.ENDED
        return Outcome(asked=True, reason="it was asked to stop")


async def test_nobody_else_gets_the_port_of_one_that_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "incarnation_of", Listens)
    port = claim_port("127.0.0.1", 0)
    choice = EngineChoice("postgres", "", tmp_path)
    config = InstanceConfig("demo", "demo-1", "a", SPEC, (), choice, port, "secret")
    instance = Instance()
    await instance.open(config, {})
    await instance.stop(fast=True, reopens=True)
    with pytest.raises(PortInUseError):
        claim_port("127.0.0.1", port)
    await instance.open(config, {})
    await instance.stop(fast=True)
    assert claim_port("127.0.0.1", port) == port

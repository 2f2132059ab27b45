"""The part of ControlApi (calls.py) that is about global clusters, and what all of its calls begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aurora_ray.control.api import acknowledging, forwarding, regional, regional_report, residency
from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.keys import NODE_PREFIX, Kind, key
from aurora_ray.control.model.runtime import SupersededError
from aurora_ray.errors import ConfigurationError
from aurora_ray.log.sizes import COPIES, WRITE_QUORUM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.control.plane import ControlPlane

LOOK_TIMEOUT_S: Final = 2.0


class RegionalCalls:
    """See ControlApi."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def wait_open(self, timeout_s: float) -> None:
        """Waits until the declared state is loaded. Raises QuorumLostError, ConfigurationError if it cannot be, and
        SupersededError where another control plane has it."""
        await self._plane.wait_until(self._is_open, timeout_s, "loading the control state")

    def _is_open(self) -> bool:
        if self._plane.declared.is_superseded:
            raise SupersededError("another control plane has taken over this fleet: ask again, that one answers")
        if self._plane.is_open:
            return True
        attempts = self._plane.attempts.items()
        hopeless = [attempt.error for what, attempt in attempts if what.startswith(NODE_PREFIX) and attempt.permanent]
        if len(hopeless) > COPIES - WRITE_QUORUM:
            raise ConfigurationError(
                f"{len(hopeless)} of the storage nodes do not start; the first says: {hopeless[0]}"
            )
        check_hope(self._plane.attempts, key(Kind.CONTROL))
        return False

    # ---- global clusters: see regional.py

    async def create_global(self, name: str, cluster: str) -> dict[str, Any]:
        """See regional.create."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await regional.create(self._plane, name, cluster)

    async def invite_region(self, name: str, guest: Mapping[str, Any]) -> dict[str, Any]:
        """See regional.invite."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await regional.invite(self._plane, name, guest)

    async def join_global(
        self, invitation: Mapping[str, Any], *, reader_count: int = 0, memory_bytes: int = 0, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """See regional.join."""
        await self.wait_open(timeout_s)
        return await regional.join(self._plane, invitation, reader_count=reader_count, memory_bytes=memory_bytes)

    async def wait_copied(self, name: str, timeout_s: float) -> dict[str, Any]:
        """See regional.wait_copied; the region as it is then."""
        await self.wait_open(timeout_s)
        await regional.wait_copied(self._plane, name, timeout_s)
        return await regional_report.describe(self._plane, name)

    async def remove_region(
        self, name: str, region: str, *, keep: bool, force: bool = False, timeout_s: float
    ) -> dict[str, Any]:
        """See regional.remove_region."""
        await self.wait_open(timeout_s)
        return await regional.remove_region(self._plane, name, region, keep=keep, force=force, timeout_s=timeout_s)

    async def leave_global(self, name: str, *, keep: bool, timeout_s: float) -> dict[str, Any]:
        """See regional.leave."""
        await self.wait_open(timeout_s)
        return await regional.leave(self._plane, name, keep=keep, timeout_s=timeout_s)

    async def turn_global(self, name: str, to: str, way: str, timeout_s: float) -> dict[str, Any]:
        """See regional.turn."""
        await self.wait_open(timeout_s)
        return await regional.turn(self._plane, name, to, way, timeout_s)

    async def set_residency(
        self, name: str, regions: Sequence[str], jurisdictions: Sequence[str], *, timeout_s: float
    ) -> dict[str, Any]:
        """See residency.set_policy."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await residency.set_policy(self._plane, name, regions, jurisdictions, timeout_s)

    async def set_limits(
        self,
        name: str,
        lease_s: float | None = None,
        rpo_s: float | None = None,
        failover_after_s: float | None = None,
        *,
        timeout_s: float,
    ) -> dict[str, Any]:
        """See acknowledging.set_limits."""
        await self.wait_open(LOOK_TIMEOUT_S)
        limits = acknowledging.Limits(lease_s, rpo_s, failover_after_s)
        return await acknowledging.set_limits(self._plane, name, limits, timeout_s)

    async def set_forwarding(self, name: str, *, on: bool, timeout_s: float) -> dict[str, Any]:
        """See forwarding.set_forwarding."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await forwarding.set_forwarding(self._plane, name, on=on, timeout_s=timeout_s)

    async def describe_residency(self, name: str) -> dict[str, Any]:
        """See residency.describe."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return residency.describe(self._plane, name)

    async def make_way(self, name: str, generation: int) -> dict[str, Any]:
        """See regional.make_way."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await regional.make_way(self._plane, name, generation)

    async def exchange_views(self, name: str, view: Mapping[str, Any]) -> dict[str, Any]:
        """See regional_report.exchange."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await regional_report.exchange(self._plane, name, view)

    async def describe_region(self, name: str) -> dict[str, Any]:
        """See regional_report.describe."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await regional_report.describe(self._plane, name)

    async def global_status(self, name: str) -> dict[str, Any]:
        """See regional_report.status."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await regional_report.status(self._plane, name)

"""Another region of a global cluster, as the control plane under test meets it, and what seals and forks volumes here.

The other region does at once what its own control plane would do in the end: it makes way when it is asked to, follows
whoever is of a later generation, and tells what it is.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from aurora_ray.control.model.views import NOTHING, View
from aurora_ray.errors import FencedError, NodeUnreachableError, QuorumLostError
from aurora_ray.log.lineage import Lineage
from aurora_ray.replication.promotion import Loss, Promotion
from aurora_ray.replication.rejoin import Tail
from aurora_ray.replication.succession import common_lsn, epochs_of, slot_of
from aurora_ray.rpc.admission import OURS
from aurora_ray.volume.origin import ForkPoint
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
from tests.control.crash.handles import LSN
from tests.control.crash.world import Content, Hand, Volume, World

if TYPE_CHECKING:
    from aurora_ray.control.model.regional import Peer
    from aurora_ray.control.plane import ControlPlane
    from aurora_ray.replication.sides import RegionalVolume
    from aurora_ray.replication.succession import Succession

GLOBAL: Final = "g"
HERE, THERE = "somewhere", "elsewhere"
SPEC: Final = VolumeSpec(UUID(int=77), 8192, 1 << 30, (GroupPlacement(0, tuple(f"x-{n}" for n in range(6))),))


@dataclass
class FakeRegion:
    """Survives every control plane here. `deaf`: it answers nothing but who it is."""

    view: View = field(
        default_factory=lambda: View(
            GLOBAL,
            THERE,
            THERE,
            lsn=LSN,
            volume=SPEC.to_dict(),
            nodes=(("x-0", "x", "127.0.0.1:1"),),
            address="127.0.0.1:9",
        )
    )
    deaf: bool = False
    silent: bool = False
    grants: bool = True
    left: bool = False
    promoted_after_s: float = 0.0  # that the primary is drained for it
    _drained_s: float | None = None

    def hears(self, said: View) -> None:
        """It follows whoever is of a later generation, and is promoted when the primary has made way for it."""
        now_s = asyncio.get_running_loop().time()
        mine = said.yielded_to > self.view.generation and slot_of(said.yielded_to) == 1
        if not mine or said.drained_lsn is None:
            self._drained_s = None
        else:
            self._drained_s = now_s if self._drained_s is None else self._drained_s
            if now_s - self._drained_s >= self.promoted_after_s and not self.view.yielded_to:
                self.is_promoted(said.drained_lsn, said.yielded_to)
        if said.generation > self.view.generation and said.is_primary:
            self.view = replace(
                self.view,
                primary=said.region,
                turns=said.turns,
                writes=False,
                following=True,
                yielded_to=0,
                drained_lsn=None,
            )
        if said.is_primary and not self.view.is_primary:
            self.view = replace(
                self.view,
                residency=said.residency,
                lease_s=said.lease_s,
                lease_later_s=said.lease_later_s,
                rpo_s=said.rpo_s,
                failover_after_s=said.failover_after_s,
                forwards=said.forwards,
            )

    def is_promoted(self, at_lsn: int, generation: int) -> None:
        """By its own control plane."""
        turns = (*self.view.turns, (at_lsn, generation))
        self.view = replace(
            self.view, primary=THERE, turns=turns, writes=True, following=False, yielded_to=0, drained_lsn=None
        )

    def makes_way(self, generation: int) -> None:
        """Its writer has ended, and it is drained."""
        self.view = replace(self.view, yielded_to=generation, writes=False, drained_lsn=LSN)


class FakePeers:
    """In the place of `Regions.ask`."""

    def __init__(self, hand: Hand, region: FakeRegion) -> None:
        self._hand, self._region = hand, region

    async def __call__(self, peer: Peer, method: str, request: Any, timeout_s: float) -> Any:
        await self._hand.alive()
        region = self._region
        if peer.region != THERE or region.silent:
            raise NodeUnreachableError(f"{peer.region} does not answer")
        if method == "ExchangeViews":
            said = View.from_plain(json.loads(request.view), OURS.secret)
            region.hears(said)
            grants = said.generation if said.lease_s and region.grants else NOTHING
            return replace(region.view, grants=grants).to_plain(OURS.secret)
        if region.deaf:
            raise QuorumLostError(f"{peer.region} cannot do that now")
        if method == "MakeWay":

            async def makes_way() -> dict[str, Any]:
                region.makes_way(request.generation)
                return {}

            return await self._hand.do("region: make way", makes_way, answer=NodeUnreachableError("no answer"))
        assert method == "LeaveGlobalCluster", method

        async def leaves() -> dict[str, Any]:
            region.left = True
            return {"region": THERE, "cluster": "demo"}

        return await self._hand.do("region: leave", leaves, answer=NodeUnreachableError("no answer"))


class FakeVolumes:
    """In the place of perform.regions.Volumes: every volume ends at LSN."""

    def __init__(self, world: World, hand: Hand) -> None:
        self._world, self._hand = world, hand

    async def _seal(self, side: RegionalVolume, generation: int) -> Volume:
        world, volume = self._world, self._world.volumes[side.spec.volume_id]

        async def seals() -> Volume:
            world.require_quorum(volume)
            epochs = epochs_of(generation)
            epoch = max(volume.epoch + 1, epochs.start)
            if epoch >= epochs.stop:
                raise FencedError("a later generation has it")
            volume.epoch = epoch
            if volume.owner is not None:
                volume.owner.end_incarnation("a higher epoch exists")
                volume.owner = None
            return volume

        return await self._hand.do("volume: seal", seals, answer=QuorumLostError("no answer"))

    async def drain(self, side: RegionalVolume, generation: int) -> int:
        await self._seal(side, generation)
        return LSN

    async def promote(
        self, copy: RegionalVolume, held: Succession, generation: int, notes: Any, *, known_lsn: int, drained: bool
    ) -> Promotion:
        await self._seal(copy, generation)
        succession = held if held.generation == generation else held.promoted(LSN, generation)
        await notes.note_succession(succession)
        return Promotion(generation, LSN, succession, Loss(LSN, max(LSN, known_lsn), 0.0, 0.0))

    async def put_tail_aside(
        self, side: RegionalVolume, held: Succession, succession: Succession, ledger: Any
    ) -> tuple[RegionalVolume, Tail | None]:
        volume, world = await self._seal(side, succession.generation), self._world
        common = common_lsn(held, LSN, succession)
        if common == LSN:
            return side, None
        child = uuid.uuid5(side.spec.volume_id, f"generation {succession.generation}")
        spec = replace(side.spec, volume_id=child, lineage=Lineage(side.spec.volume_id.bytes, common))

        async def forks() -> None:
            made = world.volumes.setdefault(child, Volume(child, dict(spec.placements)))
            made.only_forked, made.content, made.rows = True, Content.COMPLETE, volume.rows
            for placement in spec.groups:
                for node_id in placement.node_ids[:4]:  # the others make theirs when they are told to
                    world.disks[node_id].segments.add((child, placement.group))

        await self._hand.do("volume: fork", forks, answer=QuorumLostError("no answer"))
        tail = Tail(side.spec, common, LSN)
        await ledger.note_tail(tail, spec, ForkPoint(common, volume.epoch, ((0, common),)))
        return replace(side, spec=spec), tail


def install(plane: ControlPlane, world: World, region: FakeRegion) -> None:
    """For a control plane that begins."""
    regions: Any = plane.regions
    regions.ask = FakePeers(world.hand, region)
    regions.volumes = FakeVolumes(world, world.hand)
    regions.one_way_s = lambda _: 0.0

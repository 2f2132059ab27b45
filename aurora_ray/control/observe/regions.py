"""The other regions of global clusters: asked each second, or more often, what they are, and told what this one is.

What a region said stays true (generations only rise), so what was heard last is kept until it says something else; how
old that is shows whether it can be reached. Calls to it prove themselves by the secret that it handed over, and are as
far away as it is (`regions/`, simulated).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from aurora_ray.compute.config import CopySource
from aurora_ray.compute.role import Role
from aurora_ray.control.model.observed import Abroad, InstancePhase
from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.control.model.store import volume_spec
from aurora_ray.control.model.views import View
from aurora_ray.control.observe.leases import Leases, takes
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.control.v1.control_pb2_grpc import ControlStub
from aurora_ray.errors import UNDECODABLE, AuroraError, ConfigurationError, UsageError
from aurora_ray.regions import load_region
from aurora_ray.replication.distance import link_of
from aurora_ray.replication.lease import asked_every_s
from aurora_ray.rpc.admission import OURS, Secret
from aurora_ray.rpc.channel import open_channel
from aurora_ray.rpc.status import CONTROL
from aurora_ray.rpc.tracing import trace_metadata

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.model.regional import Membership, Peer
    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.control.model.state import DBCluster
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.observe.processes import Processes
    from aurora_ray.engine.base import RegionRow, ReplicaRow
    from aurora_ray.rpc.calls import Channel

IN_A_TURN_EVERY_S: Final = 0.25  # while a change of the primary waits for what others say
REACHED_S: Final = 5.0
CALL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Heard:
    view: View
    at_s: float


class PeerClient:
    """Calls of another region's control plane. Raises what it raises, NodeUnreachableError if it does not answer."""

    def __init__(self, one_way_s: float) -> None:
        self._one_way_s = one_way_s
        self._channel: Channel | None = None

    async def ask(self, peer: Peer, method: str, request: Any, timeout_s: float) -> Any:
        """One call; the channel is made anew when the region answers elsewhere."""
        address = await _address_of(peer)
        if self._channel is None or self._channel.address != address:
            await self.close()
            self._channel = open_channel(address, CONTROL, Secret.from_text(peer.secret), link_of(self._one_way_s))
        stub: Any = ControlStub(self._channel)  # type: ignore[no-untyped-call]
        reply: pb.Report = await getattr(stub, method)(request, timeout=timeout_s, metadata=trace_metadata())
        return json.loads(reply.json)

    async def close(self) -> None:
        """Ends the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


async def _address_of(peer: Peer) -> str:
    """On this machine the file says where it answers now."""
    with contextlib.suppress(OSError, *UNDECODABLE):
        return str(json.loads((Path(peer.data_dir) / ADDRESS_FILE).read_text())["address"])
    return peer.address


class Regions:
    """Belongs to the control plane's event loop. `clock` is monotonic, in seconds; `volumes` is what seals and forks
    (perform/regions.py)."""

    def __init__(
        self,
        config: ControlConfig,
        declared: Declared,
        processes: Processes,
        *,
        volumes: Any,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        serving: Callable[[DBCluster], tuple[tuple[ReplicaRow, int], ...]] = lambda _: (),
        endpoint: Callable[[DBCluster], tuple[str, int] | None] = lambda _: None,
    ) -> None:
        self._serving, self._endpoint = serving, endpoint
        self.volumes = volumes
        self.own_address = ""  # of our control API, once it listens
        self._config, self._declared, self._processes = config, declared, processes
        self._clock, self._on_change = clock, on_change
        self._began_s: float | None = None  # asking
        self._heard: dict[tuple[str, str], _Heard] = {}
        self._clients: dict[str, PeerClient] = {}
        self._asked_s: dict[tuple[str, str], float] = {}
        self._status_since: WeakKeyDictionary[Instance, tuple[InstanceStatus | None, float]] = WeakKeyDictionary()
        self.leases = Leases(clock)

    # ---- what is known

    def observe(self) -> dict[str, Abroad]:
        """For decisions, by cluster."""
        now_s = self._clock()
        found = {}
        for cluster in self._declared.fleet.clusters:
            known = cluster.membership
            if known is None:
                continue
            heard = {p.region: h for p in known.peers if (h := self._heard.get((known.name, p.region))) is not None}
            views = {region: each.view for region, each in heard.items()}
            found[cluster.name] = Abroad(
                views,
                frozenset(region for region, each in heard.items() if now_s - each.at_s <= REACHED_S),
                now_s - self._began_s if self._began_s is not None else 0.0,
                *self.leases.fence(cluster, known, views),
                {region: now_s - each.at_s for region, each in heard.items()},
            )
        return found

    def view(self, name: str, region: str) -> tuple[View, float] | None:
        """What that region of the global cluster said last, and for how long that has been known; None if nothing."""
        heard = self._heard.get((name, region))
        return (heard.view, self._clock() - heard.at_s) if heard is not None else None

    def source(self, cluster: DBCluster) -> CopySource:
        """What the cluster's replicator follows. Raises UsageError if the primary has not been heard of."""
        known = cluster.membership
        heard = self._heard.get((known.name, known.primary)) if known is not None else None
        if known is None or heard is None:
            raise UsageError(f"the primary region of {cluster.name} has not been heard of")
        view, peer = heard.view, known.peer(known.primary)
        return CopySource(
            region=view.region,
            volume=view.spec,
            nodes=view.addresses(),
            turns=view.turns,
            secret=peer.secret,
            first_lsn=view.first_lsn,
            one_way_s=self.one_way_s(view.region),
        )

    def one_way_s(self, region: str) -> float:
        """How far away another region is; 0 if it is not known where it, or this one, is."""
        directory = Path(self._config.regions_dir) if self._config.regions_dir else None
        try:
            return load_region(self._declared.fleet.region, directory).distance_ms(region) / 1e3
        except (ConfigurationError, KeyError):
            return 0.0

    def own_view(self, cluster: DBCluster, known: Membership) -> View:
        """What the others are told."""
        instances = self._processes.instances
        writes = not cluster.is_secondary
        for declared in cluster.instances:
            there = instances.get(declared.instance_id)
            busy = (InstancePhase.AVAILABLE, InstancePhase.OPENING, InstancePhase.STOPPING)
            writes |= there is not None and there.seen.role.traits.writes and there.seen.phase in busy
        owner = instances.get(cluster.writer().instance_id)
        status = owner.status if owner is not None else None
        azs = {node.node_id: node.az for node in self._declared.fleet.nodes}
        nodes = sorted(self._processes.nodes.items())
        here = self._declared.fleet.region
        return View(
            name=known.name,
            region=here,
            primary=known.primary,
            turns=cluster.succession,
            yielded_to=known.yielded_to,
            drained_lsn=known.drained_lsn,
            writes=writes,
            following=owner is not None and owner.seen.serves(Role.REPLICATOR),
            lsn=status.vdl if status is not None else 0,
            first_lsn=known.first_lsn,
            volume=volume_spec(cluster.volume).to_dict(),
            nodes=tuple((n, azs[n], node.seen.address) for n, node in nodes if n in azs),
            members=known.peers,
            address=self.own_address,
            lag_ms=status.copy.lag_ms if status is not None and status.copy is not None else 0.0,
            instances=self._serving(cluster),
            residency=cluster.residency,
            lease_s=known.lease_s,
            lease_later_s=known.lease_later_s,
            rpo_s=known.rpo_s,
            failover_after_s=known.failover_after_s,
            unheard_s=self._unheard_s(known),
            takes=takes(cluster, known),
            refuses_below=known.refuses_below,
            fenced_for=self.leases.fenced_for(known),
            as_of_s=self._age_s(owner),
            endpoint=self._endpoint(cluster),
            forwards=known.forwards,
            backs_up_to=(cluster.backup.location or cluster.backup.url) if cluster.backup is not None else None,
        )

    def _unheard_s(self, known: Membership) -> float:
        """For how long the primary was not heard of, if that is another region."""
        if known.primary == self._declared.fleet.region:
            return 0.0
        heard = self._heard.get((known.name, known.primary))
        since_s = heard.at_s if heard is not None else self._began_s
        return self._clock() - since_s if since_s is not None else 0.0

    def _age_s(self, owner: Instance | None) -> float:
        """For how long an instance has told nothing new of itself, as far as was looked."""
        if owner is None:
            return 0.0
        known = self._status_since.get(owner)
        if known is None or known[0] is not owner.status:
            known = self._status_since[owner] = owner.status, self._clock()
        return self._clock() - known[1]

    def rows(self, wall_s: float) -> dict[str, list[RegionRow]]:
        """Of global clusters, by the cluster here: all regions, as they said last, for the users of engines."""
        found = {}
        for cluster in self._declared.fleet.clusters:
            known = cluster.membership
            if known is None:
                continue
            heard = [h for p in known.peers if (h := self._heard.get((known.name, p.region))) is not None]
            others = [each.view.row(wall_s - (self._clock() - each.at_s)) for each in heard]
            found[cluster.name] = [self.own_view(cluster, known).row(wall_s), *others]
        return found

    def writers(self) -> dict[str, tuple[str, int]]:
        """Where sessions on readers have their writes run, by the cluster here: the cluster endpoint of the primary. Of
        clusters where they do, and once the primary has been heard of."""
        found = {}
        for cluster in self._declared.fleet.clusters:
            known = cluster.membership
            if known is None or not known.forwards:
                continue
            heard = self._heard.get((known.name, known.primary))
            here = known.primary == self._declared.fleet.region
            address = self._endpoint(cluster) if here else heard.view.endpoint if heard is not None else None
            if address is not None:
                found[cluster.name] = address
        return found

    # ---- asking and telling

    def due(self, now_s: float) -> Iterator[tuple[DBCluster, Peer]]:
        """Who is to be asked now."""
        self._began_s = now_s if self._began_s is None else self._began_s
        for cluster in self._declared.fleet.clusters:
            known = cluster.membership
            for peer in known.peers if known is not None else ():
                assert known is not None  # noqa: S101 - it has peers
                turns = known.turnover is not None or known.yielded_to > 0
                usual_s = asked_every_s(known.lease_s, known.failover_after_s)
                every_s = min(usual_s, IN_A_TURN_EVERY_S) if turns else usual_s
                if now_s - self._asked_s.get((known.name, peer.region), -every_s) >= every_s:
                    self._asked_s[known.name, peer.region] = now_s
                    yield cluster, peer

    async def exchange(self, cluster: DBCluster, peer: Peer) -> None:
        """Tells a region what this one is, and takes in what it says; silence changes nothing."""
        if cluster.membership is not None:
            with contextlib.suppress(AuroraError):
                await self._exchange(cluster, cluster.membership, peer)

    async def _exchange(self, cluster: DBCluster, known: Membership, peer: Peer) -> None:
        if known.turnover is not None or known.yielded_to:
            await self._processes.refresh(cluster.writer().instance_id)
        own = self.own_view(cluster, known).to_plain(Secret.from_text(peer.secret))
        request = pb.ExchangeViewsRequest(global_cluster=known.name, view=json.dumps(own).encode())
        asked_s = self._clock()
        within_s = min(CALL_TIMEOUT_S, known.lease_s or CALL_TIMEOUT_S)
        view = View.from_plain(await self.ask(peer, "ExchangeViews", request, within_s), OURS.secret)
        self.leases.answered(view, asked_s)
        self.heard(view)

    def answer(self, cluster: DBCluster, known: Membership, view: View) -> View:
        """Takes in what another region that asked says of itself; what it is told. It may get a lease by that."""
        grants = self.leases.grant(cluster, known, view)
        self.heard(view)
        return replace(self.own_view(cluster, known), grants=grants)

    async def ask(self, peer: Peer, method: str, request: Any, timeout_s: float) -> Any:
        """A call of another region's control plane; the JSON of its report."""
        if heard := next((h for (_, region), h in self._heard.items() if region == peer.region), None):
            peer = replace(peer, address=heard.view.address or peer.address)
        client = self._clients.setdefault(peer.region, PeerClient(self.one_way_s(peer.region)))
        return await client.ask(peer, method, request, timeout_s)

    async def ask_to_make_way(self, cluster: DBCluster, peer: Peer, generation: int) -> None:
        """Asks the primary to stop its writer for that generation, and takes in what it says then: what it said before
        would have it asked again at once."""
        known = cluster.membership
        if known is None:
            return
        request = pb.MakeWayRequest(global_cluster=known.name, generation=generation)
        await self.ask(peer, "MakeWay", request, CALL_TIMEOUT_S)
        await self._exchange(cluster, known, peer)

    def heard(self, view: View) -> None:
        """What another region says of itself; an older word than the one that is known is passed over."""
        known = self._heard.get((view.name, view.region))
        if known is not None and known.view.generation > view.generation:
            return
        self._heard[view.name, view.region] = _Heard(view, self._clock())
        if known is None or known.view != view:
            self._on_change()

    def forget(self, name: str, region: str) -> None:
        """A region that belongs to the global cluster no more."""
        self._heard.pop((name, region), None)
        self.leases.forget(name, region)

    async def close(self) -> None:
        """Ends all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

"""What the regions of a global cluster tell each other, once a second: each its own part, never what it heard.

A view is true of the moment at which it was made, and stays so: generations only rise. Whoever decides by one decides
again by the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.control.model.regional import NO_TURNS, Membership, Peer, Turns, newest, turns_from_plain
from aurora_ray.control.model.sealing import seal, unseal
from aurora_ray.engine.base import RegionRow, ReplicaRow
from aurora_ray.errors import UNDECODABLE, MalformedError, UsageError
from aurora_ray.replication.residency import Policy
from aurora_ray.rpc.admission import Secret
from aurora_ray.volume.spec import NodeAddress, VolumeSpec

if TYPE_CHECKING:
    from aurora_ray.control.model.state import DBCluster

NOTHING: Final = -1  # what is granted; generations begin with 0
_SEALED = "peer"  # what a secret on its way to another region is sealed as


@dataclass(frozen=True, slots=True)
class View:
    """One region's part of the global cluster `name`.

    `generation` and `turns`: of its copy. `writes`: a writer is open there, or may be. `lsn`: up to where its volume is
    durable. `nodes`: (id, AZ, address) of running storage nodes. `members`: the other regions that it knows, their
    secrets sealed for whoever this is told to. For people: `lag_ms` behind the primary, which that has none of, and
    `instances` that serve, with the LSN that each shows. `residency`: where data may lie, as the primary said;
    `backs_up_to`: the place of its backup, if it makes one. `lease_s`, `lease_later_s`, `rpo_s`: as declared. `takes`:
    the generation that it wants to take by a failover; `refuses_below`: see Membership; `fenced_for`: the same once
    nothing that it granted is in force. `grants`: of whoever asks, the generation that gets a lease by this answer.
    `as_of_s`: how old what it says of its lag is. `unheard_s`: for how long it has not heard of its primary.
    `endpoint`: where its cluster endpoint listens; `forwards`: as declared.
    """

    name: str
    region: str
    primary: str
    turns: Turns = NO_TURNS
    yielded_to: int = 0
    drained_lsn: int | None = None
    writes: bool = True
    following: bool = False
    lsn: int = 0
    first_lsn: int = 0
    volume: dict[str, Any] = field(default_factory=dict, hash=False)
    nodes: tuple[tuple[str, str, str], ...] = ()
    members: tuple[Peer, ...] = ()
    address: str = ""
    lag_ms: float = 0.0
    instances: tuple[tuple[ReplicaRow, int], ...] = ()
    residency: Policy = field(default_factory=Policy)
    backs_up_to: str | None = None
    lease_s: float = 0.0
    rpo_s: float = 0.0
    takes: int = 0
    refuses_below: int = 0
    fenced_for: int = 0
    grants: int = NOTHING
    as_of_s: float = field(default=0.0, compare=False)
    failover_after_s: float = 0.0
    unheard_s: float = field(default=0.0, compare=False)
    endpoint: tuple[str, int] | None = None
    forwards: bool = False
    lease_later_s: float = 0.0

    @property
    def generation(self) -> int:
        """The newest that its copy is of."""
        return newest(self.turns)

    @property
    def highest(self) -> int:
        """The newest generation that it knows of, or wants."""
        return max(self.generation, self.yielded_to, self.refuses_below, self.takes)

    @property
    def is_primary(self) -> bool:
        """Whether it holds itself to be the primary."""
        return self.primary == self.region

    @property
    def spec(self) -> VolumeSpec:
        """Its volume, as the volume client takes it. Raises MalformedError if it said none."""
        try:
            return VolumeSpec.from_dict(self.volume)
        except (*UNDECODABLE, UsageError) as error:
            raise MalformedError(f"region {self.region} does not say what its volume is: {error!r}") from error

    def row(self, at_s: float) -> RegionRow:
        """For the users of engines; it was true then (Unix time)."""
        return RegionRow(self.region, self.lsn, -1.0 if self.is_primary else self.lag_ms, at_s, self.instances)

    def addresses(self) -> tuple[NodeAddress, ...]:
        """Where its storage nodes answer."""
        return tuple(NodeAddress(*each) for each in self.nodes)

    def to_plain(self, reader: Secret) -> dict[str, Any]:
        """For JSON, as a region with that secret may read it."""
        sealed = [{**asdict(peer), "secret": seal(_SEALED, peer.secret, reader)} for peer in self.members]
        rows = [[*astuple(replace(row, instance_id=""))[:-1], lsn] for row, lsn in self.instances]
        plain = {f: getattr(self, f) for f in View.__dataclass_fields__}
        return {**plain, "members": sealed, "instances": rows, "residency": self.residency.to_dict()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], reader: Secret) -> View:
        """The inverse. Raises MalformedError."""
        try:
            members = tuple(
                Peer(
                    str(p["region"]),
                    int(p["slot"]),
                    str(p["fleet_id"]),
                    str(p["address"]),
                    str(p["data_dir"]),
                    unseal(_SEALED, str(p["secret"]), reader),
                )
                for p in plain["members"]
            )
            drained = plain["drained_lsn"]
            return cls(
                name=str(plain["name"]),
                region=str(plain["region"]),
                primary=str(plain["primary"]),
                turns=turns_from_plain(plain["turns"]),
                yielded_to=int(plain["yielded_to"]),
                drained_lsn=None if drained is None else int(drained),
                writes=bool(plain["writes"]),
                following=bool(plain["following"]),
                lsn=int(plain["lsn"]),
                first_lsn=int(plain["first_lsn"]),
                volume=dict(plain["volume"]),
                nodes=tuple((str(n), str(az), str(at)) for n, az, at in plain["nodes"]),
                members=members,
                address=str(plain["address"]),
                lag_ms=float(plain["lag_ms"]),
                instances=tuple(map(_instance, plain["instances"])),
                residency=Policy.from_dict(plain.get("residency", {})),
                lease_s=float(plain.get("lease_s", 0.0)),
                lease_later_s=float(plain.get("lease_later_s", 0.0)),
                rpo_s=float(plain.get("rpo_s", 0.0)),
                as_of_s=float(plain.get("as_of_s", 0.0)),
                failover_after_s=float(plain.get("failover_after_s", 0.0)),
                unheard_s=float(plain.get("unheard_s", 0.0)),
                takes=int(plain.get("takes", 0)),
                refuses_below=int(plain.get("refuses_below", 0)),
                fenced_for=int(plain.get("fenced_for", 0)),
                grants=int(plain.get("grants", NOTHING)),
                endpoint=_address(plain.get("endpoint")),
                forwards=bool(plain.get("forwards", False)),
                backs_up_to=None if plain.get("backs_up_to") is None else str(plain["backs_up_to"]),
            )
        except (*UNDECODABLE, UsageError) as error:
            raise MalformedError(f"what another region told of itself makes no sense: {error!r}") from error


def _instance(plain: Sequence[Any]) -> tuple[ReplicaRow, int]:
    server, session, cpu, lag_ms, at_s, host, lsn = plain
    return ReplicaRow(str(server), str(session), float(cpu), float(lag_ms), float(at_s), str(host)), int(lsn)


def _address(plain: Sequence[Any] | None) -> tuple[str, int] | None:
    if plain is None:
        return None
    host, port = plain
    return str(host), int(port)


def with_limits(known: Membership, view: View) -> Membership:
    """When commits are acknowledged and writes forwarded, as the primary says."""
    said = ("lease_s", "lease_later_s", "rpo_s", "failover_after_s", "forwards")
    return replace(known, **{name: getattr(view, name) for name in said})


def with_members(cluster: DBCluster, view: View, here: str) -> DBCluster:
    """What the primary says of who belongs to the global cluster, of where data may lie, of when commits are
    acknowledged, and of whether writes are forwarded, taken over; its own address as it says now."""
    known = cluster.membership
    if known is None:
        return cluster
    primary = next((replace(p, address=view.address) for p in known.peers if p.region == view.region), None)
    if primary is None:
        return cluster
    others = [peer for peer in view.members if peer.region != here]
    peers: Membership = replace(known, peers=())
    for peer in (primary, *others):
        peers = peers.with_peer(peer)
    known = with_limits(replace(known, peers=peers.peers), view)
    return replace(cluster, membership=known, residency=view.residency)

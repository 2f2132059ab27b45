"""What each cluster has used: ACU-seconds, I/O, storage over time. Pure: readings and a clock in, totals out.

**The rule.** An instance's capacity counts from when its engine accepts statements until it is asked to end, or its end
is noticed. Each incarnation counts its own ACU-seconds from its beginning, whatever becomes of the control plane (a
*life*, by when it began). An account notes how much of a life it has counted already, beside its totals, and both are
saved together in the control volume, as one mark, by the epoch: so whoever counts next counts the difference, and no
second twice, whichever mark it begins from. What a life did after its last reading is its last capacity for the time
until its end was noticed; if it comes back, it is counted on from there. What ended while no control plane ran is
counted by its own last word, if its process still has that, else up to the last mark and never beyond.

Redo is counted by LSNs, so by what is durable, across failovers; the LSN of a volume that the cluster did not have
before (it was rewound) is where counting goes on. Pages that were read from storage are counted as told: those of the
last moment before an engine is killed are not. Storage is what the volume held when its writer said so last, for all
the time that passed: also while it is paused, and while no control plane runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from aurora_ray.control.decide import reconcile
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.errors import UNDECODABLE, MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.model.observed import InstanceSeen
    from aurora_ray.control.model.state import DBCluster, Fleet

MARK_EVERY_S: Final = 30.0
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class SaveUsage(reconcile.Action):
    """Save what was counted, and up to where."""

    kind: ClassVar = Kind.USAGE


@dataclass(frozen=True, slots=True)
class Reading:
    """What an instance said of itself at `at_s` (Unix time). `life`: when what counts its `acu_s` began, 0: it has no
    capacity that changes; `mount`: whose `pages` they are. `vdl` and `used_bytes` of its volume are the writer's, else
    0. `serves`: it accepts statements; else this is its last word."""

    at_s: float
    life: int = 0
    acu: float = 0.0
    acu_s: float = 0.0
    mount: str = ""
    pages: int = 0
    volume: str = ""
    vdl: int = 0
    used_bytes: int = 0
    serves: bool = True


@dataclass(slots=True)
class Life:
    """What was counted of an incarnation. `heard_s`: its last reading's time; 0: this control plane has none."""

    life: int = 0
    acu: float = 0.0
    acu_s: float = 0.0
    mount: str = ""
    pages: int = 0
    heard_s: float = 0.0
    over: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """Since `since_s` (Unix time). `byte_s`: bytes of the volume times seconds."""

    since_s: float
    acu_s: float = 0.0
    pages: int = 0
    redo_bytes: int = 0
    byte_s: float = 0.0


@dataclass(slots=True)
class Account:
    """Of a cluster: its totals up to `at_s`, and what they were counted of."""

    created_s: float
    totals: Totals
    at_s: float
    volume: str = ""
    vdl: int = 0
    used_bytes: int = 0
    lives: dict[str, Life] = field(default_factory=dict)  # by instance


class Meter:
    """All clusters of a fleet. `look` is called again and again, with Unix time."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._changed = False  # what no later look would find
        self._ended = False
        self._saved_s = 0.0

    def totals(self, cluster: str) -> Totals | None:
        """As last looked at; None if it was not yet."""
        account = self._accounts.get(cluster)
        return account.totals if account is not None else None

    def used_bytes(self, cluster: str) -> int:
        """What its volume held when its writer said so last."""
        account = self._accounts.get(cluster)
        return account.used_bytes if account is not None else 0

    def look(self, fleet: Fleet, readings: Mapping[str, Reading], now_s: float) -> None:
        """Counts. `readings` by instance; one that is not there does not serve."""
        kept = [*fleet.clusters, *(each.cluster for each in fleet.deleted)]
        known = {cluster.name: cluster for cluster in reversed(kept)}
        for name in [n for n, a in self._accounts.items() if n not in known or known[n].created_at_s != a.created_s]:
            del self._accounts[name]
            self._changed = True
        for cluster in fleet.clusters:
            fresh = Account(cluster.created_at_s, Totals(now_s), now_s)
            self._changed |= cluster.name not in self._accounts
            self._count(self._accounts.setdefault(cluster.name, fresh), cluster, readings, now_s)
        for name in self._accounts.keys() - {cluster.name for cluster in fleet.clusters}:
            self._accounts[name].at_s = now_s  # what was deleted is kept for nothing

    def _count(self, account: Account, cluster: DBCluster, readings: Mapping[str, Reading], now_s: float) -> None:
        passed_s, account.at_s = max(0.0, now_s - account.at_s), now_s
        before = account.totals
        acu_s, pages, redo = before.acu_s, before.pages, before.redo_bytes
        for instance in cluster.instances:
            reading, life = readings.get(instance.instance_id), account.lives.get(instance.instance_id)
            if life is not None and (reading is None or reading.life != life.life):
                acu_s += self._ends(life, now_s)
            if reading is None:
                continue
            life = account.lives[instance.instance_id] = _goes_on(life, reading)
            acu_s += max(0.0, reading.acu_s - life.acu_s)
            pages += max(0, reading.pages - life.pages)
            life.acu, life.acu_s = reading.acu, max(life.acu_s, reading.acu_s)
            life.pages, life.heard_s = max(life.pages, reading.pages), reading.at_s
            self._ended |= life.life > 0 and not reading.serves and not life.over
            life.over = not reading.serves
            self._changed |= bool(reading.volume) and reading.volume != account.volume
            redo += _redo(account, reading)
        for gone in account.lives.keys() - {each.instance_id for each in cluster.instances}:
            acu_s += self._ends(account.lives.pop(gone), now_s)
        counted = replace(before, acu_s=acu_s, pages=pages, redo_bytes=redo)
        self._changed |= counted != before
        account.totals = replace(counted, byte_s=before.byte_s + account.used_bytes * passed_s)

    def _ends(self, life: Life, now_s: float) -> float:
        """ACU-seconds since its last reading."""
        if life.over:
            return 0.0
        life.over = True
        self._ended |= life.life > 0
        rest = life.acu * max(0.0, now_s - life.heard_s) if life.heard_s else 0.0
        life.acu_s += rest
        return rest

    def wanted(self, now_s: float) -> Iterator[reconcile.Action]:
        """Actions, as in `reconcile`."""
        if self._ended:
            yield SaveUsage("an instance has ended, and what it used is counted")
        elif self._changed and now_s - self._saved_s >= MARK_EVERY_S:
            yield SaveUsage("more was used")

    # ---- kept

    def pack(self, now_s: float) -> bytes:
        """For the control volume; what is counted from now on is not in it."""
        self._changed = self._ended = False
        self._saved_s = now_s
        return json.dumps({"format": FORMAT, "accounts": {n: asdict(a) for n, a in self._accounts.items()}}).encode()

    def failed(self) -> None:
        """What was packed may not be saved."""
        self._changed = True

    def load(self, packed: bytes) -> None:
        """Goes on from a mark; empty: from nothing. Raises MalformedError: then it is as before."""
        if not packed:
            return
        try:
            plain = json.loads(packed)
            if plain["format"] != FORMAT:
                raise MalformedError(f"the counts of what was used have format {plain['format']}, not {FORMAT}")
            self._accounts = {str(name): _account(each) for name, each in plain["accounts"].items()}
        except UNDECODABLE as error:
            raise MalformedError(f"the counts of what was used cannot be read: {error}") from error


def _account(plain: Mapping[str, Any]) -> Account:
    lives = {str(i): Life(**{**life, "heard_s": 0.0}) for i, life in plain["lives"].items()}
    return Account(**{**plain, "totals": Totals(**plain["totals"]), "lives": lives})


def _goes_on(life: Life | None, reading: Reading) -> Life:
    """What was counted of an incarnation that says this."""
    if life is not None and life.life == reading.life and (life.mount == reading.mount or not reading.serves):
        return life
    acu_s = life.acu_s if life is not None and life.life == reading.life else 0.0
    pages = life.pages if life is not None and life.mount == reading.mount else 0
    return Life(reading.life, acu_s=acu_s, mount=reading.mount, pages=pages)


def _redo(account: Account, reading: Reading) -> int:
    """Bytes that are durable since the last reading."""
    if not reading.volume:
        return 0
    account.used_bytes = reading.used_bytes or account.used_bytes
    if reading.volume != account.volume:
        account.volume, account.vdl = reading.volume, reading.vdl
        return 0
    before, account.vdl = account.vdl, max(account.vdl, reading.vdl)
    return account.vdl - before


def reading_of(seen: InstanceSeen | None, status: InstanceStatus | None) -> Reading | None:
    """What an instance says of itself, if it has a process; None while it neither serves nor has told its last word."""
    if seen is None or status is None:
        return None
    serves = seen.phase is InstancePhase.AVAILABLE
    told_last = not serves and "acu_s" in status.stats and status.stats.get("ended", 0) > 0
    if not serves and not told_last:
        return None
    stats, owns = status.stats, status.role.traits.owns
    return Reading(
        float(stats.get("metered_at_s", 0.0)),
        int(stats.get("metered_since_ns", 0)),
        float(stats.get("acu", 0.0)),
        float(stats.get("acu_s", 0.0)),
        f"{status.pid}/{status.epoch}",
        int(stats.get("pages_fetched", 0)),
        status.volume_id if owns else "",
        status.vdl if owns else 0,
        status.used_bytes if owns else 0,
        serves=serves,
    )

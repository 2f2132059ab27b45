"""Where data may lie: a policy of a global cluster, and what it says of a move. Pure.

A policy names regions, jurisdictions, or both; a region is allowed if either names it, and a policy that names nothing
allows every one. It is asked wherever data could come to another place, with the *purpose* in a word; a move that is
forbidden is refused with the rule that forbids it. Every answer, yes or no, is a line for an audit log: whoever asks
writes it down before acting on it.

The policy goes with the data and not with the global cluster: clones, backups, what is restored out of them and a
region that left have it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aurora_ray.errors import ResidencyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.regions import Region


class Purpose(StrEnum):
    """Ways in which data comes to another place."""

    ADD_REGION = "add-region"
    RESTORE = "restore"
    BACKUP = "backup"
    DIAGNOSTICS = "diagnostics"
    POLICY = "residency"  # where data lies already, when a policy is made


@dataclass(frozen=True, slots=True)
class Policy:
    """The regions and the jurisdictions (as region files say them: "EU", or a country) in which data may lie."""

    regions: frozenset[str] = frozenset()
    jurisdictions: frozenset[str] = frozenset()

    @classmethod
    def of(cls, regions: Iterable[str], jurisdictions: Iterable[str], known: Mapping[str, Region]) -> Policy:
        """Raises UsageError for a region or a jurisdiction that no region file knows: it would allow nothing."""
        policy = cls(frozenset(regions), frozenset(jurisdictions))
        unknown = sorted(policy.regions - known.keys())
        unknown += sorted(policy.jurisdictions - {region.jurisdiction for region in known.values()})
        if unknown:
            raise UsageError(f"no region file knows {', '.join(unknown)}: see the directory `regions`")
        return policy

    def __str__(self) -> str:
        """The rule in words."""
        said = [f"regions {', '.join(sorted(self.regions))}"] if self.regions else []
        said += [f"jurisdictions {', '.join(sorted(self.jurisdictions))}"] if self.jurisdictions else []
        return f"data stays in {' and '.join(said)}" if said else "data may lie anywhere"

    @property
    def restricts(self) -> bool:
        """Whether it forbids anything."""
        return bool(self.regions or self.jurisdictions)

    def allows(self, region: Region) -> bool:
        """Whether data may lie there."""
        return not self.restricts or region.name in self.regions or region.jurisdiction in self.jurisdictions

    def sorted(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The regions and the jurisdictions, always in the same order."""
        return tuple(sorted(self.regions)), tuple(sorted(self.jurisdictions))

    def to_dict(self) -> dict[str, list[str]]:
        """Plain values, for msgpack or JSON."""
        return {"regions": sorted(self.regions), "jurisdictions": sorted(self.jurisdictions)}

    @classmethod
    def from_pair(cls, values: tuple[Iterable[str], Iterable[str]]) -> Policy:
        """The inverse of `sorted`."""
        return cls(*map(frozenset, values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Iterable[str]]) -> Policy:
        """The inverse of `to_dict`."""
        return cls(frozenset(values.get("regions", ())), frozenset(values.get("jurisdictions", ())))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of one move of what is called `subject`; `rule` as it stood."""

    allowed: bool
    purpose: Purpose
    subject: str
    source: str
    target: str
    rule: str

    def audit_line(self, when: str) -> dict[str, Any]:
        """For the audit log; `when` is an RFC 3339 time."""
        return {
            "time": when,
            "event": "data residency",
            "verdict": "allowed" if self.allowed else "refused",
            "purpose": self.purpose.value,
            "subject": self.subject,
            "from": self.source,
            "to": self.target,
            "rule": self.rule,
        }

    def require(self) -> None:
        """Raises ResidencyError if the move is forbidden."""
        if not self.allowed:
            came = f" from {self.source}" if self.source else ""
            raise ResidencyError(
                f"{self.purpose} of {self.subject}{came} to {self.target} is forbidden:"
                f" {self.rule}; choose another place, or have the policy changed (`aurora global residency`)"
            )


def judge(policy: Policy, subject: str, purpose: Purpose, source: str, target: Region | str) -> Verdict:
    """Whether data of `subject` may come from region `source` to `target`. Staying where it is, it may always. A target
    that is only a name is a place that no region file knows: nothing that is restricted comes there."""
    name = target if isinstance(target, str) else target.name
    known = policy.allows(target) if not isinstance(target, str) else not policy.restricts
    return Verdict(name == source or known, purpose, subject, source, name, str(policy))

"""What the declared state says of backups: where a cluster's goes, and out of which a volume is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DAY_S: Final = 86400
RETENTION_S: Final = 7 * DAY_S
RETENTION_MIN_S: Final = DAY_S


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """Where a cluster is backed up. `key_file`: on the machines of its instances; empty: it is not encrypted.
    `location`: the region in which that place lies, as its user said; empty: nobody has."""

    url: str
    key_file: str = ""
    retention_s: int = RETENTION_S
    location: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> BackupPlan:
        """Out of the serialised state."""
        retention_s, location = int(plain["retention_s"]), str(plain.get("location", ""))
        return cls(str(plain["url"]), str(plain["key_file"]), retention_s, location)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a volume is made out of: the backup in `place` (<fleet>/<volume>) as of `lsn`, the end of a flush."""

    url: str
    place: str
    lsn: int
    key_file: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RestorePlan:
        """Out of the serialised state."""
        return cls(str(plain["url"]), str(plain["place"]), int(plain["lsn"]), str(plain["key_file"]))

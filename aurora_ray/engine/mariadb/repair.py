"""Ways back for an owner who locked himself out: statements that the next start runs before anybody gets in."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from aurora_ray.engine.mariadb import accounts
from aurora_ray.engine.mariadb.credentials import native_hash

if TYPE_CHECKING:
    from collections.abc import Sequence


class Repair(StrEnum):
    """What can be mended."""

    ROLES = "roles"  # the owner's account: there, with its privileges, and the fleet's password


def repair_statements(kinds: Sequence[str], password: str) -> tuple[str, ...]:
    """What the repairs are in SQL; each can be done again."""
    return accounts.owner(native_hash(password)) if Repair.ROLES in kinds else ()

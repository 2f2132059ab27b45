"""A global cluster on this machine, driven through the command: its fleets by region."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from aurora_ray.rpc.secret_file import FILE_NAME, load_secret
from tests.cli.copies import digests
from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking

GLOBAL = "g"
ADD_TIMEOUT_S = 400.0
TURN_TIMEOUT_S = 150.0
SETTLED_WITHIN_S = 150.0


@dataclass
class Regions:
    """`first` is the region whose fleet was there before the global cluster. A command takes a second of a processor:
    what does not change, or only when `turn` or `until_settled` is called, is remembered."""

    first: str
    fleets: dict[str, CliFleet] = field(default_factory=dict)
    primary: str = ""
    _dsns: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, region: str) -> None:
        """Returns when it can be read."""
        there = self.fleets[self.first]
        self.fleets[region] = CliFleet(there.data_dir / "regions" / region, there.environment)
        done = there.json("global", "add-region", GLOBAL, region, timeout_s=ADD_TIMEOUT_S)
        assert (done["region"], done["role"], done["state"]) == (region, "secondary", "following")

    def status(self) -> dict[str, Any]:
        """As a region says that runs."""
        found: dict[str, Any] = self.fleets[self.first].json("global", "status", GLOBAL)
        self.primary = str(found["primary"])
        for row in found["regions"]:
            if row["endpoints"]:
                self._dsns[row["region"]] = {name: each["dsn"] for name, each in row["endpoints"].items()}
        return found

    def rows(self) -> dict[str, dict[str, Any]]:
        """The same by region."""
        return {row["region"]: row for row in self.status()["regions"]}

    def dsn(self, region: str, endpoint: str) -> str:
        """Of a region's `cluster` or `reader` endpoint."""
        if region not in self._dsns:
            self.status()
        return self._dsns[region][endpoint]

    def execute(self, region: str, endpoint: str, statement: str) -> list[list[Any]]:
        """In a session of its own."""
        return [list(row) for row in self.fleets[region].execute(self.dsn(region, endpoint), statement)]

    def read(self, region: str, statement: str) -> list[list[Any]]:
        """Where this region's sessions read: at its writer, or at its readers."""
        return self.execute(region, "cluster" if region == self.primary else "reader", statement)

    def turn(self, way: str, to: str) -> dict[str, Any]:
        """Makes a region the primary; what the command tells."""
        told: dict[str, Any] = self.fleets[to].json("global", way, GLOBAL, "--to", to, timeout_s=TURN_TIMEOUT_S)
        assert told["primary"] == to
        self.primary = to
        return told

    def until_settled(self, primary: str) -> None:
        """All regions are there, and those that are not the primary follow it."""
        wanted = {region: "available" if region == primary else "following" for region in self.fleets}
        last: dict[str, str] = {}

        def settled() -> bool:
            last.clear()
            last.update({region: row["state"] for region, row in self.rows().items()})
            return last == wanted

        try:
            poll_until_blocking(settled, SETTLED_WITHIN_S, interval_s=0.5, what=str(wanted))
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {last}{self.trails()}") from None

    def until_read(self, region: str, statement: str, wanted: list[list[Any]]) -> None:
        """A region's sessions read that."""
        last: list[list[Any]] = []

        def reads() -> bool:
            with contextlib.suppress(psycopg.errors.UndefinedTable):  # it has not come there yet
                last[:] = self.read(region, statement)
            return last == wanted

        try:
            poll_until_blocking(reads, SETTLED_WITHIN_S, interval_s=0.5, what=f"{statement} gives {wanted} in {region}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it gives {last}{self.trails()}") from None

    def digests(self, primary: str) -> dict[str, set[tuple[Any, ...]]]:
        """By region: the different contents that its six copies have as of one LSN, the same everywhere."""
        lsn = int(self.fleets[primary].status()["vdl"])
        found = {}
        for region, fleet in self.fleets.items():
            self._until_copied(fleet, lsn)
            told = digests({**fleet.status(), "vdl": lsn}, load_secret(fleet.data_dir / FILE_NAME))
            assert len(told) == 6
            assert len({(log, batches) for _, _, log, batches in told.values()}) == 1, "the same log on all six"
            found[region] = {(content, pages) for content, pages, _, _ in told.values()}
        return found

    def _until_copied(self, fleet: CliFleet, lsn: int) -> None:
        poll_until_blocking(
            lambda: all(node["scl"] >= lsn for node in fleet.status()["storage_nodes"]),
            SETTLED_WITHIN_S,
            interval_s=0.5,
            what=f"all copies in {fleet.data_dir} are as far as LSN {lsn}",
        )

    def trails(self) -> str:
        """What their control planes said last."""
        return "".join(f"\n--- {region}\n{fleet.trail()}" for region, fleet in self.fleets.items())

    def destroy(self) -> None:
        """Those that were added, the newest first; the first one is its maker's."""
        for region in [region for region in self.fleets if region != self.first][::-1]:
            self.fleets[region].destroy()


@contextmanager
def regions_at(path: Path, *regions: str, environment: dict[str, str] | None = None) -> Iterator[Regions]:
    """A global cluster, its primary in the first region; destroyed in the end."""
    with fleet_at(path, environment) as fleet:
        made = Regions(regions[0], {regions[0]: fleet})
        try:
            fleet.check("global", "create", GLOBAL, "--primary", "demo")
            for region in regions[1:]:
                made.add(region)
            made.status()
            yield made
        finally:
            made.destroy()

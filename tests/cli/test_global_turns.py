"""Two regions, two fleets, under load: ten switchovers, a region that is killed, and what the limits promise."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.regions import GLOBAL, Regions, regions_at
from tests.cli.writing import CREATE, DUMP, Writing
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

_log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(900),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
EAST, WEST = "us-east-1", "eu-west-1"
TURNS = 10
LEASE_S = 8.0
RPO_S = 20.0  # the least there is
SILENCE_S = 10.0


@pytest.fixture(scope="module")
def regions(run_dir: Path) -> Iterator[Regions]:
    with regions_at(run_dir / "turns", EAST, WEST) as made:
        made.execute(EAST, "cluster", CREATE)
        yield made


def other(region: str) -> str:
    return WEST if region == EAST else EAST


def until_written(writing: Writing, count: int) -> None:
    """So many more acknowledgements."""
    wanted = len(writing.acks) + count
    poll_until_blocking(lambda: len(writing.acks) >= wanted, 60, what=f"{count} more writes are acknowledged")


def rows_of(regions: Regions, region: str, client: int) -> set[int]:
    rows = regions.read(region, f"select number from written where client = {client}")  # noqa: S608 - a number
    return {int(number) for (number,) in rows}


def equal_everywhere(regions: Regions, primary: str) -> None:
    """The same dump in both regions, and the same content on all copies."""
    dump = regions.read(primary, DUMP)
    regions.until_read(other(primary), DUMP, dump)
    found = regions.digests(primary)
    assert all(len(contents) == 1 for contents in found.values()), f"copies of one region differ: {found}"
    assert found[EAST] == found[WEST]


def test_ten_switchovers_under_load_lose_nothing_and_end_the_same_everywhere(regions: Regions) -> None:
    outages = []
    dsn = regions.status()["writer_dsn"]
    with Writing(dsn, 1) as one, Writing(dsn, 2) as two:
        until_written(one, 50)
        for number in range(TURNS):
            to, asked_s = (WEST, EAST)[number % 2], time.time()
            told = regions.turn("switchover", to)
            assert (told["rpo_bytes"], told["rpo_ms"]) == (0, 0.0)
            until_written(one, 20)
            outages.append(round(one.outage_s(asked_s), 2))
            regions.until_settled(to)
        until_written(two, 20)
    _log.info("outages of %d switchovers: %s s; %d and %d rows", TURNS, outages, len(one.acks), len(two.acks))
    for writing in (one, two):
        assert writing.acknowledged <= rows_of(regions, EAST, writing.client), "an acknowledged write is lost"
    if not regions.rows()[WEST]["readers"]:
        regions.fleets[WEST].check("add-reader", "demo", timeout_s=150)
    equal_everywhere(regions, EAST)


def test_a_region_that_is_killed_under_load_comes_back_fenced_with_its_tail_and_follows(regions: Regions) -> None:
    primary = regions.primary
    to, lost = other(primary), regions.fleets[primary]
    dsn = regions.status()["writer_dsn"]
    with Writing(dsn, 3) as one, Writing(dsn, 4) as two:
        until_written(one, 200)
        until_written(two, 50)
        regions.fleets[to].check("chaos", "kill", f"region:{primary}")
        killed_s = time.time()
        told = regions.turn("failover", to)
        until_written(one, 20)
        until_written(two, 20)
        rto_s = one.first_after(killed_s) or 0.0
    _log.info("failover: told %s; a client's first write %.2f s after the disaster", told, rto_s)
    assert told["rpo_ms"] is not None
    missing = 0
    for writing in (one, two):
        there = rows_of(regions, to, writing.client)
        before = [number for at_s, number in writing.acks if at_s <= killed_s]
        after = {number for at_s, number in writing.acks if at_s > killed_s}
        gone = [number for number in before if number not in there]
        missing += len(gone)
        assert gone == before[len(before) - len(gone) :], "what is there is no prefix of what was written"
        assert after <= there, "a write that the new primary acknowledged is lost"
    # Of a region that is gone the last views are known: how many bytes are missing, its tail tells when it is back.
    assert told["rpo_ms"] > 0 or not missing, "rows are missing, and the report says that nothing is"

    lost.check("up", timeout_s=200)
    regions.until_settled(to)
    row = regions.rows()[primary]
    assert row["role"] == "secondary"
    assert lost.run("failover").returncode != 0, "there is no writer to be moved"
    assert row["lost_tails"] or not missing, "what only the old primary has was not kept"
    used = int(regions.fleets[to].status()["volume"]["bytes"])
    crossed = int(row["link_bytes"])
    _log.info("%d rows missing, tails %s, %d bytes over the link of %d", missing, row["lost_tails"], crossed, used)
    assert crossed < used / 4, "it was copied anew"
    if not row["readers"]:
        lost.check("add-reader", "demo", timeout_s=150)
    equal_everywhere(regions, to)


def test_commits_wait_while_every_secondary_lags_more_than_the_bound(regions: Regions) -> None:
    primary = regions.primary
    away = other(primary)
    here = regions.fleets[primary]
    here.check("global", "limits", GLOBAL, "--rpo", f"{RPO_S:g}s")
    try:
        with Writing(regions.dsn(primary, "cluster"), 5) as writing:
            until_written(writing, 50)
            here.check("chaos", "kill", f"region:{away}")
            killed_s = time.time()
            poll_until_blocking(
                lambda: time.time() - writing.acks[-1][0] > 5.0, 60.0, interval_s=0.2, what="commits wait"
            )
            stalled_after_s = writing.acks[-1][0] - killed_s
            regions.fleets[away].check("up", timeout_s=200)
            until_written(writing, 20)
        _log.info("commits waited %.1f s after the last secondary was lost (bound %g s)", stalled_after_s, RPO_S)
        assert stalled_after_s <= RPO_S + 2.0, "a lag that is told may be so much older than it says"
        assert stalled_after_s > RPO_S / 2, "they waited although the bound was kept"
    finally:
        here.check("global", "limits", GLOBAL, "--no-rpo")
    regions.until_settled(primary)


def test_a_secondary_takes_over_by_itself_when_the_primary_is_silent(regions: Regions) -> None:
    primary = regions.primary
    to, lost = other(primary), regions.fleets[primary]
    lost.check("global", "limits", GLOBAL, "--lease", f"{LEASE_S:g}s", "--failover-after", f"{SILENCE_S:g}s")
    try:
        with Writing(regions.status()["writer_dsn"], 6) as writing:
            until_written(writing, 100)
            regions.fleets[to].check("chaos", "kill", f"region:{primary}")
            killed_s = time.time()
            poll_until_blocking(lambda: writing.first_after(killed_s), 120.0, what="writes go on by themselves")
            rto_s = writing.first_after(killed_s) or 0.0
            until_written(writing, 20)
        _log.info("by itself: first write %.1f s after the disaster (rule %g s, lease %g s)", rto_s, SILENCE_S, LEASE_S)
        assert SILENCE_S / 2 < rto_s < scaled(60)
        assert regions.status()["primary"] == to
        lost.check("up", timeout_s=200)
        regions.until_settled(to)
    finally:
        regions.fleets[to].check("global", "limits", GLOBAL, "--no-failover", "--no-lease")


def test_the_lease_fences_a_primary_that_no_region_reaches(regions: Regions) -> None:
    """Its clients and its storage do: it is its control plane that stands still, so nobody renews the lease."""
    primary = regions.primary
    to, silent = other(primary), regions.fleets[primary]
    silent.check("global", "limits", GLOBAL, "--lease", f"{LEASE_S:g}s")
    try:
        with Writing(regions.dsn(primary, "cluster"), 7) as old:
            until_written(old, 100)
            silent.check("chaos", "pause", "control", "--for", "45")
            paused_s = time.time()
            poll_until_blocking(
                lambda: time.time() - old.acks[-1][0] > 4.0, 40.0, interval_s=0.2, what="it acknowledges no more"
            )
            held_s = old.acks[-1][0] - paused_s
            told = regions.turn("failover", to)
            with Writing(regions.dsn(to, "cluster"), 8) as new:
                until_written(new, 20)
                first_s = new.acks[0][0]
        _log.info("fenced %.1f s after nobody reached it (lease %g s); told %s", held_s, LEASE_S, told)
        assert held_s <= LEASE_S + 1.0
        assert told["fenced"] is True
        assert old.acks[-1][0] < first_s, "two regions acknowledged commits at a time"
        regions.until_settled(to)
        assert regions.rows()[primary]["role"] == "secondary"
    finally:
        regions.fleets[to].check("global", "limits", GLOBAL, "--no-lease")

"""A fleet is lost with all its storage nodes; another one makes its cluster again out of the bucket alone."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.long,  # two fleets, one after the other
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(600),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
LIMIT_S = scaled(90)


def backed_up(fleet: CliFleet) -> Any:
    """What `status` says once all that is durable is in the bucket, and can be restored."""

    def done() -> bool:
        status = fleet.status()
        now = status["backup"]
        return bool(now and now["restorable_from_lsn"] and now["lsn"] >= status["vdl"])

    poll_until_blocking(done, LIMIT_S, what="all is backed up")
    return fleet.status()["backup"]


def rows(fleet: CliFleet, name: str, statement: str) -> Any:
    return fleet.json("sql", name, "-c", statement)["rows"]


CONTENT = "select count(*), sum(number), md5(string_agg(word, ',' order by number)) from numbers"


def test_a_cluster_comes_back_when_every_storage_node_is_lost(run_dir: Path) -> None:
    bucket, key = run_dir / "bucket", run_dir / "key"
    key.write_text(subprocess.run(["openssl", "rand", "-hex", "32"], check=True, capture_output=True, text=True).stdout)
    key.chmod(0o600)
    with fleet_at(run_dir / "lost") as fleet:
        fleet.sql("create table numbers as select n as number, md5(n::text) as word from generate_series(1, 50000) n")
        fleet.check("parameters", "demo", "set", "work_mem=9MB")
        fleet.check("backup", "demo", "--to", str(bucket), "--key-file", str(key))
        backed_up(fleet)
        before = rows(fleet, "demo", CONTENT)
        mark = fleet.json("mark", "demo", "good")
        fleet.sql("delete from numbers where number > 10")
        now = backed_up(fleet)
        assert now["lsn"] > mark["lsn"]
        assert now["lag_bytes"] == 0
        listed = fleet.json("backups", str(bucket), "--key-file", str(key))
        assert [each["cluster"] for each in listed] == ["demo"]
        assert b"numbers" not in b"".join(path.read_bytes() for path in bucket.rglob("*") if path.is_file())
    with fleet_at(run_dir / "new") as fleet:
        refused = fleet.run("restore", str(bucket), "back", "--at", "mark:good")
        assert "key" in refused.stderr
        done = fleet.json("restore", str(bucket), "back", "--at", "mark:good", "--key-file", str(key), timeout_s=200)
        assert done["lsn"] == mark["lsn"]
        assert rows(fleet, "back", CONTENT) == before
        poll_until_blocking(lambda: fleet.status("back")["state"] == "available", LIMIT_S, what="it takes writes")
        assert rows(fleet, "back", CONTENT) == before
        rows(fleet, "back", "insert into numbers values (0, 'new')")
        assert rows(fleet, "back", "show work_mem") == [["9MB"]]
        fleet.check("restore", str(bucket), "latest", "--key-file", str(key), timeout_s=200)
        assert rows(fleet, "latest", "select count(*) from numbers") == [[10]]

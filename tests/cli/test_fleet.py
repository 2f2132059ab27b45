"""A fleet from the first `up` to the last `down`, with kills in between: all real, driven by the command."""

import contextlib
import json
import os
import signal
import stat
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aurora_ray.cli.main import FAILURE, WRONG_USE
from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.rpc.secret_file import FILE_NAME
from benchmarks.histograms import percentiles
from tests.cli.fleet import CliFleet, fleet_at, kill, parent_of, pids_of_fleet, pids_titled
from tests.cli.strangers import doors, files_of, is_program, pids_of, walked_in
from tests.support.polling import poll_until_blocking
from tests.support.stranger import ask

STATE = "/aurora_ray.storage.v1.StorageNode/State"
INFO = "/aurora_ray.control.v1.Control/Info"
# Nodes and engines are replaced while a test runs: the check at the end of the run sees what is left in earnest.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "fleet") as cli:
        yield cli


@pytest.fixture
def dsn(fleet: CliFleet) -> str:
    """The cluster endpoint's, once it works."""
    endpoint: str = fleet.up()["endpoints"]["cluster"]["dsn"]
    fleet.execute(endpoint, "create table if not exists kills (what text)")
    return endpoint


def test_status_tells_what_there_is(fleet: CliFleet) -> None:
    status = fleet.status()
    assert status["cluster"] == "demo"
    assert status["engine"] == "postgres"
    assert status["state"] == "available"
    assert status["epoch"] >= 1
    assert status["vdl"] > 0
    for endpoint in ("cluster", "reader"):
        assert set(status["endpoints"][endpoint]) >= {"host", "port", "dsn"}
    (instance,) = status["instances"]
    assert set(instance) >= {"id", "role", "az", "state", "pid", "dsn", "lag_ms"}
    assert b"postgres" in Path(f"/proc/{instance['pid']}/cmdline").read_bytes()
    nodes = status["storage_nodes"]
    assert [node["state"] for node in nodes] == ["healthy"] * 6
    assert Counter(node["az"] for node in nodes) == {"us-east-1a": 2, "us-east-1b": 2, "us-east-1c": 2}
    for node in nodes:
        assert Path(f"/proc/{node['pid']}").exists()
    assert set(status["volume"]) >= {"bytes", "protection_groups", "limit_bytes"}


def test_metrics_are_there_for_a_scraper(fleet: CliFleet) -> None:
    url = fleet.status()["metrics"]
    assert url.startswith("http://127.0.0.1:")
    assert url in fleet.check("status")
    fleet.sql("create table if not exists scraped (n int)")  # so that there is a commit to count
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  (our own server)
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    latency = families["aurora_quorum_seconds"]
    assert latency.type == "histogram"
    assert max(s.value for s in latency.samples if s.name.endswith("_count")) > 0
    assert families["aurora_cluster_vdl_bytes"].samples[0].value > 0
    assert len(families["aurora_storage_lag_bytes"].samples) == 12, "two volumes on six nodes"
    assert families["aurora_endpoint_sessions_accepted"].samples


def test_for_people_too(fleet: CliFleet) -> None:
    text = fleet.check("status")
    assert text.count("healthy") == 6
    assert "postgresql://" in text
    assert "demo" in fleet.check("list")
    both = ("-c", "select 41 + 1", "-c", "select 'both'")
    assert fleet.check("sql", "demo", *both, "--", "-At").split() == ["42", "both"]
    assert [each["rows"] for each in fleet.json("sql", *both)] == [[[42]], [["both"]]]


def test_sql_reports_errors_in_a_sentence(fleet: CliFleet) -> None:
    done = fleet.run("sql", "--json", "-c", "select nonsense")
    assert done.returncode == 1
    assert 'column "nonsense" does not exist' in done.stderr
    assert fleet.run("status", "nope").returncode == 2


def test_nobody_else_can_read_the_data_or_the_password(fleet: CliFleet) -> None:
    for name in ("fleet.toml", "ray.json", "ray.token", "secret", "passfiles/demo.pgpass"):
        assert stat.S_IMODE((fleet.data_dir / name).stat().st_mode) == 0o600, name
    for name in ("nodes", "passfiles", "logs", "instances/demo-1/mount"):
        assert stat.S_IMODE((fleet.data_dir / name).stat().st_mode) == 0o700, name


def test_every_door_is_closed_to_another_user(fleet: CliFleet) -> None:
    """All that listens, asked without the fleet's secret and with another one: refused, and nothing changes."""
    before = fleet.status()
    found = doors(fleet.data_dir)
    assert {door.kind for door in found} == {"tcp", "unix"}
    assert not [door for door in found if not door.loopback]
    assert sum("StorageNode" in door.owner for door in found) >= 12, "each node's address and append port"
    told, _ = ask(found)
    owners = {f"{door.kind} {door.place}": door.owner for door in found}
    assert not walked_in(found, told)
    ours = [answers for answers in told.values() if answers.get(STATE, "UNIMPLEMENTED") != "UNIMPLEMENTED"]
    assert sum(answers[STATE] == "UNAUTHENTICATED" for answers in ours) >= 6
    for answers in ours:
        # The append port hangs up on whoever it refuses, which a library may tell as a loss of the connection.
        assert {answers[STATE], answers[f"{STATE} with another secret"]} <= {"UNAUTHENTICATED", "UNAVAILABLE"}
        assert not [way for way, answer in answers.items() if answer.startswith("ok")], "not even whether it serves"
    control = [answers for place, answers in told.items() if "ControlActor" in owners[place] and INFO in answers]
    assert [answers[INFO] for answers in control].count("UNAUTHENTICATED") == 1, "the control API"
    postgres = [answers["postgres"] for answers in told.values() if "password wanted" in answers.get("postgres", "")]
    assert set(postgres) == {"password wanted (10)"}, "SCRAM at the endpoints and the engine"
    after = fleet.until(
        lambda status: (
            status["state"] == "available"
            and len([trouble for trouble in status["troubles"] if trouble["code"] == "caller_refused"]) == 7
        ),
        "the fleet is as it was; the nodes and the control plane tell of the callers",
    )
    assert _pids(after) == _pids(before)
    assert after["epoch"] == before["epoch"]
    assert [node["state"] for node in after["storage_nodes"]] == ["healthy"] * 6
    with urllib.request.urlopen(after["metrics"], timeout=10) as answer:  # noqa: S310  (our own server)
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    refused = families["aurora_storage_refused"].samples
    assert sum(s.value for s in refused if s.labels["reason"] == "unauthenticated") > 100


def test_another_user_opens_no_file(fleet: CliFleet) -> None:
    paths = [path for path in files_of(fleet.data_dir) if not is_program(path, fleet.data_dir)]
    assert len(paths) > 1000
    if os.geteuid() == 0:
        _, opened = ask([], map(str, paths))
        assert not opened
    for path in (fleet.data_dir, fleet.data_dir / "nodes", fleet.data_dir / "secret"):
        assert not path.stat().st_mode & 0o066


def test_no_secret_lies_in_clear(fleet: CliFleet) -> None:
    """Not in logs, spans, what storage nodes store, command lines or environments: in its own file only."""
    data_dir = fleet.data_dir
    passwords = {line.rpartition(":")[2] for p in (data_dir / "passfiles").iterdir() for line in p.read_text().split()}
    text = (data_dir / FILE_NAME).read_text().strip()
    token = (data_dir / "ray.token").read_text().strip()
    secrets = {name.encode() for name in (*passwords, text, token)} | {bytes.fromhex(text)}
    assert all(len(secret) >= 16 for secret in secrets)
    kept = {data_dir / FILE_NAME, data_dir / "ray.token", *(data_dir / "passfiles").iterdir()}
    for path in files_of(data_dir):
        if path.is_file() and not path.is_symlink() and path not in kept:
            with contextlib.suppress(FileNotFoundError):
                content = path.read_bytes()
                assert not [secret for secret in secrets if secret in content], path
    for pid in pids_of(data_dir):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not [secret for secret in secrets if secret in content], (pid, name)


def test_a_second_up_finds_the_running_cluster(fleet: CliFleet) -> None:
    before, after = fleet.status(), fleet.up()
    assert _pids(after) == _pids(before)
    assert _addresses(after) == _addresses(before)


def test_another_size_and_parameters_of_the_user_count_after_a_restart_in_place(fleet: CliFleet, dsn: str) -> None:
    set_ = ["shared_buffers=48MB", "max_connections=300", "max_prepared_transactions=7", "wal_level=logical"]
    done = fleet.json("parameters", "demo", "set", *set_, "archive_mode=on")
    assert {one["applies"] for one in done["parameters"]} == {"pending-reboot"}
    done = fleet.json("modify", "demo", "--memory", "512MiB")
    assert (done["memory_bytes"], done["applies"]) == (512 << 20, "now")
    instance = fleet.status()["instances"][0]
    assert (instance["memory_bytes"], instance["acu"], instance["next_memory_bytes"]) == (512 << 20, 0.25, None)
    names = ["shared_buffers", "max_connections", "max_prepared_transactions", "wal_level", "archive_mode"]
    values = [fleet.execute(dsn, f"show {name}")[0][0] for name in (*names, "effective_cache_size", "work_mem")]
    assert values == ["48MB", "300", "7", "logical", "on", "384MB", "4MB"]
    shown = {row["name"]: row for row in fleet.json("parameters", "demo")}
    assert {shown[name]["source"] for name in names} == {"cluster"}
    assert shown["effective_cache_size"]["source"] == "aurora"
    fleet.check("parameters", "demo", "reset", *names)


def test_a_killed_engine_comes_back_by_itself(fleet: CliFleet, dsn: str) -> None:
    before = fleet.status()
    kill(before["instances"][0]["pid"])
    fleet.until_writable(dsn, "insert into kills values ('engine')")
    after = fleet.until(lambda status: status["state"] == "available", "the cluster is available")
    assert after["epoch"] == before["epoch"] + 1
    assert after["instances"][0]["pid"] != before["instances"][0]["pid"]


def test_a_killed_instance_process_takes_its_engine_along_and_comes_back(fleet: CliFleet, dsn: str) -> None:
    before = fleet.status()
    engine = before["instances"][0]["pid"]
    kill(parent_of(engine))
    poll_until_blocking(lambda: start_ticks(engine) is None, what="the engine is gone")
    fleet.until_writable(dsn, "insert into kills values ('instance')")
    assert fleet.status()["epoch"] > before["epoch"]


def test_a_killed_storage_node_comes_back_and_catches_up(fleet: CliFleet, dsn: str) -> None:
    before = fleet.status()["storage_nodes"][2]
    kill(before["pid"])
    fleet.execute(dsn, "insert into kills select 'node' from generate_series(1, 1000)")

    def caught_up(status: dict[str, Any]) -> bool:
        node = status["storage_nodes"][2]
        return bool(node["state"] == "healthy" and node["pid"] != before["pid"] and node["scl"] >= status["vdl"])

    fleet.until(caught_up, "the node has caught up")


@pytest.mark.chaos
def test_all_storage_nodes_killed_at_once_come_back(fleet: CliFleet, dsn: str) -> None:
    for node in fleet.status()["storage_nodes"]:
        kill(node["pid"])
    fleet.until_writable(dsn, "insert into kills values ('nodes')", timeout_s=90)
    fleet.until(lambda status: [n["state"] for n in status["storage_nodes"]] == ["healthy"] * 6, "all healthy")


def test_a_killed_control_plane_is_restarted_and_manages_on(fleet: CliFleet, dsn: str) -> None:
    before = fleet.status()
    (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
    kill(control)
    fleet.execute(dsn, "insert into kills values ('control')")
    after = fleet.until(lambda status: status["state"] == "available", "the control plane answers")
    assert _pids(after) == _pids(before)
    assert pids_titled("ray::ControlActor", fleet.data_dir) != [control]
    kill(after["instances"][0]["pid"])
    fleet.until_writable(dsn, "insert into kills values ('engine, after control')")


def test_a_second_cluster_with_another_version_comes_and_goes(fleet: CliFleet) -> None:
    created = fleet.json("create", "other", "--engine-version", "16", timeout_s=150)
    assert created["engine_version"] == "16"
    assert created["endpoints"]["cluster"]["port"] != fleet.status()["endpoints"]["cluster"]["port"]
    assert fleet.run("create", "other").returncode == 2
    assert [cluster["cluster"] for cluster in fleet.json("list")] == ["demo", "other"]
    fleet.check("delete", "other", "--yes", timeout_s=90)
    assert [cluster["cluster"] for cluster in fleet.json("list")] == ["demo"]
    assert not (fleet.data_dir / "instances" / "other-1").exists()


@pytest.mark.chaos
def test_several_ray_tasks_load_one_cluster(fleet: CliFleet) -> None:
    """What the generators say they did is what the database has."""
    missing = fleet.run("bench", "run", "--seconds", "1")
    assert missing.returncode == WRONG_USE
    assert "--init SCALE makes them" in missing.stderr

    made = ("--init", "2", "--tasks", "3", "--clients", "2", "--seconds", "2")
    result: dict[str, Any] = fleet.json("bench", "run", *made, timeout_s=180)
    assert (result["tasks"], result["clients"], result["scale"], len(result["machines"])) == (3, 2, 2, 1)
    assert result["all"]["transactions"] > 0
    assert result["all"]["failed"] == 0
    assert fleet.sql("select count(*) from pgbench_history") == [[result["all"]["transactions"]]]
    assert percentiles([result["histogram"]])["p50"] == result["all"]["latency_us"]["p50"] > 0

    dsn = fleet.status()["endpoints"]["cluster"]["dsn"]
    twice = ("--dsn", dsn, "--dsn", dsn, "--workload", "select", "--rate", "50", "--seconds", "3")
    result = fleet.json("bench", "run", *twice, timeout_s=120)
    assert result["tasks"] == 2, "one for each server at least"
    assert 75 <= result["all"]["transactions"] <= 225, "50 a second by all together, not by each"

    refused = fleet.run("bench", "run", "--dsn", "postgresql://127.0.0.1:1/postgres", "--seconds", "1")
    assert refused.returncode == FAILURE
    assert refused.stderr.count("\n") == 1
    assert json.loads(fleet.check("status", "--json"))["state"] == "available"


def test_down_and_up_bring_the_same_data_back(fleet: CliFleet, dsn: str) -> None:
    fleet.execute(dsn, "create table kept as select generate_series(1, 5000) i")
    fleet.check("failover")
    poll_until_blocking(lambda: any(t["whole"] for t in fleet.json("trace", "list")), 40, interval_s=0.5)
    before = fleet.status()
    traces = fleet.json("trace", "list")
    assert fleet.json("down", timeout_s=90)["stopped"]
    for pid in _pids(before):
        assert start_ticks(pid) is None  # a corpse that nobody has collected yet does nothing any more
    assert fleet.run("status").returncode == 1
    assert fleet.json("trace", "list") == traces, "they can be read while the fleet is down"
    assert "failover.detect" in fleet.check("trace", "show", traces[0]["trace_id"])
    after = fleet.up()
    assert _addresses(after) == _addresses(before)
    assert fleet.sql("select count(*), sum(i) from kept") == [[5000, 12502500]]


@pytest.mark.chaos
def test_a_power_cut_loses_nothing_that_was_acknowledged(fleet: CliFleet, dsn: str) -> None:
    for number in range(50):
        fleet.execute(dsn, f"insert into kills values ('power {number}')")  # noqa: S608
    host = json.loads((fleet.data_dir / "ray.json").read_text())["pid"]
    victims = {host, *_pids(fleet.status()), *pids_of_fleet(fleet.data_dir)}
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):  # some end by themselves when others do
            os.kill(pid, signal.SIGKILL)
    poll_until_blocking(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in victims), what="all are dead")
    after = fleet.up()
    assert fleet.sql("select count(*) from kills where what like 'power %'") == [[50]]
    assert after["state"] == "available"


def _addresses(status: dict[str, Any]) -> dict[str, tuple[str, int, str]]:
    return {name: (at["host"], at["port"], at["dsn"]) for name, at in status["endpoints"].items() if "port" in at}


def _pids(status: dict[str, Any]) -> list[int]:
    return [status["instances"][0]["pid"], *(node["pid"] for node in status["storage_nodes"])]

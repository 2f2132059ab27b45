"""The daemons of the local Ray are killed: the fleet comes back by itself, and `down` leaves nothing in any case.

Nor does an `up` that fails.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.engine.postgres.shared_memory import posix_segments
from aurora_ray.ray import local as local_ray
from aurora_ray.ray.host import RESTARTS_MAX
from tests.cli.fleet import CliFleet, fleet_at, kill, pids_of_fleet, pids_titled
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "ray-dies", up=False) as cli:
        yield cli


def kill_daemon(fleet: CliFleet, name: str) -> local_ray.LocalRay:
    """The cluster as it was."""
    running = local_ray.find(fleet.data_dir)
    assert running is not None
    assert running.serves
    kill(running.daemons[name][0])
    poll_until_blocking(lambda: not running.serves, what=f"the {name} is dead")
    return running


def test_a_killed_daemon_brings_the_fleet_back_by_itself(fleet: CliFleet) -> None:
    dsn = fleet.up()["endpoints"]["cluster"]["dsn"]
    fleet.execute(dsn, "create table t as select 'before' as what")
    before = set(pids_of_fleet(fleet.data_dir))
    host = kill_daemon(fleet, "raylet").pid
    fleet.until(lambda status: status["state"] == "available", "the fleet is back", timeout_s=60)
    fleet.until_writable(dsn, "insert into t values ('after')", timeout_s=10)
    assert fleet.sql("select what from t order by what desc") == [["before"], ["after"]]
    running = local_ray.find(fleet.data_dir)
    assert running is not None
    assert running.pid == host
    assert set(pids_of_fleet(fleet.data_dir)) & before == {host}, "all others are new"
    assert "raylet (process" in (fleet.data_dir / "logs" / local_ray.LOG_NAME).read_text()


def test_down_leaves_nothing_when_ray_is_dead(fleet: CliFleet) -> None:
    engine = int(fleet.up()["instances"][0]["pid"])
    shared_memory = posix_segments([engine])
    assert shared_memory
    before = set(pids_of_fleet(fleet.data_dir))
    kill_daemon(fleet, "raylet")
    began_s = time.monotonic()
    assert fleet.json("down")["stopped"]
    assert time.monotonic() - began_s < scaled(15)
    assert pids_of_fleet(fleet.data_dir) == []
    assert not [pid for pid in before if Path(f"/proc/{pid}/exe").exists()]
    assert not [path for path in shared_memory if path.exists()]


@pytest.mark.chaos
def test_it_gives_up_when_ray_dies_again_and_again(fleet: CliFleet) -> None:
    fleet.up()
    for _ in range(RESTARTS_MAX + 1):
        assert local_ray.find_serving(fleet.data_dir, scaled(30)) is not None
        kill_daemon(fleet, "gcs_server")
    poll_until_blocking(lambda: local_ray.find(fleet.data_dir) is None, 30, what="the host process has given up")
    assert pids_of_fleet(fleet.data_dir) == []
    assert "`aurora up` starts the fleet" in (fleet.data_dir / "logs" / local_ray.LOG_NAME).read_text()
    done = fleet.run("status")
    assert done.returncode == 1
    assert "`aurora up`" in done.stderr
    assert fleet.up()["state"] == "available"


def without_module(directory: Path, module: str) -> dict[str, str]:
    """An environment in which that one cannot be loaded: an installation of which a part was not built."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(f"import sys; sys.modules[{module!r}] = None")
    return {"PYTHONPATH": str(directory)}


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("aurora_ray.control.plane", "Ray did not start"),
        pytest.param("aurora_ray.storage._versions", "3 of the storage nodes do not start", marks=pytest.mark.chaos),
    ],
)
def test_an_up_that_fails_says_why_at_once_and_leaves_nothing_running(
    run_dir: Path, tmp_path: Path, module: str, said: str
) -> None:
    environment = without_module(tmp_path / "without", module)
    with fleet_at(run_dir / "fails", environment, up=False) as fleet:
        done = fleet.run("up")
        assert done.returncode == 1
        assert said in done.stderr
        assert module in done.stderr
        assert local_ray.processes(fleet.data_dir) == {}
        assert not local_ray.socket_dir(fleet.data_dir).parent.exists()


@pytest.mark.chaos
def test_a_control_plane_that_cannot_begin_tries_again(fleet: CliFleet) -> None:
    """Ray would leave it at one that failed in its beginning."""
    fleet.up()
    address = fleet.data_dir / ADDRESS_FILE
    address.unlink()
    address.mkdir()
    kill(pids_titled("ray::ControlActor", fleet.data_dir)[0])
    log = fleet.data_dir / "logs" / "control.log"
    poll_until_blocking(lambda: log.read_text().count("cannot begin") > 1, 30, what="two were tried in vain")
    address.rmdir()
    assert fleet.until(lambda status: status["state"] == "available", "it is back")

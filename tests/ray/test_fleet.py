"""The fleet from outside: nothing is ended, removed or made unless it is proved to be this directory's own."""

import ast
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from aurora_ray.config import load_settings
from aurora_ray.control.api.client import NotRunningError
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ControlConfig
from aurora_ray.control.plane import ControlPlane
from aurora_ray.errors import AuroraError, ConfigurationError, QuorumLostError, UsageError
from aurora_ray.ray import data_dir as directory
from aurora_ray.ray import fleet
from aurora_ray.ray import local as local_ray
from aurora_ray.ray.data_dir import JOINED_NAME, our_files
from aurora_ray.ray.fleet import Fleet, OtherFleetError
from aurora_ray.rpc import secret_file
from aurora_ray.rpc.secret_file import FILE_NAME
from tests.control.fleets import AZS
from tests.house.source import package_modules, parse

OTHER = "somewhere:6379"


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is run here."""
    monkeypatch.setattr("aurora_ray.engine.account.find_account", lambda _: SimpleNamespace(switch=False))


def made(data_dir: Path) -> Path:
    """A stopped fleet's directory, as far as it matters here."""
    data_dir.mkdir(exist_ok=True)
    bootstrap.save(data_dir, bootstrap.new_fleet("somewhere", AZS))
    node = data_dir / "nodes" / "a-1"
    node.mkdir(parents=True)
    (node / "lock").touch()
    return data_dir


@pytest.fixture
def ray_of_another(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Ray cluster that runs another fleet, of the same directory on another machine; what was done to it."""
    done: list[str] = []

    directories: list[Path] = []

    def connect(address: str, data_dir: Path, *, own: bool) -> None:
        directories.append(data_dir)

    def info() -> dict[str, Any]:
        return {"data_dir": str(directories[-1]), "fleet_id": str(uuid4())}

    def shut_down(destroy: bool) -> None:
        done.append("shut down")

    other = SimpleNamespace(info=SimpleNamespace(remote=info), shutdown=SimpleNamespace(remote=shut_down))
    monkeypatch.setattr(fleet, "_controls", lambda: [("aurora-ray-another", other)])

    monkeypatch.setattr(fleet, "_connect", connect)
    monkeypatch.setattr(fleet, "_ensure_control", lambda *_: done.append("started"))
    monkeypatch.setattr(fleet, "_get", lambda found, _: found)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    return done


def test_down_leaves_another_fleet_alone_and_removes_its_own_data_only(
    tmp_path: Path, ray_of_another: list[str]
) -> None:
    made(tmp_path / "data")
    (tmp_path / "data" / JOINED_NAME).write_text(OTHER + "\n")
    with pytest.raises(OtherFleetError, match="not the one that is here"):
        fleet._shut_down(tmp_path / "data", destroy=True)
    fleet.down(tmp_path / "data", destroy=True)
    assert not ray_of_another
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_refused_up_leaves_no_trace_of_the_address(
    tmp_path: Path, ray_of_another: list[str], monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if known:
        made(tmp_path)
    settings = load_settings(data_dir=tmp_path, ray_address=OTHER)
    with pytest.raises(OtherFleetError):
        Fleet.up(settings)
    assert not (tmp_path / JOINED_NAME).exists()
    assert bootstrap.exists(tmp_path) == known
    assert not ray_of_another


def test_a_small_fleet_is_on_one_machine(tmp_path: Path, ray_of_another: list[str]) -> None:
    with pytest.raises(UsageError, match="leave out --small or --address"):
        Fleet.up(load_settings(data_dir=tmp_path, ray_address=OTHER, small=True))
    assert not ray_of_another


def test_a_fleet_of_the_first_version_is_ours_though_it_does_not_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    first = SimpleNamespace(info=SimpleNamespace(remote=lambda: {"data_dir": str(tmp_path), "pid": 1}))
    monkeypatch.setattr(fleet, "_controls", lambda: [("aurora-ray", first)])
    monkeypatch.setattr(fleet, "_get", lambda found, _: found)
    assert fleet._find_ours(tmp_path) is first
    with pytest.raises(UsageError, match="older version: `aurora down`"):
        fleet._find_ours(tmp_path, older=False)


WAITED, REFUSED = QuorumLostError("starting demo took longer than 1 s"), ConfigurationError("no such engine")


class Outcome(NamedTuple):
    """What became of the first cluster, and whether the fleet is to end then."""

    error: AuroraError
    has_state: bool
    states: list[str]
    ends: bool


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(REFUSED, has_state=False, states=[], ends=True),
        Outcome(WAITED, has_state=False, states=[], ends=True),
        Outcome(REFUSED, has_state=True, states=[], ends=True),
        Outcome(REFUSED, has_state=True, states=["opening"], ends=True),
        Outcome(WAITED, has_state=True, states=["opening"], ends=False),  # only the waiting was given up
        Outcome(REFUSED, has_state=True, states=["opening", "available"], ends=False),
    ],
)
def test_a_new_fleet_that_comes_to_nothing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    """One that was there before never does, whatever fails."""
    ended: list[Path] = []
    bootstrap.save(tmp_path, replace(bootstrap.new_fleet("somewhere", AZS), revision=int(outcome.has_state)))
    secret_file.ensure_secret(tmp_path / FILE_NAME)
    monkeypatch.setattr(fleet, "_end", lambda data_dir, _: ended.append(data_dir))
    monkeypatch.setattr(Fleet, "clusters", lambda _: [{"state": state} for state in outcome.states])
    for is_new in (False, True):
        started = Fleet(tmp_path, "127.0.0.1:1")
        started.is_new = is_new
        with pytest.raises(type(outcome.error)), started.ended_unless_made():
            raise outcome.error
        assert ended == [tmp_path] * (is_new and outcome.ends)
        started.close()


@pytest.mark.parametrize("has_state", [False, True])
def test_an_up_that_fails_ends_what_it_started_unless_a_fleet_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_state: bool
) -> None:
    ended: list[Path] = []
    if has_state:
        bootstrap.save(tmp_path, replace(bootstrap.new_fleet("us-east-1", AZS), revision=1))
    monkeypatch.setattr(local_ray, "start", lambda *_: None)
    monkeypatch.setattr(fleet, "UP_TIMEOUT_S", 0.0)
    monkeypatch.setattr(fleet, "_end", lambda data_dir, _: ended.append(data_dir))
    with pytest.raises(NotRunningError, match="does not answer"):
        Fleet.up(load_settings(data_dir=tmp_path))
    assert ended == [tmp_path] * (not has_state)


@pytest.mark.parametrize(("content", "mode", "said"), [("", 0o600, "damaged"), ("ab" * 32, 0o644, "chmod 600")])
def test_a_secret_that_is_none_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, mode: int, said: str
) -> None:
    made(tmp_path)
    (tmp_path / FILE_NAME).write_text(content)
    (tmp_path / FILE_NAME).chmod(mode)
    monkeypatch.setattr(local_ray, "start", lambda *_: pytest.fail("nothing may be started"))
    with pytest.raises(ConfigurationError, match=said):
        Fleet.up(load_settings(data_dir=tmp_path))
    assert (tmp_path / FILE_NAME).read_text() == content


def test_data_that_a_process_serves_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "UNSERVED_TIMEOUT_S", 0.0)
    data_dir = made(tmp_path)
    with (data_dir / "nodes" / "a-1" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for destroy in (False, True):
            with pytest.raises(UsageError, match="serves"):
                fleet.down(data_dir, destroy=destroy)
    assert bootstrap.exists(data_dir)
    fleet.down(data_dir, destroy=True)
    assert not data_dir.exists()


def test_where_nothing_is_nothing_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="no fleet in"):
        fleet.down(tmp_path, destroy=False)
    assert fleet.down(tmp_path, destroy=True) is None
    assert fleet.down(tmp_path / "nowhere", destroy=False) is None


@pytest.fixture(params=["nodes/a-1", "passfiles/demo.pgpass", "instances/demo-1"])
def without_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory in which a fleet was whose file is gone."""
    (tmp_path / str(request.param)).mkdir(parents=True)
    yield tmp_path
    assert not bootstrap.exists(tmp_path)


def test_no_fleet_is_made_where_there_is_a_sign_of_an_older_one(
    without_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ray, "start", lambda *_: pytest.fail("nothing may be started"))
    with pytest.raises(ConfigurationError, match=r"tell of a fleet that was here.*aurora repair fleet"):
        Fleet.up(load_settings(data_dir=without_file))
    with pytest.raises(ConfigurationError, match="aurora repair fleet"):
        Fleet.find(without_file)


def test_a_control_plane_makes_no_fleet_where_it_does_not_find_its_own(tmp_path: Path, without_file: Path) -> None:
    def start(data_dir: Path, fleet_id: str) -> ControlPlane:
        config = ControlConfig(data_dir, "somewhere", AZS, 1 << 30, 1 << 30, 300.0, 1 << 28, fleet_id=fleet_id)
        return ControlPlane(config, None)  # type: ignore[arg-type]

    with pytest.raises(ConfigurationError, match="aurora repair fleet"):
        start(without_file, "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="run `aurora up` where the file of fleet"):
        start(tmp_path / "empty", str(uuid4()))
    (tmp_path / "other").mkdir()
    made(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="was to be started"):
        start(tmp_path / "other", str(uuid4()))
    assert os.listdir(tmp_path / "empty") == []


def test_every_file_that_is_written_into_the_data_directory_goes_with_the_fleet() -> None:
    """Whoever keeps a file there names it `FILE_NAME`."""
    named = [
        (path, node.value.value)
        for path, _ in package_modules()
        if "storage" not in path.parts  # files of a node's own directory
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Constant)
        and any(
            isinstance(target, ast.Name) and target.id == "FILE_NAME"
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        )
    ]
    assert len(named) > 5
    assert [(path.name, name) for path, name in named if name not in our_files()] == []

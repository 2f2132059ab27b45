"""What keeps an engine from starting, and what the user is told."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall, StopMode
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import ConfigurationError, EngineError, PortInUseError

pytestmark = pytest.mark.postgres


async def test_a_port_in_use(make_engine: Callable[..., PostgresEngine], cluster: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        engine = make_engine(port=server.getsockname()[1])
        with pytest.raises(PortInUseError, match="is in use: stop what listens there"):
            await engine.start(cluster)
    await engine.start(cluster)


async def test_a_port_taken_at_the_last_moment(
    engine: PostgresEngine, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("aurora_ray.engine.postgres.server.claim_port", lambda *_: server.getsockname()[1])
        with pytest.raises(PortInUseError, match="is in use: stop what listens there"):
            await engine.start(cluster)
    assert engine.pid is None


async def test_a_parameter_that_is_not_the_users_to_set(
    make_engine: Callable[..., PostgresEngine], cluster: Path
) -> None:
    with pytest.raises(ConfigurationError, match="fsync is fixed"):
        await make_engine(parameters={"fsync": "off"}).start(cluster)


@pytest.fixture
def stranger(account: EngineAccount) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the engine's account that has nothing to do with it."""
    with subprocess.Popen(account.command(["sleep", "60"])) as process:
        yield process
        process.kill()


async def test_a_stale_lock_of_a_living_process(
    engine: PostgresEngine, cluster: Path, account: EngineAccount, stranger: subprocess.Popen[bytes]
) -> None:
    """After a reboot, the number in postmaster.pid may belong to any process, also to one of the same account."""
    (cluster / "postmaster.pid").write_text(f"{stranger.pid}\n{cluster}\n1700000000\n5432\n\n\n\n")
    account.own(cluster / "postmaster.pid", 0o600)
    await engine.start(cluster)
    await engine.stop()
    assert stranger.poll() is None


async def test_two_servers_on_one_directory(make_engine: Callable[..., PostgresEngine], cluster: Path) -> None:
    first, second = make_engine(), make_engine(run_dir=cluster.parent / "other")
    await first.start(cluster)
    with pytest.raises(EngineError, match=rf"already works on .*{first.pid}"):
        await second.start(cluster)
    with pytest.raises(EngineError, match=f"already runs, as process {first.pid}"):
        await first.start(cluster)
    await first.check()


def _as_if_of_version_12(cluster: Path) -> None:
    (cluster / "PG_VERSION").write_text("12\n")


def _as_if_not_ours(cluster: Path) -> None:
    os.chown(cluster, 54321, 54321)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (shutil.rmtree, r"is not a PostgreSQL data directory: .*/data is missing"),
        (lambda cluster: (cluster / "PG_VERSION").unlink(), r"is not a PostgreSQL data .*PG_VERSION is missing"),
        (lambda cluster: (cluster / "global/pg_control").unlink(), r"pg_control is missing"),
        (lambda cluster: cluster.chmod(0o755), r"has mode 0755: chmod it to 0700"),
        (_as_if_of_version_12, r"holds data of PostgreSQL '12', not of \d+"),
        pytest.param(
            _as_if_not_ours,
            r"belongs to uid 54321, but the engine runs as .*: chown it",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away"),
        ),
    ],
)
async def test_a_directory_that_is_not_what_it_should_be(
    spoil: Callable[[Path], None], complaint: str, engine: PostgresEngine, cluster: Path
) -> None:
    spoil(cluster)
    with pytest.raises(EngineError, match=complaint):
        await engine.start(cluster)
    assert not engine.log_path.exists()


@pytest.mark.allowed_logs("does not start with")
@pytest.mark.parametrize("damage", [b"", b"\0" * 8192, b"garbage" * 1170])
async def test_a_damaged_control_file(damage: bytes, engine: PostgresEngine, cluster: Path) -> None:
    (cluster / "global" / "pg_control").write_bytes(damage)
    with pytest.raises(EngineError, match=r"control file|could not read|incorrect checksum|incompatible with server"):
        await engine.start(cluster)
    assert engine.pid is None


async def test_garbage_in_place_of_the_catalog(engine: PostgresEngine, cluster: Path) -> None:
    for path in (cluster / "global").iterdir():
        if path.name.isdigit():
            path.write_bytes(b"\xaa" * path.stat().st_size)
    await engine.start(cluster, timeout_s=10)  # a server is alive that lets nobody in: that is for its owner to mend
    with pytest.raises(EngineError, match="refuses"):
        await engine.give_password("secret")


async def test_a_server_that_takes_too_long(
    make_engine: Callable[..., PostgresEngine], cluster: Path, install: EngineInstall, data_dir: Path
) -> None:
    sluggish = data_dir / "bin"
    sluggish.mkdir()
    (sluggish / "postgres").write_text("#!/bin/sh\necho 'thinking about it' >&2\nsleep 1000 & wait\n")
    (sluggish / "postgres").chmod(0o755)
    engine = make_engine(install=EngineInstall("postgres", install.version, sluggish))
    with pytest.raises(EngineError, match=r"not ready within 0\.3 s; its log ends:\nthinking about it"):
        await engine.start(cluster, timeout_s=0.3)
    assert engine.pid is None


async def test_a_missing_binary(
    make_engine: Callable[..., PostgresEngine], cluster: Path, install: EngineInstall, data_dir: Path
) -> None:
    engine = make_engine(install=EngineInstall("postgres", install.version, data_dir / "nowhere"))
    with pytest.raises(ConfigurationError, match="is it still installed"):
        await engine.start(cluster)


async def test_an_engine_that_never_ran(engine: PostgresEngine) -> None:
    assert engine.pid is None
    assert await engine.stop(StopMode.FAST) is None
    with pytest.raises(EngineError, match="has not been started"):
        await engine.wait_exit()
    with pytest.raises(EngineError, match="refuses"):
        await engine.check(timeout_s=1)

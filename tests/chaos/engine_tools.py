"""What the engine's own tools say of the data: amcheck, checksums, and a stock server on a copy as of an LSN."""

import asyncio
import os
import random
import shutil
import subprocess
from pathlib import Path

import psycopg

from aurora_ray.engine.account import EngineAccount, find_account
from aurora_ray.engine.base import EngineInstall, StopMode
from aurora_ray.engine.postgres.install import discover, find_install, stage
from aurora_ray.engine.postgres.server import PostgresEngine
from tests.chaos.checks import LostError, check_indexes, check_own_sums
from tests.support.stack import Stack
from tests.support.stack_export import export
from tests.support.stack_view import state_of
from tests.support.stack_writer import ACCOUNT
from tests.support.timing import scaled

TOOL_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0


def amcheck_version() -> str | None:
    """A PostgreSQL on this machine whose amcheck is installed with it; the one in the wheel has none."""
    for install in discover():
        if any(_share(install).glob("**/extension/amcheck.control")):
            return install.version
    return None


def _share(install: EngineInstall) -> Path:
    done = subprocess.run(
        [install.bin_dir / "pg_config", "--sharedir"], capture_output=True, text=True, check=False, timeout=20
    )
    return Path(done.stdout.strip()) if done.returncode == 0 else install.bin_dir / "nowhere"


def check_with_amcheck(stack: Stack) -> bool:
    """Every table and B-tree, every heap tuple looked up in every index; False if this PostgreSQL has no amcheck."""
    with stack.connect() as session:
        if not session.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'").fetchone():
            return False
    program = find_install(stack.version).bin_dir / "pg_amcheck"
    where = ["-h", "127.0.0.1", "-p", str(stack.writer.port), "-U", "postgres", "-d", "postgres"]
    _run([str(program), *where, "--install-missing", "--heapallindexed"], env={"PGPASSWORD": stack.password})
    return True


def check_as_of(stack: Stack, choose: random.Random, *, newest: bool, oldest_lsn: int = 0) -> int:
    """A stock server on a copy of the volume as of a random LSN (or the newest) finds it consistent; the LSN.

    At the newest LSN after an orderly end, the copy's checksums are verified before the server touches it. Before
    `oldest_lsn`, while the engine's first files came in, the volume holds no data directory that a server would open.
    """
    account = find_account(ACCOUNT)
    install = stage(find_install(stack.version), account, stack.directory / "data" / "engines")
    target = stack.directory / "copy"
    lsn = None if newest else asyncio.run(_some_lsn(stack, choose, oldest_lsn))
    try:
        lsn = asyncio.run(export(stack.spec, stack.addresses, lsn, target, account))
        if newest and not stack.writer.alive:
            _run(account.command([str(install.bin_dir / "pg_checksums"), "--check", "-D", str(target)]))
        asyncio.run(_ask_stock_server(install, account, target))
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return lsn


async def _some_lsn(stack: Stack, choose: random.Random, oldest_lsn: int) -> int:
    states = [await state_of(node, stack.spec) for node in stack.addresses]
    known = [state for state in states if state is not None]
    oldest_lsn = max(oldest_lsn, *(state.floor_lsn for state in known))
    return choose.randint(oldest_lsn, max(oldest_lsn, min(state.vdl for state in known)))


def newest_lsn(stack: Stack) -> int:
    """The highest VDL that a storage node has heard of."""
    states = [asyncio.run(state_of(node, stack.spec)) for node in stack.addresses]
    return max(state.vdl for state in states if state is not None)


async def _ask_stock_server(install: EngineInstall, account: EngineAccount, data_dir: Path) -> None:
    run_dir = data_dir.with_name("copy-run")
    engine = PostgresEngine(install, account, run_dir)
    try:
        await engine.start(data_dir, timeout_s=scaled(START_TIMEOUT_S))
        await asyncio.to_thread(_check_copy, run_dir / "socket", engine.port)
    finally:
        await engine.stop(StopMode.KILL)
        shutil.rmtree(run_dir, ignore_errors=True)


def _check_copy(socket_dir: Path, port: int) -> None:
    # Through the socket, as an administrator: root may enter its directory.
    with psycopg.connect(
        host=str(socket_dir), port=port, user="postgres", dbname="postgres", autocommit=True
    ) as session:
        if session.execute("SELECT 1 FROM pg_tables WHERE tablename = 'transfers'").fetchone():
            check_own_sums(session)
            check_indexes(session)


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(TOOL_TIMEOUT_S),
    )
    if done.returncode != 0:
        raise LostError(f"{Path(command[0]).name} finds damage:\n{done.stdout}{done.stderr}")

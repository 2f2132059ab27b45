"""What programs did to files of the data directory, and what they archive, after the writer was killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from tests.engine.conftest import account, cluster, image, image_cache, install, make_engine, records
from tests.interposer.test_archiving import STATIC_SOURCE
from tests.support.engine_stack import engine_on
from tests.support.polling import poll_until
from tests.volume.cluster import running

__all__ = ["account", "cluster", "image", "image_cache", "install", "make_engine", "records"]

pytestmark = [pytest.mark.postgres, pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")]

EDITS = """
cp pg_hba.conf other.txt; sed -i 's/^# TYPE/# TYPES/' pg_hba.conf other.txt; mv other.txt other2.txt
sed 's/^# TYPES/# KINDS/' pg_hba.conf > hba.new && mv hba.new pg_hba.conf
bash -c 'echo by bash > b.txt; printf x > p.txt'; seq 3000 | sort > so.txt; cat so.txt > c.txt; cat > from_server.txt
"""
FILES = ["pg_hba.conf", "other2.txt", "b.txt", "p.txt", "so.txt", "c.txt", "from_server.txt"]
SUMS = "select n, md5(pg_read_binary_file(n)) from unnest(%s::text[]) n"
SEGMENTS = "select name from pg_ls_waldir() where length(name) = 24 and name < pg_walfile_name(pg_current_wal_lsn())"


async def ask(dsn: str, statement: str, *parameters: Any) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        cursor = await session.execute(statement, parameters or None)
        return await cursor.fetchall() if cursor.description else []


@pytest.fixture
def archive(data_dir: Path, account: EngineAccount) -> Path:
    """A directory for archived WAL, with a static program that copies."""
    directory = data_dir / "archive"
    directory.mkdir()
    (directory / "copy.c").write_text(STATIC_SOURCE)
    subprocess.run(["gcc", "-O", "-static", "-o", directory / "copy", directory / "copy.c"], check=True)
    account.own(directory, 0o755)
    account.require_reachable(directory)
    return directory


WAYS = (".cat", ".cp", ".gzip", ".rsync", ".static")  # of archiving, by the suffix of what each leaves


def command_for(archive: Path) -> str:
    to = f"{archive}/%f"
    rsync = f"rsync -a %p {to}.rsync" if shutil.which("rsync") else f"dd if=%p of={to}.rsync status=none"
    each = (f"{archive}/copy %p {to}.static", f"cp %p {to}.cp", f"gzip < %p | gzip -dc > {to}.gzip", rsync)
    return " && ".join((*each, f"cat %p > {to}.cat", f"touch {to}"))


async def make_wal(dsn: str, name: str) -> dict[str, str]:
    """Segments of WAL that are complete and that nobody has archived, with the sums of their content."""
    await ask(dsn, f"select g, md5(g::text) m into {name} from generate_series(1, 30000) g")  # noqa: S608
    await ask(dsn, "select pg_switch_wal()")
    segments = [segment for (segment,) in await ask(dsn, SEGMENTS)]
    assert segments
    return dict(await ask(dsn, SUMS, [f"pg_wal/{segment}" for segment in segments]))


async def check_archived(archive: Path, sums: dict[str, str]) -> None:
    wanted = {os.path.basename(path): md5 for path, md5 in sums.items()}

    async def archived() -> bool:
        return all((archive / segment).exists() for segment in wanted)

    await poll_until(archived, timeout_s=60)
    for segment, md5 in wanted.items():
        copies = {way: (archive / f"{segment}{way}").read_bytes() for way in WAYS}
        found = {way: hashlib.md5(copy, usedforsecurity=False).hexdigest() for way, copy in copies.items()}
        assert found == dict.fromkeys(WAYS, md5)
        assert any(copies[".cat"])


async def test_edited_files_stay_and_archived_wal_is_right(
    data_dir: Path, archive: Path, account: EngineAccount, install: EngineInstall, image_cache: Path
) -> None:
    """After a kill, and then after a planned failover."""
    common = {"account": account, "install": install, "image_cache": image_cache}
    settings = {"archive_mode": "on", "autovacuum": "off"}
    async with running(data_dir / "nodes") as nodes:
        root = data_dir / "writer"
        parameters = {**settings, "archive_command": "false"}
        async with engine_on(nodes, root, parameters=parameters, **common) as (stack, dsn):
            sums = await make_wal(dsn, "t")
            await ask(dsn, f"copy (select generate_series(1, 3000)) to program $${EDITS}$$")
            before = dict(await ask(dsn, SUMS, FILES))
            await stack.flush()  # nobody synced them: what is not sent yet when the writer is killed is lost
            for name in ("outside", "again"):
                with pytest.raises(psycopg.errors.FeatureNotSupported, match="outside the volume") as refused:
                    await ask(dsn, f"create tablespace {name} location '{archive}'")
                assert "allow_in_place_tablespaces" in (refused.value.diag.message_hint or "")
            assert not any(name.startswith("PG_") for name in os.listdir(archive))
        parameters = {**settings, "archive_command": command_for(archive)}
        async with engine_on(nodes, root, parameters=parameters, create=False, **common) as (stack, dsn):
            assert dict(await ask(dsn, SUMS, FILES)) == before
            await check_archived(archive, sums)
            await ask(dsn, "alter system set archive_command = 'false'")
            await ask(dsn, "select pg_reload_conf()")
            sums = {path: md5 for path, md5 in (await make_wal(dsn, "u")).items() if path not in sums}
            await stack.stop_in_order()
        async with engine_on(nodes, root, parameters=parameters, create=False, **common) as (_, dsn):
            await ask(dsn, "alter system reset archive_command")
            await ask(dsn, "select pg_reload_conf()")
            await check_archived(archive, sums)
            assert dict(await ask(dsn, SUMS, FILES)) == before

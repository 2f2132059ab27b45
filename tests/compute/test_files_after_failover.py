"""What programs did to files of the data directory, and what they archive, after the writer was killed."""

from __future__ import annotations

import os
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


async def test_edited_files_stay_and_archived_wal_is_right(
    data_dir: Path, archive: Path, account: EngineAccount, install: EngineInstall, image_cache: Path
) -> None:
    to = f"{archive}/%f"
    command = f"{archive}/copy %p {to}.static && cp %p {to}.cp && gzip < %p | gzip -dc > {to}.gzip && cat %p > {to}"
    common = {"account": account, "install": install, "image_cache": image_cache}
    settings = {"archive_mode": "on", "autovacuum": "off"}
    async with running(data_dir / "nodes") as nodes:
        root = data_dir / "writer"
        parameters = {**settings, "archive_command": "false"}
        async with engine_on(nodes, root, parameters=parameters, **common) as (_, dsn):
            await ask(dsn, "create table t as select g, md5(g::text) m from generate_series(1, 30000) g")
            await ask(dsn, "select pg_switch_wal()")
            await ask(dsn, f"copy (select generate_series(1, 3000)) to program $${EDITS}$$")
            before = dict(await ask(dsn, SUMS, FILES))
            for name in ("outside", "again"):
                with pytest.raises(psycopg.errors.FeatureNotSupported, match="outside the volume") as refused:
                    await ask(dsn, f"create tablespace {name} location '{archive}'")
                assert "allow_in_place_tablespaces" in (refused.value.diag.message_hint or "")
            assert not any(name.startswith("PG_") for name in os.listdir(archive))
        parameters = {**settings, "archive_command": command}
        async with engine_on(nodes, root, parameters=parameters, create=False, **common) as (_, dsn):
            assert dict(await ask(dsn, SUMS, FILES)) == before
            segments = [name for (name,) in await ask(dsn, SEGMENTS)]
            assert segments

            async def archived() -> bool:
                return all((archive / name).exists() for name in segments)

            await poll_until(archived, timeout_s=60)
            sums = dict(await ask(dsn, SUMS, [f"pg_wal/{name}" for name in segments]))
            for name in segments:
                copies = {(archive / f"{name}{how}").read_bytes() for how in ("", ".cp", ".gzip", ".static")}
                assert len(copies) == 1
                assert any(copies.pop())
            assert len(sums) == len(segments)

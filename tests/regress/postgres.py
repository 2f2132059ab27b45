"""`python -m tests.regress --source postgresql-15.18 --regress-so regress.so --bin /usr/lib/postgresql/15/bin`

Runs PostgreSQL's own regression suite on the writer of a fleet of its own with a reader beside it, through the cluster
endpoint, then compares dumps of all databases with those of the reader, and has amcheck look at every B-tree there. The
suite, which is no part of this project, comes from the server's source (src/test/regress); `regress.so` is that
folder's regress.c, compiled against the server's headers.

Prints what failed, as JSON; the exit code is 1 if the reader differs from the writer. Tests of the suite may fail for
the server's build (no ICU) or settings of ours, and are only named.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking

SUITE_TIMEOUT_S = 1500.0
DUMP_TIMEOUT_S = 300.0
FOLLOW_S = 120.0
SEQUENCE_AHEAD = 33  # a sequence's WAL is so many values ahead of it, so a standby shows a later one
SHOWN_LINES = 40
RESTRICTED = re.compile(r"^\\(un)?restrict \S+$", re.MULTILINE)
SETVAL = re.compile(r"^SELECT pg_catalog\.setval\('(.*)', (-?\d+), (true|false)\);$")


def main(words: Sequence[str]) -> int:
    """Runs it, as these words on the command line say; the exit code."""
    arguments = _arguments(words)
    with tempfile.TemporaryDirectory(prefix="aurora-regress-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        with fleet_at(directory / "fleet", up=False) as fleet:
            status = fleet.up("--readers", "1", "--engine-version", arguments.version)
            failed = _run_suite(arguments, status, directory)
            found = _compare(arguments, fleet, directory)
    sys.stdout.write(json.dumps({"failed": failed, **found}, indent=2) + "\n")
    return 1 if found["differ"] or found["damaged"] else 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.regress", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--source", required=True, type=Path, help="the server's source")
    parser.add_argument("--regress-so", required=True, type=Path, help="its src/test/regress/regress.c, compiled")
    parser.add_argument("--bin", required=True, type=Path, help="the server's programs")
    parser.add_argument("--version", default="15", help="of the engine")
    parser.add_argument("--schedule", type=Path, help="of tests; default: the suite's parallel_schedule")
    return parser.parse_args(words)


def _run_suite(arguments: argparse.Namespace, status: dict[str, Any], directory: Path) -> list[str]:
    """The names of tests that failed."""
    suite = (arguments.source / "src/test/regress").resolve()
    out, libraries = directory / "out", directory / "lib"
    (out / "results").mkdir(parents=True)
    (out / "results").chmod(0o777)  # the server writes there too
    libraries.mkdir()
    contrib = (arguments.bin.parent / "lib" / name for name in ("autoinc.so", "refint.so"))
    for module in (arguments.regress_so, *contrib):
        copy = libraries / module.name
        copy.write_bytes(module.read_bytes())
        copy.chmod(0o755)
    end = status["endpoints"]["cluster"]
    with psycopg.connect(end["dsn"], autocommit=True) as session:
        session.execute("CREATE DATABASE regression TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        for name, value in {
            "lc_messages": "'C'", "lc_monetary": "'C'", "lc_numeric": "'C'", "lc_time": "'C'", "bytea_output": "'hex'",
            "timezone_abbreviations": "'Default'",
            "max_parallel_workers": "8",
            "max_parallel_workers_per_gather": "2",
        }.items():  # fmt: skip
            session.execute(f"ALTER DATABASE regression SET {name} TO {value}".encode())
    program = arguments.bin.parent / "lib/pgxs/src/test/regress/pg_regress"
    command = [
        program, f"--inputdir={suite}", f"--outputdir={out}", f"--bindir={arguments.bin}", f"--dlpath={libraries}",
        f"--schedule={arguments.schedule or suite / 'parallel_schedule'}", "--max-concurrent-tests=20",
        "--use-existing", "--dbname=regression", f"--host={end['host']}", f"--port={end['port']}", "--user=postgres",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=_environment(end["dsn"]), capture_output=True, text=True, check=False, timeout=SUITE_TIMEOUT_S
    )
    sys.stderr.write(done.stdout)
    failed = re.findall(r"^(?:test|     )\s*(\S+)\s+\.\.\. FAILED", done.stdout, re.MULTILINE)
    if failed and (diffs := out / "regression.diffs").exists():
        sys.stderr.write(diffs.read_text(errors="replace")[:20000])
    return failed


def _environment(dsn: str) -> dict[str, str]:
    passfile = psycopg.conninfo.conninfo_to_dict(dsn).get("passfile", "")
    return {**os.environ, "PGPASSFILE": str(passfile), "LC_ALL": "C"}


def _compare(arguments: argparse.Namespace, fleet: CliFleet, directory: Path) -> dict[str, Any]:
    """Dumps of each database of the writer and of the reader, and what amcheck says of the reader's indexes."""
    status = fleet.status()
    writer, reader = (next(i for i in status["instances"] if i["role"] == role) for role in ("writer", "reader"))
    with psycopg.connect(writer["dsn"], autocommit=True) as session:
        names = [
            str(n)
            for (n,) in session.execute("SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template0'")
        ]
        session.execute("CREATE TABLE the_end AS SELECT 1")
    poll_until_blocking(lambda: _shows_the_end(reader["dsn"]), FOLLOW_S, interval_s=0.2, what="the reader follows")
    differ, sizes = {}, {}
    for name in names:
        texts = [_dump(arguments, directory, each["dsn"], name) for each in (writer, reader)]
        sizes[name] = len(texts[0])
        difference = _difference(texts[0], texts[1], _increments(writer["dsn"], name))
        if difference:
            differ[name] = difference
    roles = [_globals(arguments, each["dsn"]) for each in (writer, reader)]
    if roles[0] != roles[1]:
        differ["(globals)"] = _difference(roles[0], roles[1], {})
    checked = 0
    damaged: list[str] = []
    for name in names:
        if name != "template1":
            count, bad = _amcheck(writer["dsn"], reader["dsn"], name)
            checked, damaged = checked + count, damaged + bad
    return {"databases": sizes, "differ": differ, "indexes": checked, "damaged": damaged, "reader": reader["id"]}


def _shows_the_end(dsn: str) -> bool:
    with psycopg.connect(dsn, autocommit=True) as session:
        return session.execute("SELECT to_regclass('the_end') IS NOT NULL").fetchone() == (True,)


def _dump(arguments: argparse.Namespace, directory: Path, dsn: str, database: str) -> str:
    # Unlogged tables cannot be read on a standby.
    path = directory / "dump.sql"
    named = psycopg.conninfo.make_conninfo(dsn, dbname=database)
    _check([arguments.bin / "pg_dump", "--no-unlogged-table-data", "-f", path, "-d", named], dsn)
    return _without_keys(path.read_text(errors="surrogateescape"))


def _globals(arguments: argparse.Namespace, dsn: str) -> str:
    return _without_keys(_check([arguments.bin / "pg_dumpall", "--globals-only", "-d", dsn], dsn))


def _without_keys(dump: str) -> str:
    """Each dump has a random one, between which psql takes no commands from it."""
    return RESTRICTED.sub("", dump)


def _check(command: Sequence[object], dsn: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env=_environment(dsn),
        capture_output=True,
        text=True,
        check=False,
        timeout=DUMP_TIMEOUT_S,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[:2000]}")
    return done.stdout


def _difference(writers: str, readers: str, increments: Mapping[str, int]) -> list[str]:
    """What differs, but for sequences that are ahead on the reader as far as their WAL is."""
    found = list(difflib.unified_diff(writers.splitlines(), readers.splitlines(), n=0, lineterm=""))
    values: dict[str, list[int]] = {}
    for line in found:
        if match := SETVAL.match(line[1:]):
            values.setdefault(match[1], []).append(int(match[2]))
    ahead = {
        name for name, both in values.items() if len(both) == 2 and _is_ahead(both[0], both[1], increments.get(name, 1))
    }
    left = [line for line in found if not ((match := SETVAL.match(line[1:])) and match[1] in ahead)]
    return [line for line in left if not line.startswith(("---", "+++", "@@"))][:SHOWN_LINES]


def _is_ahead(writers: int, readers: int, increment: int) -> bool:
    return increment == 0 or 0 <= (readers - writers) / increment <= SEQUENCE_AHEAD


def _increments(dsn: str, database: str) -> dict[str, int]:
    """Of its sequences; 0 for one that begins again at its end, and may be anywhere."""
    asked = (
        "SELECT format('%I.%I', schemaname, sequencename), CASE WHEN cycle THEN 0 ELSE increment_by END "
        "FROM pg_sequences"
    )
    with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=database)) as session:
        return {str(name): int(increment) for name, increment in session.execute(asked)}


def _amcheck(writer: str, reader: str, database: str) -> tuple[int, list[str]]:
    make = psycopg.conninfo.make_conninfo
    with psycopg.connect(make(writer, dbname=database), autocommit=True) as session:
        session.execute("CREATE EXTENSION IF NOT EXISTS amcheck")

    def is_there() -> bool:
        with psycopg.connect(make(reader, dbname=database), autocommit=True) as session:
            return bool(session.execute("SELECT FROM pg_extension WHERE extname = 'amcheck'").rowcount)

    poll_until_blocking(is_there, FOLLOW_S, interval_s=0.2, what="the reader follows")
    bad = []
    with psycopg.connect(make(reader, dbname=database), autocommit=True) as session:
        indexes = session.execute(
            "SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_index i "
            "ON i.indexrelid = c.oid "
            "WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisvalid"
        ).fetchall()
        for oid, name in indexes:
            try:
                session.execute("SELECT bt_index_check(%s::oid::regclass, true)", (oid,))
            except psycopg.Error as error:
                bad.append(f"{database}: {name}: {error}")
    return len(indexes), bad

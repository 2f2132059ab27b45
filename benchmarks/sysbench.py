"""Load by sysbench's oltp tests (a Debian package), and the tables that they use.

Random numbers are uniform: sysbench's default sends most statements to a few rows, and row locks would decide. Its
latencies come as counts in buckets of about 2 %, so that is how exact its percentiles are. Connection parameters go
into a configuration file that only we can read, never onto the command line.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from aurora_ray.engine.mariadb.connection import options_of
from benchmarks.histograms import rounded
from benchmarks.loads import Load, LoadResult
from benchmarks.programs import GRACE_S, LoadError, find, run_program

PROGRAM: Final = "sysbench"
MYSQL_DATABASE: Final = "sbtest"
PACKAGE_ADVICE: Final = "sysbench is not installed: `make bench-tools`, or on Debian `apt-get install sysbench`"
_PREPARE_TIMEOUT_S: Final = 1800.0
_BUCKET: Final = re.compile(r"^\s*(\d+\.\d+) \|\**\s+(\d+)$", re.MULTILINE)


def installed() -> bool:
    """Whether there is such a program."""
    return shutil.which(PROGRAM) is not None


def fill_sysbench(dsn: str, tables: int, rows: int) -> None:
    """Makes sbtest1, sbtest2 and so on. Raises LoadError."""
    with _configuration(dsn) as file:
        sizes = [f"--tables={tables}", f"--table-size={rows}"]
        run_program([_program(), file, *sizes, "oltp_read_write", "prepare"], timeout_s=_PREPARE_TIMEOUT_S)


def run_sysbench(dsn: str, load: Load) -> LoadResult:
    """Runs one test against `dsn`. Raises LoadError."""
    if load.rate_tps is not None:
        raise LoadError("loads of a fixed rate are pgbench's: sysbench does not count the time that a client was late")
    (test,) = load.scripts
    options = [f"--tables={load.tables}", f"--table-size={load.rows}", f"--threads={load.clients}"]
    options += [f"--time={round(load.seconds)}", "--events=0", f"--rand-seed={load.seed}", "--rand-type=uniform"]
    with _configuration(dsn) as file:
        started_s = time.monotonic()
        command = [_program(), file, *options, "--histogram=on", test, "run"]
        output, cpu_s = run_program(command, timeout_s=load.seconds + GRACE_S)
        elapsed_s = time.monotonic() - started_s
    transactions = int(find(r"transactions: +(\d+) ", output))
    tps = float(find(r"transactions: +\d+ +\(([\d.]+) per sec", output))
    failed = int(find(r"ignored errors: +(\d+) ", output))
    return LoadResult(transactions, failed, round(elapsed_s, 3), tps, round(cpu_s, 3), read_buckets(output))


def read_buckets(output: str) -> dict[int, int]:
    """The lines of its histogram: a bucket's milliseconds, asterisks, how many."""
    counts: dict[int, int] = {}
    for latency_ms, count in _BUCKET.findall(output):
        latency_us = rounded(round(1000 * float(latency_ms)))
        counts[latency_us] = counts.get(latency_us, 0) + int(count)
    return counts


def _program() -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        raise LoadError(PACKAGE_ADVICE)
    return program


@contextmanager
def _configuration(dsn: str) -> Iterator[str]:
    """The option that names a file with the connection's parameters, for as long as the block runs."""
    values = _mysql(dsn) if dsn.startswith("--") else _pgsql(dsn)
    with tempfile.NamedTemporaryFile("w", prefix="sysbench-") as file:  # mode 0600
        file.write("".join(f"{name}={value}\n" for name, value in values.items() if value != ""))
        file.flush()
        yield f"--config-file={file.name}"


def _pgsql(dsn: str) -> dict[str, Any]:
    parameters: dict[str, Any] = conninfo_to_dict(dsn)
    return {
        "db-driver": "pgsql",
        "pgsql-host": parameters.get("host", ""),
        "pgsql-port": parameters.get("port", 5432),
        "pgsql-user": parameters.get("user", ""),
        "pgsql-password": parameters.get("password") or password_from_file(parameters),
        "pgsql-db": parameters.get("dbname", ""),
    }


def _mysql(dsn: str) -> dict[str, Any]:
    options = options_of(dsn)
    return {"db-driver": "mysql", "mysql-db": MYSQL_DATABASE} | {
        f"mysql-{name}": options.get(name, "") for name in ("host", "port", "user", "password")
    }


def password_from_file(parameters: dict[str, Any]) -> str:
    """What libpq's password file says for these parameters (host:port:database:user:password); empty if nothing."""
    path = Path(parameters.get("passfile") or os.environ.get("PGPASSFILE", ""))
    if not path.is_file():
        return ""
    wanted = [str(parameters.get(name, "")) for name in ("host", "port", "dbname", "user")]
    for line in path.read_text().splitlines():
        fields = line.split(":", 4)
        if len(fields) == 5 and all(field in ("*", value) for field, value in zip(fields, wanted, strict=False)):
            return re.sub(r"\\(.)", r"\1", fields[4])  # libpq's escapes
    return ""

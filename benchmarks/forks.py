"""Clone, backtrack and as-of beside what stock PostgreSQL has for it: `pg_basebackup`, and CREATE DATABASE with
STRATEGY file_copy, in turns on the same machine.

Measured is the time from the command to the first query's answer, at several sizes of the database; what a fork writes
on the storage nodes, and how many files it shares; what a read costs the nodes after 1, 5 and 20 forks of forks; and
what a clone that is written to takes in the course of time. `make bench-fork`, or `python -m benchmarks fork`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import psycopg
import typer

from benchmarks.fleet import UserFleet
from benchmarks.raw import OUT
from benchmarks.said import Said
from benchmarks.site import prepared
from benchmarks.systems.base import Site
from benchmarks.systems.server import Server, copy_tree

ROW_BYTES: Final = 1000
_BATCH_ROWS: Final = 50_000
_MB: Final = 1_000_000
_SIZES_MB: Final = (20, 1000)
_BIG_MB: Final = 5000
_DEPTHS: Final = (1, 5, 20)
_SETTLE_S: Final = 17.0  # for processes in waiting, and for merging, after the data was written
_COPY_TIMEOUT_S: Final = 900
_ROWS: Final = "SELECT count(*) FROM data"


@dataclass(frozen=True, slots=True)
class Disk:
    """What a directory has: bytes, each file once whatever its names; and how many names it has beyond the first."""

    nbytes: int
    shared: int


@dataclass
class Figures:
    """All that was measured; `seconds` by megabytes and way."""

    seconds: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    fork: dict[int, dict[str, float]] = field(default_factory=dict)
    depth: dict[int, dict[str, float]] = field(default_factory=dict)
    space: list[tuple[float, int]] = field(default_factory=list)

    def note(self, size_mb: int, way: str, seconds: float) -> None:
        """One turn."""
        self.seconds.setdefault(size_mb, {}).setdefault(way, []).append(round(seconds, 3))
        typer.echo(f"  {size_mb:5} MB  {way:14} {seconds:7.2f} s")


def disk(directory: Path) -> Disk:
    """Files come and go meanwhile."""
    blocks: dict[int, int] = {}
    names = 0
    for root, _, files in os.walk(directory):
        for name in files:
            try:
                found = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            blocks[found.st_ino] = found.st_blocks * 512
            names += 1
    return Disk(sum(blocks.values()), names - len(blocks))


def fill(dsn: str, size_mb: int) -> None:
    """A table of that size, whose rows do not compress."""
    rows = size_mb * _MB // ROW_BYTES
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("CREATE TABLE data (id int PRIMARY KEY, filler text)")
        session.execute("ALTER TABLE data ALTER filler SET STORAGE PLAIN")
        for first in range(0, rows, _BATCH_ROWS):
            session.execute(
                "INSERT INTO data SELECT n, (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 30) m)"
                " FROM generate_series(%s::int, %s::int) n",
                (first, min(rows, first + _BATCH_ROWS) - 1),
            )
        session.execute("CHECKPOINT")


def first_answer(dsn: str) -> None:
    """The first query: a connection, and a row of the data."""
    with psycopg.connect(dsn, connect_timeout=60) as session:
        session.execute("SELECT filler FROM data WHERE id = 1").fetchone()


def timed(step: Callable[[], object]) -> float:
    """Its seconds."""
    began_s = time.monotonic()
    step()
    return time.monotonic() - began_s


# ---- aurora-ray


class Subject:
    """A fleet with the data."""

    def __init__(self, directory: Path, size_mb: int) -> None:
        self.fleet = UserFleet(directory)
        self.nodes = directory / "nodes"
        self.dsn: str = self.fleet.up()["endpoints"]["cluster"]["dsn"]
        try:
            if size_mb:
                fill(self.dsn, size_mb)
                self.settle()
        except BaseException:
            self.fleet.destroy()
            raise

    def settle(self) -> None:
        """Until the nodes write no more, and processes are in waiting again."""
        time.sleep(_SETTLE_S)
        before = -1
        for _ in range(30):
            now = disk(self.nodes).nbytes
            if abs(now - before) < _MB:
                return
            before = now
            time.sleep(2)

    def clone(self, source: str, name: str) -> str:
        """Its connection string."""
        status: dict[str, Any] = json.loads(self.fleet.run("clone", source, name, "--json", timeout_s=180))
        dsn: str = status["endpoints"]["cluster"]["dsn"]
        return dsn

    def delete(self, name: str) -> None:
        """For good."""
        self.fleet.run("delete", name, "--yes", timeout_s=180)
        self.fleet.run("graveyard", "purge", name, "--yes", timeout_s=180, check=False)

    def turns(self, size_mb: int, figures: Figures, number: int) -> None:
        """One of each way."""
        name = f"copy-{number}"
        before = disk(self.nodes)
        figures.note(size_mb, "clone", timed(lambda: first_answer(self.clone("demo", name))))
        after = disk(self.nodes)
        found = figures.fork.setdefault(size_mb, {})
        found["bytes"] = max(found.get("bytes", 0), after.nbytes - before.nbytes)
        found["files_shared"] = after.shared - before.shared
        self.delete(name)
        time.sleep(_SETTLE_S)
        look = ("as-of", "demo", "-1s", "--sql", "SELECT filler FROM data WHERE id = 1")
        figures.note(size_mb, "as-of", timed(lambda: self.fleet.run(*look, timeout_s=180)))
        self.fleet.run("mark", "demo", "here")
        with psycopg.connect(self.dsn, autocommit=True) as session:
            session.execute("UPDATE data SET filler = 'wrong' WHERE id = 1")

        def rewind() -> None:
            self.fleet.run("backtrack", "demo", "--to", "mark:here", timeout_s=180)
            first_answer(self.dsn)

        figures.note(size_mb, "backtrack", timed(rewind))
        time.sleep(_SETTLE_S)

    def node_pids(self) -> list[int]:
        """Of the storage nodes."""
        return [node["pid"] for node in self.fleet.status()["storage_nodes"] if node["pid"]]

    def chain(self, depths: Sequence[int], figures: Figures) -> None:
        """Forks of forks, each written to a little; their parents are deleted behind them."""
        source = "demo"
        for depth in range(1, max(depths) + 1):
            name = f"link-{depth}"
            dsn = self.clone(source, name)
            with psycopg.connect(dsn, autocommit=True) as session:
                session.execute("UPDATE data SET filler = %s WHERE id %% 50 = %s", (f"{depth} " * 100, depth))
                if depth in depths:
                    session.execute("CHECKPOINT")
            if source != "demo":
                self.delete(source)
            source = name
            if depth in depths:
                figures.depth[depth] = self._cold_read(name)
                typer.echo(f"  depth {depth:2}: {figures.depth[depth]}")
        self.delete(source)

    def _cold_read(self, name: str) -> dict[str, float]:
        """All of a table, by a clone, which has nothing in a cache: what the nodes read for it."""
        cold = f"{name}-cold"
        dsn = self.clone(name, cold)
        before, began_s = _read_bytes(self.node_pids()), time.monotonic()
        with psycopg.connect(dsn) as session:
            row = session.execute(_ROWS).fetchone()
            size = session.execute("SELECT pg_relation_size('data')").fetchone()
        took_s = time.monotonic() - began_s
        read = _read_bytes(self.node_pids()) - before
        self.delete(cold)
        table, count = (float(found[0]) if found else 0.0 for found in (size, row))
        return {
            "amplification": round(read / table, 3),
            "seconds": round(took_s, 2),
            "rows": count,
        }

    def grow(self, seconds: float, figures: Figures) -> None:
        """What a clone takes while it is written to; and then, what is left when it is gone."""
        before = disk(self.nodes).nbytes
        dsn, began_s = self.clone("demo", "busy"), time.monotonic()
        with psycopg.connect(dsn, autocommit=True) as session:
            for number in itertools.count():
                session.execute("UPDATE data SET filler = filler || 'x' WHERE id %% 100 = %s", (number % 100,))
                took_s = time.monotonic() - began_s
                figures.space.append((round(took_s, 1), disk(self.nodes).nbytes - before))
                if took_s > seconds:
                    break
        self.delete("busy")
        self.settle()
        figures.space.append((round(time.monotonic() - began_s, 1), disk(self.nodes).nbytes - before))


def _read_bytes(pids: Sequence[int]) -> int:
    """What these processes have read, out of memory or from the disk."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("rchar:"):
                total += int(line.split()[1])
    return total


# ---- stock PostgreSQL


class Stock:
    """A server with the same data."""

    def __init__(self, site: Site, directory: Path, size_mb: int) -> None:
        self._site, self._directory = site, directory
        copy_tree(site.image.tree, directory / "data")
        self.server = Server(site, directory / "data", {})
        self.server.start()
        fill(self.server.dsn, size_mb)

    def turns(self, size_mb: int, figures: Figures) -> None:
        """One of each way."""
        figures.note(size_mb, "pg_basebackup", timed(self._base_backup))
        figures.note(size_mb, "file_copy", timed(self._file_copy))

    def _base_backup(self) -> None:
        copy = self._directory / "backup"
        command = [f"{self._site.bin_dir}/pg_basebackup", "-d", self.server.dsn, "-D", str(copy), "-c", "fast"]
        copy.mkdir(mode=0o700)
        shutil.chown(copy, self._site.account.uid, self._site.account.gid)
        subprocess.run(self._site.account.command(command), check=True, timeout=_COPY_TIMEOUT_S, cwd="/")
        server = Server(self._site, copy, {})
        server.start()
        try:
            first_answer(server.dsn)
        finally:
            server.stop()
            shutil.rmtree(copy)

    def _database(self, name: str) -> str:
        return f"{self.server.dsn.removesuffix('/postgres')}/{name}"

    def _file_copy(self) -> None:
        with psycopg.connect(self._database("template1"), autocommit=True) as session:
            session.execute("CREATE DATABASE copy TEMPLATE postgres STRATEGY file_copy")
            first_answer(self._database("copy"))
            session.execute("DROP DATABASE copy")


# ---- the whole


def measure(
    figures: Figures,
    sizes_mb: Sequence[int],
    *,
    rounds: int,
    depths: Sequence[int],
    grow_s: float,
    work_dir: Path | None,
) -> None:
    """The sizes one after the other, in each the ways in turns."""
    with prepared(work_dir=work_dir) as site:
        for size_mb in sizes_mb:
            directory = site.directory(f"fork-{size_mb}")
            stock = Stock(site, directory, size_mb)
            try:
                subject = Subject(directory / "fleet", size_mb)
                try:
                    for number in range(rounds):
                        subject.turns(size_mb, figures, number)
                        stock.turns(size_mb, figures)
                    if size_mb == min(sizes_mb):
                        subject.chain(depths, figures)
                        subject.grow(grow_s, figures)
                finally:
                    subject.fleet.destroy()
            finally:
                stock.server.stop()
                shutil.rmtree(directory, ignore_errors=True)


def sentences(figures: Figures) -> Iterator[str]:
    """What was found; times are medians (lowest to highest)."""
    for size_mb, ways in figures.seconds.items():
        for way, seconds in ways.items():
            spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
            yield f"{size_mb} MB, {way}, from the command to the first query's answer: {spread}"
    for size_mb, found in figures.fork.items():
        yield (
            f"A clone of {size_mb} MB, opened: {found['bytes'] / _MB:.1f} MB written on six nodes,"
            f" {found['files_shared']:.0f} files shared"
        )
    for depth, cost in figures.depth.items():
        yield f"A cold read after {depth} forks: nodes read {cost['amplification']:.2f} bytes a byte of the table"
    for at_s, nbytes in figures.space[:: max(1, len(figures.space) // 8)]:
        yield f"A clone that is written to, after {at_s:.1f} s: {nbytes / _MB:.1f} MB more on six nodes"


def run(
    *,
    sizes: Annotated[str, typer.Option(help="of the database, in MB")] = ",".join(map(str, _SIZES_MB)),
    big: Annotated[bool, typer.Option("--big", help=f"{_BIG_MB} MB as well")] = False,
    rounds: Annotated[int, typer.Option(help="of all ways, at each size")] = 2,
    depths: Annotated[str, typer.Option(help="forks of forks after which a read is measured")] = "1,5,20",
    grow: Annotated[float, typer.Option(help="seconds that a clone is written to")] = 30.0,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file")] = None,
) -> None:
    """Clone, backtrack and look back, beside pg_basebackup and CREATE DATABASE. Example: python -m benchmarks fork."""
    wanted = [int(size) for size in sizes.split(",")] + ([_BIG_MB] if big else [])
    say = Said("fork")
    figures = Figures()
    try:
        measure(
            figures,
            wanted,
            rounds=rounds,
            depths=[int(depth) for depth in depths.split(",")],
            grow_s=grow,
            work_dir=work_dir,
        )
    finally:
        say.all(sentences(figures))
        say.save(out or OUT / f"fork-{time.strftime('%Y%m%d-%H%M%S')}.json", **vars(figures))

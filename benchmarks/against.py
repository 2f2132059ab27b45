"""This checkout against another one, each as its own `aurora up` gives it: what a change has cost or brought.

The other is a directory with an environment of its own (`make .venv/.built` in a worktree of the older commit). Both
fleets stay up and take turns, in the order A B B A, through their cluster endpoints: first TPC-B, then kills of the
engine (SIGKILL) under that load, as a client that writes one row after the other sees them. `python -m benchmarks
against PATH`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import psycopg
import typer

from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from aurora_ray.errors import UsageError
from benchmarks.data import fill_pgbench
from benchmarks.failover_client import Client, PgbenchLoad
from benchmarks.fleet import UserFleet
from benchmarks.loads import Load
from benchmarks.machine import ROOT
from benchmarks.pgbench import run_pgbench
from benchmarks.statistics import compare, spread

NAMES: Final = ("this", "other")
_WARM_S: Final = 3.0
_BEFORE_FAULT_S: Final = 2.0
_OUTAGE_TIMEOUT_S: Final = 120.0


@dataclass
class _Side:
    """One checkout's fleet, and its figures by round."""

    fleet: UserFleet
    dsn: str
    tps: dict[int, float] = field(default_factory=dict)
    outage_s: dict[int, float] = field(default_factory=dict)

    def engine_pid(self) -> int:
        """The main process of the writer's engine."""
        return int(self.fleet.status()["instances"][0]["pid"])


@contextlib.contextmanager
def _sides(other: Path, work_dir: Path | None) -> Iterator[dict[str, _Side]]:
    """Both fleets, up; gone at the end."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aurora-against-", dir=work_dir)))
        directory.chmod(0o711)
        sides: dict[str, _Side] = {}
        for name, root in zip(NAMES, (ROOT, other), strict=True):
            python = sys.executable if root == ROOT else str(root / ".venv" / "bin" / "python")
            fleet = UserFleet(directory / name, root=root, python=python)
            stack.callback(fleet.destroy)
            sides[name] = _Side(fleet, str(fleet.up()["endpoints"]["cluster"]["dsn"]))
        yield sides


def order(number: int) -> tuple[str, ...]:
    """A B, B A, A B …: neither is always the one that comes first."""
    return NAMES if number % 2 == 0 else NAMES[::-1]


def measure(
    other: Path, *, scale: int, clients: int, seconds: float, rounds: int, kills: int, work_dir: Path | None
) -> None:
    """Prints each turn, then the ratios. Raises RuntimeError if a fleet does not start or a row is lost."""
    bin_dir = str(adapter(DEFAULT_ENGINE).find(None, None).bin_dir)
    with _sides(other, work_dir) as sides:
        for side in sides.values():
            fill_pgbench(side.dsn, bin_dir, scale)
        for number in range(rounds):
            for name in order(number):
                _load_turn(sides[name], name, number, bin_dir, scale=scale, clients=clients, seconds=seconds)
        for number in range(kills):
            for name in order(number):
                _kill_turn(sides[name], name, number, bin_dir, scale=scale, clients=clients)
        _say_ratios(sides)


def _load_turn(side: _Side, name: str, number: int, bin_dir: str, *, scale: int, clients: int, seconds: float) -> None:
    with psycopg.connect(side.dsn, autocommit=True, connect_timeout=30) as session:
        session.execute("CHECKPOINT")
    for run_s in (_WARM_S, seconds):
        load = Load(scripts=("tpcb-like",), clients=clients, seconds=run_s, scale=scale, seed=number)
        side.tps[number] = run_pgbench(side.dsn, load, bin_dir).tps
    typer.echo(f"round {number + 1}, {name}: {side.tps[number]:,.0f} TPC-B a second with {clients} clients")


def _kill_turn(side: _Side, name: str, number: int, bin_dir: str, *, scale: int, clients: int) -> None:
    load = PgbenchLoad(side.dsn, bin_dir=bin_dir, clients=clients, scale=scale)
    with Client(side.dsn) as client, load:
        time.sleep(_BEFORE_FAULT_S)
        pid = side.engine_pid()
        fault_s = time.time()
        os.kill(pid, signal.SIGKILL)
        side.outage_s[number] = client.wait_outage(fault_s, _OUTAGE_TIMEOUT_S).seconds
    if lost := client.lost():
        raise RuntimeError(f"{name}: {lost} acknowledged rows are not there after a kill")
    typer.echo(f"kill {number + 1}, {name}: nothing was acknowledged for {side.outage_s[number]:.2f} s")


def _say_ratios(sides: dict[str, _Side]) -> None:
    this, other = (sides[name] for name in NAMES)
    if this.tps:
        typer.echo(f"TPC-B, this to other: {compare(this.tps, other.tps)}")
    for name, side in sides.items():
        if side.outage_s:
            found = spread(side.outage_s.values())
            typer.echo(f"outage, {name}: median {found.median:.2f} s ({found.low:.2f} to {found.high:.2f})")


def run(
    other: Annotated[Path, typer.Argument(help="another checkout, with its .venv")],
    *,
    scale: Annotated[int, typer.Option(help="pgbench's scale factor")] = 20,
    clients: Annotated[int, typer.Option(help="of the load")] = 32,
    seconds: Annotated[float, typer.Option(help="of each turn of TPC-B")] = 12.0,
    rounds: Annotated[int, typer.Option(help="of TPC-B; 0: none")] = 6,
    kills: Annotated[int, typer.Option(help="of each engine; 0: none")] = 5,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
) -> None:
    """Compare with another checkout. Example: python -m benchmarks against ../before --rounds 4."""
    other = other.resolve()
    if not (other / ".venv" / "bin" / "python").exists():
        raise UsageError(f"{other} has no environment: run `make .venv/.built` in it first")
    measure(other, scale=scale, clients=clients, seconds=seconds, rounds=rounds, kills=kills, work_dir=work_dir)

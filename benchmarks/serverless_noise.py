"""Commits of a quiet tenant: alone, beside one that writes as much as its capacity lets it, and beside a stranger.

The stranger takes the CPU that the noisy tenant and all that is done for it take (its engine, its driver, the storage
nodes), in as many processes, and has nothing else in common with the fleet. So what is the same beside both is the
CPU's, and what is worse beside the noisy tenant comes of what they share: the nodes' queues and their disk.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from benchmarks.fleet import FleetProcesses
from benchmarks.serverless_subject import Subject, sessions

ALONE, NOISY, STRANGER = "alone", "beside a noisy one", "beside a stranger with the noisy one's CPU"
_COMMIT: Final = "insert into ticks values (1)"
_NOISE: Final = "insert into noise select i, repeat(md5(i::text), 8) from generate_series(1, 20000) i"
_NOISY_SESSIONS: Final = 4
_STRANGERS: Final = 8  # six storage nodes, a driver, an engine that is held back
_PERIOD_S: Final = 0.02
_ROUNDS: Final = 2
_LEAD_S: Final = 1.0
_SETTLE_S: Final = 10.0  # what was written is merged, which is not the next turn's
_PAUSE_S: Final = 0.01
# Burns a share of a CPU, whatever the others leave it of each period; it ends with whoever started it.
_BURN: Final = """
import os, sys, time
share, period, parent = float(sys.argv[1]), float(sys.argv[2]), os.getppid()
while os.getppid() == parent:
    began, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < share * period:
        pass
    time.sleep(max(0.0, period - (time.perf_counter() - began)))
"""


def beside_others(subject: Subject, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds and counts of each turn, in the order A B C A B C."""
    noisy = _noisy(subject)
    with psycopg.connect(subject.dsn, autocommit=True) as session:
        session.execute("create table if not exists ticks (i int)")
    whole, took = FleetProcesses(subject.fleet.data_dir), dict[str, list[float]]()
    cpus = dict.fromkeys((ALONE, NOISY, STRANGER), 0.0)

    def turn(name: str) -> None:
        time.sleep(_LEAD_S)
        before_s, began_s = whole.cpu_s(), time.monotonic()
        took.setdefault(name, []).extend(_commits(subject.dsn, seconds))
        cpus[name] += (whole.cpu_s() - before_s) / (time.monotonic() - began_s) / _ROUNDS

    for number in range(_ROUNDS):
        time.sleep(_SETTLE_S)
        turn(ALONE)
        with sessions(noisy, _NOISY_SESSIONS, _NOISE):
            turn(NOISY)
        time.sleep(_SETTLE_S)
        burnt = max(0.0, cpus[NOISY] - cpus[ALONE]) * _ROUNDS / (number + 1)
        with _stranger(burnt):
            turn(STRANGER)
    subject.scale("noisy", "--min", "0", "--pause-after", "10")
    return {name: {**_summary(each), "CPUs of the fleet": round(cpus[name], 2)} for name, each in took.items()}


def _noisy(subject: Subject) -> str:
    """Its connection string."""
    subject.fleet.json("create", "noisy", timeout_s=120)
    subject.scale("noisy", "--min", "0.5", "--max", "1")
    dsn = str(subject.status("noisy")["endpoints"]["cluster"]["dsn"])
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("create table if not exists noise (i int, t text)")
    return dsn


@contextmanager
def _stranger(cpus: float) -> Iterator[None]:
    share = str(cpus / _STRANGERS)
    burning = [subprocess.Popen([sys.executable, "-c", _BURN, share, str(_PERIOD_S)]) for _ in range(_STRANGERS)]
    try:
        yield
    finally:
        for each in burning:
            each.kill()
            each.wait(10)


def _commits(dsn: str, seconds: float) -> Iterator[float]:
    with psycopg.connect(dsn, autocommit=True) as session:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            session.execute(_COMMIT)
            yield 1000 * (time.monotonic() - began_s)
            time.sleep(_PAUSE_S)


def _summary(took_ms: list[float]) -> dict[str, float]:
    ordered = sorted(took_ms)
    return {
        "commits": len(ordered),
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }

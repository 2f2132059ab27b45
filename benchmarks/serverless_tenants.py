"""What paused tenants cost, and how long it takes when ten of them are woken at once.

Costs are of the whole fleet, before and after: the processes of paused instances that are kept (of a few clusters, to
wake them quickly), and what storage nodes, the control plane and endpoints have of each. Shared memory is divided among
those who share it. `web` is paused as well, so that nobody works meanwhile.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psycopg

from aurora_ray.control.api.client import ControlClient
from aurora_ray.errors import QuorumLostError
from benchmarks.fleet import FleetProcesses
from benchmarks.procfs import Component, memory_bytes
from benchmarks.serverless_subject import Subject

AT_ONCE: Final = 10
PAUSE_AFTER_S: Final = 10
_MADE_AT_ONCE: Final = 3
_CALL_S: Final = 120.0
_ASKED_AGAIN: Final = 5
_SETTLED_S: Final = 20.0  # what a pause leaves to be done: merging, images, processes that end
_ANSWERED_S: Final = 120


def paused_tenants(subject: Subject, tenants: int, seconds: float) -> dict[str, float]:
    """Figures by their names."""
    whole = FleetProcesses(subject.fleet.data_dir)
    _make(subject, "web", "")
    subject.until_paused("web")
    time.sleep(_SETTLED_S)
    before_bytes, before_kept, before_cpus = whole.memory_bytes(), _kept(whole), _cpus(whole, seconds)
    names = [f"tenant{number}" for number in range(tenants)]
    with ThreadPoolExecutor(_MADE_AT_ONCE) as makers:
        list(makers.map(lambda name: _make(subject, name, "web"), names))
    for name in names:
        subject.until_paused(name)
    time.sleep(_SETTLED_S)
    kept, cpus = _kept(whole), _cpus(whole, seconds)
    grown = whole.memory_bytes() - before_bytes
    took_s = _woken(subject, names[:AT_ONCE])
    return {
        "processes that are kept to wake some quickly": len(kept) - len(before_kept),
        "MB each": round(grown / tenants / 1e6, 1),
        "MB each, besides those processes": round((grown - _of(kept) + _of(before_kept)) / tenants / 1e6, 1),
        "CPU % of a core each": round(100 * (cpus - before_cpus) / tenants, 2),
        "CPU % of all of it, while nobody works": round(100 * cpus, 1),
        "CPU % of the fleet without them": round(100 * before_cpus, 1),
        "woken at once": len(took_s),
        "woken at once, p50 s": round(statistics.median(took_s), 2),
        "woken at once, the last after s": round(max(took_s), 2),
    }


def _make(subject: Subject, name: str, source: str) -> None:
    """By the control plane's own client: a hundred commands would take longer than what they ask for."""
    client = ControlClient.connect(subject.fleet.data_dir, _CALL_S)
    try:
        for again in range(_ASKED_AGAIN if source else 0):
            try:
                client.clone(source, name, timeout_s=_CALL_S)
                break
            except QuorumLostError:  # nodes that are too busy to answer in time: to be asked again, as it says
                if again == _ASKED_AGAIN - 1:
                    raise
        client.scale(name, min_acu=0, max_acu=1, pause_after_s=PAUSE_AFTER_S, timeout_s=_CALL_S)
    finally:
        client.close()


def _kept(whole: FleetProcesses) -> list[int]:
    """Processes of instances."""
    return [pid for pid in whole.pids() if _title(pid).startswith("ray::InstanceActor")]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _of(pids: list[int]) -> int:
    return memory_bytes(Component("instances", tuple(pids)))


def _cpus(whole: FleetProcesses, seconds: float) -> float:
    before_s, began_s = whole.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (whole.cpu_s() - before_s) / (time.monotonic() - began_s)


def _woken(subject: Subject, names: list[str]) -> list[float]:
    """For how long each of those who come at once waits for the first answer."""
    dsns = [subject.status(name)["endpoints"]["cluster"]["dsn"] for name in names]

    def wake(dsn: str) -> float:
        began_s = time.monotonic()
        with psycopg.connect(dsn, connect_timeout=_ANSWERED_S) as session:
            session.execute("select 1")
        return time.monotonic() - began_s

    with ThreadPoolExecutor(len(dsns)) as comers:
        return list(comers.map(wake, dsns))

"""Measures one system under one load: what it did, what it used, and what it left to do for later."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.histograms import encode, percentiles
from benchmarks.load import run_load
from benchmarks.loads import Load
from benchmarks.procfs import Usage, device_written_bytes, loopback, machine_cpu_s, memory_bytes, usage
from benchmarks.results import Sample
from benchmarks.systems.base import System, wait_sessions_ended
from benchmarks.workloads import Checkpoint

QUIET_CORES: Final = 0.25  # less than this counts as idle: heartbeats, gossip, a checkpoint that is spread thin
_QUIET_POLL_S: Final = 0.25
_WARM_SEED: Final = 1_000_003  # added to the seed: other rows than those that are measured then
_WARM_LOG_SHARE: Final = 0.01
_MEMORY_AT: Final = 0.6  # of the warm-up
# A gauge says how things stand, not how often something happened.
_GAUGES: Final = {"unsent_bytes", "cached_bytes", "used_bytes", "free_bytes", "vdl", "tail_lsn", "inflight_bytes"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All totals at one moment."""

    used: dict[str, Usage]
    machine_cpu_s: float
    loopback_packets: int
    loopback_bytes: int
    device_bytes: int
    taken_s: float


class Meter:
    """Of one system, on the disk that holds `work_dir`."""

    def __init__(self, system: System, work_dir: Path) -> None:
        self.system = system
        self._work_dir = work_dir

    def snapshot(self) -> Snapshot:
        """Reads everything."""
        used = {component.name: usage(component) for component in self.system.components()}
        packets, nbytes = loopback()
        written = device_written_bytes(self._work_dir)
        return Snapshot(used, machine_cpu_s(), packets, nbytes, written, time.monotonic())

    def memory(self) -> dict[str, int]:
        """Proportional set size by component."""
        return {component.name: memory_bytes(component) for component in self.system.components()}


def quiesce(systems: Sequence[System], limit_s: float) -> None:
    """Writes back what is dirty, and waits until all systems together are nearly idle, or the time is up."""
    os.sync()
    deadline_s = time.monotonic() + limit_s
    before_s, taken_s = _cpu_s(systems), time.monotonic()
    while time.monotonic() < deadline_s:
        time.sleep(_QUIET_POLL_S)
        now_s, at_s = _cpu_s(systems), time.monotonic()
        if now_s - before_s < QUIET_CORES * (at_s - taken_s):
            return
        before_s, taken_s = now_s, at_s


def _cpu_s(systems: Sequence[System]) -> float:
    return sum(usage(component).cpu_s for system in systems for component in system.components())


@dataclass(frozen=True, slots=True)
class Slot:
    """One turn of one system: which workload, which round."""

    workload: str
    round: int
    load: Load
    warm_s: float
    checkpoint: Checkpoint
    direct: bool = False


def measure(meter: Meter, slot: Slot, settle: Callable[[], None]) -> Sample:
    """Warms up, runs the load, lets the system settle."""
    system = meter.system
    memory = _warm_up(meter, slot)
    system.before_load(slot.checkpoint)
    counted = system.counters()
    before = meter.snapshot()
    result = run_load(_dsn(system, slot), slot.load, system.site.bin_dir)
    after = meter.snapshot()
    wait_sessions_ended(system.dsn)
    counters = _since(system.counters(), counted)
    settle()
    settled = meter.snapshot()
    histogram = encode(result.counts)
    used = {name: each.since(before.used[name]) for name, each in after.used.items()}
    deferred = [each.since(after.used[name]).cpu_s for name, each in settled.used.items()]
    return Sample(
        workload=slot.workload,
        clients=slot.load.clients,
        system=system.name,
        round=slot.round,
        seconds=round(after.taken_s - before.taken_s, 3),
        transactions=result.transactions,
        failed=result.failed,
        tps=result.tps,
        latency_us=percentiles([histogram]),
        histogram=histogram,
        client_cpu_s=result.client_cpu_s,
        cpu_s={name: each.cpu_s for name, each in used.items()},
        dirtied_bytes={name: each.written_bytes for name, each in used.items()},
        memory_bytes=memory,
        counters=counters,
        machine_cpu_s=round(after.machine_cpu_s - before.machine_cpu_s, 3),
        deferred_cpu_s=round(sum(deferred), 3),
        device_bytes=after.device_bytes - before.device_bytes,
        device_bytes_settled=settled.device_bytes - before.device_bytes,
        loopback_packets=after.loopback_packets - before.loopback_packets,
        loopback_bytes=after.loopback_bytes - before.loopback_bytes,
    )


def _dsn(system: System, slot: Slot) -> str:
    return system.direct_dsn if slot.direct else system.dsn


def _since(counters: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """What was counted in between."""
    return {name: value - before[name] for name, value in counters.items() if name not in _GAUGES and name in before}


def _warm_up(meter: Meter, slot: Slot) -> dict[str, int]:
    """Runs the same load for a while, and looks at the memory while the clients are there (in the first round)."""
    if slot.warm_s <= 0:
        return {}
    found: dict[str, int] = {}
    timer = threading.Timer(_MEMORY_AT * slot.warm_s, lambda: found.update(meter.memory()))
    if slot.round == 0:
        timer.start()
    try:
        warm = replace(slot.load, seconds=slot.warm_s, seed=slot.load.seed + _WARM_SEED, log_share=_WARM_LOG_SHARE)
        run_load(_dsn(meter.system, slot), warm, meter.system.site.bin_dir)
    finally:
        timer.cancel()
        if slot.round == 0:
            timer.join()
    return found

"""A run: systems side by side, round after round, A B C A B C.

All systems stay up for the whole run; while one is measured the others idle. Before each turn, dirty pages are written
back and everybody's background work gets time to end, so that nobody pays for a neighbour; what a system does in that
time is recorded as its deferred work.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.copying import copy_in, drop
from benchmarks.load import Load
from benchmarks.meter import Meter, Slot, measure, quiesce
from benchmarks.openings import measure_openings, measure_stock_cold
from benchmarks.results import Figure, Result
from benchmarks.suites import Suite, Workload
from benchmarks.systems import SYSTEMS
from benchmarks.systems.aurora import Aurora
from benchmarks.systems.base import Site, System, disk_bytes
from benchmarks.systems.server import template
from benchmarks.systems.stock import Stock

Progress = Callable[[str], None]  # called when a step begins


class Run:
    """One suite on one site."""

    def __init__(self, suite: Suite, names: Sequence[str], seed: int, progress: Progress) -> None:
        self._suite = suite
        self._names = names
        self._seed = seed
        self._on_step = progress
        self._started_s = 0.0
        self._timeline: list[list[Any]] = []
        self._systems: dict[str, System] = {}
        self._meters: dict[str, Meter] = {}

    @property
    def steps(self) -> int:
        """How many times `progress` will be called."""
        suite, names = self._suite, self._names
        turns = sum(len(each.clients) * len(self._measured(each)) for each in suite.workloads) * suite.rounds
        copies = len(names) * suite.rounds if suite.copy_bytes else 0
        openings = suite.opening_rounds * (("aurora" in names) + ("stock" in names))
        return 1 + len(names) + turns + copies + openings

    def __call__(self, site: Site) -> Result:
        """Runs everything. The result holds raw figures only."""
        self._started_s = time.monotonic()
        self._timeline.clear()
        result = self._new_result(site)
        with contextlib.ExitStack() as cleanup:
            self._start_systems(site, cleanup, result)
            quiesce(list(self._systems.values()), self._suite.first_settle_s_max)
            for workload in self._suite.workloads:
                for clients in workload.clients:
                    self._measure_group(workload, clients, result)
            if self._suite.copy_bytes:
                self._measure_copy(result)
            self._measure_openings(result)
            self._measure_disk(result)
        result.timeline = self._timeline
        result.seconds = self._elapsed_s()
        return result

    def _progress(self, step: str) -> None:
        self._timeline.append([self._elapsed_s(), step])
        self._on_step(step)

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._started_s, 1)

    def _new_result(self, site: Site) -> Result:
        return Result(
            suite=self._suite.name,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=self._seed,
            commit=machine.commit(),
            machine=machine.describe(site.work_dir),
            versions=machine.versions(site.install.version),
            options=json.loads(json.dumps({**asdict(self._suite), "systems": self._names})),
            not_run=[_sysbench_not_run()],
        )

    def _start_systems(self, site: Site, cleanup: contextlib.ExitStack, result: Result) -> None:
        self._progress("prepare the data")
        template(site)
        for name in self._names:
            self._progress(f"start {name}")
            with _timed() as elapsed_s:
                system = cleanup.enter_context(SYSTEMS[name](site))
            result.figures.append(_figure("start with data", name, 0, elapsed_s(), "s"))
            self._systems[name] = system
            self._meters[name] = Meter(system, site.work_dir)
            system.warm_up()
            result.settings[name] = system.settings()
            result.titles[name] = system.title

    def _measured(self, workload: Workload) -> list[str]:
        return [name for name in self._names if name in workload.systems]

    def _measure_group(self, workload: Workload, clients: int, result: Result) -> None:
        for number in range(self._suite.rounds):
            load = Load(
                script=workload.script,
                clients=clients,
                seconds=workload.run_s,
                scale=self._suite.scale,
                seed=self._seed + number,
                log_share=workload.log_share,
            )
            for name in self._measured(workload):
                self._progress(f"{workload.name}, {clients} clients, round {number + 1}: {name}")
                slot = Slot(workload.name, number, load, workload.warm_s)
                result.samples.append(measure(self._meters[name], slot, self._settle))

    def _settle(self) -> None:
        quiesce(list(self._systems.values()), self._suite.settle_s_max)

    def _measure_copy(self, result: Result) -> None:
        for number in range(self._suite.rounds):
            for name, system in self._systems.items():
                self._progress(f"copy, round {number + 1}: {name}")
                nbytes, spent_s = copy_in(system.dsn, self._suite.copy_bytes)
                facts = {"bytes": nbytes}
                result.figures.append(
                    Figure(
                        name="bulk load, COPY",
                        system=name,
                        round=number,
                        value=round(nbytes / spent_s / 1e6, 1),
                        unit="MB/s",
                        facts=facts,
                    )
                )
                if number + 1 < self._suite.rounds:
                    drop(system.dsn)
                self._settle()

    def _measure_openings(self, result: Result) -> None:
        for number in range(self._suite.opening_rounds):
            for name, system in self._systems.items():
                if isinstance(system, Aurora):
                    self._progress(f"open, round {number + 1}: {name}")
                    measure_openings(system, number, result.figures.append)
                elif type(system) is Stock:
                    self._progress(f"cold reads, round {number + 1}: {name}")
                    measure_stock_cold(system, number, result.figures.append)

    def _measure_disk(self, result: Result) -> None:
        for name, system in self._systems.items():
            occupied = disk_bytes(system.data_dirs()) / 2**20
            result.figures.append(_figure("disk occupied at the end", name, 0, occupied, "MiB"))


def _sysbench_not_run() -> str:
    if shutil.which("sysbench") is None:
        return "sysbench oltp_*: sysbench is not installed; Debian has it: apt-get install sysbench"
    return "sysbench oltp_*: sysbench is installed, but this suite has no workload for it yet"


def _figure(name: str, system: str, number: int, value: float, unit: str) -> Figure:
    return Figure(name=name, system=system, round=number, value=round(value, 2), unit=unit)


@contextlib.contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    started_s, ended_s = time.perf_counter(), 0.0
    yield lambda: ended_s - started_s
    ended_s = time.perf_counter()


def out_path(directory: Path, result: Result) -> Path:
    """Where a result goes: named after what it is and when it began."""
    stamp = result.started.replace("-", "").replace(":", "").partition("+")[0]
    return directory / f"{result.suite}-{stamp}.json"

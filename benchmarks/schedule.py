"""A run: systems side by side, round after round, A B C A B C.

All systems stay up for the whole run; while one is measured the others idle. Before each turn, dirty pages are written
back and everybody's background work gets time to end, so that nobody pays for a neighbour; what a system does in that
time is recorded as its deferred work.

The result is handed over after each turn, and a run that is given an earlier, unfinished result goes on with it: what
is there is not measured again.
"""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, sysbench
from benchmarks.copying import copy_in, drop
from benchmarks.loads import SYSBENCH, Load
from benchmarks.meter import Meter, Slot, measure, quiesce
from benchmarks.openings import COLD_SCAN, measure_openings, measure_stock_cold
from benchmarks.results import Figure, Result
from benchmarks.suites import Suite, Turns
from benchmarks.systems import SYSTEMS
from benchmarks.systems.aurora import Aurora
from benchmarks.systems.base import Site, System, disk_bytes
from benchmarks.systems.server import template
from benchmarks.systems.stock import Stock
from benchmarks.workloads import Checkpoint

Progress = Callable[[str], None]  # called when a step begins
Save = Callable[[Result], None]  # called when there is something new in the result
COPY = "bulk load, COPY"
_SEEDS = 1_000_000_000  # below the limits of all load generators
NO_READERS = "mixed reads on readers: `python -m benchmarks readers` measures them"


@dataclass(frozen=True, slots=True)
class Turn:
    """One system's in one round of one workload with so many clients."""

    turns: Turns
    clients: int
    round: int
    system: str


class Run:
    """One suite, on one site, with these systems; `earlier` is the unfinished result of such a run."""

    def __init__(
        self,
        suite: Suite,
        names: Sequence[str],
        seed: int,
        progress: Progress,
        *,
        save: Save = lambda _: None,
        earlier: Result | None = None,
    ) -> None:
        self._suite = suite
        self._names = names
        self._seed = seed
        self._on_step = progress
        self._save = save
        self._earlier = earlier
        self._started_s = 0.0
        self._systems: dict[str, System] = {}
        self._meters: dict[str, Meter] = {}
        self.result: Result
        self._checkpoint: Checkpoint | None = None

    @property
    def steps(self) -> int:
        """How many times `progress` will be called."""
        suite = self._suite
        phases = {turn.turns.workload.checkpoint for turn in self._pending()}
        copies = len(self._pending_figures(COPY, suite.copy_rounds)) if suite.copy_bytes else 0
        return 1 + len(self._names) + len(phases) + len(self._pending()) + copies + len(self._pending_openings())

    def __call__(self, site: Site) -> Result:
        """Runs everything. The result holds raw figures only."""
        self.result = self._new_result(site)
        self._started_s = time.monotonic() - self.result.seconds
        with contextlib.ExitStack() as cleanup:
            self._start_systems(site, cleanup)
            quiesce(list(self._systems.values()), self._suite.first_settle_s_max)
            for turn in self._pending():
                self._measure(turn)
            self._measure_copy()
            self._measure_openings()
            self._measure_disk()
        self.result.finished = True
        self._keep()
        return self.result

    # ---- what is to be done

    def _pending(self) -> list[Turn]:
        """The turns that are not in the earlier result, in order."""
        return [
            turn
            for turns in self._suite.turns
            if turns.workload.program != SYSBENCH or sysbench.installed()
            for clients in turns.clients
            for number in range(self._suite.rounds)
            for turn in (Turn(turns, clients, number, name) for name in self._names)
            if turn.system in turns.workload.systems
            if not (self._earlier and self._earlier.has_sample(turns.workload.name, clients, turn.system, number))
        ]

    def _pending_figures(self, figure: str, rounds: int, names: Sequence[str] | None = None) -> list[tuple[int, str]]:
        return [
            (number, name)
            for number in range(rounds)
            for name in (self._names if names is None else names)
            if not (self._earlier and self._earlier.has_figure(figure, name, number))
        ]

    def _pending_openings(self) -> list[tuple[int, str]]:
        names = [name for name in self._names if name in (Aurora.name, Stock.name)]
        return self._pending_figures(COLD_SCAN, self._suite.opening_rounds, names)

    # ---- doing it

    def _new_result(self, site: Site) -> Result:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        options = json.loads(json.dumps({**self._suite.described(), "systems": list(self._names)}))
        if self._earlier is not None:
            self._earlier.resumed.append(now)
            return self._earlier
        return Result(
            suite=self._suite.name,
            started=now,
            seed=self._seed,
            commit=machine.commit(),
            machine=machine.describe(site.work_dir),
            versions=machine.versions(site.install.version),
            options=options,
            not_run=_not_run(self._suite),
            finished=False,
        )

    def _start_systems(self, site: Site, cleanup: contextlib.ExitStack) -> None:
        self._progress("prepare the data")
        template(site)
        for name in self._names:
            self._progress(f"start {name}")
            with _timed() as elapsed_s:
                system = cleanup.enter_context(SYSTEMS[name](site))
            if not system.from_kept_data and not self.result.has_figure("start with data", name, 0):
                self.result.figures.append(_figure("start with data", name, 0, elapsed_s(), "s"))
            self._systems[name] = system
            self._meters[name] = Meter(system, site.work_dir)
            system.warm_up()
            self.result.settings[name] = system.settings()
            self.result.titles[name] = system.title
        self._keep()

    def _measure(self, turn: Turn) -> None:
        turns, workload = turn.turns, turn.turns.workload
        if workload.checkpoint != self._checkpoint:
            self._begin(workload.checkpoint)
        data = self._suite.data
        load = Load(
            scripts=workload.scripts,
            program=workload.program,
            protocol=workload.protocol,
            rate_tps=workload.rate_tps,
            log_share=workload.log_share,
            clients=turn.clients,
            seconds=turns.run_s,
            scale=data.tpcc_warehouses if workload.name == "tpcc" else data.scale,
            tables=data.sysbench_tables,
            rows=data.sysbench_rows,
            seed=self._seed_of(turn),
        )
        self._progress(f"{workload.name}, {turn.clients} clients, round {turn.round + 1}: {turn.system}")
        slot = Slot(workload.name, turn.round, load, turns.warm_s, workload.checkpoint, workload.direct)
        self.result.samples.append(measure(self._meters[turn.system], slot, self._settle))
        self._keep()

    def _seed_of(self, turn: Turn) -> int:
        """The same for all systems, another one for each round of each workload.

        Were it the same for two workloads, the second would change rows that the first has put side by side.
        """
        words = f"{self._seed} {turn.turns.workload.name} {turn.clients} {turn.round}"
        return zlib.crc32(words.encode()) % _SEEDS

    def _begin(self, checkpoint: Checkpoint) -> None:
        self._progress(f"prepare for workloads whose last checkpoint was {checkpoint}")
        for system in self._systems.values():
            system.begin(checkpoint)
        quiesce(list(self._systems.values()), self._suite.first_settle_s_max)
        self._checkpoint = checkpoint

    def _settle(self) -> None:
        quiesce(list(self._systems.values()), self._suite.settle_s_max)

    def _measure_copy(self) -> None:
        if not self._suite.copy_bytes:
            return
        for number, name in self._pending_figures(COPY, self._suite.copy_rounds):
            system = self._systems[name]
            self._progress(f"copy, round {number + 1}: {name}")
            nbytes, spent_s = copy_in(system.dsn, self._suite.copy_bytes)
            speed = Figure(
                name=COPY,
                system=name,
                round=number,
                value=round(nbytes / spent_s / 1e6, 1),
                unit="MB/s",
                facts={"bytes": nbytes},
            )
            self.result.figures.append(speed)
            drop(system.dsn)
            self._settle()
            self._keep()

    def _measure_openings(self) -> None:
        for number, name in self._pending_openings():
            system = self._systems[name]
            if isinstance(system, Aurora):
                self._progress(f"open, round {number + 1}: {name}")
                measure_openings(system, number, self.result.figures.append)
            elif isinstance(system, Stock):
                self._progress(f"cold reads, round {number + 1}: {name}")
                measure_stock_cold(system, number, self.result.figures.append)
            self._keep()

    def _measure_disk(self) -> None:
        for name, system in self._systems.items():
            occupied = disk_bytes(system.data_dirs()) / 2**20
            self.result.figures.append(_figure("disk occupied at the end", name, 0, occupied, "MiB"))

    def _progress(self, step: str) -> None:
        self.result.timeline.append([self._elapsed_s(), step])
        self._on_step(step)

    def _keep(self) -> None:
        self.result.seconds = self._elapsed_s()
        self._save(self.result)

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._started_s, 1)


def _not_run(suite: Suite) -> list[str]:
    lines = [NO_READERS]
    tests = [turns.workload.name for turns in suite.turns if turns.workload.program == SYSBENCH]
    if tests and not sysbench.installed():
        lines.append(f"{', '.join(tests)}: {sysbench.PACKAGE_ADVICE}")
    return lines


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

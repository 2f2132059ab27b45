"""What a run leaves: raw figures in one JSON file. Everything that is shown anywhere is computed from these."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aurora_ray.errors import UsageError
from benchmarks.raw import Saved

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One system under one load in one round.

    `cpu_s`, `dirtied_bytes` and `memory_bytes` are by component; a kernel with large folios counts a whole folio as
    dirtied when a part of it is, so what reached the disk is `device_bytes`: during the load, and with what was
    written back in the moments after it. `device_bytes`, `loopback_*` and `machine_cpu_s` are the whole machine's.
    `deferred_cpu_s` is what the system used between the end of the load and the next one's start.
    """

    workload: str
    clients: int
    system: str
    round: int
    seconds: float
    transactions: int
    failed: int
    tps: float
    latency_us: dict[str, float]
    histogram: str
    client_cpu_s: float
    cpu_s: dict[str, float]
    dirtied_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    counters: dict[str, float]
    machine_cpu_s: float
    deferred_cpu_s: float
    device_bytes: int
    device_bytes_settled: int
    loopback_packets: int
    loopback_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value that is not a load: how long something took, how fast it went."""

    name: str
    system: str
    round: int
    value: float
    unit: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Result(Saved):
    """A whole run."""

    suite: str
    started: str  # RFC 3339, UTC
    seed: int
    commit: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by system
    titles: dict[str, str] = field(default_factory=dict)  # by system
    samples: list[Sample] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    finished: bool = True  # False while it runs, and in the file of a run that was interrupted
    resumed: list[str] = field(default_factory=list)  # when, RFC 3339, UTC
    timeline: list[list[Any]] = field(default_factory=list)  # [seconds since the start, step that began then]
    seconds: float = 0.0
    format: int = FORMAT

    @classmethod
    def load(cls, path: Path) -> Result:
        """The inverse of `save`. Raises UsageError for anything else."""
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict) or "samples" not in values:
            raise UsageError(f"{path} is no result of a suite")
        if values.get("format") != FORMAT:
            raise UsageError(f"{path} has format {values.get('format')}, not {FORMAT}: it is from another version")
        values["samples"] = [Sample(**each) for each in values["samples"]]
        values["figures"] = [Figure(**each) for each in values["figures"]]
        return cls(**values)

    def has_sample(self, workload: str, clients: int, system: str, number: int) -> bool:
        """Whether this turn was measured."""
        key = (workload, clients, system, number)
        return any((each.workload, each.clients, each.system, each.round) == key for each in self.samples)

    def has_figure(self, name: str, system: str, number: int) -> bool:
        """Whether this figure was taken."""
        return any((each.name, each.system, each.round) == (name, system, number) for each in self.figures)

    def groups(self) -> list[tuple[str, int]]:
        """(workload, clients) in the order measured."""
        return list(dict.fromkeys((sample.workload, sample.clients) for sample in self.samples))

    def rounds(self, workload: str, clients: int, system: str) -> dict[int, Sample]:
        """The samples of one system by round."""
        return {
            sample.round: sample
            for sample in self.samples
            if (sample.workload, sample.clients, sample.system) == (workload, clients, system)
        }

    def systems(self, workload: str, clients: int) -> list[str]:
        """The systems that were measured in a group, in order."""
        names = [each.system for each in self.samples if (each.workload, each.clients) == (workload, clients)]
        return list(dict.fromkeys(names))

    def title(self, system: str) -> str:
        """What people call it."""
        return self.titles.get(system, system)

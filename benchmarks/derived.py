"""Figures per transaction and per flush, from raw samples. Components are brought together into stages.

engine   the database server and its backends (with walsenders, where there are any)
driver   the writer's process that takes redo out of the engine and sends it
copies   the six storage nodes, or the six standbys, together
client   the load generator
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.results import Sample
from benchmarks.workloads import reads_only

STAGES: Final = ("engine", "driver", "copies", "client")
Derived = float | None


def stage(component: str) -> str:
    """The stage that a component belongs to."""
    return component if component in STAGES else "copies"


def by_stage(values: dict[str, float] | dict[str, int]) -> dict[str, float]:
    """Sums by stage."""
    sums: dict[str, float] = {}
    for component, value in values.items():
        sums[stage(component)] = sums.get(stage(component), 0.0) + value
    return sums


def cpu_s(sample: Sample) -> dict[str, float]:
    """CPU seconds by stage, the client's included."""
    return {**by_stage(sample.cpu_s), "client": sample.client_cpu_s}


def cpu_ms_per_transaction(sample: Sample, name: str | None = None) -> Derived:
    """Of one stage, or of all."""
    stages = cpu_s(sample)
    if name is not None and name not in stages:
        return None
    used_s = sum(stages.values()) if name is None else stages[name]
    return _ratio(1000 * used_s, sample.transactions)


def flushes(sample: Sample) -> float:
    """How often something was made durable: quorum flushes where there are any, else the engine's own WAL syncs."""
    return sample.counters.get("flushes", sample.counters.get("wal_syncs", 0.0))


def cpu_ms_per_flush(sample: Sample, name: str) -> Derived:
    """Of one stage; `copies` are all six together."""
    used_s = cpu_s(sample).get(name)
    return None if used_s is None else _ratio(1000 * used_s, flushes(sample))


def redo_bytes_per_transaction(sample: Sample) -> Derived:
    """What is sent to each copy: batches of redo, or the WAL."""
    counters = sample.counters
    return _ratio(counters.get("flush_bytes", counters.get("wal_bytes", 0.0)), sample.transactions)


def database_ios_per_transaction(sample: Sample) -> Derived:
    """Sends to the copies and writes to the engine's own disk: the measure of Table 1 of the paper on Aurora (2017).

    Of the node that the database runs on, six-fold sends included; what the copies do with it is theirs.
    """
    counters = sample.counters
    names = ("network_writes", "wal_writes", "page_writes")
    found = [counters[name] for name in names if name in counters]
    return _ratio(sum(found), sample.transactions) if found else None


def disk_bytes_per_redo_byte(sample: Sample) -> Derived:
    """What reached the disk, of all copies together, for each byte of redo (sent to each copy, or of WAL)."""
    counters = sample.counters
    return _ratio(sample.device_bytes_settled, counters.get("flush_bytes", counters.get("wal_bytes", 0.0)))


def memory_mib(sample: Sample, name: str | None = None) -> Derived:
    """Proportional set size, of one stage or of all; of the copies, the mean of one."""
    values = [size for component, size in sample.memory_bytes.items() if name in (None, stage(component))]
    if not values:
        return None
    return sum(values) / (len(values) if name == "copies" else 1) / 2**20


def counted(name: str) -> Callable[[Sample], Derived]:
    """One of the system's own counters, per transaction; None for systems that do not count it."""

    def get(sample: Sample) -> Derived:
        return _ratio(sample.counters[name], sample.transactions) if name in sample.counters else None

    return get


def foreign_share(sample: Sample) -> Derived:
    """The part of the machine's busy time that neither the system nor its client used: what disturbed it."""
    own_s = sum(sample.cpu_s.values()) + sample.client_cpu_s
    share = _ratio(sample.machine_cpu_s - own_s, sample.machine_cpu_s)
    return None if share is None else max(0.0, share)


@dataclass(frozen=True, slots=True)
class Column:
    """A derived figure, its heading and how it is printed."""

    key: str
    heading: str
    unit: str
    get: Callable[[Sample], Derived]
    digits: int = 2
    of_writes: bool = False


COLUMNS: Final = (
    Column("flushes_per_s", "flushes", "1/s", lambda s: _ratio(flushes(s), s.seconds), 0, of_writes=True),
    Column(
        "transactions_per_flush", "tx per flush", "", lambda s: _ratio(s.transactions, flushes(s)), 1, of_writes=True
    ),
    Column("redo_bytes", "redo sent", "B/tx", redo_bytes_per_transaction, 0, of_writes=True),
    Column("images", "page images in the WAL", "1/tx", counted("wal_full_images"), of_writes=True),
    Column("messages", "gRPC messages to six nodes", "1/tx", counted("messages"), of_writes=True),
    Column("network", "sends to the copies", "1/tx", counted("network_writes"), of_writes=True),
    Column("wal_writes", "own disk: WAL writes", "1/tx", counted("wal_writes"), of_writes=True),
    Column("page_writes", "own disk: page writes", "1/tx", counted("page_writes"), of_writes=True),
    Column("ios", "I/Os of the database node", "1/tx", database_ios_per_transaction, of_writes=True),
    Column("packets", "loopback packets", "1/tx", lambda s: _ratio(s.loopback_packets, s.transactions), 1),
    Column("cpu", "CPU, all", "ms/tx", cpu_ms_per_transaction),
    Column("cpu_engine", "engine", "ms/tx", lambda s: cpu_ms_per_transaction(s, "engine")),
    Column("cpu_driver", "driver", "ms/tx", lambda s: cpu_ms_per_transaction(s, "driver")),
    Column("cpu_copies", "six copies", "ms/tx", lambda s: cpu_ms_per_transaction(s, "copies")),
    Column("cpu_client", "client", "ms/tx", lambda s: cpu_ms_per_transaction(s, "client")),
    Column("cpu_deferred", "deferred", "ms/tx", lambda s: _ratio(1000 * s.deferred_cpu_s, s.transactions)),
    Column("flush_driver", "driver", "ms/flush", lambda s: cpu_ms_per_flush(s, "driver"), of_writes=True),
    Column("flush_copies", "six copies", "ms/flush", lambda s: cpu_ms_per_flush(s, "copies"), of_writes=True),
    Column("device", "written to disk", "KiB/tx", lambda s: _ratio(s.device_bytes_settled / 1024, s.transactions), 1),
    Column("amplification", "written to disk / redo", "", disk_bytes_per_redo_byte, 1, of_writes=True),
    Column("memory", "memory, all", "MiB", memory_mib, 0),
    Column("memory_engine", "memory, engine", "MiB", lambda s: memory_mib(s, "engine"), 0),
    Column("memory_driver", "memory, driver", "MiB", lambda s: memory_mib(s, "driver"), 0),
    Column("memory_copy", "memory, one copy", "MiB", lambda s: memory_mib(s, "copies"), 0),
    Column("foreign", "disturbed", "%", lambda s: _percent(foreign_share(s)), 0),
)


def columns(workload: str) -> list[Column]:
    """Those that mean something for a workload: what is per flush or per redo says nothing of one that only reads."""
    return [column for column in COLUMNS if not (column.of_writes and reads_only(workload))]


def _percent(share: Derived) -> Derived:
    return None if share is None else 100 * share


def _ratio(part: float, whole: float) -> Derived:
    return part / whole if whole else None

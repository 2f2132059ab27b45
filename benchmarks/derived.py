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

READ_ONLY: Final = ("select",)
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


def messages_per_transaction(sample: Sample) -> Derived:
    """gRPC messages to all six nodes together; not counted for other systems."""
    messages = sample.counters.get("messages")
    return None if messages is None else _ratio(messages, sample.transactions)


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
    Column("messages", "messages", "1/tx", messages_per_transaction, of_writes=True),
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
    Column("memory", "memory", "MiB", lambda s: sum(s.memory_bytes.values()) / 2**20 if s.memory_bytes else None, 0),
    Column("foreign", "disturbed", "%", lambda s: _percent(foreign_share(s)), 0),
)


def columns(workload: str) -> list[Column]:
    """Those that mean something for a workload: what is per flush or per redo says nothing of one that only reads."""
    return [column for column in COLUMNS if not (column.of_writes and workload in READ_ONLY)]


def _percent(share: Derived) -> Derived:
    return None if share is None else 100 * share


def _ratio(part: float, whole: float) -> Derived:
    return part / whole if whole else None

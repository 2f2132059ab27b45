"""What instances are told of each other: rows that are of now, one writer, and horizons that end with their readers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aurora_ray.compute.commands import HoldHorizon, ReplicaStatus
from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.readers import with_readers, with_writer
from aurora_ray.control.model.addresses import host_id
from aurora_ray.control.model.regional import Membership
from aurora_ray.control.model.state import Fleet
from aurora_ray.control.model.views import View
from aurora_ray.control.observe.known import Instance
from aurora_ray.control.observe.replicas import ALONE_EVERY_S, LEASE_S, MASTER, Replicas
from aurora_ray.engine.base import Horizon, ReplicaRow
from aurora_ray.rpc.admission import Secret
from tests.control.fleets import running_fleet

WRITES = InstanceStatus(IncarnationPhase.AVAILABLE, pid=10)
FOLLOWS = InstanceStatus(
    IncarnationPhase.AVAILABLE, pid=20, role=Role.READER, lag_ms=3.0, horizon=Horizon(700), stats={"cpu_percent": 12.5}
)


def available(status: InstanceStatus) -> Instance:
    process: Any = None  # it is not asked
    instance = Instance(process)
    instance.became_available(status, 0.0)
    return instance


def with_reader() -> Fleet:
    return with_readers(running_fleet(), "demo", 1, tier=1, memory_bytes=0, ports=lambda *_: [16000])


def told(replicas: Replicas, fleet: Fleet, instances: Mapping[str, Instance], now_s: float) -> dict[str, Any]:
    return dict(replicas.orders(fleet, instances, now_s))


def test_all_hear_of_all_and_the_writer_of_the_readers_horizons() -> None:
    replicas = Replicas(wall=lambda: 5000.0)
    instances = {"demo-1": available(WRITES), "demo-2": available(FOLLOWS)}
    fleet = with_reader()
    orders = told(replicas, fleet, instances, 100.0)
    at = host_id(fleet.cluster("demo").writer().port)
    rows = ReplicaStatus(
        [
            ReplicaRow("demo-1", MASTER, 0.0, 0.0, 5000.0, at, "demo-1"),
            ReplicaRow("demo-2", "demo-2/20", 12.5, 3.0, 5000.0, "62.128", "demo-2"),
        ]
    )
    assert orders == {"demo-1": (HoldHorizon([Horizon(700)], LEASE_S), rows), "demo-2": (rows,)}


def test_instances_of_two_regions_are_told_apart() -> None:
    replicas, fleet, instances = Replicas(), with_reader(), {"demo-1": available(WRITES)}
    known = Membership("g", 0, fleet.region)
    fleet = fleet.with_cluster(replace(fleet.cluster("demo"), membership=known))
    (row,) = told(replicas, fleet, instances, 100.0)["demo-1"][-1].rows
    assert (row.server_id, row.instance_id) == (f"demo-1-{fleet.region}", "demo-1")
    ((there, _),) = replicas.serving(fleet.cluster("demo"), instances, 100.0, fleet.region)
    assert there == row
    secret = Secret.from_text("ab" * 32)
    view = View("g", fleet.region, fleet.region, instances=((row, 7),), endpoint=("127.0.0.1", 15432), forwards=True)
    again = View.from_plain(json.loads(json.dumps(view.to_plain(secret))), secret)
    assert (again.endpoint, again.forwards) == (view.endpoint, True)
    ((heard, lsn),) = View.from_plain(json.loads(json.dumps(view.to_plain(secret))), secret).instances
    assert (heard, lsn) == (replace(row, instance_id=""), 7)


def test_readers_that_forward_writes_are_told_where_to() -> None:
    replicas, fleet, instances = Replicas(), with_reader(), {"demo-2": available(FOLLOWS)}
    at = ("127.0.0.1", 15432)
    orders = dict(replicas.orders(fleet, instances, 100.0, writers={"demo": at}))
    assert orders["demo-2"][-1].writer_at == at  # type: ignore[attr-defined]
    orders = dict(replicas.orders(fleet, instances, 101.0))
    assert orders["demo-2"][-1].writer_at is None  # type: ignore[attr-defined]


def test_a_reader_that_is_silent_falls_behind_and_holds_nothing_any_more() -> None:
    replicas, fleet = Replicas(wall=lambda: 5000.0), with_reader()
    instances = {"demo-1": available(WRITES), "demo-2": available(FOLLOWS)}
    told(replicas, fleet, instances, 100.0)
    hold, rows = told(replicas, fleet, instances, 100.0 + LEASE_S + 2)["demo-1"]
    assert hold == HoldHorizon([], LEASE_S)
    assert rows.rows[1].replica_lag_ms == 2003.0
    instances["demo-2"].told(replace(FOLLOWS, horizon=Horizon(800)))
    hold, rows = told(replicas, fleet, instances, 110.0)["demo-1"]
    assert hold == HoldHorizon([Horizon(800)], LEASE_S)
    assert rows.rows[1].replica_lag_ms == 3.0


def test_there_are_never_two_writers_nor_rows_of_those_that_are_gone() -> None:
    replicas, fleet = Replicas(), with_writer(with_reader(), "demo", "demo-2")
    instances = {"demo-1": available(WRITES), "demo-2": available(FOLLOWS)}  # roles are not changed yet
    assert told(replicas, fleet, instances, 100.0) == {}
    instances = {"demo-2": available(replace(WRITES, pid=21))}
    ((rows,),) = [orders[1:] for orders in told(replicas, fleet, instances, 101.0).values()]
    assert [(row.server_id, row.session_id) for row in rows.rows] == [("demo-2", MASTER)]


def test_a_writer_without_readers_is_told_now_and_then() -> None:
    replicas, fleet, instances = Replicas(), running_fleet(), {"demo-1": available(WRITES)}
    assert set(told(replicas, fleet, instances, 100.0)) == {"demo-1"}
    assert told(replicas, fleet, instances, 101.0) == {}
    assert set(told(replicas, fleet, instances, 100.0 + ALONE_EVERY_S)) == {"demo-1"}

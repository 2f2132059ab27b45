"""Replica auto scaling: what a rule makes of loads over time, whom it removes, and how that goes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.readers import failover_target, with_readers, with_writer
from aurora_ray.control.decide.scaling import (
    DRAIN_S,
    IN_WINDOW_S,
    OUT_WINDOW_S,
    RemoveDrained,
    ScaleReaders,
    Scaling,
    Tracking,
    next_to_leave,
    with_fewer,
    with_kept,
)
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen
from aurora_ray.control.model.scaling import ReaderScaling, ScalingMetric, scaling_metric
from aurora_ray.control.model.state import DBCluster, Fleet
from aurora_ray.control.observe.endpoints import orders_for
from aurora_ray.control.observe.known import Instance
from aurora_ray.errors import UsageError
from tests.control.fleets import running_fleet
from tests.control.test_replicas import FOLLOWS, available

RULE = ReaderScaling(1, 4, ScalingMetric.CPU, 50.0, cooldown_out_s=120.0, cooldown_in_s=600.0)
WALL_S = 1e9


def after(
    tracking: Tracking, rule: ReaderScaling, count: int, load: Callable[[float], float] | float, seconds: float
) -> Iterator[tuple[float, int]]:
    """(time, wanted) of each look, one a second, until the number changes; all readers have that load."""
    for second in range(int(seconds) + 1):
        now_s = 1000.0 + second
        of_each = load(second) if callable(load) else load
        wanted = tracking.look(rule, count, {f"r{n}": of_each for n in range(count)}, now_s)
        if wanted != count:
            yield second, wanted
            return


@pytest.mark.parametrize(
    ("count", "load", "wanted", "at_s"),
    [
        (1, 50.0, None, 0),  # on target
        (1, 51.0, 2, OUT_WINDOW_S),
        (2, 90.0, 4, OUT_WINDOW_S),  # 2 * 90 / 50 = 3.6
        (2, 500.0, 4, OUT_WINDOW_S),  # no more than the rule allows
        (4, 100.0, None, 0),
        (2, 22.0, 1, IN_WINDOW_S),  # one would be at 44, which is less than 45
        (2, 23.0, None, 0),
        (4, 0.0, 3, IN_WINDOW_S),  # one at a time
        (1, 0.0, None, 0),
        (0, 0.0, 1, 0),  # at least, at once
        (5, 40.0, 4, 0),
    ],
)
def test_what_a_steady_load_leads_to(count: int, load: float, wanted: int | None, at_s: float) -> None:
    found = list(after(Tracking(), RULE, count, load, 2 * IN_WINDOW_S))
    assert found == ([] if wanted is None else [(at_s, wanted)])


def test_peaks_and_lulls_that_pass_change_nothing() -> None:
    assert not list(after(Tracking(), RULE, 1, lambda s: 100.0 if s % 60 < 20 else 20.0, 1000))
    assert not list(after(Tracking(), RULE, 2, lambda s: 40.0 if s % 300 < 150 else 10.0, 1000))


def test_a_change_by_anyone_is_followed_by_a_cool_down() -> None:
    tracking = Tracking()
    for now_s in range(100):
        tracking.look(RULE, 2, {"a": 40.0, "b": 40.0}, now_s)
    adds = [s for s in range(100, 500) if tracking.look(RULE, 1, {"a": 90.0}, s) == 2]
    assert adds[0] == 100 + RULE.cooldown_out_s
    tracking = Tracking()
    for now_s in range(100):
        tracking.look(RULE, 1, {"a": 40.0}, now_s)
    removes = [s for s in range(100, 1000) if tracking.look(RULE, 2, {"a": 1.0, "b": 1.0}, s) == 1]
    assert removes[0] == 100 + RULE.cooldown_in_s


def test_nothing_is_decided_while_a_reader_starts() -> None:
    tracking = Tracking()
    assert all(tracking.look(RULE, 2, {"a": 100.0}, s) == 2 for s in range(1000))
    found = [s for s in range(1000, 1200) if tracking.look(RULE, 2, {"a": 100.0, "b": 100.0}, s) != 2]
    assert found[0] == 1000 + OUT_WINDOW_S


NONE = replace(RULE, min_readers=0)


@pytest.mark.parametrize(
    ("count", "load", "writer", "wanted", "at_s"),
    [
        (0, 0.0, 51.0, 1, OUT_WINDOW_S),  # it serves what readers would
        (0, 0.0, 500.0, 1, OUT_WINDOW_S),  # what a reader takes of that is not known yet
        (0, 0.0, 50.0, None, 0),
        (0, 0.0, None, None, 0),  # it is away, or its load is not known
        (1, 5.0, 40.0, 0, IN_WINDOW_S),
        (1, 5.0, 41.0, None, 0),  # it would have to do more than ROOM of the target
        (1, 5.0, None, None, 0),
        (2, 10.0, 90.0, 1, IN_WINDOW_S),
    ],
)
def test_a_rule_without_a_minimum_looks_at_the_writer(
    count: int, load: float, writer: float | None, wanted: int | None, at_s: float
) -> None:
    tracking, found = Tracking(), []
    for second in range(int(2 * IN_WINDOW_S)):
        loads = {f"r{n}": load for n in range(count)}
        if (now := tracking.look(NONE, count, loads, 1000.0 + second, writer=writer)) != count:
            found.append((float(second), now))
            break
    assert found == ([] if wanted is None else [(at_s, wanted)])


@pytest.mark.parametrize("seed", range(0, 40, 5))
def test_whatever_the_load_the_number_stays_within_the_rule_and_comes_to_rest(seed: int) -> None:
    """The same work for all together, whatever their number: in the end it does not swing."""
    work, tracking, count, changes = 7.0 * (seed + 1), Tracking(), 1 + seed % 4, []
    for now_s in range(0, 6000, 5):
        wanted = tracking.look(RULE, count, {f"r{n}": work / count for n in range(count)}, float(now_s))
        assert RULE.min_readers <= wanted <= RULE.max_readers
        if wanted != count:
            changes.append(now_s)
            count = wanted
    assert count >= min(RULE.max_readers, math.ceil(work / RULE.target))
    assert not changes or changes[-1] < 4000, changes


def test_rules_that_cannot_be_are_refused() -> None:
    for wrong in ((-1, 1), (0, 0), (2, 1), (1, 16)):
        with pytest.raises(UsageError, match="there can be from 0 readers"):
            replace(RULE, min_readers=wrong[0], max_readers=wrong[1])
    for target in (0.0, -1.0, 101.0, math.nan):
        with pytest.raises(UsageError, match="is no target"):
            replace(RULE, target=target)
    with pytest.raises(UsageError, match="choose cpu or connections"):
        scaling_metric("memory")


# ---- whom, and how


def scaled(own: int = 1, added: int = 2, rule: ReaderScaling | None = RULE) -> Fleet:
    fleet = with_readers(running_fleet(), "demo", own, tier=0, memory_bytes=0, ports=_ports)
    fleet = with_readers(fleet, "demo", added, tier=15, memory_bytes=0, ports=_ports, scaled=True)
    return fleet.with_cluster(replace(fleet.cluster("demo"), scaling=rule, reader_port=15500))


def _ports(fleet: Fleet, count: int) -> list[int]:
    return [16000 + len(fleet.cluster("demo").instances) + n for n in range(count)]


def leaving(cluster: DBCluster) -> list[str]:
    return [reader.instance_id for reader in cluster.readers() if reader.leaving_since_s]


def follow(fleet: Fleet, **options: Any) -> dict[str, InstanceSeen]:
    seen = InstanceSeen(InstancePhase.AVAILABLE, role=Role.READER, **options)
    return {reader.instance_id: seen for reader in fleet.cluster("demo").readers()}


def test_only_what_scaling_added_goes_and_the_newest_first() -> None:
    fleet = scaled()
    assert leaving(with_fewer(fleet, "demo", 2, WALL_S).cluster("demo")) == ["demo-4"]
    assert leaving(with_fewer(fleet, "demo", 0, WALL_S).cluster("demo")) == ["demo-3", "demo-4"]
    assert next_to_leave(with_writer(scaled(1, 1), "demo", "demo-3").cluster("demo")) is None, "it is the writer now"
    assert unpack(pack(fleet)) == fleet


def test_readers_that_were_to_leave_stay_before_others_are_added() -> None:
    fleet = with_fewer(scaled(), "demo", 1, WALL_S)
    assert leaving(with_kept(fleet, "demo", 2).cluster("demo")) in (["demo-3"], ["demo-4"])
    assert leaving(with_kept(fleet, "demo", 5).cluster("demo")) == []


def test_a_rule_is_carried_out_by_actions() -> None:
    fleet, scaling = scaled(), Scaling()
    wanted: list[Any] = []
    for now_s in range(int(OUT_WINDOW_S) + 1):
        wanted = list(scaling.wanted(fleet, follow(fleet, cpu_percent=60.0), float(now_s), WALL_S))
    (action,) = wanted
    assert isinstance(action, ScaleReaders)
    assert (action.cluster, action.count) == ("demo", 4)
    assert action.why == "demo has 3 readers, 60 of 50 cpu"
    assert not list(scaling.wanted(scaled(rule=None), follow(fleet, cpu_percent=90.0), 1e4, WALL_S))


def test_a_reader_is_drained_before_it_goes() -> None:
    fleet = with_fewer(scaled(), "demo", 2, WALL_S)
    busy = follow(fleet, cpu_percent=40.0, connections=3)
    assert not list(Scaling().wanted(fleet, busy, 0.0, WALL_S + DRAIN_S - 1))
    assert isinstance(next(Scaling().wanted(fleet, busy, 0.0, WALL_S + DRAIN_S)), RemoveDrained)
    idle = busy | {"demo-4": replace(busy["demo-4"], connections=0)}
    assert [a.instance_id for a in Scaling().wanted(fleet, idle, 0.0, WALL_S) if isinstance(a, RemoveDrained)] == [
        "demo-4"
    ]
    target = failover_target(fleet.cluster("demo"), {"demo-4": busy["demo-4"]})
    assert target is None, "one that leaves takes nobody's place"


def test_endpoints_give_one_that_is_drained_no_new_sessions_and_cut_none() -> None:
    fleet = with_fewer(scaled(), "demo", 2, WALL_S)
    instances: dict[str, Instance] = {r.instance_id: available(FOLLOWS) for r in fleet.cluster("demo").readers()}
    for instance in instances.values():
        instance.process = _Here()  # type: ignore[assignment]
    reading = orders_for(fleet, instances, "127.0.0.1", "127.0.0.1")[1]
    ports = {r.instance_id: r.port for r in fleet.cluster("demo").readers()}
    assert {target.port for target in reading.targets} == {ports["demo-2"], ports["demo-3"]}
    assert [target.port for target in reading.fallback] == [ports["demo-4"]]


class _Here:
    host = "127.0.0.1"

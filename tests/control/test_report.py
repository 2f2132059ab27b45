"""What a status tells of faults on purpose and of copies that are gone."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.control.faults.chaos import Chaos, in_force
from aurora_ray.control.faults.record import Faults, Island, Pause
from aurora_ray.control.model.observed import InstancePhase, NodeSeen
from aurora_ray.control.model.state import DBCluster
from aurora_ray.control.observe.known import Instance, Node
from aurora_ray.control.report.status import report_cluster
from aurora_ray.errors import UsageError
from tests.control.fleets import running_fleet

NOW_S = 1000.0


def faults(path: Path) -> Faults:
    known = Faults.load(path)
    known.islands["node:a-1"] = Island(frozenset({"storage-a-1"}))
    known.islands["control"] = Island(frozenset({"control"}), NOW_S - 1)
    known.away_until_s = {"b-1": NOW_S + 7, "b-2": NOW_S - 7}
    known.paused = {"node:c-1": Pause(5, NOW_S + 9), "demo-1": Pause(6, NOW_S + 9)}
    known.save()
    return Faults.load(path)


def test_faults_that_are_not_over_are_told(tmp_path: Path) -> None:
    told = in_force(faults(tmp_path), NOW_S, {"node:c-1": 5, "demo-1": 7})
    assert told == [
        {"fault": "absence", "target": "node:b-1", "for_s": 7.0},
        {"fault": "partition", "target": "node:a-1", "for_s": None},
        {"fault": "pause", "target": "node:c-1", "for_s": 9.0},
    ], "the process demo-1 that was paused is another one by now"


async def test_a_pause_is_told_until_it_is_ended(tmp_path: Path) -> None:
    async def signal(_: int, __: float | None) -> list[int]:
        return [5]

    config, declared, processes = Mock(data_dir=tmp_path), Mock(fleet=running_fleet()), Mock()
    processes.nodes = {"a-1": Mock(process=Mock(signal=signal))}
    chaos = Chaos(config, declared, processes, Mock(), say=Mock(), clock=lambda: NOW_S)
    await chaos.strike("pause", "node:a-1", "demo", 20.0)
    expected = [{"fault": "pause", "target": "node:a-1", "for_s": 20.0}]
    assert in_force(Faults.load(tmp_path), NOW_S, {"node:a-1": 5}) == expected
    assert not chaos.held() & {"node:a-1"}, "it runs, so nobody starts it"
    await chaos.strike("resume", "node:a-1", "demo", None)
    assert in_force(Faults.load(tmp_path), NOW_S, {"node:a-1": 5}) == []


@pytest.mark.parametrize("target", ["writer", "control"])
async def test_what_comes_back_by_itself_is_not_killed_for_a_time(target: str, tmp_path: Path) -> None:
    say = Mock()
    chaos = Chaos(Mock(data_dir=tmp_path), Mock(), Mock(), Mock(), say=say)
    with pytest.raises(UsageError, match=f"pause {target} --for 5"):
        await chaos.strike("kill", target, "demo", 5.0)
    say.assert_not_called()


def test_how_far_an_opening_is_is_told(tmp_path: Path) -> None:
    fleet = running_fleet()
    cluster: DBCluster = fleet.cluster("demo")
    writer = cluster.writer().instance_id
    instance = Instance(Mock(host="127.0.0.1"))
    instance.is_at(InstancePhase.OPENING, "it was lost")
    status = InstanceStatus(IncarnationPhase.MOUNTING, reason="512 of 21,000 files are made")
    told = report_cluster(
        cluster,
        fleet,
        data_dir=tmp_path,
        listen_host="127.0.0.1",
        nodes={},
        instances={writer: instance},
        statuses={writer: status},
        node_states={},
        attempts={},
        endpoints={},
    )
    assert (told["instances"][0]["state"], told["instances"][0]["reason"]) == ("mounting", status.reason)


def test_a_node_whose_copies_are_gone_is_going_to_be_replaced(tmp_path: Path) -> None:
    fleet = running_fleet()
    cluster: DBCluster = fleet.cluster("demo")
    had = frozenset((v.volume_id, g.group) for v in fleet.volumes() for g in v.groups)
    well = NodeSeen("127.0.0.1:1", 1, "127.0.0.1", segments=had)
    seen = {
        "a-1": replace(well, segments=frozenset()),
        "a-2": replace(well, segments=frozenset(), refilling=had),
        "b-1": replace(well, segments=frozenset(), silent=True),
        "b-2": well,
    }
    told = report_cluster(
        cluster,
        fleet,
        data_dir=tmp_path,
        listen_host="127.0.0.1",
        nodes={node_id: Node(Mock(), node) for node_id, node in seen.items()},
        instances={},
        statuses={},
        node_states={},
        attempts={},
        endpoints={},
        notes=("first",),
        faults=[{"fault": "pause", "target": "demo-1", "for_s": 3.0}],
    )
    assert told["notes"] == ["first", "a new storage node is going to take the place of a-1, whose copies are gone"]
    assert told["faults"] == [{"fault": "pause", "target": "demo-1", "for_s": 3.0}]

"""The failover benchmark: stages add up, runs can be continued, and a fault of each database in earnest."""

import contextlib
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from aurora_ray.engine.account import find_account
from aurora_ray.errors import ConfigurationError
from benchmarks.__main__ import app
from benchmarks.failover import FailoverResult, Turn, take_turn
from benchmarks.failover_peers import ASKED, PEERS, Account
from benchmarks.failover_report import draw, percentile, show
from benchmarks.failover_stages import OURS, REST, exclusive
from benchmarks.site import prepared

SECOND = 10**9


def _turn(peer: str, kind: str, number: int, outage_s: float) -> Turn:
    account = Account(outage_s, outage_s * 0.97, {"detect": outage_s / 2, REST: outage_s * 0.03}, rows=[[0, "x", 0, 1]])
    return Turn(
        peer=peer,
        kind=kind,
        number=number,
        at="2026-01-01T00:00:00+00:00",
        load_s=6.0,
        load_tps=500.0,
        outage_s=outage_s,
        fault_to_write_s=outage_s,
        lost=0,
        account=account,
    )


def _result(kills: int, kinds: list[str], peers: list[str]) -> FailoverResult:
    return FailoverResult(
        started="2026-01-01T00:00:00+00:00",
        seed=1,
        kills=kills,
        kinds=kinds,
        peers=peers,
        clients=2,
        load_s=[6.0, 6.0],
        scale=1,
        commit={},
        machine={"cores_usable": 2},
        versions={},
        titles={name: PEERS[name].title for name in peers},
    )


def test_stages_follow_each_other_and_add_up() -> None:
    """Where spans lie above each other, the inner one counts; what nobody covers is said."""
    spans = [
        ("failover", 0, 10 * SECOND),
        ("failover.detect", 0, 3 * SECOND),
        ("control.OpenInstance", 4 * SECOND, 9 * SECOND),
        ("writer.seal", 5 * SECOND, 6 * SECOND),
        ("writer.engine", 6 * SECOND, 8 * SECOND),
    ]
    stages = exclusive(spans, OURS, 0, 10 * SECOND)
    assert stages == {"detect": 3.0, "ask to open": 2.0, "seal": 1.0, "engine": 2.0, REST: 2.0}
    assert sum(stages.values()) == 10.0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 31)]
    assert percentile(values, 0.5) == 15.0
    assert percentile(values, 0.9) == 27.0
    assert percentile(values, 0.99) == 30.0
    assert percentile([7.0], 0.5) == 7.0


def test_a_run_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    result = _result(2, ["kill", "stop"], ["aurora", "stock"])
    left = list(result.left())
    assert len(left) == 8
    assert [peer for _, _, peer in left[:4]] == ["aurora", "stock", "aurora", "stock"]
    result.turns.append(_turn("aurora", "kill", 0, 1.5))
    result.save(tmp_path / "cut.json")
    again = FailoverResult.load(tmp_path / "cut.json")
    assert again == result
    assert list(again.left()) == left[1:]


def test_a_failover_can_be_asked_of_a_fleet_alone() -> None:
    asked = {name: peer.takes(object.__new__(peer), ASKED) for name, peer in PEERS.items()}
    assert asked == {"aurora": True, "reader": True, "stock": False}
    assert all(peer.takes(object.__new__(peer), "kill") for peer in PEERS.values())
    spans = [("control.ChangeRole", 0, 2 * SECOND), ("control.OpenInstance", 2 * SECOND, 3 * SECOND)]
    assert exclusive(spans, OURS, 0, 3 * SECOND) == {"end": 2.0, "ask to open": 1.0}


def test_it_is_a_command_of_the_benchmarks() -> None:
    assert "failover" in {group.name for group in app.registered_groups}
    assert "tracing" in {command.name for command in app.registered_commands}


def test_tables_and_charts_tell_what_was_measured(tmp_path: Path) -> None:
    result = _result(3, ["kill"], ["aurora", "stock"])
    result.turns = [_turn(peer, "kill", n, 1.0 + n) for n in range(3) for peer in ("aurora", "stock")]
    text = StringIO()
    show(result, Console(file=text, width=200))
    assert "2.00" in text.getvalue()
    assert "97% to 97%" in text.getvalue()
    assert "LOST" not in text.getvalue()
    assert all(path.stat().st_size > 1000 for path in draw(result, "cut", tmp_path))
    result.turns[0] = replace(result.turns[0], lost=2)
    show(result, Console(file=text, width=200))
    assert "LOST: 2" in text.getvalue()


@pytest.mark.ray
@pytest.mark.postgres
@pytest.mark.timeout(300)
@pytest.mark.allowed_leaks("process", "shm", "tmp")
@pytest.mark.parametrize(
    ("peer", "kind"),
    [
        ("stock", "kill"),
        pytest.param("aurora", "kill", marks=pytest.mark.chaos),
        pytest.param("reader", "asked", marks=pytest.mark.chaos),
    ],
)
def test_a_fault_in_earnest(peer: str, kind: str, data_dir: Path) -> None:
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))
    result = _result(1, [kind], [peer])
    with contextlib.ExitStack() as cleanup:
        site = cleanup.enter_context(prepared(scale=1, version=None, work_dir=data_dir, keep=False))
        running = cleanup.enter_context(PEERS[peer](site))
        turn = take_turn(running, kind, 0, result)
    assert turn.lost == 0
    assert turn.load_tps > 10
    assert 0.02 < turn.outage_s < 60
    assert turn.account is not None
    assert turn.account.covered_s == pytest.approx(turn.outage_s, rel=0.1, abs=0.6)

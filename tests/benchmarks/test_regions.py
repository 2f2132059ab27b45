"""What the benchmark of two regions makes of its figures; that it runs is shown by running it."""

import json
import socket
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from aurora_ray.regions import load_regions
from benchmarks.link_proxy import LinkProxy
from benchmarks.regions import (
    ACROSS,
    HERE,
    STOCK,
    THERE,
    LoadTurn,
    ReadTurn,
    RegionsResult,
    TurnOfRegions,
    at_port,
    with_distance,
)
from benchmarks.regions_report import show


def result() -> RegionsResult:
    def load(regions: int, rate: int, tps: float, lags: list[float]) -> LoadTurn:
        return LoadTurn(regions=regions, rate=rate, number=0, tps=tps, link_bytes=432.1, lags_ms=lags)

    stock = LoadTurn(regions=2, rate=0, number=0, tps=6543.0, link_bytes=321.0, lags_ms=[], system=STOCK)

    def turn(kind: str, outage_s: float, missing: int) -> TurnOfRegions:
        lost = {"rpo_ms": 140.0, "rpo_bytes": 777} if kind == "failover" else {"rpo_ms": 0.0, "rpo_bytes": 0}
        return TurnOfRegions(kind=kind, number=0, outage_s=outage_s, rto_s=1.25, missing=missing, **lost)  # type: ignore[arg-type]

    return RegionsResult(
        started="2026-01-01T00:00:00+00:00",
        rounds=1,
        seconds=1.0,
        scale=1,
        commit={"id": "0" * 40},
        machine={"cores_usable": 2, "cpu": "some"},
        versions={},
        one_way_ms=40.0,
        loads=[stock, load(1, 0, 2000.0, []), load(2, 100, 100.0, [float(n) for n in range(1, 101)])],
        reads=[ReadTurn(where=ACROSS, took_ms=[83.25])],
        turns=[turn("switchover", 2.5, 0), turn("failover", 3.5, 4)],
    )


def shown(of: RegionsResult) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        show(of, console)
    return captured.get()


def test_tables_say_what_was_measured() -> None:
    text = shown(result())
    for figure in ("80 ms", "2,000", "432", "2.50", "3.50", "1.25", "140", "777", "6,543", "321", "83.2"):
        assert figure in text, figure
    assert "LOST" not in text, "a failover may lose what it reports"
    harmed = result()
    harmed.turns.append(
        TurnOfRegions(kind="switchover", number=1, outage_s=1, rto_s=1, rpo_ms=0, rpo_bytes=0, missing=2)
    )
    assert "LOST: 2" in shown(harmed)


def test_a_file_is_whole(tmp_path: Path) -> None:
    result().save(tmp_path / "out" / "regions.json")
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == asdict(result())


def test_the_distance_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    with_distance(tmp_path / "regions", 12.5)
    assert load_regions(tmp_path / "regions")[HERE].distance_ms(THERE) == 12.5


def test_a_dsn_by_another_port() -> None:
    dsn = "postgresql://postgres@127.0.0.1:5432/postgres?passfile=/x"
    assert at_port(dsn, 77) == "postgresql://postgres@127.0.0.1:77/postgres?passfile=/x"


def test_bytes_cross_a_link_that_is_as_long_as_it_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far, LinkProxy(0.05, far.getsockname()[1]) as link:
        with socket.create_connection(("127.0.0.1", link.port), timeout=5) as client:
            client.sendall(b"x" * 200_000)
            began_s = time.monotonic()
            session, _ = far.accept()
            with session:
                session.settimeout(5)
                got = b""
                while len(got) < 200_000:
                    got += session.recv(1 << 16)
                assert time.monotonic() - began_s >= 0.04
                session.sendall(b"answer")
                assert client.recv(16) == b"answer"
                assert time.monotonic() - began_s >= 0.09
            assert client.recv(16) == b"", "its end arrives as well"
        assert link.nbytes >= 200_006

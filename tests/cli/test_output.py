"""What `aurora status` shows people."""

import sys
import threading
from typing import Any

import pytest
from rich.console import Console

from aurora_ray.cli.output import Results, render_status, write_line


def node(name: str, state: str = "healthy", **more: Any) -> dict[str, Any]:
    facts = {"id": name, "az": "a", "state": state, "pid": 7, "scl": 5, "disk_bytes": 0, "copy": None}
    return {**facts, "replaces": None, "replaced_by": None, **more}


def instance(name: str, role: str, **more: Any) -> dict[str, Any]:
    facts = {"id": name, "role": role, "az": "us-east-1a", "state": "available", "pid": 1234567, "port": 15434}
    sizes = {"memory_bytes": 1945 << 20, "declared_memory_bytes": None, "next_memory_bytes": None}
    return {**facts, **sizes, "lag_ms": None, "reason": "", **more}


def test_a_readers_lag_is_shown_and_nothing_is_cut_off_on_a_terminal() -> None:
    text = shown(
        instances=[instance("demo-1", "writer", lag_ms=0), instance("demo-12", "reader", lag_ms=1234.5)], width=80
    )
    writer, reader = (line.split() for line in text.splitlines() if "demo-" in line)
    facts = ["us-east-1a", "available", "1234567", "15434", "1.9", "GiB"]
    assert writer == ["demo-1", "writer", *facts, "-"]
    assert reader == ["demo-12", "reader", *facts, "1234.5", "ms"]


def shown(*nodes: dict[str, Any], width: int = 160, **more: Any) -> str:
    status = {
        "cluster": "demo",
        "engine": "postgres",
        "engine_version": "18",
        "state": "available",
        "region": "r",
        "epoch": 1,
        "vdl": 5,
        "volume": {"bytes": 41 << 20, "protection_groups": 1, "limit_bytes": 128 << 40},
        "endpoints": {"cluster": {"dsn": "postgresql://"}},
        "instances": [],
        "storage_nodes": list(nodes),
        "metrics": None,
        "notes": [],
        **more,
    }
    console = Console(width=width)
    with console.capture() as captured:
        console.print(render_status(status))
    return captured.get()


def test_how_full_a_volume_is_and_how_far_it_can_be_rewound() -> None:
    text = shown()
    assert "41.0 MiB of 128.0 TiB in 1 protection group" in text
    assert "rewound" not in text
    known = {"earliest": "2026-01-01T00:00:00.000Z", "latest": "2026-01-02T00:00:00.000Z", "latest_lsn": 77}
    text = shown(backtrack={**known, "rewound": 2, "marks": [{"label": "good", "lsn": 5}]})
    assert "from 2026-01-01T00:00:00.000Z to 2026-01-02T00:00:00.000Z (lsn:77); rewound 2 times; marks: good" in text


def test_a_replacement_and_how_far_it_is() -> None:
    copy = {"running": True, "bytes_copied": 3 << 20, "bytes_total": 12 << 20, "mb_per_s": 40.5}
    text = shown(node("a-1", "no process", replaced_by="a-3"), node("a-3", "filling", replaces="a-1", copy=copy))
    assert "filling" in text
    assert "a-3 takes the place of a-1: 3.0 MiB of 12.0 MiB copied, 40.5 MB/s" in text


def test_before_anything_is_copied_and_when_all_is_well() -> None:
    assert "a-3 takes the place of a-1\n" in "\n".join(
        line.rstrip() + "\n" for line in shown(node("a-3", "filling", replaces="a-1")).splitlines()
    )
    done = {"running": False, "bytes_copied": 1, "bytes_total": 1, "mb_per_s": 1.0}
    assert "takes the place" not in shown(node("a-3", copy=done))


def test_what_nobody_tells_is_not_shown_as_none() -> None:
    for state in ("no process", "silent"):
        (line,) = (line for line in shown(node("a-1", state, scl=0)).splitlines() if "a-1" in line)
        assert line.split()[-3:] == ["-", "-", "-"]
    assert "0 B" in shown(node("a-1", disk_bytes=0))


def test_faults_in_force_have_a_line_each() -> None:
    faults = [
        {"fault": "partition", "target": "node:a-1", "for_s": None},
        {"fault": "pause", "target": "demo-1", "for_s": 6.8},
    ]
    text = shown(faults=faults)
    assert "chaos: partition of node a-1, until healed" in text
    assert "chaos: pause of demo-1, for 7 more s" in text


def test_one_and_many() -> None:
    assert "in 1 protection group " in shown().replace("\n", " ")
    assert "in 2 protection groups" in shown(volume={"bytes": 0, "protection_groups": 2, "limit_bytes": 128 << 40})


def test_only_the_command_itself_writes_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Results())
    write_line("result")
    other = threading.Thread(target=write_line, args=("a node of the Ray cluster died",))
    other.start()
    other.join()
    write_line("more")
    captured = capsys.readouterr()
    assert captured.out == "result\nmore\n"
    assert captured.err == "a node of the Ray cluster died\n"


def test_serverless_capacity_and_a_pause_have_a_line() -> None:
    facts: dict[str, Any] = {
        "min": 0.0,
        "max": 4.0,
        "pause_after_s": 30.0,
        "acu": 1.5,
        "paused_since": None,
        "awake": ["2 sessions"],
    }
    facts["limits"] = {"demo-1": {"cpu": True, "memory_bytes": 5 << 30}, "demo-2": {"cpu": True, "memory_bytes": None}}
    text = shown(capacity={**facts, "reason": "for 60 s no more than 1.5 ACU were wanted"}, width=400)
    assert "serverless, 0 to 4 ACU: 1.5 ACU now (for 60 s no more than 1.5 ACU were wanted)" in text
    assert "paused after 30 s without use; awake: 2 sessions" in text.replace("\n", " ")
    assert "no control group bounds its memory here" in text.replace("\n", " ")
    facts["limits"] = {"demo-1": {"cpu": False, "memory_bytes": None}}
    assert "no control group bounds its CPU and memory here" in shown(capacity={**facts, "reason": ""}, width=400)
    facts["limits"] = {}
    assert "control group" not in shown(capacity={**facts, "reason": ""})
    assert "paused, whoever connects wakes it" in shown(capacity={**facts, "reason": "", "paused_since": 1.0})
    assert "serverless" not in shown(capacity=None)

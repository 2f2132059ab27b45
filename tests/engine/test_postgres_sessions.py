"""A server's processes by their titles: which of them serve a client."""

from pathlib import Path

import pytest

from aurora_ray.engine.postgres.sessions import count_busy, count_sessions, count_slots


@pytest.mark.parametrize(
    ("title", "serves"),
    [
        (b"postgres: postgres demo [local] idle", True),
        (b"postgres: app user some db 127.0.0.1(53210) INSERT waiting", True),
        (b"postgres: main: postgres demo ::1(53210) idle in transaction\0\0", True),
        (b"postgres: postgres demo client.example.org(53210) authentication", True),
        (b"postgres: walsender postgres [local] streaming 0/3000148", False),
        (b"postgres: main: walsender postgres 127.0.0.1(5321) streaming 0/3000148", False),
        (b"postgres: checkpointer ", False),
        (b"postgres: startup recovering 000000010000000000000003", False),
        (b"postgres: walreceiver streaming 0/3000148", False),
        (b"postgres: parallel worker for PID 4711 ", False),
        (b"postgres: autovacuum worker demo", False),
        (b"postgres: io worker 0", False),
        (b"", False),
    ],
)
def test_titles(title: bytes, serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: title)
    assert count_sessions([1]) == int(serves)


def test_a_process_that_is_gone_serves_nobody() -> None:
    assert count_sessions([2**22 - 1]) == 0


@pytest.mark.parametrize(
    ("title", "busy"),
    [
        (b"postgres: postgres demo [local] idle", 0),
        (b"postgres: postgres demo 127.0.0.1(5321) idle\0", 0),
        (b"postgres: app user some db 127.0.0.1(53210) INSERT waiting", 1),
        (b"postgres: main: postgres demo ::1(53210) idle in transaction", 1),
        (b"postgres: checkpointer ", 0),
    ],
)
def test_who_is_in_the_middle_of_something(title: bytes, busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: title)
    assert count_busy([1]) == busy


def test_replication_slots(tmp_path: Path) -> None:
    assert count_slots(tmp_path) == 0
    (tmp_path / "pg_replslot" / "one").mkdir(parents=True)
    (tmp_path / "pg_replslot" / "two.tmp").mkdir()
    assert count_slots(tmp_path) == 1

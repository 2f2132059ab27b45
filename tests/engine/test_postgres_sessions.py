"""A server's processes by their titles: which of them serve a client."""

from pathlib import Path

import pytest

from aurora_ray.engine.postgres.sessions import count_sessions


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

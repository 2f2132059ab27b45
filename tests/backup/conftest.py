"""A real S3 server on loopback, as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.support.polling import poll_until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()  # noqa: S310
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output
        )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        poll_until_blocking(lambda: _answers(endpoint), 60, interval_s=0.1, what=f"S3 answers, see {log}")
        yield endpoint
    finally:
        server.kill()
        server.wait(10)


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket, with credentials in the environment."""
    monkeypatch.setitem(os.environ, "AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setitem(os.environ, "AWS_SECRET_ACCESS_KEY", "testing")
    bucket = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}"
    made = urllib.request.Request(f"{s3_endpoint}/{bucket}", method="PUT")  # noqa: S310
    urllib.request.urlopen(made, timeout=30).close()  # noqa: S310
    return f"s3://{bucket}/backups?region=us-east-1&endpoint={s3_endpoint}"

"""What is said of an address where no Ray cluster answers, and how soon."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from aurora_ray.control.api.client import NotRunningError
from aurora_ray.errors import UsageError
from aurora_ray.ray.probe import require_answer


@contextmanager
def listening(says: bytes | None) -> Iterator[int]:
    """A port at which somebody says this to whoever comes, and hangs up; None: says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100)
                peer.sendall(says or b"")

        thread = threading.Thread(target=serve)
        if says is not None:
            thread.start()
        yield server.getsockname()[1]
        if says is not None:
            thread.join()


def test_where_nobody_listens(free_port: int) -> None:
    with pytest.raises(NotRunningError, match=f"no Ray cluster answers at 127.0.0.1:{free_port}: Connection refused"):
        require_answer(f"127.0.0.1:{free_port}")


def test_one_that_hangs_is_not_waited_for() -> None:
    began_s = time.monotonic()
    with listening(None) as port, pytest.raises(NotRunningError, match="nothing was said"):
        require_answer(f"127.0.0.1:{port}", timeout_s=0.2)
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_that_listens(says: bytes) -> None:
    with listening(says) as port, pytest.raises(NotRunningError, match="something else listens"):
        require_answer(f"ray://127.0.0.1:{port}")


def test_a_server_of_grpc_will_do() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        require_answer(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("address", ["", "here", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        require_answer(address)

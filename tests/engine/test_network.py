import socket

import pytest

from aurora_ray.engine.network import claim_port, hold_port
from aurora_ray.errors import ConfigurationError, PortInUseError


def test_a_free_port_is_found() -> None:
    port = claim_port("127.0.0.1", 0)
    assert claim_port("127.0.0.1", port) == port


def test_a_port_in_use_is_refused_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} on 127.0.0.1 is in use: stop .* or choose"):
            claim_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1"):
        claim_port("192.0.2.1", 0)


def test_a_port_that_is_held_is_nobody_elses_and_refuses_who_connects() -> None:
    port = claim_port("127.0.0.1", 0)
    held = hold_port("127.0.0.1", port)
    assert held is not None
    with pytest.raises(PortInUseError):
        claim_port("127.0.0.1", port)
    assert hold_port("127.0.0.1", port) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    held.close()
    assert claim_port("127.0.0.1", port) == port

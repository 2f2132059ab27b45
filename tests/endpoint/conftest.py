"""A relay that is closed whatever the test does, and must not have lost a file descriptor by then."""

import resource
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from aurora_ray.endpoint.relay import Relay
from tests.endpoint.backends import open_fds
from tests.support.polling import poll_until


@pytest.fixture
async def make_relay() -> AsyncIterator[Callable[..., Relay]]:
    """Makes relays, started on a free port; takes the options of `Relay`."""
    relays: list[Relay] = []
    fds = open_fds()

    def make(**options: float) -> Relay:
        relay = Relay(**options)  # type: ignore[arg-type]
        relays.append(relay)
        relay.start()
        return relay

    yield make
    for relay in relays:
        relay.close()
    await poll_until(lambda: open_fds() <= fds, what="all file descriptors are closed")


@pytest.fixture
def relay(make_relay: Callable[..., Relay]) -> Relay:
    return make_relay()


@pytest.fixture
def many_fds() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""The only place that makes gRPC channels and servers, so that limits, keepalive and credentials agree everywhere.

(But for the streams that carry redo: `stream_client.py` and `stream_server.py`, with the limits from here.)
"""

from __future__ import annotations

import resource
from typing import Final

import grpc
import grpc.aio

from aurora_ray.errors import ConfigurationError
from aurora_ray.rpc.admission import Caller, Doorkeeper, Secret
from aurora_ray.rpc.calls import Channel
from aurora_ray.rpc.guard import Guard
from aurora_ray.rpc.link import Link
from aurora_ray.rpc.partition import PARTY, Gate
from aurora_ray.rpc.tracing import ServerSpans

MESSAGE_BYTES_MAX: Final = 80 << 20  # above the largest batch, 64 MiB
KEEPALIVE_S: Final = 10  # silence after which the other side is asked for a sign of life ...
KEEPALIVE_TIMEOUT_S: Final = 5  # ... and how long it may take

# What connections may cost that prove nothing: a part of the process's descriptors, gone soon if they do not speak
# HTTP/2, and later if they call nothing. (Ours connect again by themselves with the next call.)
HANDSHAKE_TIMEOUT_S: Final = 5.0
IDLE_TIMEOUT_S: Final = 60.0

_COMMON: Final = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 1_000 * KEEPALIVE_S),
    ("grpc.keepalive_timeout_ms", 1_000 * KEEPALIVE_TIMEOUT_S),
    ("grpc.http2.max_pings_without_data", 0),
)
_CLIENT: Final = (
    *_COMMON,
    ("grpc.enable_http_proxy", 0),
    # Each channel its own connections: two streams to one node must not share a flow-control window by accident.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also how long one attempt to connect may take: a busy node needs time
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_SERVER: Final = (
    *_COMMON,
    ("grpc.so_reuseport", 0),  # by default two processes would share a port in silence
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def open_channel(address: str, server: str, secret: Secret | None = None, link: Link | None = None) -> Channel:
    """A channel to the server named `server` at `host:port`; it connects by itself and again after losses.

    `secret`: another fleet's; ours by default. `link`: the distance to it, simulated. Raises ConfigurationError if this
    process has no secret.
    """
    # Plain text for now: mutual TLS goes here and into `bind`, nowhere else.
    agent = ("grpc.primary_user_agent", PARTY.user_agent)
    caller = Caller(server, door_of(address), secret)
    return Channel(grpc.aio.insecure_channel(address, options=(*_CLIENT, agent)), caller, address, link)


def door_of(address: str) -> str:
    """What a proof says of an address: the port. (A machine's name may differ from where one asks.)"""
    return address.rpartition(":")[2]


def make_server(doorkeeper: Doorkeeper) -> tuple[grpc.aio.Server, Guard]:
    """A server without ports or services, and its guard, which is to be told the door when there is one."""
    guard = Guard(doorkeeper)
    bounds = (
        ("grpc.max_allowed_incoming_connections", connections_max()),
        ("grpc.server_handshake_timeout_ms", int(1_000 * HANDSHAKE_TIMEOUT_S)),
        ("grpc.max_connection_idle_ms", int(1_000 * IDLE_TIMEOUT_S)),
    )
    return grpc.aio.server(interceptors=(guard, Gate(), ServerSpans()), options=(*_SERVER, *bounds)), guard


def connections_max() -> int:
    """How many connections a server takes at once: a quarter of the descriptors that this process may have."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if descriptors == resource.RLIM_INFINITY else max(64, min(descriptors // 4, 10_000))


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Listens on `host:port` (0: any free port); the port. Raises ConfigurationError if it is taken."""
    if not 0 <= port <= 0xFFFF:
        raise ConfigurationError(f"{port} is not a port: choose one from 1 to 65535, or 0 for any free one")
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise ConfigurationError(f"port {port} on {host} cannot be listened on: stop its owner or choose another port")
    return int(bound)

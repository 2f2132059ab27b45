"""One stable TCP address: it accepts sessions and brings each to one of the targets in force.

To a target on this machine that takes them (`Target.hand_over`) a client's socket itself is given: no byte of the
session passes here, and the engine sees the client's own address. To any other target the bytes are relayed, and the
engine sees every client come from the relay's address: rules that tell clients apart by address, as in `pg_hba.conf`,
see that one and no other. What is said below holds for both.

What clients see when roles change:

- A session stays with the target it was connected to. Once that target, in that incarnation, is no longer listed, the
  session is reset, whatever state it is in: a commit without an answer has an unknown outcome.
- A new connection goes to the listed target with the fewest sessions, in turn among equals; to a fallback target only
  when there is no other or none of them accepts.
- While there is no target, or none accepts, new connections are held unread, at most `held_max` of them and each for
  `hold_s`; then they are closed. A client that closes its side meanwhile has given up. A socket that an engine was
  offered and has not taken, since it hangs, is held like them when that engine's time is over.
- A request to cancel reaches the session's engine, whichever target that is, unless it comes under TLS and there are
  several.
- There are at most `sessions_max` at an endpoint, and in a process half as many as it may have files. One too many is
  refused in the clients' protocol.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import socket
import threading
from collections.abc import Sequence
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Final, NamedTuple

from aurora_ray.endpoint import native
from aurora_ray.errors import AuroraError, ConfigurationError, FencedError, UsageError
from aurora_ray.rpc.listening import listen

HOLD_S: Final = 20.0  # above the longest failover that is still normal
HELD_MAX: Final = 1024
SESSIONS_MAX: Final = 4096
OBEY_TIMEOUT_S: Final = 5.0
_BACKLOG: Final = 1024


class RelayError(AuroraError):
    """The relay's thread did not do what it was asked in time."""

    retryable = True


class ClientProtocol(NamedTuple):
    """What an endpoint knows of how clients speak to an engine. `cancel_code`: bytes 4 to 8, big-endian, of a
    connection's first message that asks to cancel what another session does; 0: there is no such thing. `refusal`: an
    error message of at most 128 bytes, for a client that cannot be served since there are too many.
    `keeps_address`: the server learns by which address of this machine (127.0.0.0/8) a client came, as the one that
    it is connected from."""

    cancel_code: int = 0
    refusal: bytes = b""
    keeps_address: bool = False


ANY_PROTOCOL: Final = ClientProtocol()


class Target(NamedTuple):
    """Where sessions may go. `host` is numeric. Two incarnations at one address are two targets: an engine that was
    started anew is not the one that the old sessions belong to. An empty one stands for the order's generation.
    `hand_over`: the Unix socket on this machine where it takes clients' sockets; empty: it takes none."""

    host: str
    port: int
    incarnation: str = ""
    hand_over: str = ""


@dataclass(frozen=True, slots=True)
class RelayStats:
    """`held` and `open` are of now (`held`: no target yet, or being connected), all else counts from the start.

    `refused`: there were too many; `expired`: held too long; `cut`: their target was withdrawn; `handed`: their
    sockets were taken by targets on this machine, and count for neither bytes nor messages; `messages`: chunks that
    were read; `cancels`: requests that were sent to all targets; `up` is from clients to targets; `cpu_ns`: what the
    relay's thread used.
    """

    open: int = 0
    held: int = 0
    accepted: int = 0
    refused: int = 0
    expired: int = 0
    cut: int = 0
    connect_failures: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    messages: int = 0
    handed: int = 0
    cancels: int = 0
    cpu_ns: int = 0


class Relay:
    """Any thread may call; no call takes longer than a few milliseconds. Not to be used across a fork."""

    def __init__(
        self,
        *,
        hold_s: float = HOLD_S,
        held_max: int = HELD_MAX,
        sessions_max: int = SESSIONS_MAX,
        protocol: ClientProtocol = ANY_PROTOCOL,
    ) -> None:
        refusal = protocol.refusal[: native.REFUSAL_BYTES_MAX]
        self._options = native.RelayOptions(
            held_max,
            sessions_max,
            round(hold_s * 1000),
            protocol.cancel_code,
            protocol.keeps_address,
            len(refusal),
            tuple(refusal),
        )
        self._lock = threading.Lock()
        self._handle: c_void_p | None = None
        self._port = 0
        self._last = RelayStats()

    @property
    def port(self) -> int:
        """Where it listens; 0 before the start."""
        return self._port

    def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens, without targets yet; the port (0 asks for a free one). Raises ConfigurationError with what to do."""
        library = native.library()
        with self._lock:
            if self._handle is not None:
                raise UsageError(f"This relay listens already, on port {self._port}.")
            with listen(host, port, _BACKLOG, flags=socket.SOCK_NONBLOCK) as listener:
                bound: int = listener.getsockname()[1]
                handle = c_void_p()
                result = library.ar_relay_start(listener.fileno(), byref(self._options), byref(handle))
                if result < 0:
                    raise ConfigurationError(f"The relay for port {bound} cannot start: {os.strerror(-result)}.")
                listener.detach()
            self._handle, self._port = handle, bound
        return bound

    def set_hold(self, hold_s: float) -> None:
        """Clients wait so long for a target from now on, those too that wait already. Raises UsageError."""
        with self._lock:
            if self._handle is None:
                raise UsageError("This relay does not listen.")
            native.library().ar_relay_set_hold(self._handle, round(hold_s * 1000))

    def set_targets(
        self,
        targets: Sequence[Target | tuple[str, int]],
        generation: int,
        fallback: Sequence[Target | tuple[str, int]] = (),
        *,
        unless_used: bool = False,
    ) -> bool:
        """From now on these are the targets. When it returns, sessions of all others have been reset. Whether it is so:
        with `unless_used`, nothing changes if there is any session, or anybody waits for one.

        `generation` tells the orders of successive owners apart: one below the last is refused with FencedError. Raises
        UsageError if a host is not numeric or there are too many.
        """
        orders = [_order(Target(*target), generation, fallback=False) for target in targets]
        orders += [_order(Target(*target), generation, fallback=True) for target in fallback]
        if len(orders) > native.TARGETS_MAX:
            raise UsageError(f"An endpoint has at most {native.TARGETS_MAX} targets, not {len(orders)}.")
        array = (native.TargetOrder * max(1, len(orders)))(*orders)
        with self._lock:
            if self._handle is None:
                raise UsageError("This relay does not listen.")
            result = native.library().ar_relay_set_targets(
                self._handle, array, len(orders), generation, round(OBEY_TIMEOUT_S * 1000), unless_used
            )
        if result == -errno.EBUSY:
            return False
        if result == -errno.ESTALE:
            raise FencedError(f"Endpoint orders of generation {generation} are refused: there were later ones.")
        if result < 0:
            raise RelayError(f"The relay on port {self._port} did not obey: {os.strerror(-result)}.")
        return True

    def stats(self) -> RelayStats:
        """The counters; after `close` those at its time."""
        with self._lock:
            return self._read() if self._handle is not None else self._last

    def close(self) -> None:
        """Stops listening and resets all sessions."""
        with self._lock:
            if self._handle is not None:
                self._last = self._read()
                native.library().ar_relay_close(self._handle)
                self._handle = None

    def _read(self) -> RelayStats:
        counters = native.Counters()
        native.library().ar_relay_stats(self._handle, counters)
        return RelayStats(**dict(zip(native.COUNTERS, counters, strict=True)))


def _order(target: Target, generation: int, *, fallback: bool) -> native.TargetOrder:
    try:
        host = str(ipaddress.ip_address(target.host))
    except ValueError:
        raise UsageError(f"The target {target.host}:{target.port} must be given by its numeric address.") from None
    path = os.fsencode(target.hand_over)
    if len(path) >= native.HAND_OVER_BYTES:
        raise UsageError(f"{target.hand_over} is too long a name for a socket.")
    incarnation = hashlib.blake2b((target.incarnation or str(generation)).encode(), digest_size=8).digest()
    return native.TargetOrder(host.encode(), target.port, fallback, int.from_bytes(incarnation, "little"), path)

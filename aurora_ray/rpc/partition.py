"""Network partitions on purpose: a server that hears nothing from some of those who call it.

Each process has a name, its *party*, and says it with every call (in the user agent, which costs nothing on a stream).
A server's gate can be told whom it shall not hear: calls of theirs that are running break, new ones get no answer until
the partition is healed or the caller gives up. Nothing of this is a protection: a party's name is what it claims.

Parties: `storage-<node id>`, `instance-<instance id>-<process id>`, `control`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import grpc.aio

AGENT: Final = "aurora-party:"


@dataclass(frozen=True, slots=True)
class Cut:
    """Whom not to hear: everyone but `allowed`, if that is given; and those in `denied`."""

    denied: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None

    def mutes(self, party: str) -> bool:
        """Whether that party is cut off. Who says no name is heard unless only some are."""
        return party in self.denied or (self.allowed is not None and party not in self.allowed)


class Breakable(Protocol):
    """A call that can be broken: a task, a connection."""

    def cancel(self) -> Any:
        """Breaks it."""


class Party:
    """This process's name, and its gate. One a process."""

    def __init__(self) -> None:
        self.name = ""
        self._cut = Cut()
        self._healed = asyncio.Event()
        self._calls: dict[Breakable, str] = {}

    @property
    def user_agent(self) -> str:
        """What channels of this process say."""
        return f"{AGENT}{self.name}" if self.name else "aurora-ray"

    def mutes(self, party: str) -> bool:
        """Whether its calls get no answer now."""
        return self._cut.mutes(party)

    def set_cut(self, cut: Cut) -> None:
        """From now on; in the event loop of the servers. Running calls of whoever is cut off end."""
        self._cut = cut
        healed, self._healed = self._healed, asyncio.Event()
        healed.set()  # who waits looks again
        for call, party in list(self._calls.items()):
            if cut.mutes(party):
                call.cancel()

    async def wait_heard(self, party: str) -> None:
        """Returns when calls of that party are answered again."""
        while self._cut.mutes(party):
            await self._healed.wait()

    def note_call(self, party: str) -> None:
        """The running task serves a call of that party."""
        task = asyncio.current_task()
        if task is not None:
            self.note(task, party)
            task.add_done_callback(self.forget)

    def note(self, call: Breakable, party: str) -> None:
        """A call of that party runs, until `forget`."""
        self._calls[call] = party

    def forget(self, call: Breakable) -> None:
        """It has ended."""
        self._calls.pop(call, None)


PARTY: Final = Party()

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor  # the type stubs know it as generic, the library does not


class Gate(_Interceptor):
    """Lets calls through, or leaves them without an answer. It sees a call's beginning only, never its messages."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        metadata = handler_call_details.invocation_metadata or ()
        party = next((found for key, value in metadata if key == "user-agent" and (found := party_of(value))), "")
        if PARTY.mutes(party):
            await PARTY.wait_heard(party)
        handler = await continuation(handler_call_details)
        # Streams are the ones to break: of the log to a follower, of redo from a writer. Others end by themselves.
        if handler is not None and inspect.iscoroutinefunction(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                _breakable(handler.unary_stream, party), handler.request_deserializer, handler.response_serializer
            )
        if handler is not None and inspect.iscoroutinefunction(handler.stream_stream):
            return grpc.stream_stream_rpc_method_handler(
                _breakable(handler.stream_stream, party), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _breakable(serve: Callable[[Any, Any], Awaitable[None]], party: str) -> Callable[[Any, Any], Awaitable[None]]:
    async def wrapped(requests: Any, context: Any) -> None:
        PARTY.note_call(party)
        try:
            await serve(requests, context)
        except asyncio.CancelledError:
            if not PARTY.mutes(party):
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{party} is cut off by a partition made on purpose")

    return wrapped


def party_of(user_agent: str) -> str:
    """Who calls; "" if nothing is said of it."""
    return user_agent.removeprefix(AGENT).partition(" ")[0] if user_agent.startswith(AGENT) else ""


CONTROL_PARTY: Final = "control"


def storage_party(node_id: str) -> str:
    """The name of a storage node."""
    return f"storage-{node_id}"


def instance_party(instance_id: str, pid: int) -> str:
    """The name of an instance's process: one that takes its place is somebody else."""
    return f"instance-{instance_id}-{pid}"

"""The calling side of gRPC's own calls: each with a proof of the fleet's secret, no answer believed without one.

A `Channel` looks like grpc.aio's to a generated stub, for calls with one request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Self

import grpc
import grpc.aio

from aurora_ray.errors import AuroraError, NodeTimeoutError, NodeUnreachableError, UsageError
from aurora_ray.rpc.admission import Caller, ImpostorError, Proof
from aurora_ray.rpc.link import Link, Way, delayed
from aurora_ray.rpc.status import error_of

_Entries = tuple[tuple[str, str | bytes], ...]
_Metadata = Iterable[tuple[str, str | bytes]] | None
# When a channel is closed, gRPC cancels whoever waits for a call, as if he had been meant, and refuses new calls.
_CLOSED = (asyncio.CancelledError, grpc.aio.UsageError)
# What gRPC's library says itself when it gets no answer, or what anybody may say: it is true whoever says it.
_UNPROVED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


class Replies:
    """The messages of a running call, to be iterated over or read one by one; `aclose` ends it."""

    def __init__(self, messages: AsyncGenerator[Any, None]) -> None:
        self._messages = messages

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        return self._messages

    async def read(self) -> Any:
        """The next message; None after the last."""
        return await anext(self._messages, None)

    async def aclose(self) -> None:
        """Ends the call."""
        await self._messages.aclose()


class Channel:
    """A channel to one server, proved. Every call raises errors of our own tree (see status.py), or ImpostorError."""

    def __init__(self, channel: Any, caller: Caller, address: str, link: Link | None = None) -> None:
        self._channel = channel
        self._link = link
        self.caller = caller
        self.address = address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace_s: float | None = None) -> None:
        """Ends all calls."""
        await self._channel.close(grace_s)

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """See grpc.aio.Channel; the call is a coroutine."""
        begin = self._channel.unary_unary(method)

        async def call(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: _Metadata = None,
            wait_for_ready: bool | None = None,
        ) -> Any:
            body = request_serializer(request) if request_serializer else request
            deadline_s = None if timeout is None else time.monotonic() + timeout
            for last in (False, True):
                await self._leave(body, deadline_s)
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                proof, entries = self._prove(method, body, metadata)
                try:
                    running = begin(body, timeout=left_s, metadata=entries, wait_for_ready=wait_for_ready)
                    reply = await running
                    answered = proof.is_answered(await running.trailing_metadata())
                except _CLOSED as error:
                    raise self._was_closed() from error
                except grpc.aio.AioRpcError as error:
                    if self._may_retry(error, proof) and not last:
                        continue
                    raise self._error(error, proof) from error
                if not answered:
                    raise self._impostor()
                if self._link is not None:
                    await self._cross(self._link.back, reply, deadline_s)
                return response_deserializer(reply) if response_deserializer else reply
            raise AssertionError("unreachable")

        return call

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., Replies]:
        """See grpc.aio.Channel; the call begins when its first message is asked for."""
        begin = self._channel.unary_stream(method)

        async def messages(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: _Metadata = None,
            wait_for_ready: bool | None = None,
        ) -> AsyncGenerator[Any, None]:
            body = request_serializer(request) if request_serializer else request
            for last in (False, True):
                await self._leave(body, None if timeout is None else time.monotonic() + timeout)
                proof, entries = self._prove(method, body, metadata)
                try:
                    running = begin(body, timeout=timeout, metadata=entries, wait_for_ready=wait_for_ready)
                except _CLOSED as error:
                    raise self._was_closed() from error
                proved = False
                arriving = running if self._link is None else delayed(running, self._link.back, len)
                try:
                    async for message in arriving:
                        proved = proved or proof.is_answered(await running.initial_metadata())
                        if not proved:
                            raise self._impostor()
                        yield response_deserializer(message) if response_deserializer else message
                    if not proved and not proof.is_answered(await running.trailing_metadata()):
                        raise self._impostor()
                except _CLOSED as error:
                    raise self._was_closed() from error
                except grpc.aio.AioRpcError as error:
                    if self._may_retry(error, proof) and not last:
                        continue
                    raise self._error(error, proof, proved=proved) from error
                finally:
                    running.cancel()
                    if arriving is not running:
                        await arriving.aclose()
                return

        def call(request: Any, **options: Any) -> Replies:
            return Replies(messages(request, **options))

        return call

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """Generated stubs ask for it; streams of redo begin with `stream_client.open_stream`."""

        def call(*_: Any, **__: Any) -> Any:
            raise UsageError(f"{method} is a stream of redo: it is opened at the append port")

        return call

    stream_unary = stream_stream

    async def _leave(self, message: bytes, deadline_s: float | None) -> None:
        if self._link is not None:
            await self._cross(self._link.out, message, deadline_s)

    async def _cross(self, way: Way, message: bytes, deadline_s: float | None) -> None:
        """Raises NodeTimeoutError if it does not arrive in time."""
        try:
            async with asyncio.timeout(None if deadline_s is None else max(0.0, deadline_s - time.monotonic())):
                await way.cross(len(message))
        except TimeoutError as error:
            raise NodeTimeoutError(f"the way to {self.caller.server} at {self.address} takes too long") from error

    def _prove(
        self, method: str, body: bytes, metadata: _Metadata
    ) -> tuple[Proof, tuple[tuple[str, str | bytes], ...]]:
        proof = self.caller.prove(method, body)
        return proof, (*(metadata or ()), proof.entry)

    def _may_retry(self, error: grpc.aio.AioRpcError, proof: Proof) -> bool:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED and self.caller.learn(proof, error.trailing_metadata())

    def _error(self, error: grpc.aio.AioRpcError, proof: Proof, *, proved: bool = False) -> AuroraError:
        """In our own tree; an ImpostorError if it says something and was not said by the true server."""
        metadata, code, details = error.trailing_metadata(), error.code(), error.details()
        if proved or code in _UNPROVED or proof.is_answered(metadata):
            return error_of(self.caller.server, code, details, metadata)
        return self._impostor(details or code.name)

    def _was_closed(self) -> BaseException:
        """What the caller is told of what gRPC raises when this channel is closed before a call or under it.

        A cancellation that was meant for the caller's own task is passed on.
        """
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return asyncio.CancelledError()
        return NodeUnreachableError(f"the connection to {self.caller.server} at {self.address} was closed")

    def _impostor(self, said: str = "") -> ImpostorError:
        return self.caller.impostor(self.address, said)

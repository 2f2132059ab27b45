"""The serving side of proofs in gRPC's own server: no handler sees a call that its doorkeeper does not admit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from aurora_ray.rpc.admission import ANSWER_KEY, CHALLENGE_KEY, PROOF_KEY, REFUSAL, Admitted, Doorkeeper

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor  # the type stubs know it as generic, the library does not


class Guard(_Interceptor):
    """The first interceptor of a server. `door` is set once the server is bound.

    The proof is looked at before anything of the request is taken in; the request itself before it is parsed.
    """

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self.doorkeeper = doorkeeper
        self.door = ""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        method = handler_call_details.method
        proof = next((str(v) for k, v in handler_call_details.invocation_metadata or () if k == PROOF_KEY), "")
        admitted = self.doorkeeper.admit(method, proof, self.door)
        if admitted is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse)  # of any kind: it reads nothing
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(_unknown(admitted))
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler, admitted), response_serializer=handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler, admitted), response_serializer=handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            _greeted(handler.stream_stream, admitted), handler.request_deserializer, handler.response_serializer
        )

    async def _refuse(self, _requests: Any, context: Any) -> None:
        told = ((CHALLENGE_KEY, self.doorkeeper.challenge),)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL, told)

    def _unary(self, handler: Any, admitted: Admitted) -> Callable[[bytes, Any], Awaitable[Any]]:
        async def serve(request: bytes, context: Any) -> Any:
            context.set_trailing_metadata(((ANSWER_KEY, admitted.answer),))
            return await handler.unary_unary(await self._parsed(handler, admitted, request, context), context)

        return serve

    def _stream(self, handler: Any, admitted: Admitted) -> Callable[[bytes, Any], Awaitable[None]]:
        async def serve(request: bytes, context: Any) -> None:
            parsed = await self._parsed(handler, admitted, request, context)
            await _greet(context, admitted)
            await handler.unary_stream(parsed, context)

        return serve

    async def _parsed(self, handler: Any, admitted: Admitted, request: bytes, context: Any) -> Any:
        if not admitted.fits(request):
            self.doorkeeper.refuse()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
        if handler.request_deserializer is None:
            return request
        try:
            return handler.request_deserializer(request)
        except Exception as error:  # whatever a deserializer raises
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"malformed: the request cannot be parsed: {error}")


def _unknown(admitted: Admitted) -> Callable[[Any, Any], Awaitable[None]]:
    async def serve(_requests: Any, context: Any) -> None:
        answer = ((ANSWER_KEY, admitted.answer),)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method at this port", answer)

    return serve


def _greeted(serve: Callable[[Any, Any], Awaitable[None]], admitted: Admitted) -> Callable[[Any, Any], Awaitable[None]]:
    async def wrapped(requests: Any, context: Any) -> None:
        await _greet(context, admitted)
        await serve(requests, context)

    return wrapped


async def _greet(context: Any, admitted: Admitted) -> None:
    """A stream's answer goes ahead of all that it says, and with its end."""
    answer = ((ANSWER_KEY, admitted.answer),)
    context.set_trailing_metadata(answer)
    await context.send_initial_metadata(answer)

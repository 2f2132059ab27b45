"""An echo at a port for streams, whose challenge everybody knows."""

import grpc

from aurora_ray.rpc.admission import Caller, Doorkeeper
from aurora_ray.rpc.stream_server import RefusedError

METHOD = "/test.Echo/Stream"
REFUSED = "refused: 100 % of it, ünd why\n"
DOOR, CHALLENGE = "a door", "c" * 32


def doorkeeper() -> Doorkeeper:
    """One whose challenge everybody knows."""
    keeper = Doorkeeper("echo")
    keeper.challenge = CHALLENGE
    return keeper


def caller(server: str = "echo") -> Caller:
    return Caller(server, DOOR, challenge=CHALLENGE)


class Echo:
    """Answers each message with itself, but for one."""

    def on_message(self, message: bytes) -> bytes:
        if message == b"refuse":
            raise RefusedError(grpc.StatusCode.ABORTED, REFUSED)
        if message == b"fail":
            raise OSError("not foreseen")
        return message

"""Errors as gRPC status codes, in one place; every refusal is counted by its reason."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from aurora_ray import errors
from aurora_ray.storage.damage import DamagedError

if TYPE_CHECKING:
    from aurora_ray.storage.node import Node

_log = logging.getLogger(__name__)

_STATUS: Final = (
    (errors.MalformedError, grpc.StatusCode.INVALID_ARGUMENT, "malformed"),
    (errors.UsageError, grpc.StatusCode.INVALID_ARGUMENT, "usage"),
    (errors.UnknownVolumeError, grpc.StatusCode.NOT_FOUND, "unknown"),
    (errors.FencedError, grpc.StatusCode.FAILED_PRECONDITION, "fenced"),
    (errors.NotCompleteError, grpc.StatusCode.FAILED_PRECONDITION, "incomplete"),
    (errors.StaleSegmentError, grpc.StatusCode.ABORTED, "stale"),
    (errors.OutOfRangeError, grpc.StatusCode.OUT_OF_RANGE, "out_of_range"),
    (errors.DiskFullError, grpc.StatusCode.RESOURCE_EXHAUSTED, "disk_full"),
    (DamagedError, grpc.StatusCode.DATA_LOSS, "damaged"),
)


def refusal(node: Node, error: errors.AuroraError) -> tuple[grpc.StatusCode, str]:
    """The error as a status and a sentence. What it says of our own files is seen to."""
    node.note_failure(error)
    for kind, code, reason in _STATUS:
        if isinstance(error, kind):
            node.counters[f"refused_{reason}"] += 1
            return code, str(error)
    _log.error("a call failed: %s", error)
    return grpc.StatusCode.INTERNAL, str(error)


async def refuse(context: Any, node: Node, error: errors.AuroraError) -> NoReturn:
    """Ends the call with the error's status and sentence."""
    await context.abort(*refusal(node, error))
    raise AssertionError("abort returned")

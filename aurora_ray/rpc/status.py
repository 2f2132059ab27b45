"""Errors across calls, both ways, in one table: what a server says of a refusal, and what a caller makes of it.

A refusal carries gRPC's status, a sentence, and the reason, one word, in its trailing metadata; the word decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc

from aurora_ray import errors

REASON_KEY: Final = "aurora-reason"
CONTROL: Final = "control"  # the name of a control plane as a server

_TABLE: Final[tuple[tuple[type[errors.AuroraError], grpc.StatusCode, str], ...]] = (
    (errors.MalformedError, grpc.StatusCode.INVALID_ARGUMENT, "malformed"),
    (errors.UsageError, grpc.StatusCode.INVALID_ARGUMENT, "usage"),
    (errors.UnknownVolumeError, grpc.StatusCode.NOT_FOUND, "unknown"),
    (errors.FencedError, grpc.StatusCode.FAILED_PRECONDITION, "fenced"),
    (errors.NotCompleteError, grpc.StatusCode.FAILED_PRECONDITION, "incomplete"),
    (errors.StaleSegmentError, grpc.StatusCode.ABORTED, "stale"),
    (errors.OutOfRangeError, grpc.StatusCode.OUT_OF_RANGE, "out_of_range"),
    (errors.DiskFullError, grpc.StatusCode.RESOURCE_EXHAUSTED, "disk_full"),
    (errors.DamagedCopyError, grpc.StatusCode.DATA_LOSS, "damaged"),
    (errors.QuorumLostError, grpc.StatusCode.UNAVAILABLE, "quorum_lost"),
    (errors.PortInUseError, grpc.StatusCode.FAILED_PRECONDITION, "port_in_use"),
    (errors.ConfigurationError, grpc.StatusCode.FAILED_PRECONDITION, "configuration"),
    (errors.ResidencyError, grpc.StatusCode.PERMISSION_DENIED, "residency"),
    (errors.BackupError, grpc.StatusCode.UNAVAILABLE, "backup"),
    (errors.EngineError, grpc.StatusCode.INTERNAL, "engine"),
)
_BY_REASON: Final = {reason: kind for kind, _, reason in _TABLE}
# Of those that come without a reason: from gRPC's own library, or because nobody answers.
_BY_CODE: Final[dict[grpc.StatusCode, type[errors.AuroraError]]] = {
    grpc.StatusCode.UNAVAILABLE: errors.NodeUnreachableError,
    grpc.StatusCode.CANCELLED: errors.NodeUnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.NodeTimeoutError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.MalformedError,
}


def status_of(error: errors.AuroraError) -> tuple[grpc.StatusCode, str]:
    """The status and the reason; ("INTERNAL", "") for what nobody expects to be told."""
    for kind, code, reason in _TABLE:
        if isinstance(error, kind):
            return code, reason
    return grpc.StatusCode.INTERNAL, ""


def error_of(
    server: str, code: grpc.StatusCode, details: str | None, metadata: Iterable[Any] | None = ()
) -> errors.AuroraError:
    """How a call of the server named `server` ended, in our own tree.

    What a storage node says needs its name beside it; a control plane's sentences are for people as they are.
    """
    reason = next((str(value) for key, value in metadata or () if key == REASON_KEY), "")
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, errors.StorageError)
    said = details or code.name
    return kind(said if server == CONTROL else f"storage node {server}: {said}")

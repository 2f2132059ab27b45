"""Every error that aurora-ray raises on purpose.

One small tree. `retryable` says whether the same call can succeed later without anyone changing anything; a caller that
sees False must act (or give up), not loop. Messages are one sentence that says what happened and what to do.
"""

from __future__ import annotations

from typing import Final

# What a decoder of bytes that nobody vouches for may run into, whatever it expects: a key that is not there, a number
# where a table should be, an infinity where a count should be, nesting without end.
UNDECODABLE: Final = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)


class AuroraError(Exception):
    """Root of the tree."""

    retryable: bool = False


class UsageError(AuroraError):
    """The caller asked for something that makes no sense: wrong name, wrong option, wrong state for this verb."""


class UnsupportedRoleError(UsageError):
    """An instance of a kind that nothing can run; it is never run as one of another kind."""


class ConfigurationError(AuroraError):
    """The machine or the settings lack something: no compiler, no engine, no account, a port in use."""


class ResidencyError(AuroraError):
    """A policy forbids that data comes there; the message names the rule."""


class PortInUseError(ConfigurationError):
    """Something else listens on the port; another port will do."""

    retryable = True


class EngineError(AuroraError):
    """A database engine did not start, stop or answer as it should."""


class RegionClosedError(AuroraError):
    """The mount was closed: its shared memory is gone, and whoever still asks it must stop."""


class BackupError(AuroraError):
    """The object store did not do what it was asked, or does not answer."""

    retryable = True


class MalformedError(AuroraError):
    """Bytes that are not what their header claims: bad magic, bad length, bad CRC, unknown type."""


class StorageError(AuroraError):
    """A storage node could not do what it was asked."""


class UnknownVolumeError(StorageError):
    """No such volume, group or segment on this node."""


class FencedError(StorageError):
    """A higher epoch exists: the caller is no longer the writer and must stop."""


class DivergedError(StorageError):
    """A copy in another region holds redo, above `common_lsn`, that the region which it is to follow has not: this tail
    must be put aside first.
    """

    def __init__(self, message: str, common_lsn: int | None = None) -> None:
        super().__init__(message)
        self.common_lsn = common_lsn


class StaleSegmentError(StorageError):
    """This segment has not yet adopted the truncation history of the epoch in use; it must catch up first."""

    retryable = True


class NotCompleteError(StorageError):
    """This copy does not reach the read point yet; another copy does."""

    retryable = True


class OutOfRangeError(StorageError):
    """The LSN lies below what is still kept, or above what exists."""


class DiskFullError(StorageError):
    """The node's disk is full; nothing was written."""

    retryable = True


class QuorumLostError(StorageError):
    """Too few copies answer: writes and recovery must wait."""

    retryable = True


class DamagedCopyError(StorageError):
    """Stored bytes are not what was stored. Another copy has them; this one is being repaired."""

    retryable = True


class NodeUnreachableError(StorageError):
    """The node does not answer."""

    retryable = True


class NodeTimeoutError(NodeUnreachableError):
    """The node did not answer in time."""

"""Errors across calls: what a server says is what the caller gets, for every kind."""

import grpc
import pytest

from aurora_ray import errors
from aurora_ray.rpc.status import _TABLE, REASON_KEY, error_of, status_of
from aurora_ray.storage.disk.damage import STORE, DamagedError


@pytest.mark.parametrize("kind", [kind for kind, _, _ in _TABLE])
def test_an_error_comes_back_as_itself(kind: type[errors.AuroraError]) -> None:
    code, reason = status_of(kind("any words: fenced"))
    error = error_of("a-1", code, "any words: fenced", ((REASON_KEY, reason),))
    assert type(error) is kind
    assert str(error) == "storage node a-1: any words: fenced"


def test_damage_of_a_node_is_damage_of_a_copy_to_others() -> None:
    code, reason = status_of(DamagedError((b"v", 0), STORE, "because"))
    assert type(error_of("a-1", code, "x", ((REASON_KEY, reason),))) is errors.DamagedCopyError


class Unheard(errors.AuroraError):
    """One that the table does not have."""


def test_no_words_decide() -> None:
    """A sentence that begins like another refusal is not taken for it."""
    error = error_of("a-1", grpc.StatusCode.FAILED_PRECONDITION, "fenced: a higher epoch exists")
    assert not isinstance(error, errors.FencedError)
    assert isinstance(error_of("a-1", grpc.StatusCode.UNAVAILABLE, "gone"), errors.NodeUnreachableError)
    assert isinstance(error_of("a-1", grpc.StatusCode.DEADLINE_EXCEEDED, None), errors.NodeTimeoutError)
    assert type(error_of("a-1", grpc.StatusCode.INTERNAL, "odd", ((REASON_KEY, "unheard of"),))) is errors.StorageError
    assert status_of(Unheard("x")) == (grpc.StatusCode.INTERNAL, "")

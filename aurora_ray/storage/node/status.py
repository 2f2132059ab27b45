"""A storage node's refusals: each is counted by its reason, and told as `rpc/status.py` has it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from aurora_ray import errors
from aurora_ray.rpc.status import REASON_KEY, status_of

if TYPE_CHECKING:
    from aurora_ray.storage.node.node import Node

_log = logging.getLogger(__name__)


def refusal(node: Node, error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """The error as a status, a sentence and a reason. What it says of our own files is seen to."""
    node.note_failure(error)
    if not isinstance(error, errors.AuroraError):
        node.counters["unexpected_errors"] += 1
        _log.error("a call failed by something unexpected", exc_info=error)
        return grpc.StatusCode.INTERNAL, f"unexpected {type(error).__name__}: {error}", ""
    code, reason = status_of(error)
    if reason:
        node.counters[f"refused_{reason}"] += 1
    else:
        _log.error("a call failed: %s", error)
    return code, str(error), reason


async def refuse(context: Any, node: Node, error: Exception) -> NoReturn:
    """Ends the call with the error's status and sentence."""
    code, sentence, reason = refusal(node, error)
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), (REASON_KEY, reason)))
    await context.abort(code, sentence)
    raise AssertionError("abort returned")

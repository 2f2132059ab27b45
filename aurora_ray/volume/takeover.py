"""The I/O around a recovery: converses with every node until all is decided, and starts again when overtaken."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from aurora_ray.errors import FencedError, QuorumLostError, StorageError
from aurora_ray.volume.recovery import AskState, CatchUp, Overtaken, Phase, Recovered, Recovery, Request, Seal
from aurora_ray.volume.recovery_trace import PhaseSpans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from aurora_ray.volume.spec import VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode

CALL_TIMEOUT_S: Final = 2.0
CATCH_UP_TIMEOUT_S: Final = 5.0
STALLED_S: Final = 10.0  # an attempt that has decided but cannot complete is decided anew, with what answers then
ANY_EPOCH: Final = range(1, 1 << 63)
BACKOFF_S: Final = (0.02, 1.0)  # first and longest wait after a call that failed

_Reply = TypeVar("_Reply")

logger = logging.getLogger(__name__)


async def take_over(
    spec: VolumeSpec, nodes: Mapping[str, VolumeNode], owner: bytes, timeout_s: float, epochs: range = ANY_EPOCH
) -> Recovered:
    """Opens `spec` for writing, at one of `epochs`.

    Raises FencedError if the volume has gone beyond them: then nothing was asked for that would disturb whoever has it.
    Raises QuorumLostError when the time is up, UsageError for a stale `spec`.
    """
    deadline = time.monotonic() + timeout_s
    min_epoch, overtaken_count = epochs.start, 0
    while True:
        core = Recovery(spec.placements, min_epoch, epoch_limit=epochs.stop)
        attempt = _Attempt(core, nodes, owner, deadline)
        outcome = await attempt.run()
        if isinstance(outcome, Recovered):
            logger.info("volume %s: epoch %d opens at LSN %d", spec.volume_id, outcome.epoch, outcome.end_lsn)
            return outcome
        if isinstance(outcome, Overtaken):
            min_epoch = outcome.epoch + 1
            if min_epoch >= epochs.stop:
                raise FencedError(
                    f"volume {spec.volume_id} has promised epoch {outcome.epoch}, above all that are allowed here"
                )
            overtaken_count += 1
        if time.monotonic() >= deadline:
            reasons = "".join(f"; {error}" for error in attempt.errors.values())
            raise QuorumLostError(
                f"volume {spec.volume_id} did not open within {timeout_s:g} s: {core.describe()}{reasons}"
            )
        # Recoveries that compete for one volume must not march in step.
        pause_s = random.uniform(0, min(1.0, 0.02 * 2 ** min(overtaken_count, 6)))  # noqa: S311 - not a secret
        await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))


async def _answer(node: str, call: Awaitable[_Reply]) -> _Reply:
    """What a node answers. The others may be enough: what makes no sense, whatever it is, is as good as no answer.

    Raises StorageError.
    """
    try:
        return await call
    except StorageError:
        raise
    except Exception as error:
        logger.warning("recovery: node %s gives no answer of use: %r", node, error)
        raise StorageError(f"storage node {node} gives no answer of use: {error}") from error


class _Attempt:
    """One recovery core and a conversation with each node."""

    def __init__(self, core: Recovery, nodes: Mapping[str, VolumeNode], owner: bytes, deadline: float) -> None:
        self.errors: dict[str, StorageError] = {}  # the last one of each node that has not answered since
        self._core = core
        self._nodes = nodes
        self._owner = owner
        self._deadline = deadline
        self._changed = asyncio.Event()
        self._spans = PhaseSpans(core.phase)

    async def run(self) -> Recovered | Overtaken | None:
        """Until the core has an outcome; None if it stalls or the time is up."""
        talks = [asyncio.create_task(self._converse(node)) for node in self._nodes]
        try:
            phase, since = self._core.phase, time.monotonic()
            while self._core.outcome is None:
                now = time.monotonic()
                if self._core.phase is not phase:
                    phase, since = self._core.phase, now
                if now >= self._deadline or (phase >= Phase.INSTALL and now >= since + STALLED_S):
                    return None
                await asyncio.wait(talks, timeout=min(0.2, self._deadline - now), return_when=asyncio.FIRST_COMPLETED)
                for talk in talks:
                    if talk.done():
                        talk.result()  # a conversation ends early only by an error that is nobody's to retry
            return self._core.outcome
        finally:
            for talk in talks:
                talk.cancel()
            await asyncio.gather(*talks, return_exceptions=True)

    async def _converse(self, node: str) -> None:
        backoff_s = BACKOFF_S[0]
        while self._core.outcome is None:
            request = self._core.request(node)
            if request is None:
                await self._changed.wait()
                continue
            before = (self._core.phase, request)
            try:
                await self._ask(node, request)
                self.errors.pop(node, None)
            except StorageError as error:
                self.errors[node] = error
                logger.debug("recovery: %s", error)
            self._spans.reached(self._core.phase)
            self._wake_others()
            if self._core.request(node) == before[1]:  # no progress: it failed, or the node is not there yet
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_S[1])
            else:
                backoff_s = BACKOFF_S[0]

    def _wake_others(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _ask(self, node: str, request: Request) -> None:
        core, client = self._core, self._nodes[node]
        left_s = max(0.05, self._deadline - time.monotonic())
        timeout_s = min(CALL_TIMEOUT_S, left_s)
        if isinstance(request, AskState):
            core.on_state(node, await _answer(node, client.state(timeout_s)))
        elif isinstance(request, Seal):
            promised, epoch, states = await _answer(node, client.seal(request.epoch, self._owner, timeout_s))
            if promised:
                core.on_promised(node, request.epoch, states)
            else:
                core.on_refused(node, epoch)
        elif isinstance(request, CatchUp):
            caught_up = client.catch_up(request.tails, min(CATCH_UP_TIMEOUT_S, left_s))
            core.on_caught_up(node, await _answer(node, caught_up))
        else:
            try:
                states = await _answer(node, client.truncate(request, self._owner, timeout_s))
            except FencedError:
                core.on_refused(node, await self._promised_epoch(node, timeout_s))
            else:
                core.on_truncated(node, request.vdl, states)

    async def _promised_epoch(self, node: str, timeout_s: float) -> int:
        return max(state.promised_epoch for state in await _answer(node, self._nodes[node].state(timeout_s)))

"""When what failed is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aurora_ray.control.model.keys import Key
from aurora_ray.errors import ConfigurationError

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 10.0
RETRY_PERMANENT_S = 30.0  # what a person has to mend first is looked at again now and then


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of the actions of one key so far; a success forgets it."""

    failures: int
    not_before_s: float
    error: str
    permanent: bool = False

    @staticmethod
    def after_failure(previous: Attempt | None, error: str, *, retryable: bool, now_s: float) -> Attempt:
        """The next attempt's time: doubling while a retry can help, seldom when someone must act first."""
        failures = 1 if previous is None else previous.failures + 1
        delay_s = min(RETRY_FIRST_S * 2 ** min(failures - 1, 10), RETRY_MAX_S) if retryable else RETRY_PERMANENT_S
        return Attempt(failures, now_s + delay_s, error, permanent=not retryable)


def check_hope(attempts: Mapping[Key, Attempt], what: Key) -> None:
    """Ends a wait for the actions of the key `what` that cannot succeed before somebody mends something.

    Raises ConfigurationError, with the sentence of the last attempt.
    """
    attempt = attempts.get(what)
    if attempt is not None and attempt.permanent:
        raise ConfigurationError(attempt.error)

"""When what failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass

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

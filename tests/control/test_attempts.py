"""When what failed is tried again, and when waiting for it has no sense."""

import pytest

from aurora_ray.control.model.attempt import RETRY_FIRST_S, RETRY_MAX_S, RETRY_PERMANENT_S, Attempt, check_hope
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.errors import ConfigurationError

ONE, OTHER = key(Kind.INSTANCE, "demo-1"), key(Kind.INSTANCE, "demo-2")


def test_what_may_pass_is_tried_again_ever_later() -> None:
    attempt, delays = None, []
    for _ in range(12):
        attempt = Attempt.after_failure(attempt, "it was away", retryable=True, now_s=100.0)
        delays.append(attempt.not_before_s - 100.0)
    assert delays[:3] == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S]
    assert delays[-1] == RETRY_MAX_S
    check_hope({ONE: attempt}, ONE)


def test_what_somebody_has_to_mend_ends_the_wait_with_its_sentence() -> None:
    attempt = Attempt.after_failure(None, "the directory is not ours", retryable=False, now_s=100.0)
    assert attempt.not_before_s == 100.0 + RETRY_PERMANENT_S
    with pytest.raises(ConfigurationError, match="the directory is not ours"):
        check_hope({ONE: attempt}, ONE)
    check_hope({ONE: attempt}, OTHER)

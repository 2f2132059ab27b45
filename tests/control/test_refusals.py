"""Callers without the secret are a trouble while they come, and for a while after."""

from aurora_ray.control.observe.refusals import QUIET_S, Refusals
from aurora_ray.troubles import TroubleCode


def test_who_is_refused_is_told_until_it_is_quiet() -> None:
    now_s = [0.0]
    refusals = Refusals(lambda: now_s[0])
    refusals.saw("a-1", 7)
    refusals.saw("control", 0)
    assert not list(refusals.troubles()), "what was counted before we looked first is no news"
    refusals.saw("a-1", 7)
    refusals.saw("control", 1)
    assert [(t.code, t.subject) for t in refusals.troubles()] == [(TroubleCode.CALLER_REFUSED, "control")]
    now_s[0] = QUIET_S - 1
    refusals.saw("a-1", 9)
    assert [t.subject for t in refusals.troubles()] == ["a-1", "control"]
    now_s[0] = QUIET_S + 1
    refusals.saw("a-1", 9)
    assert [t.subject for t in refusals.troubles()] == ["a-1"]
    refusals.saw("a-1", 0)
    refusals.saw("a-1", 1)
    now_s[0] += QUIET_S - 1
    assert [t.subject for t in refusals.troubles()] == ["a-1"], "a node that started anew counts from the beginning"

"""How people say a moment, and what is said of one that is none."""

from __future__ import annotations

from datetime import datetime

import pytest

from aurora_ray.control.model.moments import Moment, duration_s, parse
from aurora_ray.errors import UsageError

NOW_S = datetime.fromisoformat("2026-11-29T10:00:00Z").timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Moment()),
        ("lsn:4711", Moment(lsn=4711)),
        ("mark:before-upgrade", Moment(mark="before-upgrade")),
        ("-5m", Moment(time_us=int((NOW_S - 300) * 1e6))),
        ("-1.5h", Moment(time_us=int((NOW_S - 5400) * 1e6))),
        ("-250ms", Moment(time_us=int((NOW_S - 0.25) * 1e6))),
        ("2026-11-29T09:59:00Z", Moment(time_us=int((NOW_S - 60) * 1e6))),
        ("2026-11-29T10:59:00.5+01:00", Moment(time_us=int((NOW_S - 59.5) * 1e6))),
    ],
)
def test_moments_are_read_as_people_write_them(text: str, expected: Moment) -> None:
    assert parse(text, NOW_S) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yesterday", "is no moment"),
        ("lsn:-1", "is no moment"),
        ("-5", "is no moment"),
        ("5m", "is no moment"),
        ("2026-11-29T09:00:00", "time zone"),
        ("2026-11-29T10:00:01Z", "in the future"),
        ("1960-01-01T00:00:00Z", "before 1970"),
    ],
)
def test_what_is_no_moment_is_refused_with_the_way_out(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text, NOW_S)


def test_lengths_of_time() -> None:
    assert [duration_s(text) for text in ("90s", "45m", "24h", "3d", "1.5h")] == [90, 2700, 86400, 259200, 5400]
    for text in ("", "24", "h", "0s", "-1h"):
        with pytest.raises(UsageError, match="length of time"):
            duration_s(text)

"""The T of `--at T`, `--to T`: an RFC 3339 time, a distance like `-5m`, `lsn:N` or `mark:LABEL`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aurora_ray.errors import UsageError

FORMS: Final = "an RFC 3339 time as 2026-11-29T10:00:00Z, a distance back as -5m, lsn:N or mark:LABEL"
_DISTANCE: Final = re.compile(r"-(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_LSN: Final = re.compile(r"lsn:(\d{1,19})")
_MARK: Final = re.compile(r"mark:(.+)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Moment:
    """One of the three, or none for the present: `time_us` since 1970, `lsn`, `mark`."""

    time_us: int | None = None
    lsn: int | None = None
    mark: str | None = None


def parse(text: str, now_s: float) -> Moment:
    """`text` as people write it, empty for the present; `now_s`: Unix time. Raises UsageError."""
    if not text:
        return Moment()
    if found := _LSN.fullmatch(text):
        return Moment(lsn=int(found[1]))
    if found := _MARK.fullmatch(text):
        return Moment(mark=found[1])
    if found := _DISTANCE.fullmatch(text):
        return Moment(time_us=max(1, int((now_s - float(found[1]) * _SECONDS[found[2]]) * 1e6)))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no moment: say {FORMS}") from None
    if time.tzinfo is None:
        raise UsageError(f"{text!r} does not say its time zone: end it with Z, or an offset as +01:00")
    time_us = int(time.astimezone(UTC).timestamp() * 1e6)
    if time_us > now_s * 1e6:
        raise UsageError(f"{text} is in the future: it is {_shown(now_s)} now")
    if time_us <= 0:
        raise UsageError(f"{text} is before 1970")
    return Moment(time_us=time_us)


def duration_s(text: str) -> int:
    """A length of time as `90s`, `45m`, `24h` or `3d`, in whole seconds. Raises UsageError."""
    found = _DURATION.fullmatch(text)
    if found is None or float(found[1]) * _SECONDS[found[2]] < 1:
        raise UsageError(f"{text!r} is no length of time: say for example 45m, 24h or 3d")
    return int(float(found[1]) * _SECONDS[found[2]])


def _shown(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

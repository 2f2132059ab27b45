"""What came, went and changed: merged from two sorted streams, and found by two real servers' own sorting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from aurora_ray.engine.base import Difference
from aurora_ray.engine.differences import merged

texts = st.text(alphabet="ab\u00e4\U0001f600", max_size=3)


def stream(rows: list[tuple[bytes, str]]) -> Iterator[tuple[bytes, str]]:
    return iter(sorted(rows))


@given(st.dictionaries(texts, texts), st.dictionaries(texts, texts))
def test_by_a_key_each_row_came_went_or_changed(before: dict[str, str], after: dict[str, str]) -> None:
    found = set(
        merged(*(stream([(key.encode(), f"{key}={value}") for key, value in side.items()]) for side in (before, after)))
    )
    expected = {Difference("went", f"{k}={v}", None) for k, v in before.items() if k not in after}
    expected |= {Difference("came", None, f"{k}={v}") for k, v in after.items() if k not in before}
    both = before.keys() & after.keys()
    expected |= {Difference("changed", f"{k}={before[k]}", f"{k}={after[k]}") for k in both if before[k] != after[k]}
    assert found == expected


@given(st.lists(texts), st.lists(texts))
def test_without_a_key_rows_are_counted(before: list[str], after: list[str]) -> None:
    found = Counter(merged(*(stream([(row.encode(), row) for row in side]) for side in (before, after))))
    gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
    expected = Counter({Difference("went", row, None): count for row, count in gone.items()})
    assert found == expected + Counter({Difference("came", None, row): count for row, count in new.items()})

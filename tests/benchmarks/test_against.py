"""The comparison of two checkouts: turns alternate, and what cannot be compared is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ray.errors import UsageError
from benchmarks import against


def test_neither_checkout_always_has_the_first_turn() -> None:
    firsts = [against.order(number)[0] for number in range(4)]
    assert firsts == ["this", "other", "this", "other"]
    assert all(sorted(against.order(number)) == ["other", "this"] for number in range(4))


def test_a_checkout_without_an_environment_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no environment: run `make .venv/.built`"):
        against.run(tmp_path)

"""Each class of anomaly, by hand: found, named, and explained by the transactions that make it."""

import pytest

from tests.histories.lists import check_lists
from tests.histories.model import Anomaly, MalformedHistoryError
from tests.histories.script import history


def found(text: str) -> list[Anomaly]:
    return check_lists(history(text))


def kinds(text: str) -> list[str]:
    return sorted(anomaly.kind for anomaly in found(text))


@pytest.mark.parametrize(
    "text",
    [
        "1 0-10 ok x+1",
        "1 0-10 ok x[]",
        # Concurrent transactions in either order; the second appends twice.
        "1 0-10 ok x+1 y+1\n2 5-15 ok x+2 x+3\n3 20-30 ok x[1,2,3] y[1]",
        "1 0-10 ok x+1 y+1\n2 5-15 ok x+2 x+3\n3 20-30 ok x[2,3,1] y[1]",
        # What is unknown may have happened, or not, or late.
        "1 0- info x+1\n2 20-30 ok x[1]",
        "1 0- info x+1\n2 20-30 ok x[]",
        "1 0- info x+1\n2 20-30 ok x[]\n3 40-50 ok x[1]",
        # What failed did not.
        "1 0-10 fail x+1\n2 20-30 ok x[]",
        # A read during the append, of its own append, and between its own.
        "1 0-10 ok x+1\n2 5-6 ok x[]\n3 5-6 ok x[1]\n4 5-6 ok x[]",
        "1 0-10 ok x[] x+1 x[1] x+2 x[1,2]",
        # An append that nobody read, beside one that somebody did.
        "1 0-10 ok x+1\n2 5-15 ok x+2\n3 8-20 ok x[1]",
        # Two that nobody read, one of which read.
        "1 0-10 ok x[] x+1\n2 5-15 ok x+2",
        # A writer that has read goes last.
        "1 0-10 ok x[] y+1\n2 0-10 ok x+1\n3 20-30 ok x[1] y[1]",
    ],
)
def test_what_a_serial_order_explains_passes(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("kind", "text", "txns"),
    [
        ("G0", "1 0-10 ok x+1 y+1\n2 0-10 ok x+2 y+2\n3 0-10 ok x[1,2] y[2,1]", {1, 2}),
        ("G1a", "1 0-10 fail x+1\n2 20-30 ok x[1]", {1, 2}),
        ("G1b", "1 0-10 ok x+1 x+2\n2 5-8 ok x[1]\n3 20-30 ok x[1,2]", {1, 2}),
        ("G1c", "1 0-10 ok x+1 y[1]\n2 0-10 ok x[1] y+1", {1, 2}),
        # Reads x before and y after what the other wrote.
        ("G-single", "1 0-10 ok x[] y[1]\n2 0-10 ok x+1 y+1\n3 0-20 ok x[1]", {1, 2}),
        # Write skew.
        ("G2", "1 0-10 ok x[] y+1\n2 0-10 ok y[] x+1\n3 20-30 ok x[1] y[1]", {1, 2}),
        ("G2", "1 0-10 ok x[] y+1\n2 0-10 ok y[] z+1\n3 0-10 ok z[] x+1\n4 20-30 ok x[1] y[1] z[1]", {1, 2, 3}),
        # The same with writes that nobody has read.
        ("G2", "1 0-10 ok x[] y+1\n2 0-10 ok y[] x+1", {1, 2}),
        ("lost update", "1 0-10 ok x[] x+1\n2 0-10 ok x[] x+2\n3 20-30 ok x[1,2]", {1, 2}),
        ("lost update", "1 0-10 ok x[] x+1\n2 0-10 ok x[] x+2", {1, 2}),
        ("lost append", "1 0-10 ok x+1\n2 20-30 ok x[]", {1, 2}),
        ("lost append", "1 0-10 ok x+1\n2 5-15 ok x+2\n3 16-20 ok x[2]", {1, 3}),
        ("stale read", "1 0-10 ok x+1\n2 20-30 ok x[]\n3 20-30 ok x[1]", {1, 2}),
        ("duplicate", "1 0-10 ok x+1\n2 20-30 ok x[1,1]", {2}),
        ("garbage", "1 0-10 ok x[7]", {1}),
        ("incompatible order", "1 0-9 ok x+1\n2 0-9 ok x+2\n3 0-9 ok x[1]\n4 0-9 ok x[2,1]", {3, 4}),
        ("internal", "1 0-10 ok x+1 x[]", {1}),
        ("internal", "1 0-10 ok x[] x[2]\n2 0-10 ok x+2", {1}),
        # Orders against the clock, though serial ones.
        ("G0-realtime", "1 0-10 ok x+1\n2 20-30 ok x+2\n3 40-50 ok x[2,1]", {1, 2}),
        ("G1c-realtime", "1 0-10 ok x[1]\n2 20-30 ok x+1", {1, 2}),
        # Nobody is late by himself: 3 saw the new x and ended, then 4 the old y; but who wrote x had read the new y.
        (
            "G-single-realtime",
            "1 0-90 ok y+1\n2 0-90 ok y[1] x+1\n3 20-30 ok x[1]\n4 40-50 ok y[]\n5 95-99 ok x[1] y[1]",
            {1, 2, 3, 4},
        ),
    ],
)
def test_a_known_anomaly_is_named(kind: str, text: str, txns: set[int]) -> None:
    anomaly = next((each for each in found(text) if each.kind == kind), None)
    assert anomaly is not None, found(text)
    assert set(anomaly.txns) == txns
    assert all(f"T{id_}" in anomaly.sentence for id_ in txns)


def test_the_sentence_tells_the_cycle() -> None:
    text = "1 0-10 ok x[] y[1]\n2 0-10 ok x+1 y+1\n3 0-20 ok x[1]"
    assert [str(each) for each in found(text)] == [
        "G-single: T1 -> T2 -> T1: T1 read x without 1, which T2 appended; T1 read 1 in y, which T2 had appended"
    ]


def test_what_an_unknown_one_read_counts_once_it_is_seen() -> None:
    skew = "1 0- info x[] y+1\n2 0-10 ok y[] x+1\n"
    assert kinds(skew + "3 20-30 ok x[1] y[]") == []
    assert kinds(skew + "3 20-30 ok x[1] y[1]") == ["G2"]


def test_values_must_be_unique() -> None:
    with pytest.raises(MalformedHistoryError, match="1 is appended to x twice"):
        found("1 0-10 ok x+1\n2 0-10 ok x+1")

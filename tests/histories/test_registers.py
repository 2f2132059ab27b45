"""Registers and accounts, by hand."""

import pytest

from tests.histories.bank import check_bank
from tests.histories.model import MalformedHistoryError
from tests.histories.registers import check_registers
from tests.histories.script import history

ACCOUNTS = {"a": 100, "b": 100}


@pytest.mark.parametrize(
    "text",
    [
        "1 0-10 ok r?-\n2 20-30 ok r:=1\n3 40-50 ok r?1",
        # During a write, either; but once the new one was seen, only that.
        "1 0-90 ok r:=1\n2 10-20 ok r?-\n3 30-40 ok r?1",
        # Two at once, in the order that nobody began them.
        "1 0-10 ok r:=1\n2 5-15 ok r:=2\n3 20-30 ok r?1",
        # Unknown: never, or late.
        "1 0- info r:=1\n2 20-30 ok r?-",
        "1 0- info r:=1\n2 20-30 ok r:=2\n3 40-50 ok r?2\n4 60-70 ok r?1",
        "1 0-10 fail r:=1\n2 20-30 ok r?-",
    ],
)
def test_linearizable_registers_pass(text: str) -> None:
    assert check_registers(history(text)) == []


@pytest.mark.parametrize(
    ("kind", "text", "txns"),
    [
        ("stale read", "1 0-10 ok r:=1\n2 20-30 ok r?-", {1, 2}),
        ("stale read", "1 0-10 ok r:=1\n2 20-30 ok r:=2\n3 40-50 ok r?1", {1, 2, 3}),
        ("stale read", "1 0-90 ok r:=1\n2 10-20 ok r?1\n3 30-40 ok r?-", {2, 3}),
        # Back and forth.
        ("stale read", "1 0- info r:=1\n2 0- info r:=2\n3 5-6 ok r?1\n4 7-8 ok r?2\n5 9-10 ok r?1", {3, 4, 5}),
        ("G1a", "1 0-10 fail r:=1\n2 20-30 ok r?1", {1, 2}),
        ("read from the future", "1 0-10 ok r?1\n2 20-30 ok r:=1", {1, 2}),
        ("garbage", "1 0-10 ok r?7", {1}),
    ],
)
def test_what_no_order_explains_is_found(kind: str, text: str, txns: set[int]) -> None:
    anomalies = check_registers(history(text))
    assert [anomaly.kind for anomaly in anomalies] == [kind], anomalies
    assert set(anomalies[0].txns) == txns


def test_values_of_a_register_must_be_unique() -> None:
    with pytest.raises(MalformedHistoryError, match="1 is written to r twice"):
        check_registers(history("1 0-10 ok r:=1\n2 0-10 ok r:=1"))


@pytest.mark.parametrize(
    ("kinds", "read"),
    [
        ([], "a[7]=80 b[7]=120"),
        ([], "a[]=100"),
        (["wrong balance"], "a[]=80"),
        (["wrong balance", "wrong total"], "a[7]=80 b[7]=110"),
        # Half a transfer: the entries agree with the balances, the total does not.
        (["wrong total"], "a[7]=80 b[]=100"),
        (["negative balance"], "a[7,8]=-20"),
    ],
)
def test_balances_are_what_the_entries_make_of_them(kinds: list[str], read: str) -> None:
    transfers = "1 0-10 ok a+7@-20 b+7@20\n2 0-10 ok a+8@-100 b+8@100\n"
    found = check_bank(history(transfers + f"3 20-30 ok {read}", ACCOUNTS))
    assert [anomaly.kind for anomaly in found] == kinds, found

"""Random histories: the checkers agree with the definition, serial ones pass, and what is planted in them is found."""

import random
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories.check import check
from tests.histories.exhaustive import Database, is_explained, perform
from tests.histories.lists import check_lists
from tests.histories.model import Append, History, Op, Outcome, Read, ReadList, Txn, Write
from tests.histories.registers import check_registers


@st.composite
def list_histories(draw: Any) -> History:
    """Up to five transactions that ran one after the other, with some reads moved to another time, and any clock."""
    shapes = draw(
        st.lists(
            st.lists(st.tuples(st.booleans(), st.sampled_from("xy")), min_size=1, max_size=3), min_size=1, max_size=5
        )
    )
    database: Database = {}
    versions: dict[str, list[tuple[int, ...]]] = {"x": [()], "y": [()]}
    txns = []
    for id_, shape in enumerate(shapes):
        ops: list[Op] = []
        for number, (appends, key) in enumerate(shape):
            op = perform(database, Append(key, 10 * id_ + number) if appends else ReadList(key))
            if isinstance(op, ReadList):
                assert op.values is not None
                if draw(st.integers(0, 3)) == 0:
                    op = ReadList(key, draw(st.sampled_from(versions[key])))
            else:
                perform_read = perform(database, ReadList(key))
                assert isinstance(perform_read, ReadList)
                assert perform_read.values is not None
                versions[key].append(perform_read.values)
            ops.append(op)
        txns.append(_with_clock(draw, id_, tuple(ops)))
    return History(draw(st.permutations(txns)))


@st.composite
def register_histories(draw: Any) -> History:
    """Up to six reads and writes of one register, with any answers and any clock."""
    written = draw(st.lists(st.booleans(), min_size=1, max_size=6))
    values = [None, *(id_ for id_, writes in enumerate(written) if writes)]
    ops = [
        Write("r", id_) if writes else Read("r", draw(st.sampled_from(values))) for id_, writes in enumerate(written)
    ]
    return History([_with_clock(draw, id_, (op,)) for id_, op in enumerate(ops)])


def _with_clock(draw: Any, id_: int, ops: tuple[Op, ...]) -> Txn:
    outcome = draw(st.sampled_from([Outcome.OK] * 4 + [Outcome.INFO, Outcome.FAIL]))
    began = draw(st.integers(0, 12))
    ended = began + draw(st.integers(0, 8))
    return Txn(id_, f"client {id_}", outcome, ops, began, None if outcome is Outcome.INFO else ended)


@settings(max_examples=600, deadline=None)
@given(list_histories())
def test_lists_are_judged_as_by_trying_every_order(history: History) -> None:
    assert (check_lists(history) == []) == is_explained(history)


@settings(max_examples=600, deadline=None)
@given(register_histories())
def test_registers_are_judged_as_by_trying_every_order(history: History) -> None:
    assert (check_registers(history) == []) == is_explained(history)


# ---- larger ones


def serial(choose: random.Random, count: int, clients: int = 8) -> History:
    """`count` transactions on lists, accounts and registers that took effect at moments in their order, while several
    clients were at it; one in twenty is unknown or failed."""
    database: Database = {}
    accounts = {f"a{number}": 100 for number in range(4)}
    balances = dict(accounts)
    free_ns = [0] * clients
    txns: list[Txn] = []
    for id_ in range(count):
        client = id_ % clients
        moment_ns = 1000 * id_ + 500
        outcome = choose.choices([Outcome.OK, Outcome.INFO, Outcome.FAIL], [95, 4, 1])[0]
        happens = outcome is Outcome.OK or (outcome is Outcome.INFO and choose.random() < 0.5)
        target = database if happens else dict(database)
        money = balances if happens else dict(balances)
        ops = _some_ops(choose, id_, target, money)
        began_ns = choose.randint(max(free_ns[client] + 1, moment_ns - 3000), moment_ns - 1)
        ended_ns = moment_ns + choose.randrange(1, 3000)
        free_ns[client] = ended_ns
        txns.append(Txn(id_, f"client {client}", outcome, ops, began_ns, None if outcome is Outcome.INFO else ended_ns))
    end_ns = 1000 * count + 10_000
    ops = tuple(perform(database, ReadList(key)) for key in sorted(database) if key.startswith("x"))
    ops += tuple(_read_account(database, balances, key) for key in accounts)
    txns.append(Txn(count, "last", Outcome.OK, ops, end_ns, end_ns + 1))
    return History(txns, accounts)


def _some_ops(choose: random.Random, id_: int, database: Database, balances: dict[str, int]) -> tuple[Op, ...]:
    kind = choose.randrange(10)
    if kind == 0:
        register = f"r{id_ // 500}"
        op: Op = Write(register, id_) if choose.random() < 0.5 else Read(register)
        return (perform(database, op),)
    if kind == 1:
        source, target = choose.sample(sorted(balances), 2)
        for key, amount in ((source, -1), (target, 1)):
            perform(database, Append(key, id_, amount))
            balances[key] += amount
        return (Append(source, id_, -1), Append(target, id_, 1), _read_account(database, balances, target))
    if kind == 2 and choose.random() < 0.2:
        return tuple(_read_account(database, balances, key) for key in balances)
    ops: list[Op] = []
    for number in range(choose.randrange(1, 5)):
        key = f"x{id_ // 200 * 4 + choose.randrange(4)}"
        op = Append(key, 10 * id_ + number) if choose.random() < 0.5 else ReadList(key)
        ops.append(perform(database, op))
    return tuple(ops)


def _read_account(database: Database, balances: dict[str, int], key: str) -> ReadList:
    read = perform(database, ReadList(key))
    assert isinstance(read, ReadList)
    return replace(read, balance=balances[key])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_ran_one_after_the_other_passes(seed: int) -> None:
    assert check(serial(random.Random(seed), 300)) == []


def _place(history: History, choose: random.Random, wanted: type[Op]) -> tuple[int, int]:
    """An operation of that type in an acknowledged transaction on lists: the transaction's place and its own."""
    places = [
        (place, number)
        for place, txn in enumerate(history.txns[:-1])
        if txn.outcome is Outcome.OK
        for number, op in enumerate(txn.ops)
        if type(op) is wanted and op.key.startswith("x")
    ]
    return choose.choice(places)


def _change_reads(history: History, key: str, change: Any, since: int = 0) -> None:
    """Applies `change` to what is read of `key` by transactions from that place on."""
    for place, txn in list(enumerate(history.txns))[since:]:
        ops = tuple(
            replace(op, values=change(op.values)) if isinstance(op, ReadList) and op.key == key and op.values else op
            for op in txn.ops
        )
        history.txns[place] = replace(txn, ops=ops)


def drop(history: History, choose: random.Random) -> set[str]:
    """An acknowledged append never shows."""
    place, number = _place(history, choose, Append)
    op = history.txns[place].ops[number]
    assert isinstance(op, Append)
    _change_reads(history, op.key, lambda values: tuple(value for value in values if value != op.value))
    return {"lost append", "internal", "G1b", "G0", "G1c", "G-single", "G2", "lost update"}


def double(history: History, choose: random.Random) -> set[str]:
    """An append takes effect once more, later."""
    place, number = _place(history, choose, Append)
    op = history.txns[place].ops[number]
    assert isinstance(op, Append)
    _change_reads(history, op.key, lambda values: (*values, op.value) if op.value in values else values, place + 1)
    return {"duplicate"}


def swap(history: History, choose: random.Random) -> set[str]:
    """The last reader finds two values exchanged."""
    last = history.txns[-1]
    number = choose.choice(
        [n for n, op in enumerate(last.ops) if isinstance(op, ReadList) and len(op.values or ()) > 8]
    )
    op = last.ops[number]
    assert isinstance(op, ReadList)
    assert op.values is not None
    others = [
        each.values
        for txn in history.txns[:-1]
        for each in txn.ops
        if isinstance(each, ReadList) and each.key == op.key
    ]
    assert any(len(values or ()) > 3 for values in others)
    values = (op.values[1], op.values[0], *op.values[2:])
    history.txns[-1] = replace(last, ops=(*last.ops[:number], replace(op, values=values), *last.ops[number + 1 :]))
    return {"incompatible order"}


def stale(history: History, choose: random.Random) -> set[str]:
    """Long after its key was left alone, somebody reads the list without its last value."""
    last = history.txns[-1]
    op = choose.choice([op for op in last.ops if isinstance(op, ReadList) and op.values])
    assert op.values is not None
    old = ReadList(op.key, op.values[:-1])
    assert last.ended_ns is not None
    history.txns.append(Txn(last.id + 1, "late", Outcome.OK, (old,), last.ended_ns + 10, last.ended_ns + 20))
    return {"stale read", "G1b"}


def invent_money(history: History, choose: random.Random) -> set[str]:
    """A balance is one too high."""
    last = history.txns[-1]
    ops = tuple(
        replace(op, balance=op.balance + 1) if isinstance(op, ReadList) and op.balance else op for op in last.ops
    )
    history.txns[-1] = replace(last, ops=ops)
    return {"wrong balance"}


def forget_a_write(history: History, choose: random.Random) -> set[str]:
    """A register is found unset after it was set."""
    writes = [txn for txn in history.txns if txn.outcome is Outcome.OK and isinstance(txn.ops[0], Write)]
    key = choose.choice(writes).ops[0].key
    end_ns = history.txns[-1].began_ns
    history.txns.append(Txn(len(history.txns), "late", Outcome.OK, (Read(key, None),), end_ns, end_ns + 1))
    return {"stale read"}


@pytest.mark.parametrize("plant", [drop, double, swap, stale, invent_money, forget_a_write])
@pytest.mark.parametrize("seed", range(15))
def test_what_is_planted_is_found(plant: Any, seed: int) -> None:
    choose = random.Random(f"{plant.__name__} {seed}")
    history = serial(choose, 400)
    assert check(history) == []
    expected = plant(history, choose)
    found = check(history)
    assert found, "nothing was found"
    assert {anomaly.kind for anomaly in found} & expected, found


def test_time_grows_with_the_history_and_not_faster() -> None:
    history = serial(random.Random(7), 30_000)
    begun_s = time.process_time()
    assert check(history) == []
    assert time.process_time() - begun_s < 20

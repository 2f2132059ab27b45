"""Latencies survive the way from one machine to another, and add up; what load generators print is understood."""

import stat
from pathlib import Path

import pytest

from benchmarks import sysbench
from benchmarks.histograms import encode, percentiles, rounded
from benchmarks.load import run_load
from benchmarks.loads import SYSBENCH, Load, LoadResult, merge
from benchmarks.programs import LoadError

SYSBENCH_OUTPUT = """
Latency histogram (values are in milliseconds)
       value  ------------- distribution ------------- count
       0.108 |*                                        3
       1.109 |**************************************** 101

SQL statistics:
    transactions:                        104    (51.9 per sec.)
"""


def _result(latency_us: int, transactions: int) -> LoadResult:
    return LoadResult(transactions, 0, 10.0, transactions / 10, 1.5, {latency_us: transactions})


def test_results_of_several_generators_become_one() -> None:
    merged = merge([_result(1_000, 900), _result(1_000, 90), _result(50_000, 10)])
    assert (merged.transactions, merged.tps, merged.client_cpu_s, merged.seconds) == (1_000, 100.0, 4.5, 10.0)
    latency_us = percentiles([encode(merged.counts)])
    assert 999 <= latency_us["p50"] <= 1_001
    assert 49_900 <= latency_us["p99.9"] <= 50_100


def test_histograms_of_several_rounds_add_up() -> None:
    rounds = [encode({1_000: 98}), encode({5_000: 1, 7_000: 1})]
    latency_us = percentiles(rounds, (50, 99, 100))
    assert [round(latency_us[each] / 1000) for each in ("p50", "p99", "p100")] == [1, 5, 7]


@pytest.mark.parametrize(
    ("latency_us", "kept"),
    [(0, 1), (1, 1), (999, 999), (1_234, 1_230), (1_235, 1_240), (9_999, 10_000), (87_654_321, 87_700_000)],
)
def test_three_digits_are_kept(latency_us: int, kept: int) -> None:
    assert rounded(latency_us) == kept


def test_a_latency_beyond_the_scale_counts_as_its_end() -> None:
    assert percentiles([encode({10**10: 1})])["max"] > 599_000_000


def test_the_histogram_of_sysbench_is_read() -> None:
    assert sysbench.read_buckets(SYSBENCH_OUTPUT) == {108: 3, 1_110: 101}


def test_a_password_comes_from_the_first_line_that_matches(tmp_path: Path) -> None:
    path = tmp_path / "passfile"
    path.write_text("elsewhere:*:*:me:wrong\n*:5432:*:me:ri:ght\n*:*:*:*:late\n")
    parameters = {"host": "here", "port": "5432", "dbname": "d", "user": "me", "passfile": str(path)}
    assert sysbench.password_from_file(parameters) == "ri:ght"
    assert sysbench.password_from_file({**parameters, "user": "you"}) == "late"
    assert sysbench.password_from_file({**parameters, "passfile": str(tmp_path / "none")}) == ""


def test_no_secret_is_on_the_command_line_of_sysbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    program = tmp_path / "sysbench"
    program.write_text(
        f'#!/bin/sh\nfile="${{1#--config-file=}}"\necho "$@" > {seen}\ncp -p "$file" {seen}.config\nexit 3\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    load = Load(scripts=("oltp_write_only",), program=SYSBENCH, clients=1, seconds=1, scale=1, seed=1)
    with pytest.raises(LoadError, match="ended with 3"):
        run_load("postgresql://me:secret@127.0.0.1:5432/d", load, "")
    assert "secret" not in seen.read_text()
    config = seen.with_name("seen.config")
    assert "pgsql-password=secret\n" in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    load = Load(scripts=("select-only",), clients=1, seconds=1, scale=1, seed=1)
    with pytest.raises(LoadError, match=r"cannot run .*pgbench: No such file"):
        run_load("postgresql://", load, str(tmp_path))

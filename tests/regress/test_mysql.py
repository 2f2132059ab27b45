"""What the suite's outcomes are read from, and the list of differences."""

from pathlib import Path

import pytest

from tests.regress import mysql

PRINTED = """
TEST                                      RESULT   TIME (ms) or COMMENT
--------------------------------------------------------------------------

main.1st                                 [ pass ]      8
main.alter_table 'innodb'                [ pass ]   1234
main.alter_table 'myisam'                [ fail ]
        Test ended at 2026-11-30 15:00:00

CURRENT_TEST: main.alter_table
main.ctype_utf16-x                       [ skipped ]  Requires debug build
main.events_2 'a,b'                      [ disabled ]  later
--------------------------------------------------------------------------
"""


def test_of_a_test_in_several_forms_the_worst_outcome_counts() -> None:
    assert mysql.parse(PRINTED) == {"1st": "pass", "alter_table": "fail", "ctype_utf16-x": "skip", "events_2": "skip"}


def test_only_what_did_not_end_alike_differs() -> None:
    found = mysql.Found({mysql.STOCK: {"a": "pass", "b": "fail"}, mysql.OURS: {"a": "pass", "b": "pass", "c": "skip"}})
    assert found.differ(["a", "b", "c", "d"]) == ["b", "c"]
    assert found.pair("c") == "-/skip"


def test_what_failed_on_both_after_another_had_is_in_doubt() -> None:
    outcomes = {"a": "pass", "b": "fail", "c": "fail", "d": "skip", "e": "fail", "f": "fail"}
    found = mysql.Found({mysql.STOCK: dict(outcomes), mysql.OURS: outcomes | {"e": "pass"}})
    assert found.doubtful("abcdef") == ["c", "f"]
    assert found.doubtful("abd") == []


def test_each_difference_that_may_be_has_its_reason() -> None:
    known = mysql.known_differences(mysql.DIFFERENCES.read_text())
    assert all(len(reason.split()) > 3 for reason in known.values()), known
    assert mysql.known_differences("# nothing\na: b c # d\n\n") == {"a": "b c"}


def test_where_the_suite_is_missing_one_is_told_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mysql.main(["--suite-dir", str(tmp_path)]) == 2
    assert "apt-get install --no-install-recommends mariadb-test" in capsys.readouterr().err

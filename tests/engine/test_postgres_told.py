"""What a server is told while it runs."""

import json
from pathlib import Path

import pytest

from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import Horizon, ReplicaRow
from aurora_ray.engine.postgres import functions
from aurora_ray.engine.postgres.adapter import ADAPTER
from aurora_ray.engine.postgres.told import (
    REPLICAS_NAME,
    WRITER_NAME,
    hold_horizon,
    oldest,
    tell_replicas,
    tell_writer,
)
from aurora_ray.errors import EngineError


@pytest.mark.parametrize(
    ("horizons", "xmin"),
    [
        ([], 0),
        ([Horizon(0)], 0),
        ([Horizon(700), Horizon(650, 640), Horizon(0, 660)], 640),
        ([Horizon(5), Horizon((1 << 32) - 7)], (1 << 32) - 7),  # the numbers have gone round
        ([Horizon((1 << 32) - 7), Horizon(5)], (1 << 32) - 7),
    ],
)
def test_the_oldest_transaction_of_all_readers_counts(horizons: list[Horizon], xmin: int) -> None:
    assert oldest(horizons) == xmin


def test_rows_replace_those_before_and_a_server_that_has_gone_is_not_told(tmp_path: Path) -> None:
    account = find_account("aurora-ray")
    row = ReplicaRow("one", "MASTER_SESSION_ID", 1.0, 0.0, 100.0)
    tell_replicas(tmp_path, account, [row, row])
    tell_replicas(tmp_path, account, [row])
    (told,) = json.loads((tmp_path / REPLICAS_NAME).read_text())
    assert told["session_id"] == "MASTER_SESSION_ID"
    tell_replicas(tmp_path / "gone", account, [row])
    assert not (tmp_path / "gone").exists()


def test_where_writes_run_is_told_until_they_run_nowhere(tmp_path: Path) -> None:
    account = find_account("aurora-ray")
    tell_writer(tmp_path, account, None)
    tell_writer(tmp_path, account, ("127.0.0.1", 15432))
    path = tmp_path / WRITER_NAME
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("127.0.0.1 15432\n", 0o600)
    tell_writer(tmp_path, account, None)
    assert not path.exists()
    tell_writer(tmp_path / "gone", account, ("127.0.0.1", 15432))
    assert not (tmp_path / "gone").exists()
    assert [ADAPTER.forwards(version) for version in ("18.6.3", "16.14", "17", "")] == [True, False, False, False]


async def test_a_server_without_the_module_says_that_it_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not keep rows for readers"):
        await hold_horizon(tmp_path, [Horizon(700)], 5.0)


def test_statements_are_lines_as_single_user_mode_takes_them(tmp_path: Path) -> None:
    assert not any("\n" in statement for statement in functions.STATEMENTS)
    edit = functions.missing(tmp_path)
    assert edit is not None
    (tmp_path / edit.path).write_text(edit.content or "")
    assert functions.missing(tmp_path) is None

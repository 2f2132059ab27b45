import os
from pathlib import Path

import pytest

from aurora_ray.engine.account import EngineAccount, find_account
from aurora_ray.errors import ConfigurationError

OTHER = EngineAccount("somebody", 12345, 23456, switch=True)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


def test_an_ordinary_user_runs_engines_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    account = find_account("aurora-ray")
    assert (account.uid, account.switch) == (4321, False)
    assert account.command(["postgres", "-D", "x"]) == ["postgres", "-D", "x"]


def test_root_needs_the_account_and_is_told_how_to_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigurationError, match=r"useradd --system .* no-such-account") as caught:
        find_account("no-such-account")
    assert "make account" in str(caught.value)


def test_root_is_no_account_for_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigurationError, match="which is root"):
        find_account("root")


def test_the_environment_is_set_after_the_switch() -> None:
    command = OTHER.command(["postgres"], env={"LD_PRELOAD": "lib.so"}, death_signal="QUIT")
    assert Path(command[0]).name == "setpriv"
    assert {"--reuid=12345", "--regid=23456", "--clear-groups", "--pdeathsig=QUIT"} <= set(command)
    assert [Path(word).name for word in command[command.index("--") + 1 :]] == ["env", "LD_PRELOAD=lib.so", "postgres"]


@as_root
def test_a_closed_directory_is_named(account: EngineAccount, data_dir: Path) -> None:
    closed = data_dir / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0o700)
    account.require_reachable(data_dir)
    with pytest.raises(ConfigurationError, match=f"cannot enter {closed}, "):
        account.require_reachable(closed / "below")

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.process import EngineProcess
from aurora_ray.engine.start import StartCutError, StartRefusedError, start_error
from aurora_ray.errors import ConfigurationError, EngineError
from tests.support.polling import poll_until, poll_until_blocking

ROOT = Path(__file__).parents[2]


def spawn(script: str, account: EngineAccount, data_dir: Path, **env: str) -> EngineProcess:
    return EngineProcess.spawn(
        ["sh", "-c", script], account=account, env=env, pass_fds=(), work_dir=data_dir, log_path=data_dir / "log"
    )


async def test_it_runs_as_the_account_with_a_bare_environment(account: EngineAccount, data_dir: Path) -> None:
    process = spawn("id -u; env; exit 3", account, data_dir, EXTRA="given")
    assert await process.wait_main(10) == 3
    assert await process.wait_gone(10)
    lines = process.log_tail().splitlines()
    assert lines[0] == str(account.uid)
    names = {line.partition("=")[0] for line in lines[1:]}
    assert {"EXTRA", "PATH", "TZ", "LANG"} <= names <= {"EXTRA", "PATH", "TZ", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    process.close()


async def test_it_is_gone_only_with_its_last_descendant(account: EngineAccount, data_dir: Path) -> None:
    process = spawn("setsid sleep 1000 & setsid sh -c 'sleep 1000; true' & wait", account, data_dir)
    await poll_until(lambda: len(process.members()) == 4, what="the shell, another one and two sleeps")
    process.send(signal.SIGKILL)
    assert await process.wait_main(10) == -signal.SIGKILL
    assert not await process.wait_gone(0.05)
    assert len(process.members()) == 3
    assert len(process.members(fast=True)) == 1, "the other shell; sleeps are another program"
    await process.kill(10)
    assert await process.wait_gone(0)
    assert process.members() == []
    process.close()


async def test_a_stopped_process_is_killed_too(account: EngineAccount, data_dir: Path) -> None:
    process = spawn("sleep 1000", account, data_dir)
    process.send(signal.SIGSTOP)
    await process.kill(10)
    assert process.returncode == -signal.SIGKILL
    process.close()


@pytest.mark.parametrize(
    ("script", "kind", "again"),
    [
        ("exit 1", StartRefusedError, False),
        ("kill -KILL $$", StartCutError, True),
        ("kill -TERM $$", StartCutError, True),
        ("kill -SEGV $$", EngineError, False),
    ],
)
async def test_a_server_that_was_killed_during_its_start_is_started_again_soon(
    account: EngineAccount, data_dir: Path, script: str, kind: type[EngineError], again: bool
) -> None:
    process = spawn(script, account, data_dir)
    await process.wait_gone(10)
    error = start_error(process, "It", ("localhost", 1), bind_failed=False)
    assert (type(error), error.retryable) == (kind, again)
    process.close()


async def test_the_log_tail_is_of_this_run_only(account: EngineAccount, data_dir: Path) -> None:
    (data_dir / "log").write_text("from before\n")
    process = spawn("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo line $i; done", account, data_dir)
    await process.wait_gone(10)
    assert process.log_tail().splitlines() == [f"line {number}" for number in range(2, 14)]
    process.close()


async def test_a_directory_that_is_not_there_is_an_error_without_leaks(account: EngineAccount, data_dir: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigurationError, match="cannot start sh"):
        EngineProcess.spawn(
            ["sh"], account=account, env={}, pass_fds=(), work_dir=data_dir / "no", log_path=data_dir / "log"
        )
    assert len(os.listdir("/proc/self/fd")) == before


ORPHANING = """
import asyncio, sys
from pathlib import Path
from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.process import EngineProcess

async def main():
    name, uid, gid, switch, directory = sys.argv[1:]
    process = EngineProcess.spawn(
        ["sleep", "1000"], account=EngineAccount(name, int(uid), int(gid), switch == "True"), env={}, pass_fds=(),
        work_dir=Path(directory), log_path=Path(directory) / "log",
    )
    sys.stdout.write(f"{process.pid}\\n")
    sys.stdout.flush()
    await process.wait_main(None)

asyncio.run(main())
"""


def test_it_does_not_outlive_its_starter(account: EngineAccount, data_dir: Path) -> None:
    arguments = [account.name, str(account.uid), str(account.gid), str(account.switch), str(data_dir)]
    command = [sys.executable, "-c", ORPHANING, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        # Until then the child is setpriv, which asks for the signal just before it becomes the engine.
        poll_until_blocking(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", what="the engine runs")
        starter.kill()
    poll_until_blocking(lambda: start_ticks(pid) is None, what="the engine has ended as well")

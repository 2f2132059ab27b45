"""The account that engines run as: never root.

An ordinary user runs engines as itself. Root runs them as the account named by AURORA_ENGINE_USER, through util-linux'
`setpriv`: a plain exec, so that the process that starts them needs no `preexec_fn` and may use vfork.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

USER_SETTING: Final = "AURORA_ENGINE_USER"  # Settings.engine_user
PROBE_TIMEOUT_S: Final = 30.0

# Engines get a small, fixed environment: the caller's may hold settings (PGPORT, MYSQL_HOST, another LD_PRELOAD) that
# change what they do. UTC and C.UTF-8 so that every copy and region renders times and errors alike.
BASE_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}


@dataclass(frozen=True, slots=True)
class EngineAccount:
    """Who engines run as; `switch` if that is not us."""

    name: str
    uid: int
    gid: int
    switch: bool

    def command(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, death_signal: str | None = None
    ) -> list[str]:
        """The command line that runs `argv` as this account, with `env` on top of the environment given to it.

        `env` is set by env(1) after the switch of accounts: a preloaded library is loaded into the engine and not into
        setpriv. `death_signal` (as "QUIT") is sent to the program when the *thread* that started it ends.
        """
        prefix = []
        if self.switch:
            prefix = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--inh-caps=-all"]
        if death_signal is not None:
            prefix.append(f"--pdeathsig={death_signal}")
        command = [_tool("setpriv"), *prefix, "--"] if prefix else []
        if env:
            command += [_tool("env"), *(f"{name}={value}" for name, value in env.items())]
        return command + list(argv)

    def own(self, path: Path, mode: int) -> None:
        """Gives one file or directory to the account, with `mode`."""
        path.chmod(mode)
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def can(self, test: str, path: Path) -> bool:
        """Whether the account passes test(1)'s `test` ("-x", "-r", …) on `path`, asked from the kernel itself."""
        command = self.command([_tool("test"), test, str(path)])
        return subprocess.run(command, env=dict(BASE_ENVIRONMENT), check=False, timeout=PROBE_TIMEOUT_S).returncode == 0

    def require_reachable(self, directory: Path) -> None:
        """Raises ConfigurationError if the account cannot get to `directory`, naming the directory in the way."""
        if self.can("-x", directory):
            return
        for ancestor in (*reversed(directory.parents), directory):
            if not self.can("-x", ancestor):
                raise ConfigurationError(
                    f"the account {self.name} cannot enter {ancestor}, so no engine can use {directory}: "
                    "choose a data directory elsewhere (for root, below /var/lib) or open that directory with chmod o+x"
                )


def find_account(engine_user: str) -> EngineAccount:
    """The account for engines on this machine: `engine_user` (Settings.engine_user) if we are root, else our own.

    Raises ConfigurationError if we are root and there is no usable account.
    """
    uid = os.geteuid()
    if uid != 0:
        return EngineAccount(_own_name(uid), uid, os.getegid(), switch=False)
    try:
        entry = pwd.getpwnam(engine_user)
    except KeyError:
        raise ConfigurationError(
            f"database engines do not run as root and there is no account {engine_user}: create it with `make account` "
            f"or `useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin {engine_user}`, "
            f"or name another one in {USER_SETTING}"
        ) from None
    if entry.pw_uid == 0:
        raise ConfigurationError(f"{USER_SETTING} names {engine_user}, which is root: name an ordinary account")
    _tool("setpriv")
    return EngineAccount(engine_user, entry.pw_uid, entry.pw_gid, switch=True)


def _own_name(uid: int) -> str:
    """Our name, or the number where the password database does not know us (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(uid)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigurationError(f"{name} is missing: install util-linux and coreutils")
    return path

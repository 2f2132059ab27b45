"""The module with which a server lets commits wait for the volume outside their WAL flush.

See `src/commit.c` for what it does, and when it does nothing. It is built for the PostgreSQL versions whose
wheels have headers; servers of other origin wait in the flush, as they always can.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.engine.postgres.configuration import AUTO, CONF, include_line
from aurora_ray.engine.postgres.wheels import PACKAGES
from aurora_ray.engine.tree_edit import read_text
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall

PRELOAD: Final = "shared_preload_libraries"
_ON_A_VOLUME: Final = "AURORA_REGION_FD"  # in a server's environment
_ASK_TIMEOUT_S: Final = 30.0
_MAY_PRELOAD: Final = re.compile(rf"\s*(include|{PRELOAD}\b)", re.IGNORECASE)  # include_dir and include_if_exists too


def commit_module(install: EngineInstall, env: Mapping[str, str]) -> Path | None:
    """The module for this server; None without a volume, and for an installation that is no wheel's."""
    if _ON_A_VOLUME not in env or not any(part.relative.partition("/")[0] in PACKAGES for part in install.parts):
        return None
    spec = importlib.util.find_spec(f"aurora_ray.engine._commit_{install.major}")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def stage_module(module: Path, run_dir: Path) -> Path:
    """A copy where the engine's account can read it, and where no upgrade replaces it under the server."""
    copy = run_dir / "aurora_commit.so"
    copy.unlink(missing_ok=True)
    shutil.copyfile(module, copy)
    copy.chmod(0o755)
    return copy


async def configured_preloads(
    server: Sequence[str],
    account: EngineAccount,
    *,
    env: Mapping[str, str],
    pass_fds: Sequence[int],
    conf: Path,
    data_dir: Path,
) -> str:
    """What the configuration of a server (its command line, and the file `conf` that it names) has it load.

    The server itself is asked, which takes as long as a tenth of a failover; so not where nothing is set. Empty if the
    server cannot read it: its start will say why. Raises EngineError if it does not answer in time.
    """
    if not may_preload(conf, data_dir):
        return ""
    command = [*server, "-C", PRELOAD]
    asked = await asyncio.create_subprocess_exec(
        *account.command(command, env=env),
        env=dict(BASE_ENVIRONMENT),
        pass_fds=tuple(pass_fds),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
    )
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            output, _ = await asked.communicate()
    except BaseException as error:
        asked.kill()
        await asked.wait()
        if isinstance(error, TimeoutError):
            raise EngineError(f"PostgreSQL did not read its configuration within {_ASK_TIMEOUT_S:g} s") from error
        raise
    return output.decode().strip() if asked.returncode == 0 else ""


def may_preload(conf: Path, data_dir: Path) -> bool:
    """Whether the configuration of a server may name libraries to load: it does so, or takes in a file that may.

    `conf`: ours, which has the user's `postgresql.conf` taken in; ALTER SYSTEM's file is read after it.
    """
    users = data_dir / CONF
    for path in (conf, users, data_dir / AUTO):
        content = read_text(path)
        if content is None:  # not there, or on a mount that has not got it yet
            if path.exists():
                return True
            continue
        lines = (line for line in content.splitlines() if line != include_line(users))
        if any(_MAY_PRELOAD.match(line) for line in lines):
            return True
    return False


def with_module(module: Path, others: str) -> str:
    """The libraries to load; the module is the first."""
    quoted = '"{}"'.format(str(module).replace('"', '""'))
    return ", ".join(filter(None, (quoted, others.strip())))

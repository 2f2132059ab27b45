"""Changes of files in an engine's data directory, from outside of the engine.

The directory may be a mount: what is written past the interposer never reaches the volume. So a small program does the
work, with the engine's environment. A file that is replaced is whole at any moment: written beside, synced, renamed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount

EDIT_TIMEOUT_S: Final = 30.0
FILE_MODE: Final = 0o600

# Reads [[path, content or null (removed), mode], …, uid, gid] as JSON. Its working directory is not below the mount.
_PROGRAM: Final = """
import json, os, sys
edits, uid, gid = json.load(sys.stdin)
for path, content, mode in edits:
    if content is None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        continue
    beside = path + ".new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    data = content.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(fd, data):]
    os.fchmod(fd, mode)
    if os.geteuid() == 0:
        os.fchown(fd, uid, gid)
    os.fsync(fd)
    os.close(fd)
    os.rename(beside, path)
for parent in {os.path.dirname(path) for path, _, _ in edits}:
    fd = os.open(parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """A file (a path below the data directory) and what it shall hold; None: it shall not be there."""

    path: str
    content: str | None


async def edit_tree(
    data_dir: Path, edits: Sequence[Edit], *, account: EngineAccount, env: Mapping[str, str], pass_fds: Sequence[int]
) -> None:
    """Carries out `edits` in their order; all of it is durable when this returns. Raises EngineError."""
    if not edits:
        return
    order = json.dumps(
        [[[str(data_dir / edit.path), edit.content, FILE_MODE] for edit in edits], account.uid, account.gid]
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", _PROGRAM),
        env={**BASE_ENVIRONMENT, **env},
        pass_fds=tuple(pass_fds),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    try:
        async with asyncio.timeout(EDIT_TIMEOUT_S):
            _, complaint = await child.communicate(order.encode())
    except BaseException as error:
        if child.returncode is None:
            child.kill()
            await child.wait()
        if isinstance(error, TimeoutError):
            raise EngineError(f"{data_dir} could not be changed within {EDIT_TIMEOUT_S:g} s") from error
        raise
    if child.returncode != 0:
        last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise EngineError(f"{data_dir} could not be changed: {''.join(last) or child.returncode}")


def read_text(path: Path) -> str | None:
    """A small file of a data directory; None if it is not there, or on a mount that has not got it yet."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return None if b"\0" in content else content.decode("utf-8", "surrogateescape")

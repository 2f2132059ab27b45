"""Which servers let commits wait for the volume outside their WAL flush, and the module that they load for it.

See `src/commit.c` for what it does. It is built for the PostgreSQL versions of the wheel, against their own headers;
servers of other origin wait in the flush, as they always can.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.install import WHEEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.engine.base import EngineInstall

# The name of the one synchronous standby. None can take that place: a name has at most 63 characters.
STANDBY: Final = "the volume: a commit is visible when four of its six copies have it on disk"
_ON_A_VOLUME: Final = "AURORA_REGION_FD"  # in a server's environment


def commit_module(install: EngineInstall, env: Mapping[str, str], parameters: Mapping[str, str]) -> Path | None:
    """The module for this server; None if its commits shall wait in the flush.

    That is so without a volume, for an installation that is not the wheel's, and if the caller has synchronous standbys
    of his own or no WAL senders at all: then PostgreSQL's place to wait is taken, or closed.
    """
    chosen = {name.lower(): value for name, value in parameters.items()}
    if _ON_A_VOLUME not in env or not any(part.relative.startswith(WHEEL) for part in install.parts):
        return None
    if chosen.get("synchronous_standby_names", "").strip() or chosen.get("max_wal_senders", "").strip() == "0":
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


def module_settings(module: Path, parameters: Mapping[str, str]) -> dict[str, str]:
    """The settings that make a server load and use it; libraries that the caller loads are loaded after it."""
    quoted = '"{}"'.format(str(module).replace('"', '""'))
    others = next((value for name, value in parameters.items() if name.lower() == "shared_preload_libraries"), "")
    return {
        "shared_preload_libraries": ", ".join(filter(None, (quoted, others.strip()))),
        "synchronous_standby_names": f'"{STANDBY}"',
        # Nobody holds a lock over a flush, so nobody has to sleep in it for others to join: the driver groups.
        "commit_delay": "0",
    }

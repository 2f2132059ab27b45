"""What a server is told for its sessions, and the plugin that shows it to them (engine/src/mariadb.c).

It comes by the server's environment: version and name, and a file with a line for each instance. A server loads plugins
out of one directory only, so the run gets one with links to all that the installation has, and ours.
"""

from __future__ import annotations

import importlib.util
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall, ReplicaRow

HAND_OVER_FOR: Final = "127.255.255.254"  # a server is told to listen there as well, and gets HAND_OVER in its place
ROWS_NAME: Final = "replicas.tsv"
PLUGIN: Final = "aurora.so"
# Where packages and archives put a server's plugins, below the directory above its programs.
_PLUGIN_DIRS: Final = (
    "lib/mysql/plugin",
    "lib64/mysql/plugin",
    "lib/mariadb/plugin",
    "lib64/mariadb/plugin",
    "lib/plugin",
)


def environment(socket_dir: Path, name: str, hand_over: Path | None, *, follows: bool) -> dict[str, str]:
    """Where the plugin of the server of that name finds all this, and the library takes clients' sockets
    (interposer/src/intercept_accept.c); `follows`: it is a reader's."""
    takes = {
        "AURORA_HAND_OVER": str(hand_over),
        "AURORA_HAND_OVER_FOR": HAND_OVER_FOR,
        "AURORA_KEEPS_ADDRESS": "1",
    }
    return {
        **(takes if hand_over is not None else {}),
        "AURORA_REPLICAS_FILE": str(socket_dir / ROWS_NAME),
        "AURORA_INSTANCE": name,
        "AURORA_VERSION": version("aurora-ray"),
        "AURORA_READER": "1" if follows else "",
    }


def plugin_settings(install: EngineInstall, run_dir: Path) -> dict[str, str]:
    """Makes the directory of plugins of a run: what a server must be started with to have ours; empty if that was never
    built."""
    spec = importlib.util.find_spec("aurora_ray.engine._mariadb_plugin")
    if spec is None or spec.origin is None:
        return {}
    plugins = run_dir / "plugins"
    shutil.rmtree(plugins, ignore_errors=True)
    plugins.mkdir()
    plugins.chmod(0o755)  # whatever the umask
    for below in _PLUGIN_DIRS:
        for each in sorted((install.bin_dir.parent / below).glob("*.so")):
            if not (plugins / each.name).exists():
                (plugins / each.name).symlink_to(each)
    ours = plugins / PLUGIN  # a copy: no upgrade replaces it under the server, and its account can read it
    ours.unlink(missing_ok=True)
    shutil.copyfile(spec.origin, ours)
    ours.chmod(0o755)
    return {"plugin_dir": str(plugins), "plugin_load_add": PLUGIN}


def tell_replicas(socket_dir: Path, account: EngineAccount, rows: Sequence[ReplicaRow]) -> None:
    """Replaces what sessions are shown. A server that has just ended is not told."""
    if not socket_dir.is_dir():
        return
    lines = [
        "\t".join(
            (
                row.instance_id or row.server_id,  # by which the plugin knows its own
                row.server_id,
                row.host_id or row.server_id,
                row.session_id,
                f"{row.cpu:.3f}",
                f"{row.replica_lag_ms:.3f}",
                f"{row.last_update_s:.6f}",
            )
        )
        for row in rows
    ]
    replace_file(socket_dir / ROWS_NAME, "".join(f"{line}\n" for line in lines), durable=False)
    account.own(socket_dir / ROWS_NAME, 0o600)

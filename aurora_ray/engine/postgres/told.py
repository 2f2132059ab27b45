"""What a server is told while it runs, for its sessions: through its environment, a file, and the module's sockets.

`AURORA_REPLICAS_FILE` holds what `aurora_replica_status()` shows (src/facts.c); the worker behind
`AURORA_HORIZON_SOCKET` keeps rows that readers need (src/horizon.c). `AURORA_FORWARD_FILE` is there while sessions may
write on a server that follows, and says where what they write is run (src/forward_wire.c).
"""

from __future__ import annotations

import asyncio
import json
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.durable import replace_file
from aurora_ray.engine.postgres.client import CANCEL_CODE
from aurora_ray.engine.postgres.commit import commit_module
from aurora_ray.engine.postgres.probe import PROBE_NAME, PROBE_VARIABLE, ask
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall, Horizon, RegionRow, ReplicaRow

HORIZON_NAME: Final = "horizon"
REPLICAS_NAME: Final = "replicas.json"
WRITER_NAME: Final = "writer"
HORIZON_TIMEOUT_S: Final = 2.0
_ANSWER_BYTES_MAX: Final = 80
_ANSWER = re.compile(rb"held=(\d+)\n")
_HALF: Final = 1 << 31
_ALL: Final = 1 << 32


def environment(socket_dir: Path, name: str, hand_over: Path | None) -> dict[str, str]:
    """Where the module of the server of that name finds and serves all this, and the library takes clients' sockets
    (interposer/src/intercept_accept.c)."""
    return {
        "AURORA_HAND_OVER": str(hand_over or ""),
        "AURORA_CANCEL_CODE": str(CANCEL_CODE),
        PROBE_VARIABLE: str(socket_dir / PROBE_NAME),
        "AURORA_HORIZON_SOCKET": str(socket_dir / HORIZON_NAME),
        "AURORA_REPLICAS_FILE": str(socket_dir / REPLICAS_NAME),
        "AURORA_FORWARD_FILE": str(socket_dir / WRITER_NAME),
        "AURORA_INSTANCE": name,
        "AURORA_VERSION": version("aurora-ray"),
    }


def has_module(install: EngineInstall, env: Mapping[str, str]) -> bool:
    """Whether a server with this environment has the module."""
    return commit_module(install, env) is not None


def tell_replicas(
    socket_dir: Path, account: EngineAccount, rows: Sequence[ReplicaRow], regions: Sequence[RegionRow] = ()
) -> None:
    """Replaces what sessions are shown. A server that has just ended is not told.

    Regions stand in the first row: the functions of versions before there were any pass over them there.
    """
    content = [_plain(row) for row in rows]
    if content and regions:
        content[0]["regions"] = [
            {
                "aws_region": each.region,
                "lsn": each.lsn,
                "lag_in_msec": each.lag_ms,
                "at": each.at_s,
                "instances": [_plain(row) | {"lsn": lsn} for row, lsn in each.instances],
            }
            for each in regions
        ]
    if socket_dir.is_dir():
        replace_file(socket_dir / REPLICAS_NAME, json.dumps(content), durable=False)
        account.own(socket_dir / REPLICAS_NAME, 0o600)


def tell_writer(socket_dir: Path, account: EngineAccount, address: tuple[str, int] | None) -> None:
    """Where sessions have their writes run from now on, a host and a port; None: nowhere."""
    path = socket_dir / WRITER_NAME
    if address is None:
        path.unlink(missing_ok=True)
    elif socket_dir.is_dir():
        replace_file(path, f"{address[0]} {address[1]}\n", durable=False)
        account.own(path, 0o600)


def _plain(row: ReplicaRow) -> dict[str, Any]:
    return {
        "server_id": row.server_id,
        "instance": row.instance_id or row.server_id,
        "host_id": row.host_id or row.server_id,
        "session_id": row.session_id,
        "cpu": row.cpu,
        "replica_lag_in_msec": row.replica_lag_ms,
        "last_update": row.last_update_s,
    }


async def hold_horizon(socket_dir: Path, horizons: Sequence[Horizon], lease_s: float) -> int:
    """Has the module hold the oldest of these for `lease_s`; the transaction that is held, 0 if none. Raises
    EngineError."""
    line = f"xmin={oldest(horizons)} lease_ms={int(lease_s * 1000)}\n".encode()
    try:
        async with asyncio.timeout(HORIZON_TIMEOUT_S):
            answer = await ask(socket_dir / HORIZON_NAME, line, _ANSWER_BYTES_MAX)
    except (OSError, TimeoutError) as error:
        raise EngineError(f"the server does not keep rows for readers: {error or 'it does not answer'}") from error
    match = _ANSWER.fullmatch(answer)
    if match is None:
        raise EngineError(f"the server does not keep rows for readers: it says {answer!r}")
    return int(match[1])


def oldest(horizons: Iterable[Horizon]) -> int:
    """The oldest transaction of all; 0 if nothing is needed.

    Their numbers go round: older is what lies less than half of them behind.
    """
    found = 0
    for xmin in (xmin for each in horizons for xmin in (each.xmin, each.catalog_xmin) if xmin):
        if not found or (found - xmin) % _ALL < _HALF:
            found = xmin
    return found

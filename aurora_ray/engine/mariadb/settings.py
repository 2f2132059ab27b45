"""The MariaDB settings that come from us, each with its reason, and how they rank beside the user's.

From the weakest to the strongest: our defaults (`default_settings`); the cluster's parameters; the few that correctness
rests on or that the fleet gives out (`forced_settings`), which stand on the command line. The server has no statement
that persists a setting, so a cluster's parameters (`aurora parameters`) are what lasts; SET GLOBAL lasts until the next
start, and the owner's account cannot do it for what needs SUPER.

**Files, by class.** Durable in the volume: tables and the system tablespace, undo, InnoDB's redo log, Aria's logs and
control file (the system's tables are Aria's), the binary log with its index and GTID state, the DDL log (it makes an
interrupted DDL whole), the coordinator's log, replication's positions. Elsewhere, and gone with the run: sockets, the
pid, the error log, temporary files (`tmpdir`). On the mount but volatile: InnoDB's temporary tablespace, which every
start makes anew, and the list of cached pages, which says something of one machine's memory only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.engine.base import VolatileKind, VolatilePattern
from aurora_ray.engine.mariadb.sizes import size_settings
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aurora_ray.engine.sizes import InstanceSize

PAGE_BYTES: Final = 16384
LOG_FILE_BYTES: Final = 96 << 20  # bounds what a failover replays; the image has a log of this size
BINLOG_NAME: Final = "binlog"

# The logs of which a commit is made, by what their names begin with: syncs of them only order, and nothing is told
# before all that was ordered is durable (interposer/src/intercept_commit.c).
COMMIT_LOGS: Final = ("ib_logfile", f"{BINLOG_NAME}.")

_FIXED: Final[Mapping[str, str]] = {
    # The volume's pages. One write of a page is one record of the log.
    "innodb_page_size": str(PAGE_BYTES),
    # A page reaches the volume whole or not at all, and in the order of writes: no page is ever torn, so a second copy
    # of each to repair it from is waste.
    "innodb_doublewrite": "OFF",
    # Writes through the page cache, and fsync, which is where the volume is waited for. O_DIRECT would write the local
    # copy, a cache, at the speed of its disk.
    "innodb_flush_method": "fsync",
    "innodb_log_file_buffering": "ON",
    # Past the C library: io_submit, io_uring.
    "innodb_use_native_aio": "OFF",
    # The redo log as memory would be written past the library; as on an ordinary disk, it is a file.
    "loose_innodb_log_file_mmap": "OFF",  # not in each version
    # A commit is told when its redo has its quorum.
    "innodb_flush_log_at_trx_commit": "1",
    "sync_binlog": "1",
    # All that is committed is in the binary log, whole events of which are known by their checksums: readers follow it.
    "log_bin": BINLOG_NAME,
    "log_slave_updates": "ON",
    "binlog_format": "ROW",
    "binlog_checksum": "CRC32",
    # Tables outside of the data directory would be outside of the volume (DATA DIRECTORY, INDEX DIRECTORY).
    "symbolic_links": "OFF",
    # Addresses are addresses: no name server in anybody's login, and 'localhost' is the private socket alone.
    "skip_name_resolve": "ON",
}
# Where things lie, and who listens where, is the fleet's to say.
_OURS: Final = frozenset(
    {
        "aria_log_dir_path",
        "basedir",
        "bind_address",
        "datadir",
        "defaults_file",
        "extra_port",
        "general_log_file",
        "init_file",
        "innodb_data_file_path",
        "innodb_data_home_dir",
        "innodb_log_group_home_dir",
        "innodb_read_only",
        "innodb_temp_data_file_path",
        "innodb_tmpdir",
        "innodb_undo_directory",
        "log_basename",
        "log_bin_basename",
        "log_bin_index",
        "log_error",
        "pid_file",
        "plugin_dir",
        "plugin_load",
        "plugin_load_add",
        "port",
        "relay_log",
        "relay_log_index",
        "secure_file_priv",
        "server_id",
        "skip_networking",
        "slave_load_tmpdir",
        "slow_query_log_file",
        "socket",
        "tmpdir",
    }
)
# The server would start with another recovery than the right one, or write data that no failover has.
_HARMFUL: Final = frozenset(
    {
        "innodb_force_recovery",
        "innodb_fast_shutdown",
        "innodb_force_load_corrupted",
        "aria_recover_options",
        "binlog_do_db",
        "binlog_ignore_db",
    }
)
_OTHER_CLUSTERS: Final = "wsrep_"  # a server's own replication of everything, in the place of the volume's

_TUNING: Final[Mapping[str, str]] = {
    "innodb_log_file_size": str(LOG_FILE_BYTES),
    # A hint of one machine's memory: the next start is on a mount that has none of these pages yet.
    "innodb_buffer_pool_dump_at_shutdown": "OFF",
    "innodb_buffer_pool_load_at_startup": "OFF",
    # Neighbouring pages cost as much as others: there is no head that moves.
    "innodb_flush_neighbors": "0",
    # What is kept of the binary log is for servers elsewhere that follow: readers need the newest file only. One that
    # opens reads all of that.
    "binlog_expire_logs_seconds": "600",
    "max_binlog_size": str(32 << 20),
    "gtid_strict_mode": "ON",
    "character_set_server": "utf8mb4",
    "default_storage_engine": "InnoDB",
    "performance_schema": "OFF",
    "loose_feedback": "OFF",
    # Strangers that knock are no news, nor is the look whether it is alive.
    "log_warnings": "1",
    "max_connect_errors": "4294967295",
    # A client whose machine vanished is noticed in a minute, as where the endpoint passes bytes on.
    "tcp_keepalive_time": "30",
    "tcp_keepalive_interval": "10",
    "tcp_keepalive_probes": "3",
}

VOLATILE_PATTERNS: Final = (
    VolatilePattern(VolatileKind.EXACT, "ibtmp1"),
    VolatilePattern(VolatileKind.EXACT, "ib_buffer_pool"),
    VolatilePattern(VolatileKind.EXACT, "ib_buffer_pool.incomplete"),
)


def canonical(name: str) -> str:
    """As the server prints it: lower case, underscores."""
    return name.strip().lower().replace("-", "_")


def refusal(name: str) -> str | None:
    """Why a user cannot set this parameter (canonical name); None if it is his to set."""
    if name in _OURS:
        return f"the parameter {name} is fixed by the fleet, which gives out directories, ports and sockets"
    if name in forced_names() - _OURS - _HARMFUL:
        return f"the parameter {name} is fixed by the storage underneath, which rests on it"
    if name in _HARMFUL or name.startswith(_OTHER_CLUSTERS):
        return f"the parameter {name} is fixed: what a start after a failover does rests on it"
    return None


def check_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Canonical names and values. Raises ConfigurationError for a parameter that is not the user's to set."""
    chosen = {canonical(name): value for name, value in parameters.items()}
    for name in sorted(chosen):
        why = refusal(name)
        if why is not None:
            raise ConfigurationError(f"{why}: leave it out")
    return chosen


def forced_settings(
    *, basedir: Path, data_dir: Path, log_dir: Path, socket: Path, tmp_dir: Path, host: str, port: int, server_id: int
) -> dict[str, str]:
    """What stands on the command line, where no file changes it."""
    return {
        **_FIXED,
        "basedir": str(basedir),
        "datadir": str(data_dir),
        "socket": str(socket),
        "pid_file": str(socket.with_suffix(".pid")),
        "tmpdir": str(tmp_dir),
        "secure_file_priv": str(tmp_dir),
        "bind_address": host,
        "port": str(port),
        "server_id": str(server_id),
        "general_log_file": str(log_dir / "general.log"),
        "slow_query_log_file": str(log_dir / "slow.log"),
        "relay_log": "relay",  # names without the machine's: the next start is on another one
    }


def default_settings(size: InstanceSize) -> dict[str, str]:
    """What we choose and anybody may choose otherwise."""
    return {**_TUNING, **size_settings(size)}


def follow_settings(writer_id: int) -> dict[str, str]:
    """What a server that follows its writer is started with, above all else."""
    return {
        "server_id": str(writer_id % (2**32 - 1) + 1),
        "read_only": "ON",
        # What it replays is in the writer's binary log. Its own is for the recovery at its start, and of no use later.
        "log_slave_updates": "OFF",
        "gtid_strict_mode": "OFF",
        "skip_slave_start": "ON",
        "event_scheduler": "OFF",
        "slave_net_timeout": "86400",
        "slave_parallel_threads": "4",
        "slave_parallel_mode": "conservative",
        # Then it takes no more, and the volume's log is followed no further.
        "relay_log_space_limit": str(1 << 30),
        "sync_relay_log": "0",
        "sync_relay_log_info": "0",
        "sync_master_info": "0",
        "innodb_flush_log_at_trx_commit": "0",
        "sync_binlog": "0",
    }


def forced_names() -> frozenset[str]:
    """What no user sets."""
    return frozenset(map(_plain, _FIXED)) | _OURS | _HARMFUL


def _plain(name: str) -> str:
    return name.removeprefix("loose_")

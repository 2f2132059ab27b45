"""The PostgreSQL settings that come from us, each with its reason, and how they rank beside the user's.

From the weakest to the strongest: `postgresql.conf` of the data directory; our defaults (`default_settings`); the
cluster's parameters; ALTER SYSTEM; ALTER DATABASE and ALTER ROLE; the few that correctness rests on or that the fleet
gives out (`forced_settings`). Only those stand on the command line, and the module refuses ALTER SYSTEM on them. All
else lies in a file that is made anew at each start (configuration), so a user can set it.

What bounds a failover: the new writer replays the WAL since the last completed checkpoint's start, reading pages from
the volume as it goes; then it is promoted, or writes a checkpoint before it accepts statements (promotion). Hence
frequent checkpoints and prefetch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.engine.base import VolatileKind, VolatilePattern
from aurora_ray.engine.postgres.sizes import size_settings
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aurora_ray.engine.sizes import InstanceSize

_FIXED: Final[Mapping[str, str]] = {
    # fsync is where a commit waits for its quorum: without it nothing is durable anywhere.
    "fsync": "on",
    # One wait for a quorum per flush; with open_sync and open_datasync it would be one per write.
    "wal_sync_method": "fdatasync",
    # A failed fsync means that the volume took nothing (fenced, or no quorum): panic, never retry as if it had.
    "data_sync_retry": "off",
    # After a crash of any process, the local copy may hold writes that the volume does not: the mount is thrown away.
    "restart_after_crash": "off",
    # "mmap" would put shared memory into files of the data directory.
    "dynamic_shared_memory_type": "posix",
    # One process less with the data directory's library in it, and no logs in the volume: stderr goes to our file.
    "logging_collector": "off",
    "log_destination": "stderr",
    "unix_socket_permissions": "0700",
    "unix_socket_group": "",
}
# io_uring would go past the C library. Workers rather than "sync": they keep many reads of absent pages in flight.
_FIXED_18: Final[Mapping[str, str]] = {"io_method": "worker"}

_TUNING: Final[Mapping[str, str]] = {
    # A page reaches the volume whole or not at all, so torn pages cannot exist and full images in the WAL are waste.
    "full_page_writes": "off",
    # Recycled segments hold old bytes that a byte-wise comparison would find different everywhere.
    "wal_recycle": "off",
    # Zeros are not worth sending: an unwritten page reads as zeros.
    "wal_init_zero": "off",
    # At a start after a crash: one syncfs call instead of opening and fsyncing every file of the database.
    "recovery_init_sync_method": "syncfs",
    "huge_pages": "try",
    # A hot standby refuses to start unless it has at least the writer's figures for these three, max_connections and
    # max_worker_processes (sizes): they belong to the cluster, not to the size of an instance.
    "max_wal_senders": "10",  # readers need none; for the user's own logical replication and pg_basebackup
    "max_prepared_transactions": "0",
    "max_locks_per_transaction": "64",
    # Enough for readers to be hot standbys.
    "wal_level": "replica",
    # Almost no full images are left in the WAL, so there is nothing to gain for the CPU it would take from 2 cores.
    "wal_compression": "off",
    # A flush waits for a quorum, a few milliseconds in which other sessions go on inserting.
    "wal_buffers": "16MB",
    # Sync commits flush themselves; 200 ms is only how late an asynchronous one may become durable (at most three
    # times that), and each round of the WAL writer costs a message to six nodes.
    "wal_writer_delay": "200ms",
    # Where commits wait in their flush (see commit; elsewhere it is 0, and the driver groups them): a flush
    # costs the machine a message to six nodes whatever it carries, so it pays to let more commits join it. The delay
    # is about half of a flush's time, and applies only while `commit_siblings` other transactions are open.
    "commit_delay": "1500",
    "commit_siblings": "5",
    # Cheap here: a checkpoint sends the changed bytes of dirty pages once, without full images after it.
    "checkpoint_timeout": "60s",
    # Spread over the interval: page writes share their way to the storage nodes with commits.
    "checkpoint_completion_target": "0.9",
    # A dirty victim must flush the WAL before it can go, a wait for a quorum in the middle of someone's read. The
    # background writer takes that wait; more often than by default, since it is longer than a local disk's.
    "bgwriter_delay": "100ms",
    "bgwriter_lru_maxpages": "200",
    # The local files are a cache: hurrying them to the local disk is work for nothing. Only fsync counts.
    "bgwriter_flush_after": "0",
    "backend_flush_after": "0",
    "checkpoint_flush_after": "0",
    # A new writer starts with no pages at hand, and without full images every replayed page must be read first:
    # look far ahead in the WAL and ask for pages early (posix_fadvise reaches the volume as a prefetch). With fewer on
    # their way than this, replay catches up with what it asked for (a fifth of the stalls of 64, and 14,000 pages a
    # second instead of 9,000); with more, requests of an engine (AR_REQUESTS, 256) would run out for everybody else.
    "recovery_prefetch": "try",
    "maintenance_io_concurrency": "192",
    "wal_decode_buffer_size": "4MB",
    # The same for scans of tables that are not here yet.
    "effective_io_concurrency": "32",
    # Compilation takes tens of milliseconds of one of two cores; where it pays, a session can switch it on.
    "jit": "off",
    # A session whose client vanished (failover, endpoint moved) is noticed within a minute, not two hours.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "password_encryption": "scram-sha-256",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_timezone": "UTC",
}
_TUNING_18: Final[Mapping[str, str]] = {
    # How long a run of absent pages can be that a worker waits for: fewer, larger requests to the volume.
    "io_max_combine_limit": "1MB",
    "io_combine_limit": "1MB",
}

_OURS: Final = frozenset({"listen_addresses", "port", "unix_socket_directories", "data_directory", "config_file"})
_WAL_LEVELS: Final = ("replica", "logical")

# Of a server that is in recovery by a signal file: what ends that is ours to say.
_RECOVERY: Final[Mapping[str, str]] = {
    "primary_conninfo": "",
    "primary_slot_name": "",
    "restore_command": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "recovery_target": "",
    "recovery_target_lsn": "",
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
    "recovery_min_apply_delay": "0",
}

# Of one that follows its writer. What it follows, and that it does so for ever, is ours to say.
_STANDBY: Final[Mapping[str, str]] = {
    **_RECOVERY,
    "recovery_target_timeline": "latest",
    "hot_standby": "on",
    # Long queries here shall not be cancelled by the writer's vacuum: what they need is told to the writer.
    "hot_standby_feedback": "on",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
    # Archiving is the writer's.
    "archive_mode": "off",
}
_STANDBY_17: Final[Mapping[str, str]] = {"summarize_wal": "off", "sync_replication_slots": "off"}
AT_LEAST_THE_WRITERS: Final = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)  # in the order of the control file, and of the WAL record that changes them

# Never in the volume. Each is either rebuilt, or emptied by the server itself at its next start. No pattern may match
# what a user can name: a replication slot is a directory pg_replslot/<name> of letters, digits and underscores, and may
# be called "pgsql_tmp" or, as temporary tables' files are, "t3_16384" (so those do go into the volume).
VOLATILE_PATTERNS: Final = (
    VolatilePattern(VolatileKind.EXACT, "postmaster.pid"),  # says who runs here now: true on one machine only
    VolatilePattern(VolatileKind.EXACT, "postmaster.opts"),
    VolatilePattern(VolatileKind.EXACT, "current_logfiles"),
    VolatilePattern(VolatileKind.BELOW, "base/pgsql_tmp"),  # sorts and hashes that did not fit in memory
    VolatilePattern(VolatileKind.BELOW, "pg_stat_tmp"),
    VolatilePattern(VolatileKind.BELOW, "pg_dynshmem"),
    VolatilePattern(VolatileKind.BELOW, "pg_notify"),  # LISTEN/NOTIFY queue: emptied at start
    VolatilePattern(VolatileKind.BELOW, "pg_serial"),  # serializable conflicts: emptied at start
    VolatilePattern(VolatileKind.BELOW, "pg_snapshots"),  # exported snapshots: removed at start
    VolatilePattern(VolatileKind.BELOW, "pg_subtrans"),  # parents of subtransactions: zeroed at start
    # Relation cache: removed at start, written by the first session. Its temporary name pg_internal.init.<pid> is
    # renamed to the final one, and both match.
    VolatilePattern(VolatileKind.NAME, "pg_internal.init*"),
)


def canonical(parameters: Mapping[str, str]) -> dict[str, str]:
    """By the names that PostgreSQL prints: lower case, as `-c` takes them."""
    return {name.strip().lower().replace("-", "_"): value for name, value in parameters.items()}


def refusal(name: str, value: str | None, major: int) -> str | None:
    """Why a user cannot set this parameter (canonical name); None if it is his to set."""
    if name in _OURS:
        return f"the parameter {name} is fixed by the fleet, which gives out directories, ports and sockets"
    if name in _FIXED or (major >= 18 and name in _FIXED_18):
        return f"the parameter {name} is fixed by the storage underneath, which rests on it"
    if name == "wal_level" and value is not None and value.strip().lower() not in _WAL_LEVELS:
        return "the parameter wal_level can be replica or logical: readers follow the log"
    return None


def check_parameters(parameters: Mapping[str, str], major: int) -> dict[str, str]:
    """Canonical names and values. Raises ConfigurationError for a parameter that is not the user's to set."""
    chosen = canonical(parameters)
    for name, value in sorted(chosen.items()):
        why = refusal(name, value, major)
        if why is not None:
            raise ConfigurationError(f"{why}: leave it out")
    return chosen


def forced_settings(*, major: int, host: str, port: int, socket_dirs: Sequence[Path]) -> dict[str, str]:
    """What stands on the command line, where nobody can change it."""
    return {
        **_FIXED,
        **(_FIXED_18 if major >= 18 else {}),
        "listen_addresses": host,
        "port": str(port),
        "unix_socket_directories": ", ".join('"{}"'.format(str(each).replace('"', '""')) for each in socket_dirs),
    }


def standby_settings(*, major: int, parameters: Sequence[int]) -> dict[str, str]:
    """What stands there besides for a server that follows its writer; `parameters`: of AT_LEAST_THE_WRITERS."""
    least = dict(zip(AT_LEAST_THE_WRITERS, map(str, parameters), strict=True))
    return {**_STANDBY, **(_STANDBY_17 if major >= 17 else {}), **least}


def promoted_settings() -> dict[str, str]:
    """What stands there besides for a server whose recovery ends by promotion: nothing ends it but that, and it takes
    no sessions before. The control file says on which timeline it is, as after any crash; files may name others."""
    return {**_RECOVERY, "recovery_target_timeline": "current", "hot_standby": "off"}


def default_settings(*, major: int, size: InstanceSize) -> dict[str, str]:
    """What we choose and anybody may choose otherwise."""
    return {**_TUNING, **(_TUNING_18 if major >= 18 else {}), **size_settings(size, major=major)}

"""What is not as it shall be, one sentence each: the channel from whoever notices to status, metrics and events.

A trouble is a state, not an event: it is there for as long as the one who reports it finds it so. A writer tells its
own in `InstanceStatus.troubles`, the control plane in `ControlPlane.troubles`; the report joins them. The code is a
word of the list below, so that metrics have few and stable labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class TroubleCode(StrEnum):
    """What kind of trouble it is. Add a word for a new kind; never change what one means."""

    DISK_FULL = "disk_full"  # a storage node refuses redo, or an instance's machine has no room
    NODE_WITHOUT_SPACE = "node_without_space"  # a storage node that comes near that
    VOLUME_FULL = "volume_full"  # a cluster's volume has little room and has grown as far as it may
    HISTORY_SHORTENED = "history_shortened"  # a storage node keeps less history than windows ask for, to have room
    DIRECTORY_GONE = "directory_gone"  # a storage node whose data directory was removed
    COPY_LOST = "copy_lost"  # a storage node has lost copies, which its peers give back
    READ_ONLY = "read_only"  # a cluster that runs and takes no writes: standby.signal, default_transaction_read_only
    PARAMETER_LEFT_OUT = "parameter_left_out"  # the engine does not start with it
    SESSIONS_FAIL = "sessions_fail"  # the engine runs, and no session can begin with its settings
    CERTIFICATE = "certificate"  # near its end
    PORT_TAKEN = "port_taken"  # an endpoint or an instance cannot listen where it did
    STATE_DAMAGED = "state_damaged"  # a version of the control state was passed over
    FLEET_FILE = "fleet_file"  # fleet.toml cannot be written
    CALLER_REFUSED = "caller_refused"  # somebody without the right to ask knocks at a port
    BACKUP = "backup"  # a backup waits for its object store, or lacks a stretch of history
    ENGINE = "engine"  # anything else that an engine's watcher says


@dataclass(frozen=True, slots=True, order=True)
class Trouble:
    """`subject`: a cluster, an instance, a storage node or "control". `sentence`: what it is and what to do, for
    people, with nothing secret in it."""

    code: TroubleCode
    subject: str
    sentence: str

    def report(self) -> dict[str, Any]:
        """For `status --json`."""
        return {"code": str(self.code), "subject": self.subject, "sentence": self.sentence}

"""A storage node's data directory: made, or recognised as this node's own, and held by one process at a time.

    <data_dir>/
      node         the node's id: a copy under another id would count twice in a quorum
      lock         flock(2) of the process that serves it
      port         hint: where it listened last time
      peers.json   hint: where the others are
      place        which directory of which file system the hints were noted in
      volumes/     <uuid>/<group>, see volume.py
      copies/      checkpoints that are being scrubbed; what a node that was killed left there goes at its next start
      graveyard/   what was dropped or replaced, kept for a while, see graveyard.py

Whatever else is found there is somebody else's: the node then refuses to start and changes nothing. Hints that cannot
be read are dropped. So are those in a copy of the directory: they lead to whom it was copied from, who has the same
secret and the same names, and another history.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import uuid
from typing import TYPE_CHECKING, Final

from aurora_ray.durable import place_of
from aurora_ray.errors import UNDECODABLE, ConfigurationError
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.graveyard import GRAVEYARD

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

_NODE, _LOCK, _VOLUMES = "node", "lock", "volumes"
CHECKPOINTS: Final = "copies"
_LOCK_WAIT_S: Final = 3.0
_LOCK_POLL_S: Final = 0.02
_HINTS: Final = ("port", "peers.json")
_PLACE: Final = "place"
_NEW: Final = ("node.new", "port.new", "peers.new", "place.new")
_KNOWN: Final = frozenset({_NODE, _LOCK, _VOLUMES, GRAVEYARD, CHECKPOINTS, *_HINTS, _PLACE, *_NEW})


class DataDir:
    """A data directory that this process holds until `release`."""

    def __init__(self, path: Path, node_id: str) -> None:
        """Raises ConfigurationError, with what to do, if the directory cannot be this node's."""
        self.path = path
        self._node_id = node_id
        self._lock_fd = -1
        self._hold()

    def _hold(self) -> None:
        path = self.path
        try:
            effects.make_directory(path)
            _check_names(path)
            self._lock_fd = _lock(path)
        except OSError as error:
            raise ConfigurationError(f"the data directory {path} cannot be used: {error.strerror}") from error
        try:
            _check_owner(path, self._node_id)
            _drop_bad_hints(path)
            _drop_hints_of_another_place(path)
        except BaseException:
            self.release()
            raise

    def reclaim(self) -> None:
        """Takes hold of the directory anew if somebody has removed it. Raises ConfigurationError."""
        lock = self.path / _LOCK
        if not lock.exists() or lock.stat().st_ino != os.fstat(self._lock_fd).st_ino:
            self.release()
            self._hold()

    def release(self) -> None:
        """Lets another process have it."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _check_names(path: Path) -> None:
    strange = sorted({entry.name for entry in path.iterdir()} - _KNOWN)
    volumes = path / _VOLUMES
    if not strange and volumes.exists():
        strange = sorted(f"{_VOLUMES}/{entry.name}" for entry in volumes.iterdir() if not _is_volume(entry))
    if strange:
        raise ConfigurationError(
            f"the data directory {path} holds {strange[0]}, which no storage node has put there: "
            "give the node a directory of its own, or remove that"
        )


def _is_volume(path: Path) -> bool:
    try:
        uuid.UUID(path.name.removeprefix("dropped-"))
    except ValueError:
        return False
    return path.is_dir()


def _lock(path: Path) -> int:
    """The descriptor that holds the lock; the kernel gives it back when the process ends, however it ends.

    One that was killed a moment ago may still be on its way out: it is waited for, not for long.
    """
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise ConfigurationError(
                        f"another process serves the data directory {path}: end that one first"
                    ) from None
                time.sleep(_LOCK_POLL_S)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _check_owner(path: Path, node_id: str) -> None:
    note = path / _NODE
    owner = note.read_text(errors="replace").strip() if note.exists() else ""
    if owner and owner != node_id:
        raise ConfigurationError(
            f"the data directory {path} belongs to storage node {owner[:64]}, not to {node_id}: "
            "no node can stand in for another with its data"
        )
    if not owner:
        effects.write_file(note, node_id.encode())


def _drop_bad_hints(path: Path) -> None:
    for name in _HINTS:
        hint = path / name
        if hint.exists() and not _is_hint(name, hint.read_bytes()):
            _log.warning("%s cannot be read and is removed: it was a hint only", hint)
            effects.remove_file(hint)


def _drop_hints_of_another_place(path: Path) -> None:
    """A device's number may be another one after a reboot: then hints are dropped for nothing, which costs little."""
    here, note = place_of(path), path / _PLACE
    if note.exists() and note.read_text(errors="replace") == here:
        return
    for name in _HINTS:
        if (path / name).exists():
            effects.remove_file(path / name)
    effects.write_file(note, here.encode())


def _is_hint(name: str, content: bytes) -> bool:
    if name == "port":
        return content.isdigit() and int(content) <= 0xFFFF
    try:
        addresses = json.loads(content)
    except UNDECODABLE:
        return False
    return isinstance(addresses, dict) and all(isinstance(address, str) for address in addresses.values())

"""Which files in /dev/shm this test run made: those that one of its processes had open or mapped when they appeared.

/dev/shm is the whole machine's, and PostgreSQL's names in it say nothing about their makers, so neither a listing from
before nor a name tells what may be removed. The kernel says when a file appears (inotify(7)); its maker holds a
descriptor, then a mapping, so a look right then finds the maker. A file whose maker was not seen counts as foreign.

    python -m tests.support.shared_memory <run's directory>

prints the names that processes of that run make, a line each, until it is ended.
"""

import ctypes
import os
import select
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.processes import ProcessWatch, uses_file

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies; only what we made is touched
_IN_CREATE = 0x100
_IN_MOVED_TO = 0x80
_EVENT = struct.Struct("iIII")  # inotify_event: watch, mask, cookie, length of the name that follows
_LOOKS = 3  # between open and mmap a single look at descriptors and maps can miss both
_LOOK_PAUSE_S = 0.01


class SharedMemoryWatch:
    """Notes what the run of `watch` makes in `directory`, from `start` to `stop`."""

    def __init__(
        self, watch: ProcessWatch, directory: Path = SHARED_MEMORY, tell: Callable[[str], None] | None = None
    ) -> None:
        self._watch = watch
        self._directory = directory
        self._tell = tell
        self._made: set[str] = set()
        self._stopping = threading.Event()
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {directory}")
        self._thread = threading.Thread(target=self._run, name="shared memory watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; what was noted stays known."""
        self._stopping.set()
        self._thread.join()
        os.close(self._fd)

    def made(self) -> frozenset[str]:
        """Names that this run made and that are still there."""
        return frozenset(name for name in tuple(self._made) if (self._directory / name).exists())

    def _run(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._fd], [], [], 0.1)[0]:
                for name in _names(os.read(self._fd, 65536)):
                    if self._is_ours(name):
                        self._made.add(name)
                        if self._tell is not None:
                            self._tell(name)

    def _is_ours(self, name: str) -> bool:
        """Only our own processes are looked at: a machine can have thousands, with as many files of theirs here."""
        path = self._directory / name
        for look in range(_LOOKS):
            if look and self._stopping.wait(_LOOK_PAUSE_S):
                return False
            if not path.exists():
                return False  # whose it was is no matter any more
            if any(uses_file(pid, path) for pid in (os.getpid(), *self._watch.ours())):
                return True
        return False


def _names(events: bytes) -> list[str]:
    found, at = [], 0
    while at < len(events):
        *_, length = _EVENT.unpack_from(events, at)
        at += _EVENT.size
        found.append(os.fsdecode(events[at : at + length].rstrip(b"\0")))
        at += length
    return found


def main(run_dir: Path) -> None:
    """Prints what the run makes until the process is ended."""
    watch = SharedMemoryWatch(ProcessWatch(run_dir), tell=_say)
    watch.start()
    threading.Event().wait()


def _say(name: str) -> None:
    sys.stdout.write(f"{name}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

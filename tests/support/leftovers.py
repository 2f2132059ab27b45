"""The last step of `.ci/run`: nothing that the run started, and no shared memory of it, may be there any more.

    python -m tests.support.leftovers <run's directory> <names in /dev/shm that the run made>

Removes what is left, names it on stderr, and ends with 1 if there was anything.
"""

import os
import sys
from pathlib import Path

from tests.support.leaks import GRACE_S
from tests.support.polling import poll_until_blocking
from tests.support.processes import Process, ProcessWatch, kill
from tests.support.shared_memory import SHARED_MEMORY


def main(run_dir: Path, shared_memory_made: frozenset[str]) -> int:
    """The exit code."""
    watch = ProcessWatch(run_dir)
    callers = _ancestors()

    def processes() -> list[Process]:
        return [process for process in watch.ours().values() if process.pid not in callers]

    try:
        poll_until_blocking(lambda: not processes(), GRACE_S)
    except AssertionError:
        left = processes()
        names = [str(process) for process in left]
        kill(left)
    else:
        names = []
    for name in sorted(shared_memory_made):
        segment = SHARED_MEMORY / name
        if segment.exists():
            names.append(f"shared memory {name}")
            segment.unlink(missing_ok=True)
    sys.stderr.writelines(f"left behind: {name}\n" for name in names)
    return 1 if names else 0


def _ancestors() -> set[int]:
    """The script that calls us, and what called it, carry the run's directory in their environment too."""
    found, pid = set(), os.getpid()
    while pid > 1:
        found.add(pid)
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), frozenset(sys.argv[2].split())))

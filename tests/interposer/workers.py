"""Threads that each change a directory of their own in all ways; run as a child with the interposer preloaded.

    python -m tests.interposer.workers SEED COUNT JOURNAL WORKER...

After each operation a thread appends a line "worker number lsn" to the journal, which lies outside the mount: at that
LSN its directory is as its model is then, whatever the others are doing. Ends with code 3 if anything read is not so.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import traceback
from dataclasses import replace

from tests.interposer import calls
from tests.interposer.model import operations_of


def work(seed: int, worker: int, count: int, journal: int) -> None:
    root = f"w{worker}"
    os.mkdir(root)
    operations = operations_of(seed, worker)
    draw = random.Random(f"ways {seed} {worker}")
    for number in range(count):
        operation = operations.next()
        content = bytes(operations.tree.nodes.get(operation.path) or b"") if operation.kind == "read" else b""
        named = {name: f"{root}/{path}" for name in ("path", "other") if (path := getattr(operation, name))}
        calls.perform(replace(operation, **named), content, draw)
        os.write(journal, f"{worker} {number} {calls.tail_lsn()}\n".encode())


def main() -> None:
    seed, count, path, *workers = sys.argv[1:]
    journal = os.open(path, os.O_WRONLY | os.O_APPEND)

    def run(worker: int) -> None:
        try:
            work(int(seed), worker, int(count), journal)
        except BaseException:
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
            os._exit(3)

    threads = [threading.Thread(target=run, args=(int(worker),)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

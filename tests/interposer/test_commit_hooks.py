"""What an engine's module says of its processes (ar_defer_commits): whose syncs only order, who does not run ahead."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.interposer.model import PAGE_BYTES
from tests.interposer.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BEHIND = 1 << 20  # AR_BEHIND_BYTES
WRITE = 16 * PAGE_BYTES
PATIENCE_S = 0.2  # how long something is watched that must not happen

# `say` tells the test; `hooks` is what a module gives to ar_defer_commits.
BEGIN = f"""
import ctypes, os
P, WRITE = {PAGE_BYTES}, {WRITE}
c = ctypes.CDLL(None)
c.ar_tail_lsn.restype = ctypes.c_uint64
hook = ctypes.CFUNCTYPE(ctypes.c_bool)
def say(what): os.write(1, what + b'\\n')
class Hooks(ctypes.Structure):
    _fields_ = [
        ('before_sleep', hook), ('after_sleep', hook), ('send_waits', hook), ('orders_only', hook),
        ('logs', ctypes.c_char_p), ('writes_behind', hook), ('checkpoints', hook),
    ]
def hooks(**named):
    global kept
    kept = Hooks(**{{name: what if isinstance(what, bytes) else hook(what) for name, what in named.items()}})
    c.ar_defer_commits(ctypes.byref(kept))
f = os.open('f', os.O_CREAT | os.O_RDWR)
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    it = Recorder(tmp_path, ring_bytes=8 << 20)
    yield it
    it.close()


class Child:
    """A program whose log becomes durable only when `publish` says so."""

    def __init__(self, recorder: Recorder, code: str) -> None:
        self.recorder = recorder
        recorder.publishes = False
        self._process = recorder.spawn([sys.executable, "-I", "-S", "-c", BEGIN + code], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        self.said = ""

    def runs_until(self, done: Callable[[], bool], patience_s: float = 20.0) -> bool:
        """Serves it until then; False if it does not come to that in time."""
        ends_s = time.monotonic() + patience_s
        bell = self.recorder.region.bell_fd
        while not done() and time.monotonic() < ends_s:
            readable, _, _ = select.select([bell, self._out], [], [], 0.01)
            if bell in readable:
                os.eventfd_read(bell)
            self.recorder.turn()
            if self._out in readable:
                self.said += os.read(self._out, 4096).decode()
        return done()

    def says(self, what: str, patience_s: float = 20.0) -> bool:
        return self.runs_until(lambda: what in self.said.split(), patience_s)

    @property
    def behind(self) -> int:
        poll = self.recorder.region.peek()
        return int(poll.tail - poll.durable)

    def publish(self, lsn: int | None = None) -> None:
        self.recorder.region.publish(self.recorder.log.lsn if lsn is None else lsn)

    def ends(self) -> None:
        self.recorder.publishes = True
        self.publish()
        self.recorder.serve(self._process)


@pytest.mark.parametrize("what", ["f", "."])
def test_a_process_that_orders_only_goes_on_and_what_it_ordered_is_waited_for(recorder: Recorder, what: str) -> None:
    """A sync of a file, or of a directory in which something was named."""
    code = f"""
hooks(orders_only=lambda: True)
synced = os.open({what!r}, os.O_RDONLY)
os.pwrite(f, b'x' * 3 * P, 0); os.rename('f', 'g')
os.fsync(synced); say(b'ordered')
c.ar_wait_for_ordered(); say(b'durable')
"""
    child = Child(recorder, code)
    assert child.says("ordered"), "its sync waits"
    assert child.behind > 3 * PAGE_BYTES
    assert not child.says("durable", PATIENCE_S)
    child.publish()
    assert child.says("durable")
    child.ends()


def test_others_see_a_file_that_was_only_ordered_when_it_is_durable(recorder: Recorder) -> None:
    """Whoever archives a history file must not be ahead of the volume."""
    code = """
hooks(orders_only=lambda: True)
os.pwrite(f, b'x', 0); os.fsync(f); say(b'ordered')
os.pread(os.open('f', os.O_RDONLY), 1, 0); say(b'read')
"""
    child = Child(recorder, code)
    assert child.says("ordered")
    assert not child.says("read", PATIENCE_S)
    child.publish()
    assert child.says("read")
    child.ends()


@pytest.mark.parametrize("hooks", ["", "hooks(orders_only=lambda: False)"], ids=["no module", "another process"])
@pytest.mark.parametrize("what", ["f", "."])
def test_all_other_syncs_wait(recorder: Recorder, hooks: str, what: str) -> None:
    code = f"synced = os.open({what!r}, os.O_RDONLY); os.pwrite(f, b'x', 0); say(b'written'); os.fsync(synced)"
    child = Child(recorder, f"{hooks}\n{code}; say(b'durable')")
    assert child.says("written")
    assert not child.says("durable", PATIENCE_S)
    child.publish()
    assert child.says("durable")
    child.ends()


@pytest.mark.parametrize("what", ["wal/x", "wal"])
def test_a_sync_of_a_log_that_a_module_names_goes_on_whoever_makes_it(recorder: Recorder, what: str) -> None:
    """Another segment's file, and its directory: it is made under a lock that all commits need."""
    code = f"""
hooks(logs=b'wal/')
os.mkdir('wal'); made = os.open('wal/x', os.O_CREAT | os.O_RDWR); os.pwrite(made, b'x', 0)
os.fsync(os.open({what!r}, os.O_RDONLY)); say(b'ordered')
os.pwrite(f, b'x', 0); os.fsync(f); say(b'durable')
"""
    child = Child(recorder, code)
    assert child.says("ordered"), "its sync waits"
    assert not child.says("durable", PATIENCE_S), "that of any other file waits"
    child.publish()
    assert child.says("durable")
    child.ends()


WRITES_MUCH = "\nfor at in range(24): os.pwrite(f, os.urandom(WRITE), at * WRITE)\nsay(b'written')"


def test_a_process_that_writes_behind_never_has_much_that_is_not_durable(recorder: Recorder) -> None:
    child = Child(recorder, "hooks(writes_behind=lambda: True)" + WRITES_MUCH)
    assert child.runs_until(lambda: child.behind > BEHIND)
    for _ in range(5):
        assert not child.runs_until(lambda: child.behind > BEHIND + 1.1 * WRITE, PATIENCE_S / 2)
        assert "written" not in child.said
        child.publish(recorder.region.end_lsn - BEHIND + WRITE // 2)
        assert child.runs_until(lambda: child.behind > BEHIND), "there was room for one more"
    child.publish()
    assert child.runs_until(lambda: child.behind > BEHIND)
    child.ends()
    assert "written" in child.said + recorder.output.decode()


def test_what_it_writes_to_a_log_waits_for_nothing(recorder: Recorder) -> None:
    """A checkpointer flushes WAL, too, and has the lock on it meanwhile."""
    child = Child(
        recorder, "hooks(writes_behind=lambda: True, logs=b'f')\nos.pwrite(f, b'x', 0); os.fsync(f)" + WRITES_MUCH
    )
    assert child.says("written")
    assert child.behind > 24 * WRITE
    child.ends()


def test_all_others_write_on(recorder: Recorder) -> None:
    child = Child(recorder, "hooks(writes_behind=lambda: False)" + WRITES_MUCH)
    assert child.says("written")
    assert child.behind > 24 * WRITE
    child.ends()

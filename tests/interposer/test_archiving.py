"""Programs that copy files of which nothing is here get the true bytes, or fail: none archives holes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from aurora_ray.interposer import native
from tests.interposer.recorder import Recorder
from tests.interposer.scenario import evict_all, python, recorder_at, shell

STATIC_SOURCE = r"""
#include <fcntl.h>
#include <unistd.h>
int main(int n, char **words)
{
    char buffer[65536];
    int in = n > 1 ? open(words[1], O_RDONLY) : 0, out = n > 2 ? open(words[2], O_WRONLY | O_CREAT | O_TRUNC, 0600) : 1;
    ssize_t got;
    if (in < 0 || out < 0)
        return 1;
    while ((got = read(in, buffer, sizeof buffer)) > 0)
        if (write(out, buffer, got) != got)
            return 2;
    return got < 0;
}
"""

WAYS = {
    "cp": "cp wal/a $OUT",
    "cp to a place in the mount": "cp wal/a b && cat b > $OUT",
    "cp --sparse": "cp --sparse=always wal/a $OUT",
    "gzip of what is inherited": "gzip < wal/a | gzip -dc > $OUT",
    "gzip": "gzip -c wal/a | gzip -dc > $OUT",
    "cat": "cat wal/a > $OUT",
    "cat of what is inherited": "cat < wal/a > $OUT",
    "dd": "dd if=wal/a of=$OUT bs=64k",
    "tar": "tar cf - wal/a | tar xOf - > $OUT",
    "tar --sparse": "tar cSf - wal/a | tar xOf - > $OUT",
    "install": "install wal/a $OUT",
    "mv": "mv wal/a $OUT",
    "a shell's own reading": "while IFS= read -r line; do :; done < wal/a; cp wal/a $OUT",
    "sed": "sed s/absent/absent/ wal/a > $OUT",
    "sort of what is inherited": "sort < wal/a > /dev/null && cp wal/a $OUT",
    "a descriptor of the shell": "exec 5< wal/a; cat <&5 > $OUT",
    "a program with no environment": "env -i cat wal/a > $OUT",
    "a static program": "$STATIC wal/a $OUT",
    "a static program that inherits": "$STATIC < wal/a > $OUT",
    "a static program in a pipe": "cat wal/a | $STATIC > $OUT",
    "a static program without an environment": "env -i $STATIC wal/a $OUT",
}
if shutil.which("rsync"):
    WAYS["rsync"] = "rsync -a wal/a $OUT"


@pytest.fixture(scope="module")
def static_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("static")
    (directory / "copy.c").write_text(STATIC_SOURCE)
    subprocess.run(["gcc", "-O", "-static", "-o", directory / "copy", directory / "copy.c"], check=True)
    return directory / "copy"


def with_absent_file(recorder: Recorder) -> bytes:
    content = b"".join(b"line %d was absent\n" % n for n in range(60_000))
    python(
        recorder,
        "import os\nos.mkdir('wal')\n"
        "data = b''.join(b'line %d was absent\\n' % n for n in range(60_000))\n"
        "for name in ('wal/a', 'wal/other'):\n"
        "    fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o600); os.write(fd, data); os.fsync(fd)",
    )
    assert evict_all(recorder) > 200
    assert (recorder.mount / "wal/a").read_bytes() != content
    return content


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_absent_files_are_right(tmp_path: Path, static_program: Path, way: str) -> None:
    with recorder_at(tmp_path) as recorder:
        content, out = with_absent_file(recorder), tmp_path / "out"
        shell(recorder, f"OUT={out}; STATIC={static_program}\n{WAYS[way]}", "bash")
        assert out.read_bytes() == content
        logged = recorder.replay.snapshot()
        assert all(logged[name] == content for name in ("wal/a", "wal/other", "b") if name in logged)


def test_what_lies_beside_the_argument_of_a_static_program_is_here_and_stays(
    tmp_path: Path, static_program: Path
) -> None:
    """A program that archives one segment of a log may send the next ones as well."""
    with recorder_at(tmp_path) as recorder:
        content = with_absent_file(recorder)
        shell(recorder, f"exec {static_program} wal/other /dev/null")
        evict_all(recorder)
        assert (recorder.mount / "wal/a").read_bytes() == content


def test_a_static_program_cannot_write_where_nobody_would_hear_of_it(tmp_path: Path, static_program: Path) -> None:
    with recorder_at(tmp_path) as recorder:
        with_absent_file(recorder)
        printed = shell(recorder, f"{static_program} wal/a > b || echo refused with $?", "bash")
        assert printed == "refused with 2\n"
        assert recorder.replay.snapshot()["b"] == (recorder.mount / "b").read_bytes() == b""


def test_holes_are_nowhere(tmp_path: Path) -> None:
    with recorder_at(tmp_path) as recorder:
        size = len(with_absent_file(recorder))
        printed = python(
            recorder,
            "import os\nfd = os.open('wal/a', os.O_RDONLY)\n"
            "print(os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 8193, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE))\n"
            "try: os.lseek(fd, os.fstat(fd).st_size, os.SEEK_DATA)\n"
            "except OSError as e: print(e.errno)",
        )
        assert printed == f"0 8193 {size}\n6\n"


def test_a_program_that_has_lost_the_volumes_memory_ends(tmp_path: Path) -> None:
    with recorder_at(tmp_path) as recorder:
        environment = recorder.region.environment(recorder.mount.resolve(), Path(native.library_path()))
        done = subprocess.run(["cat", "/dev/null"], env=environment, capture_output=True, check=False)
        assert done.returncode == 70
        assert b"without the volume's memory" in done.stderr

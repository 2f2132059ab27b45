"""By whatever path, descriptor or call a file is changed: the log hears of it, or the call fails."""

from __future__ import annotations

import ctypes.util
from typing import TYPE_CHECKING

import pytest

from aurora_ray.interposer import native
from tests.interposer.scenario import assert_same, evict_all, python, recorder_at, shell

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = """
import ctypes, fcntl, mmap, os, socket, subprocess, sys
c = ctypes.CDLL(None, use_errno=True)
def make(path, data=b'x' * 20000):
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.write(fd, data)
    return fd
"""

SCENARIOS = {
    "through a link to a directory": """
os.mkdir('real'); os.symlink('real', 'link'); make('link/f'); os.rename('link/f', 'link/g'); os.unlink('real/g')
make('link/h')""",
    "below a directory that was moved": """
os.mkdir('a'); os.chdir('a')
if not os.fork(): os.rename('../a', '../b'); os._exit(0)
os.wait(); make('f'); os.mkdir('d'); os.rename('f', 'd/g')""",
    "through a link from outside": """
make('f'); os.symlink(os.getcwd(), '../alias'); fd = os.open('../alias/f', os.O_RDWR); os.pwrite(fd, b'NEW', 5)
make('../alias/g'); os.rename('../alias/g', 'h'); os.truncate('../alias/h', 7)""",
    "through a descriptor's name": """
fd = make('f'); other = os.open(f'/proc/self/fd/{fd}', os.O_RDWR); os.pwrite(other, b'NEW', 5)
third = os.open(f'/dev/fd/{fd}', os.O_RDWR | os.O_TRUNC); os.write(third, b'short')""",
    "relative to a directory's descriptor": """
os.mkdir('d'); d = os.open('d', os.O_RDONLY); os.rename('d', 'e')
fd = os.open('f', os.O_CREAT | os.O_RDWR, 0o640, dir_fd=d); os.write(fd, b'x' * 9000)
os.rename('f', 'g', src_dir_fd=d, dst_dir_fd=d); os.link('g', 'h', src_dir_fd=d, dst_dir_fd=d)""",
    "a dangling link": """
os.symlink('target', 'dangling'); fd = os.open('dangling', os.O_CREAT | os.O_RDWR, 0o600); os.write(fd, b'x' * 9000)
os.mkdir('d'); os.symlink('../d/other', 'd/second'); os.symlink('d/second', 'first'); make('first')""",
    "a link that leads nowhere but to itself": """
os.symlink('loop', 'loop')
try: os.open('loop', os.O_CREAT | os.O_RDWR, 0o600); raise SystemExit(1)
except OSError as e: assert e.errno == 40, e""",
    "cut while it is opened for reading": "make('f'); os.open('f', os.O_RDONLY | os.O_TRUNC)",
    "appending that was switched on later": """
fd = make('f'); copy = os.dup(fd); fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
os.lseek(fd, 10, 0); os.write(fd, b'NEW'); os.lseek(fd, 0, 0); os.write(copy, b'ALSO')""",
    "the umask": """
os.umask(0o077); os.mkdir('d', 0o777); make('d/f'); os.umask(0o022); os.mkdir('e', 0o777); os.chmod('d/f', 0o4755)
os.fchmod(os.open('e', os.O_RDONLY), 0o711)""",
    "a writable mapping": """
fd = make('f')
try: mmap.mmap(fd, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE); raise SystemExit(1)
except OSError: pass
c.mmap.restype = ctypes.c_void_p
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
p = c.mmap(None, 8192, 1, 1, fd, 0)
assert ctypes.string_at(p, 3) == b'xxx'
assert c.mprotect(ctypes.c_void_p(p), 8192, 3) == -1""",
    "names of the libc's own making": """
name = ctypes.create_string_buffer(b'tXXXXXX'); fd = c.mkstemp(name); os.write(fd, b'new' * 5000)
make('old', b'old' * 9000); os.rename(name.value, 'old')
name = ctypes.create_string_buffer(b'XXXXXX.conf'); os.write(c.mkostemps(name, 5, 0), b'x')
name = ctypes.create_string_buffer(b'dXXXXXX'); c.mkdtemp(name); make(name.value + b'/f')""",
    "a file without a name that gets one": """
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600); os.write(fd, b'y' * 30000)
os.link(f'/proc/self/fd/{fd}', 'named', src_dir_fd=0, follow_symlinks=True)
os.write(fd, b'and more')""",
    "from outside, over a file that is there": """
make('f', b'old' * 9000); fd = make('../outside', b'new' * 7000); os.rename('../outside', 'f')
os.write(fd, b'and more')
os.mkdir('tmp'); make('tmp/v', b'newer'); os.rename('tmp/v', 'f')""",
    "calls by number": """
c.syscall.restype = ctypes.c_long
fd = c.syscall(257, -100, b'f', os.O_CREAT | os.O_RDWR, 0o600); data = b'z' * 9000
assert c.syscall(1, fd, data, ctypes.c_size_t(9000)) == 9000
how = (ctypes.c_uint64 * 3)(os.O_CREAT | os.O_RDWR, 0o600, 0)
other = c.syscall(437, -100, b'g', how, ctypes.c_size_t(24)); os.write(other, data)
assert c.syscall(82, b'g', b'h') == 0 and c.syscall(83, b'd', 0o700) == 0 and c.syscall(3, fd) == 0
for number in (206, 425): assert c.syscall(number, 8, ctypes.create_string_buffer(200)) == -1""",
    "rings and contexts of libraries that call the kernel themselves": """
room = ctypes.create_string_buffer(4096)
for begin in ('io_setup', 'io_queue_init', 'io_uring_setup', 'io_uring_queue_init', 'io_uring_queue_init_params'):
    assert getattr(c, begin)(8, room, room) == -38, begin
assert c.io_uring_queue_init_mem(8, room, room, room, ctypes.c_size_t(64)) == -38
make('f')""",
    "copies in the kernel": """
fd = make('f', os.urandom(300000)); other = make('g')
os.lseek(fd, 0, 0)
os.copy_file_range(fd, other, 100000, 50, 8192); os.sendfile(other, fd, 70000, 9000)
r, w = os.pipe(); os.splice(fd, w, 5000, offset_src=1000)
assert os.splice(r, other, 5000, offset_dst=20000) == 5000""",
    "clones": """
fd, other = make('f'), make('g')
for request, argument in ((0x40049409, fd), (0xC020660B, 0)):
    assert c.ioctl(other, ctypes.c_ulong(request), ctypes.c_ulong(argument)) == -1
    assert ctypes.get_errno() == 95""",
    "what a stream writes after it was moved": """
for n in ('fopen', 'fdopen', 'freopen'): getattr(c, n).restype = ctypes.c_void_p
for n in ('fclose', 'fflush', 'rewind'): getattr(c, n).argtypes = [ctypes.c_void_p]
c.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
c.fseek.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]; c.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
c.freopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
s = c.fopen(b'f', b'w'); c.fwrite(b'x' * 50000, 1, 50000, s); c.fflush(s)
c.fseek(s, 100, 0); c.fwrite(b'HEAD', 1, 4, s); c.fflush(s); c.fwrite(b'MORE', 1, 4, s)
c.rewind(s); c.fputs(b'FIRST', s); c.fclose(s)
s = c.fopen(b'g', b'a'); c.fputs(b'one', s); s = c.freopen(b'h', b'w', s); c.fputs(b'two', s)
s = c.freopen(b'g', b'a', s); c.fputs(b'three', s); c.fclose(s)
c.dprintf(os.open('g', os.O_WRONLY | os.O_APPEND), b'%s', b'four')""",
    "the standard streams of the program itself": """
fd = make('out', b''); os.dup2(fd, 1); c.puts(b'by puts'); c.fflush(None); os.write(1, b'by write'); c.puts(b'again')
c.exit(0)""",
    "descriptors that are handed over": """
a, b = socket.socketpair(socket.AF_UNIX)
if not os.fork():
    _, fds, _, _ = socket.recv_fds(b, 10, 1); os.write(fds[0], b'by the other'); os._exit(0)
fd = make('f'); socket.send_fds(a, [b'x'], [fd]); os.wait()""",
    "a child that closes all that it does not know": """
fd = make('f')
subprocess.run([sys.executable, '-c', "open('g', 'w').write('y' * 9000)"], close_fds=True, check=True)
subprocess.run(['sh', '-c', 'echo more >> f; echo new > h'], close_fds=True, check=True)
os.write(fd, b'and the parent')""",
    "a child without the environment": """
subprocess.run([sys.executable, '-c', "open('g', 'w').write('y' * 9000)"], env={}, check=True)
subprocess.run(['env', '-i', 'sh', '-c', 'echo new > h'], check=True)""",
    "numbers that are taken from the library": """
fd = make('f')
for n in range(3, 40):
    if n != fd: os.dup2(fd, n)
os.write(20, b'MORE'); subprocess.run(['sh', '-c', 'echo new > h'], check=True)""",
    "a descriptor of a high number": """
import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
fd = make('f'); top = min(hard, 1 << 20) - 1; os.dup2(fd, top); os.write(top, b'MORE')
r, w = os.pipe()""",
    "a special file": "os.mkfifo('p'); c.mknod(b'f', 0o100600, 0); make('g'); os.unlink('p')",
    "renames that shall replace nothing": """
make('f'); make('g', b'g')
assert c.renameat2(-100, b'f', -100, b'g', 1) == -1 and c.renameat2(-100, b'f', -100, b'h', 1) == 0
assert c.renameat2(-100, b'g', -100, b'h', 2) == -1""",
    "links that lead out": """
os.mkdir('d')
for target, path in (('/tmp', 'l'), ('../x', 'l'), ('../../x', 'd/l')):
    try: os.symlink(target, path); raise SystemExit(path)
    except OSError as e: assert e.errno == 95, e
os.symlink('../f', 'd/inside')""",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_log_has_what_the_local_tree_has(tmp_path: Path, name: str) -> None:
    with recorder_at(tmp_path) as recorder:
        python(recorder, PREFIX + SCENARIOS[name])
        if name == "a special file":
            (recorder.mount / "p").unlink(missing_ok=True)
        assert_same(recorder)
        assert recorder.records


SCRIPTS = {
    "an edit in place": "seq 5000 > f; sed -i s/17/seventeen/ f",
    "an edit beside": "seq 5000 > f; sed s/17/seventeen/ f > new && mv new f",
    "redirections": """echo a > a; printf b > b; cat a b > c; seq 3 >> c; sort -r c > d; awk 'BEGIN{print "by awk"}' > e
                       head -c 30000 /dev/zero | tee t > u; { echo 1; cat a; echo 2; } > v; ls > w 2> x
                       dd if=t of=y 2> z""",
    "copies": """seq 9000 > f; cp f g; cp -a f h; ln f i; mv h k; cp --reflink=auto f l; install -m 640 f m; mkdir d
                 cp -r f d""",
    "archives": """seq 9000 > f; gzip -k f; tar cf t.tar f; mkdir d; tar xf t.tar -C d; split -n 3 f; truncate -s 100 f
                   rm xaa""",
}


@pytest.mark.parametrize("program", ["sh", "bash"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_log_has_what_ordinary_programs_do(tmp_path: Path, name: str, program: str) -> None:
    with recorder_at(tmp_path) as recorder:
        shell(recorder, SCRIPTS[name], program)
        assert_same(recorder)


def test_a_program_keeps_what_else_is_preloaded_into_it(tmp_path: Path) -> None:
    other = ctypes.util.find_library("m")
    with recorder_at(tmp_path) as recorder:
        code = f"import os\nos.execve('/bin/sh', ['sh', '-c', 'echo $LD_PRELOAD'], {{'LD_PRELOAD': '{other}'}})"
        assert python(recorder, code) == f"{native.library_path()}:{other}\n"


def test_what_was_made_past_the_library_is_logged_before_it_replaces_anything(tmp_path: Path) -> None:
    """Here by a program without the library; the file that it would have replaced is there at every LSN before."""
    with recorder_at(tmp_path) as recorder:
        python(recorder, PREFIX + "make('f', b'old' * 9000)")
        (recorder.mount / "new").write_bytes(b"new" * 9000)
        python(recorder, PREFIX + "os.rename('new', 'f')")
        assert_same(recorder)
        found = {state["f"] for _, state in recorder.states(record.lsn for record in recorder.records) if "f" in state}
        whole = {b"old" * 9000, b"new" * 9000}
        assert {content for content in found if content and len(content) == 27000 and content not in whole} <= {
            content for content in found if content and content.startswith((b"old", b"\0")) and b"new" not in content
        }
        states = [state for _, state in recorder.states(record.lsn for record in recorder.records)]
        first_new = next(i for i, state in enumerate(states) if state.get("f") == b"new" * 9000)
        assert states[first_new - 1]["f"] == b"old" * 9000


def test_an_inode_number_that_is_used_again_is_not_the_volumes(tmp_path: Path) -> None:
    with recorder_at(tmp_path) as recorder:
        python(recorder, PREFIX + "os.close(make('f')); ino = os.stat('f').st_ino")
        evict_all(recorder)
        output = python(
            recorder,
            PREFIX
            + """
ino = os.stat('f').st_ino; os.unlink('f')
for i in range(500):
    fd = os.open(f'../o{i}', os.O_CREAT | os.O_RDWR); os.write(fd, b'outside' * 3000)
    if os.fstat(fd).st_ino == ino:
        assert os.pread(fd, 100000, 0) == b'outside' * 3000
        print('again')
        break
""",
        )
        assert_same(recorder)
        assert output in ("", "again\n")
        assert all(p.read_bytes() == b"outside" * 3000 for p in tmp_path.glob("o[0-9]*"))


def test_links_and_names_that_go_at_once_leave_no_file_behind_and_lose_none(tmp_path: Path) -> None:
    code = """
names = [f'a{i}' for i in range(300)]
for n in names: os.close(make(n, b'x' * 100))
r, w = os.pipe()
kids = []
for k in range(3):
    kids.append(os.fork())
    if not kids[-1]:
        os.close(w); os.read(r, 1)
        for n in names:
            try:
                if k == 0: os.link(n, 'b' + n)
                elif k == 1: os.unlink(n)
                else: os.rename(n, 'c' + n)
            except FileNotFoundError: pass
        os._exit(0)
os.close(w)
for k in kids: os.waitpid(k, 0)
"""
    with recorder_at(tmp_path) as recorder:
        python(recorder, PREFIX + code)
        assert_same(recorder)
        assert all(entry.paths for entry in recorder.replay.table.entries())

"""A storage node that cannot start says why in one sentence, changes nothing and leaves nothing running."""

import os
import re
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ports import PortAllocator
from tests.support.stack import StorageProcess

END_TIMEOUT_S = 20.0
GRPC_LINE = re.compile(r"[EWI]\d{4} ")  # of the C core, which logs by itself


@pytest.fixture
def node(data_dir: Path, free_port: int) -> StorageProcess:
    return StorageProcess("n1", data_dir, free_port, {})


def refuses(node: StorageProcess, sentence: str) -> None:
    """It ends by itself, with that sentence as all it says."""
    before = snapshot(node.data_dir)
    node.log_path.unlink(missing_ok=True)
    node.begin()
    assert node.wait(END_TIMEOUT_S) == 1, node.log_tail()
    log = [line for line in node.log_path.read_text().splitlines() if not GRPC_LINE.match(line)]
    assert len(log) == 1, log
    assert log[0].startswith("storage node n1 does not start: ")
    assert sentence in log[0]
    assert snapshot(node.data_dir) == before


def snapshot(path: Path) -> dict[Path, bytes | None]:
    """All files and directories, without those that a node claims its directory with."""
    if path.is_file():
        return {path: path.read_bytes()}
    found = {each: each.read_bytes() if each.is_file() else None for each in path.rglob("*")}
    return {each: content for each, content in found.items() if each.name not in ("lock", "node", "place", "volumes")}


def a_file(path: Path) -> None:
    path.write_text("not a directory")


def foreign_files(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_bytes(os.urandom(100))


def foreign_volumes(path: Path) -> None:
    (path / "volumes" / "garbage").mkdir(parents=True)
    (path / "volumes" / "garbage" / "data").write_bytes(os.urandom(100))


def a_file_as_volume(path: Path) -> None:
    (path / "volumes").mkdir(parents=True)
    (path / "volumes" / str(uuid.uuid4())).write_bytes(os.urandom(100))


def anothers(path: Path) -> None:
    path.mkdir()
    (path / "node").write_text("n2")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (a_file, "cannot be used"),
        (foreign_files, "holds holiday.jpg, which no storage node has put there"),
        (foreign_volumes, "holds volumes/garbage, which"),
        (a_file_as_volume, "which no storage node has put there"),
        (anothers, "belongs to storage node n2, not to n1"),
    ],
)
def test_a_directory_that_is_not_its_own(node: StorageProcess, make: Callable[[Path], None], sentence: str) -> None:
    make(node.data_dir)
    refuses(node, sentence)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_it_may_not_write(node: StorageProcess) -> None:
    node.data_dir.mkdir(mode=0o500)
    refuses(node, "Permission denied")


def test_a_directory_that_another_process_serves(node: StorageProcess, ports: PortAllocator) -> None:
    node.start()
    other = StorageProcess("n1", node.data_dir.parent, ports.allocate(), {})
    other.log_path = node.data_dir.parent / "other.log"
    other.out_path = node.data_dir.parent / "other.out"
    other.begin()
    assert other.wait(END_TIMEOUT_S) == 1
    assert "another process serves the data directory" in other.log_tail()
    assert node.alive
    node.kill()
    other.start()  # a killed process holds nothing
    other.kill()


def test_a_port_in_use(node: StorageProcess) -> None:
    with socket.create_server(("127.0.0.1", node.port)):
        refuses(node, f"port {node.port} on 127.0.0.1 cannot be listened on")
    node.start()
    node.kill()


def test_a_port_that_is_none(node: StorageProcess) -> None:
    node.port = 22_222_222
    refuses(node, "22222222 is not a port")


@pytest.mark.parametrize(
    ("hint", "content"), [("port", b"zzz"), ("port", b""), ("peers.json", b"{"), ("peers.json", b"[1]")]
)
def test_hints_that_cannot_be_read_do_not_matter(node: StorageProcess, hint: str, content: bytes) -> None:
    node.data_dir.mkdir()
    (node.data_dir / hint).write_bytes(content)
    node.start()
    assert "cannot be read and is removed" in node.log_tail()
    node.kill()

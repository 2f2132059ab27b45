"""A file tree in memory, and random operations on it: the same seed gives the same operations everywhere."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

PAGE_BYTES = 8192


@dataclass
class Tree:
    """Paths to contents (bytearray) or to None for a directory. Hard links share their bytearray."""

    nodes: dict[str, bytearray | None] = field(default_factory=dict)

    def files(self) -> list[str]:
        return sorted(path for path, content in self.nodes.items() if content is not None)

    def directories(self) -> list[str]:
        return sorted(["", *(path for path, content in self.nodes.items() if content is None)])

    def snapshot(self) -> dict[str, bytes | None]:
        return {path: None if content is None else bytes(content) for path, content in self.nodes.items()}


@dataclass(frozen=True)
class Operation:
    kind: str
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


class Operations:
    """Draws operations that make sense on the tree, and applies them to it."""

    def __init__(self, seed: int, file_bytes_max: int = 900_000) -> None:
        self.random = random.Random(seed)
        self.tree = Tree()
        self.file_bytes_max = file_bytes_max
        self._names = 0

    def next(self) -> Operation:
        files = self.tree.files()
        weights = {
            "create": 4 if len(files) < 12 else 1,
            "mkdir": 1 if len(self.tree.directories()) < 5 else 0,
            "rmdir": 1,
            **dict.fromkeys(("pwrite", "append", "truncate", "rename", "unlink", "link", "sync", "writev", "read"), 0),
        }
        if files:
            weights |= {"pwrite": 12, "append": 6, "truncate": 2, "rename": 2, "unlink": 1, "link": 0.5, "sync": 3}
            weights |= {"writev": 2, "read": 6, "rewrite": 3, "stdio": 1, "fallocate": 1}
        kind = self.random.choices(list(weights), list(weights.values()))[0]
        operation: Operation = getattr(self, f"_{kind}")(files)
        self.apply(operation)
        return operation

    # ---- drawing

    def _name(self) -> str:
        self._names += 1
        return _join(self.random.choice(self.tree.directories()), f"n{self._names}")

    def _create(self, files: list[str]) -> Operation:
        return Operation("create", self._name())

    def _mkdir(self, files: list[str]) -> Operation:
        return Operation("mkdir", self._name())

    def _rmdir(self, files: list[str]) -> Operation:
        empty = [
            d for d in self.tree.directories() if d and not any(path.startswith(d + "/") for path in self.tree.nodes)
        ]
        return Operation("rmdir", self.random.choice(empty)) if empty else Operation("sync", "")

    def _bytes(self) -> bytes:
        n = self.random.choice([1, 7, 100, PAGE_BYTES, PAGE_BYTES, 3 * PAGE_BYTES, self.random.randrange(1, 200_000)])
        if self.random.random() < 0.1:
            return bytes(n)
        return self.random.randbytes(min(n, 64)) * (n // min(n, 64)) or b"x"

    def _pwrite(self, files: list[str]) -> Operation:
        path = self.random.choice(files)
        size = len(self.tree.nodes[path] or b"")
        offset = self.random.choice([0, size, self.random.randrange(size + 1), self.random.randrange(size + 40_000)])
        if self.random.random() < 0.5:
            offset -= offset % PAGE_BYTES
        return Operation("pwrite", path, offset=min(offset, self.file_bytes_max), data=self._bytes())

    def _writev(self, files: list[str]) -> Operation:
        operation = self._pwrite(files)
        return Operation("writev", operation.path, offset=operation.offset, data=operation.data)

    def _rewrite(self, files: list[str]) -> Operation:
        """Mostly the bytes that are there: what a database does with a page."""
        path = self.random.choice(files)
        content = self.tree.nodes[path] or b""
        page = self.random.randrange(len(content) // PAGE_BYTES + 1) * PAGE_BYTES
        data = bytearray(content[page : page + PAGE_BYTES].ljust(PAGE_BYTES, b"\0"))
        for _ in range(self.random.randrange(4)):
            at = self.random.randrange(PAGE_BYTES - 40)
            data[at : at + 30] = self.random.randbytes(30)
        return Operation("pwrite", path, offset=page, data=bytes(data))

    def _append(self, files: list[str]) -> Operation:
        return Operation("append", self.random.choice(files), data=self._bytes())

    def _stdio(self, files: list[str]) -> Operation:
        return Operation("stdio", self._name(), data=self._bytes())

    def _fallocate(self, files: list[str]) -> Operation:
        return Operation("fallocate", self.random.choice(files), offset=self.random.randrange(1, 100_000))

    def _truncate(self, files: list[str]) -> Operation:
        path = self.random.choice(files)
        size = len(self.tree.nodes[path] or b"")
        return Operation("truncate", path, offset=self.random.choice([0, size // 2, size + 9000, size // 8192 * 8192]))

    def _rename(self, files: list[str]) -> Operation:
        source = self.random.choice(files + [d for d in self.tree.directories() if d])
        into_file = source in files and self.random.random() < 0.5
        target = self.random.choice(files) if into_file else self._name()
        if (target + "/").startswith(source + "/"):
            return Operation("sync", "")
        return Operation("rename", source, target)

    def _unlink(self, files: list[str]) -> Operation:
        return Operation("unlink", self.random.choice(files))

    def _link(self, files: list[str]) -> Operation:
        return Operation("link", self.random.choice(files), self._name())

    def _sync(self, files: list[str]) -> Operation:
        return Operation("sync", self.random.choice(files))

    def _read(self, files: list[str]) -> Operation:
        path = self.random.choice(files)
        return Operation("read", path, offset=self.random.randrange(len(self.tree.nodes[path] or b"") + 1))

    # ---- applying

    def apply(self, operation: Operation) -> None:
        nodes, path = self.tree.nodes, operation.path
        match operation.kind:
            case "create":
                nodes[path] = bytearray()
            case "mkdir":
                nodes[path] = None
            case "rmdir" | "unlink":
                del nodes[path]
            case "link":
                nodes[operation.other] = nodes[path]
            case "rename":
                self._move(path, operation.other)
            case "stdio":
                nodes[path] = bytearray(operation.data)
            case "pwrite" | "writev" | "append" | "truncate" | "fallocate":
                content = nodes[path]
                assert content is not None
                self._change(content, operation)

    def _move(self, path: str, target: str) -> None:
        nodes = self.tree.nodes
        if nodes.get(target) is nodes[path] and nodes[path] is not None:
            return  # two names of one file: rename(2) does nothing
        for old in [name for name in nodes if name == path or name.startswith(path + "/")]:
            nodes[target + old[len(path) :]] = nodes.pop(old)

    @staticmethod
    def _change(content: bytearray, operation: Operation) -> None:
        offset = len(content) if operation.kind == "append" else operation.offset
        if operation.kind == "truncate":
            del content[offset:]
            content.extend(bytes(offset - len(content)))
        elif operation.kind == "fallocate":
            content.extend(bytes(max(0, offset - len(content))))
        else:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(operation.data)] = operation.data


def operations_of(seed: int, worker: int) -> Operations:
    """What one of several workers does: the same in the worker and in whoever judges it."""
    return Operations(seed * 1000 + worker, file_bytes_max=300_000)

"""The file table: names, sizes, modes and extents of a volume's files, as built by the records of group 0.

Directories hold their children by name and know their parent, so moving a directory moves everything below it in O(1).
A file is known by its id; names point to it (several, after LINK; none, between UNLINK and DROP).

Packed form (msgpack), canonical, so that equal tables pack to equal bytes:

    [version, lsn, next_file_id,
     [[file_id, mode, size, extents (u32 little-endian, one a 64 pages)] ... by id],
     [[parent index, name, mode] ... directories in depth-first name order; the root is index 0, its name empty],
     [[directory index, name, file_id] ...],
     [[directory index, name, target] ...]]
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgpack  # type: ignore[import-untyped]
import zstandard

from aurora_ray.errors import UNDECODABLE, MalformedError
from aurora_ray.log.layout import EXTENT_BODY, SIZE_BODY, RecordType
from aurora_ray.log.sizes import NO_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aurora_ray.log.record import Record

_VERSION: Final = 1
_EXTENTS_MAX: Final = 1 << 26
_PART_ENTRIES: Final = 512  # in a part of `packing`
PACKED_BYTES_MAX: Final = 1 << 30
_WINDOW_BYTES_MAX: Final = 128 << 20
_INFLATE_BYTES: Final = 1 << 20
ROOT_MODE: Final = 0o700


class FileKind(Enum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"


@dataclass(slots=True)
class Entry:
    """One file, directory or symbolic link; not to be changed. (To freeze it would double the time to list a table.)

    `extents[i]` is the group of pages 64*i to 64*i+63, NO_GROUP if unassigned; shared with the table: do not change.
    """

    kind: FileKind
    paths: tuple[bytes, ...]  # sorted; the root directory's is b""; a file without names has none
    mode: int
    file_id: int = 0
    size: int = 0
    target: bytes = b""
    extents: array[int] = field(default_factory=lambda: array("I"))


@dataclass(slots=True, eq=False)
class _Directory:
    mode: int
    parent: _Directory | None = None
    name: bytes = b""
    children: dict[bytes, _Node] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _File:
    file_id: int
    mode: int
    size: int = 0
    extents: array[int] = field(default_factory=lambda: array("I"))
    links: list[tuple[_Directory, bytes]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Symlink:
    target: bytes


_Node = _Directory | _File | _Symlink


class FileTable:
    """The table as of `lsn`. A new one is the empty volume: the root directory and nothing else."""

    def __init__(self) -> None:
        self.lsn = 0
        self.next_file_id = 1
        self._root = _Directory(ROOT_MODE)
        self._files: dict[int, _File] = {}

    # ---- reading

    def __len__(self) -> int:
        return len(self._files)

    def entries(self) -> Iterator[Entry]:
        """Directories (parents first, the root among them), then symbolic links, then files by id."""
        links: list[tuple[bytes, _Symlink]] = []
        below: dict[int, bytes] = {}  # what the paths in a directory begin with, by its id: there are many files in few
        for directory in self._directories():
            path = _path(directory)
            below[id(directory)] = within = path + b"/" if path else b""
            yield Entry(FileKind.DIRECTORY, (path,), directory.mode)
            links += [(within + n, c) for n, c in sorted(directory.children.items()) if isinstance(c, _Symlink)]
        for path, node in links:
            yield Entry(FileKind.SYMLINK, (path,), 0o777, target=node.target)
        files = self._files
        for file_id in sorted(files):
            file = files[file_id]
            paths = [below[id(parent)] + name for parent, name in file.links]
            if len(paths) > 1:
                paths.sort()
            yield Entry(FileKind.FILE, tuple(paths), file.mode, file_id, file.size, b"", file.extents)

    def extents(self) -> Iterator[array[int]]:
        """Of each file, those without a name too; shared with the table: do not change."""
        return (file.extents for file in self._files.values())

    def lookup(self, path: bytes) -> Entry | None:
        """What `path` names; None if nothing."""
        try:
            node = self._node(path)
        except MalformedError:
            return None
        if isinstance(node, _File):
            return _file_entry(node)
        if isinstance(node, _Symlink):
            return Entry(FileKind.SYMLINK, (path,), 0o777, target=node.target)
        return Entry(FileKind.DIRECTORY, (path,), node.mode)

    def by_id(self, file_id: int) -> Entry | None:
        """The file; None if it never was or has been dropped."""
        file = self._files.get(file_id)
        return None if file is None else _file_entry(file)

    def _directories(self) -> Iterator[_Directory]:
        stack = [self._root]
        while stack:
            directory = stack.pop()
            yield directory
            below = sorted(directory.children.items(), reverse=True)
            stack += [child for _, child in below if isinstance(child, _Directory)]

    # ---- changing

    def apply(self, record: Record) -> None:
        """Applies a record of group 0; PAGE records and copies change nothing but `lsn`.

        Raises MalformedError, the tree unchanged, when a file system would have refused the operation.
        """
        self.lsn = record.lsn
        action = _ACTIONS.get(record.type)
        if action is not None and record.group == 0:
            action(self, record)

    def _create(self, record: Record) -> None:
        if record.file_id in self._files or record.file_id == 0:
            raise MalformedError(f"file id {record.file_id} is already in use")
        parent, name = self._parent(record.body)
        self._remove_name(parent, name)
        file = _File(record.file_id, record.page)
        self._files[record.file_id] = file
        self.next_file_id = max(self.next_file_id, record.file_id + 1)
        _add_name(parent, name, file)

    def _unlink(self, record: Record) -> None:
        parent, name = self._parent(record.body)
        if isinstance(parent.children.get(name), _Directory | None):
            raise MalformedError(f"no file {record.body!r} to unlink")
        self._remove_name(parent, name)

    def _rename(self, record: Record) -> None:
        src, dst = _split(record.body)
        node = self._node(src)
        old_parent, old_name = self._parent(src)
        parent, name = self._parent(dst)
        if parent.children.get(name) is node:
            return
        above: _Directory | None = parent
        while above is not None:
            if above is node:
                raise MalformedError(f"{src!r} cannot move below itself")
            above = above.parent
        self._remove_name(parent, name)
        self._detach(old_parent, old_name)
        _add_name(parent, name, node)

    def _link(self, record: Record) -> None:
        src, dst = _split(record.body)
        node = self._node(src)
        if not isinstance(node, _File):
            raise MalformedError(f"{src!r} is not a file to link to")
        parent, name = self._parent(dst)
        self._remove_name(parent, name)
        _add_name(parent, name, node)

    def _symlink(self, record: Record) -> None:
        target, path = _split(record.body)
        parent, name = self._parent(path)
        self._remove_name(parent, name)
        _add_name(parent, name, _Symlink(target))

    def _mkdir(self, record: Record) -> None:
        parent, name = self._parent(record.body)
        if name in parent.children:
            raise MalformedError(f"{record.body!r} exists")
        _add_name(parent, name, _Directory(record.page))

    def _rmdir(self, record: Record) -> None:
        parent, name = self._parent(record.body)
        if not isinstance(parent.children.get(name), _Directory):
            raise MalformedError(f"no directory {record.body!r} to remove")
        self._remove_name(parent, name)

    def _chmod(self, record: Record) -> None:
        node = self._node(record.body)
        if isinstance(node, _Symlink):
            raise MalformedError(f"{record.body!r} is a symbolic link and has no mode")
        node.mode = record.page

    def _truncate(self, record: Record) -> None:
        file = self._file(record.file_id)
        file.size = min(file.size, SIZE_BODY.unpack_from(record.body)[0])

    def _size(self, record: Record) -> None:
        file = self._file(record.file_id)
        file.size = max(file.size, SIZE_BODY.unpack_from(record.body)[0])

    def _extent(self, record: Record) -> None:
        file, number = self._file(record.file_id), record.page
        if number >= _EXTENTS_MAX:
            raise MalformedError(f"extent {number} of file {record.file_id} is beyond the largest file")
        missing = number + 1 - len(file.extents)
        if missing > 0:
            file.extents.extend([NO_GROUP] * missing)
        file.extents[number] = EXTENT_BODY.unpack_from(record.body)[0]

    def _drop(self, record: Record) -> None:
        file = self._file(record.file_id)
        for parent, name in tuple(file.links):
            self._detach(parent, name)
        del self._files[record.file_id]

    # ---- the tree

    def _file(self, file_id: int) -> _File:
        file = self._files.get(file_id)
        if file is None:
            raise MalformedError(f"no file with id {file_id}")
        return file

    def _node(self, path: bytes) -> _Node:
        if not path:
            return self._root
        parent, name = self._parent(path)
        node = parent.children.get(name)
        if node is None:
            raise MalformedError(f"no such name: {path!r}")
        return node

    def _parent(self, path: bytes) -> tuple[_Directory, bytes]:
        *above, name = path.split(b"/")
        if name in (b"", b".", b".."):
            raise MalformedError(f"not a path below the root: {path!r}")
        directory = self._root
        for part in above:
            child = directory.children.get(part)
            if not isinstance(child, _Directory):
                raise MalformedError(f"no directory above {path!r}")
            directory = child
        return directory, name

    def _remove_name(self, parent: _Directory, name: bytes) -> None:
        """Takes `name` away if it is there; a directory only when empty."""
        node = parent.children.get(name)
        if isinstance(node, _Directory) and node.children:
            raise MalformedError(f"directory {_path(node)!r} is not empty")
        if node is not None:
            self._detach(parent, name)

    def _detach(self, parent: _Directory, name: bytes) -> None:
        node = parent.children.pop(name)
        if isinstance(node, _File):
            node.links.remove((parent, name))
        elif isinstance(node, _Directory):
            node.parent = None

    # ---- packing

    def pack(self) -> bytes:
        """The packed form described above."""
        return b"".join(self.packing())

    def packing(self) -> Iterator[bytes]:
        """The packed form in parts, each a millisecond's work or so. The table must not change meanwhile."""
        directories: list[tuple[int, bytes, int]] = []
        names: list[tuple[int, bytes, int]] = []
        symlinks: list[tuple[int, bytes, bytes]] = []
        index: dict[int, int] = {}
        for number, directory in enumerate(self._directories()):
            index[id(directory)] = number
            above = 0 if directory.parent is None else index[id(directory.parent)]
            directories.append((above, directory.name, directory.mode))
            for name, node in sorted(directory.children.items()):
                if isinstance(node, _File):
                    names.append((number, name, node.file_id))
                elif isinstance(node, _Symlink):
                    symlinks.append((number, name, node.target))
            yield b""
        files = [self._files[file_id] for file_id in sorted(self._files)]
        packer = msgpack.Packer()
        yield packer.pack_array_header(7)
        yield from (packer.pack(value) for value in (_VERSION, self.lsn, self.next_file_id))
        yield packer.pack_array_header(len(files))
        for some in _parts(files):
            yield b"".join(packer.pack((f.file_id, f.mode, f.size, f.extents.tobytes())) for f in some)
        for entries in (directories, names, symlinks):
            yield packer.pack_array_header(len(entries))
            for some in _parts(entries):
                yield b"".join(map(packer.pack, some))

    @classmethod
    def unpack(cls, data: bytes) -> FileTable:
        """The table that `pack` packed. Raises MalformedError."""
        try:
            return cls._unpack(data)
        except MalformedError:
            raise
        except (*UNDECODABLE, msgpack.UnpackException) as error:
            raise MalformedError(f"not a packed file table: {error}") from error

    @classmethod
    def unpack_compressed(cls, data: bytes) -> FileTable:
        """The table that was packed and compressed (zstd). Raises MalformedError; takes memory for what is there only,
        whatever the data says that there is."""
        parts, nbytes = [], 0
        try:
            with zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).stream_reader(data) as reader:
                while part := reader.read(_INFLATE_BYTES):
                    parts.append(part)
                    nbytes += len(part)
                    if nbytes > PACKED_BYTES_MAX:
                        raise MalformedError(f"a file table of more than {PACKED_BYTES_MAX} bytes")
        except zstandard.ZstdError as error:
            raise MalformedError(f"a file table cannot be inflated: {error}") from error
        return cls.unpack(b"".join(parts))

    @classmethod
    def _unpack(cls, data: bytes) -> FileTable:
        version, lsn, next_file_id, files, directories, names, symlinks = msgpack.unpackb(data)
        if version != _VERSION:
            raise MalformedError(f"file table of unknown version {version}")
        table = cls()
        table.lsn, table.next_file_id = _number(lsn), _number(next_file_id)
        table._root.mode = _number(directories[0][2])
        nodes = [table._root]
        for above, name, mode in directories[1:]:
            directory = _Directory(_number(mode))
            _add_name(nodes[_number(above)], _octets(name), directory)
            nodes.append(directory)
        by_id = table._files
        for file_id, mode, size, extents in files:
            if not (type(file_id) is type(mode) is type(size) is int and type(extents) is bytes):
                raise MalformedError("not a packed file table: a file is described by something else than numbers")
            by_id[file_id] = _File(file_id, mode, size, array("I", extents), [])
        if by_id and (min(by_id) < 0 or any(file.mode < 0 or file.size < 0 for file in by_id.values())):
            raise MalformedError("not a packed file table: a number is negative")
        for above, name, file_id in names:
            directory, file = nodes[_number(above)], by_id[file_id]
            directory.children[_octets(name)] = file
            file.links.append((directory, name))
        for above, name, target in symlinks:
            _add_name(nodes[_number(above)], _octets(name), _Symlink(_octets(target)))
        return table


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise MalformedError(f"not a packed file table: {value!r:.40} stands for a number")
    return value


def _octets(value: Any) -> bytes:
    if type(value) is not bytes:
        raise MalformedError(f"not a packed file table: {value!r:.40} stands for a name")
    return value


def _parts(entries: list[Any]) -> Iterator[list[Any]]:
    return (entries[at : at + _PART_ENTRIES] for at in range(0, len(entries), _PART_ENTRIES))


def _add_name(parent: _Directory, name: bytes, node: _Node) -> None:
    parent.children[name] = node
    if isinstance(node, _File):
        node.links.append((parent, name))
    elif isinstance(node, _Directory):
        node.parent, node.name = parent, name


def _path(directory: _Directory) -> bytes:
    parts: list[bytes] = []
    at: _Directory | None = directory
    while at is not None and at.parent is not None:
        parts.append(at.name)
        at = at.parent
    return b"/".join(reversed(parts))


def _join(directory: _Directory, name: bytes) -> bytes:
    above = _path(directory)
    return above + b"/" + name if above else name


def _file_entry(file: _File) -> Entry:
    paths = tuple(sorted(_join(parent, name) for parent, name in file.links))
    return Entry(FileKind.FILE, paths, file.mode, file.file_id, file.size, b"", file.extents)


def _split(body: bytes) -> tuple[bytes, bytes]:
    first, separator, second = body.partition(b"\0")
    if not separator:
        raise MalformedError("a record with two paths carries only one")
    return first, second


_ACTIONS: Final[dict[RecordType, Callable[[FileTable, Record], None]]] = {
    RecordType.CREATE: FileTable._create,
    RecordType.UNLINK: FileTable._unlink,
    RecordType.RENAME: FileTable._rename,
    RecordType.LINK: FileTable._link,
    RecordType.SYMLINK: FileTable._symlink,
    RecordType.MKDIR: FileTable._mkdir,
    RecordType.RMDIR: FileTable._rmdir,
    RecordType.CHMOD: FileTable._chmod,
    RecordType.TRUNCATE: FileTable._truncate,
    RecordType.SIZE: FileTable._size,
    RecordType.EXTENT: FileTable._extent,
    RecordType.DROP: FileTable._drop,
}

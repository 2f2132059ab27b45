"""The decoders: what sound bytes look like, what reads them, and the errors that it may raise."""

import dataclasses
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import hpack
import zstandard

from aurora_ray.control.faults import record as faults
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.state_file import FIRST_HEADER, FIRST_MAGIC, frame, unframe, unframe_first
from aurora_ray.control.observe import outages
from aurora_ray.errors import AuroraError, ConfigurationError, MalformedError
from aurora_ray.log import batch, record
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.record import RecordBuilder
from aurora_ray.log.wire import join_append, split_append
from aurora_ray.ray import local as local_ray
from aurora_ray.rpc.admission import Doorkeeper, Secret
from aurora_ray.rpc.frames import PREFACE, Flag, Kind, pack_frame
from aurora_ray.rpc.secret_file import load_secret
from aurora_ray.storage.pages.reading import apply_to_table
from aurora_ray.storage.segment.layers import LayerIndex
from aurora_ray.storage.segment.meta import SegmentMeta
from aurora_ray.telemetry.spanreader import read_spans
from tests.control.fleets import created, running_fleet
from tests.fuzz.connection import feed
from tests.fuzz.mutation import with_crc

Errors = tuple[type[BaseException], ...]


@dataclasses.dataclass(frozen=True)
class Target:
    """`sound(choose)` makes an input that `decode` takes; of a changed one it may raise `errors` only."""

    name: str
    sound: Callable[[random.Random], bytes]
    decode: Callable[[bytes], object]
    errors: Errors = (MalformedError,)
    repair: Callable[[bytes], bytes] = bytes


# ---- redo


def _records(choose: random.Random) -> Sequence[record.Record]:
    kinds: tuple[Callable[[int], record.Record], ...] = (
        lambda n: record.page_full(1, n, choose.randbytes(300) * 3),
        lambda n: record.page_delta(2, 1, [(3, b"abc"), (700, choose.randbytes(40))]),
        lambda n: record.create(n + 1, b"a/b%d" % n),
        lambda n: record.mkdir(b"a"),
        lambda n: record.truncate(1, 100),
        lambda n: record.rename(1, b"x", b"y"),
        lambda n: record.extent(1, 5, 0),
        lambda n: record.drop(9),
        lambda n: record.symlink(b"q", b"r"),
        lambda n: record.link(1, b"x", b"z"),
        lambda n: record.size(1, 7),
        lambda n: record.chmod(b"a", 7),
    )
    return [choose.choice(kinds)(number) for number in range(choose.choice((1, 3, 30)))]


def _batch(choose: random.Random) -> bytes:
    builder = RecordBuilder(0)
    for each in _records(choose):
        builder.add(each)
    part = builder.take()[0]
    encoded = batch.encode_batch(
        group=0,
        volume=b"v" * 16,
        epoch=1,
        prev_lsn=0,
        flush_start=0,
        flush_end=builder.end_lsn,
        time_us=1,
        vdl=0,
        record_count=part.record_count,
        groups=[0],
        records=part.payload,
    )
    return batch.compress(encoded) if choose.random() < 0.3 else encoded


def _take_batch(content: bytes) -> None:
    header = batch.verify(content)
    batch.check_records(content, header)
    index, table = LayerIndex(header.prev_lsn), FileTable()
    index.add(content)
    for _, buf, at in index.table:
        apply_to_table(table, buf, at, [])


# ---- tables, metadata, state


def _table(choose: random.Random) -> bytes:
    table, builder = FileTable(), RecordBuilder(0)
    for number in range(choose.randrange(1, 20)):
        table.apply(dataclasses.replace(r := record.create(number + 1, b"f%d" % number), lsn=builder.add(r)))
    return table.pack()


def _meta(_: random.Random) -> bytes:
    return SegmentMeta(page_size=8192).pack()


def _state(_: random.Random) -> bytes:
    return pack(created(running_fleet()))


def _state_file(choose: random.Random) -> bytes:
    return b"".join(frame(_state(choose), 7, 1.0, 8192))


def _first_state_file(choose: random.Random) -> bytes:
    state = _state(choose)
    return FIRST_HEADER.pack(FIRST_MAGIC, google_crc32c.value(state), len(state)) + state


def _take_file(name: str, take: Callable[[Path], object]) -> Callable[[bytes], object]:
    def decode(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / name
            path.write_bytes(content)
            path.chmod(0o600)
            return take(Path(directory))

    return decode


def _fleet_file(_: random.Random) -> bytes:
    return bootstrap.render(created(running_fleet())).encode()


def _secret(_: random.Random) -> bytes:
    return b"ab" * 32


def _ray_file(_: random.Random) -> bytes:
    return b'{"address": "127.0.0.1:6379", "pid": 1, "ticks": 2, "daemons": {"raylet": [3, 4]}}\n'


def _spans(_: random.Random) -> bytes:
    return (
        b'{"resourceSpans":[{"resource":{"attributes":[{"key":"pid","value":{"intValue":"7"}}]},"scopeSpans":[{"spans":'
        b'[{"traceId":"ab","spanId":"cd","name":"x","startTimeUnixNano":"1","endTimeUnixNano":"2","status":{"code":2,'
        b'"message":"no"},"attributes":[{"key":"k","value":{"arrayValue":{"values":[{"stringValue":"v"}]}}}]}]}]}]}\n'
    )


def _faults_file(_: random.Random) -> bytes:
    return (
        b'{"islands": {"az:a": {"parties": ["node:a-1"], "until_s": 9.5}}, "away": {"b-1": 3.5}, '
        b'"paused": {"node:c-1": {"pid": 7, "until_s": 8.5}}}\n'
    )


def _outages_file(_: random.Random) -> bytes:
    return b'{"demo-1": {"why": "killed", "good_at_ns": 12, "noticed_ns": 13}}\n'


# ---- calls


def _proof(_: random.Random) -> bytes:
    return ".".join(("0" * 32, "1" * 32, "2" * 64, "3" * 64)).encode()


_DOORKEEPER = Doorkeeper("a-1", secret=Secret.new())


def _connection(choose: random.Random) -> bytes:
    headers = hpack.Encoder().encode(((":method", "POST"), (":path", "/test.Echo/Stream"), ("aurora-proof", "x" * 195)))
    content = PREFACE + pack_frame(Kind.SETTINGS, 0, 0, b"\0\4\0\1\0\0")
    content += pack_frame(Kind.HEADERS, Flag.END_HEADERS, 1, headers)
    for _ in range(choose.randrange(6)):
        kind = choose.choice(tuple(Kind))
        payload = choose.randbytes(choose.choice((0, 1, 4, 5, 8, 9, 40)))
        content += pack_frame(kind, choose.randrange(256), choose.choice((0, 1, 1, 3)), payload)
    return content


TARGETS = (
    Target("batch", _batch, _take_batch, repair=with_crc),
    Target("message of batches", lambda choose: join_append([_batch(choose), _batch(choose)]), split_append),
    Target("file table", _table, lambda content: FileTable.unpack(content).pack()),
    Target("file table on the wire", lambda c: zstandard.compress(_table(c)), FileTable.unpack_compressed),
    Target("segment's metadata", _meta, lambda content: SegmentMeta.unpack(content).pack()),
    Target("control state", _state, unpack, (MalformedError, ConfigurationError)),
    Target("control state's file", _state_file, lambda content: unframe(content, 7)),
    Target("control state's first file", _first_state_file, unframe_first),
    Target("fleet file", _fleet_file, _take_file(bootstrap.FILE_NAME, bootstrap.load), (ConfigurationError,)),
    Target("secret file", _secret, _take_file("secret", lambda d: load_secret(d / "secret")), (AuroraError,)),
    Target("ray.json", _ray_file, _take_file(local_ray.FILE_NAME, local_ray.find), ()),
    Target("faults", _faults_file, _take_file(faults.FILE_NAME, faults.Faults.load), ()),
    Target("outages", _outages_file, _take_file(outages.FILE_NAME, lambda d: outages.Outages(d).load()), ()),
    Target("spans", _spans, _take_file("x.jsonl", lambda d: list(read_spans(d))), ()),
    Target("proof", _proof, lambda c: _DOORKEEPER.admit("/m", c.decode("latin-1"), "1"), ()),
    Target("connection", _connection, feed, ()),
)

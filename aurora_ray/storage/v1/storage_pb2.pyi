from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GraveKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAVE_UNKNOWN: _ClassVar[GraveKind]
    GRAVE_VOLUME: _ClassVar[GraveKind]
    GRAVE_SEGMENT: _ClassVar[GraveKind]
    GRAVE_TAIL: _ClassVar[GraveKind]
GRAVE_UNKNOWN: GraveKind
GRAVE_VOLUME: GraveKind
GRAVE_SEGMENT: GraveKind
GRAVE_TAIL: GraveKind

class CreateSegmentsRequest(_message.Message):
    __slots__ = ("volume", "page_size", "groups", "members", "lineage")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    page_size: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    lineage: Lineage
    def __init__(self, volume: _Optional[bytes] = ..., page_size: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., members: _Optional[_Iterable[str]] = ..., lineage: _Optional[_Union[Lineage, _Mapping]] = ...) -> None: ...

class Lineage(_message.Message):
    __slots__ = ("parent", "origin_lsn")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_LSN_FIELD_NUMBER: _ClassVar[int]
    parent: bytes
    origin_lsn: int
    def __init__(self, parent: _Optional[bytes] = ..., origin_lsn: _Optional[int] = ...) -> None: ...

class CreateSegmentsReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("volume", "parent", "lsn", "epoch", "tails", "members", "first_epoch", "timeout_ms")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    parent: bytes
    lsn: int
    epoch: int
    tails: _containers.RepeatedCompositeFieldContainer[GroupTail]
    members: _containers.RepeatedScalarFieldContainer[str]
    first_epoch: int
    timeout_ms: int
    def __init__(self, volume: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., lsn: _Optional[int] = ..., epoch: _Optional[int] = ..., tails: _Optional[_Iterable[_Union[GroupTail, _Mapping]]] = ..., members: _Optional[_Iterable[str]] = ..., first_epoch: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ForkReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("volume", "lsn", "time_us")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    lsn: int
    time_us: int
    def __init__(self, volume: _Optional[bytes] = ..., lsn: _Optional[int] = ..., time_us: _Optional[int] = ...) -> None: ...

class LogPlace(_message.Message):
    __slots__ = ("group", "lsn", "time_us", "installed_epoch", "vdl", "floor_lsn", "floor_time_us")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    INSTALLED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    VDL_FIELD_NUMBER: _ClassVar[int]
    FLOOR_LSN_FIELD_NUMBER: _ClassVar[int]
    FLOOR_TIME_US_FIELD_NUMBER: _ClassVar[int]
    group: int
    lsn: int
    time_us: int
    installed_epoch: int
    vdl: int
    floor_lsn: int
    floor_time_us: int
    def __init__(self, group: _Optional[int] = ..., lsn: _Optional[int] = ..., time_us: _Optional[int] = ..., installed_epoch: _Optional[int] = ..., vdl: _Optional[int] = ..., floor_lsn: _Optional[int] = ..., floor_time_us: _Optional[int] = ...) -> None: ...

class LocateReply(_message.Message):
    __slots__ = ("places",)
    PLACES_FIELD_NUMBER: _ClassVar[int]
    places: _containers.RepeatedCompositeFieldContainer[LogPlace]
    def __init__(self, places: _Optional[_Iterable[_Union[LogPlace, _Mapping]]] = ...) -> None: ...

class DropVolumeRequest(_message.Message):
    __slots__ = ("volume", "groups", "reason")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    groups: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, volume: _Optional[bytes] = ..., groups: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class DropVolumeReply(_message.Message):
    __slots__ = ("grave",)
    GRAVE_FIELD_NUMBER: _ClassVar[int]
    grave: str
    def __init__(self, grave: _Optional[str] = ...) -> None: ...

class Grave(_message.Message):
    __slots__ = ("name", "kind", "volume", "groups", "bytes", "since_ms", "until_ms", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: GraveKind
    volume: bytes
    groups: _containers.RepeatedScalarFieldContainer[int]
    bytes: int
    since_ms: int
    until_ms: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[GraveKind, str]] = ..., volume: _Optional[bytes] = ..., groups: _Optional[_Iterable[int]] = ..., bytes: _Optional[int] = ..., since_ms: _Optional[int] = ..., until_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListGraveyardRequest(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    def __init__(self, volume: _Optional[bytes] = ...) -> None: ...

class ListGraveyardReply(_message.Message):
    __slots__ = ("graves",)
    GRAVES_FIELD_NUMBER: _ClassVar[int]
    graves: _containers.RepeatedCompositeFieldContainer[Grave]
    def __init__(self, graves: _Optional[_Iterable[_Union[Grave, _Mapping]]] = ...) -> None: ...

class RestoreVolumeRequest(_message.Message):
    __slots__ = ("volume", "grave")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GRAVE_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    grave: str
    def __init__(self, volume: _Optional[bytes] = ..., grave: _Optional[str] = ...) -> None: ...

class RestoreVolumeReply(_message.Message):
    __slots__ = ("grave",)
    GRAVE_FIELD_NUMBER: _ClassVar[int]
    grave: str
    def __init__(self, grave: _Optional[str] = ...) -> None: ...

class PurgeGraveyardRequest(_message.Message):
    __slots__ = ("graves",)
    GRAVES_FIELD_NUMBER: _ClassVar[int]
    graves: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, graves: _Optional[_Iterable[str]] = ...) -> None: ...

class PurgeGraveyardReply(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("batches",)
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, batches: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AppendPortRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AppendPortReply(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class AppendReply(_message.Message):
    __slots__ = ("acked_lsn", "subscribed")
    ACKED_LSN_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBED_FIELD_NUMBER: _ClassVar[int]
    acked_lsn: int
    subscribed: bool
    def __init__(self, acked_lsn: _Optional[int] = ..., subscribed: _Optional[bool] = ...) -> None: ...

class PageRange(_message.Message):
    __slots__ = ("group", "file_id", "first_page", "count")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    group: int
    file_id: int
    first_page: int
    count: int
    def __init__(self, group: _Optional[int] = ..., file_id: _Optional[int] = ..., first_page: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class ReadPagesRequest(_message.Message):
    __slots__ = ("volume", "lsn", "required_scl", "ranges")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_SCL_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    lsn: int
    required_scl: int
    ranges: _containers.RepeatedCompositeFieldContainer[PageRange]
    def __init__(self, volume: _Optional[bytes] = ..., lsn: _Optional[int] = ..., required_scl: _Optional[int] = ..., ranges: _Optional[_Iterable[_Union[PageRange, _Mapping]]] = ...) -> None: ...

class ReadPagesReply(_message.Message):
    __slots__ = ("kinds", "pages", "crcs")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    CRCS_FIELD_NUMBER: _ClassVar[int]
    kinds: bytes
    pages: bytes
    crcs: bytes
    def __init__(self, kinds: _Optional[bytes] = ..., pages: _Optional[bytes] = ..., crcs: _Optional[bytes] = ...) -> None: ...

class ReadFileTableRequest(_message.Message):
    __slots__ = ("volume", "lsn", "required_scl")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_SCL_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    lsn: int
    required_scl: int
    def __init__(self, volume: _Optional[bytes] = ..., lsn: _Optional[int] = ..., required_scl: _Optional[int] = ...) -> None: ...

class FileTableChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("volume", "group", "after_lsn")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    AFTER_LSN_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    group: int
    after_lsn: int
    def __init__(self, volume: _Optional[bytes] = ..., group: _Optional[int] = ..., after_lsn: _Optional[int] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("batches", "vdl")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    VDL_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedScalarFieldContainer[bytes]
    vdl: int
    def __init__(self, batches: _Optional[_Iterable[bytes]] = ..., vdl: _Optional[int] = ...) -> None: ...

class Truncation(_message.Message):
    __slots__ = ("epoch", "lsn", "first")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lsn: int
    first: bool
    def __init__(self, epoch: _Optional[int] = ..., lsn: _Optional[int] = ..., first: _Optional[bool] = ...) -> None: ...

class BatchInfo(_message.Message):
    __slots__ = ("epoch", "prev_lsn", "flush_start", "flush_end", "flush_groups")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PREV_LSN_FIELD_NUMBER: _ClassVar[int]
    FLUSH_START_FIELD_NUMBER: _ClassVar[int]
    FLUSH_END_FIELD_NUMBER: _ClassVar[int]
    FLUSH_GROUPS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    prev_lsn: int
    flush_start: int
    flush_end: int
    flush_groups: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., prev_lsn: _Optional[int] = ..., flush_start: _Optional[int] = ..., flush_end: _Optional[int] = ..., flush_groups: _Optional[_Iterable[int]] = ...) -> None: ...

class SegmentState(_message.Message):
    __slots__ = ("group", "promised_epoch", "installed_epoch", "truncations", "scl", "vdl", "floor_lsn", "highest_lsn", "tail", "log_bytes", "coalesced_lsn", "members", "next_members", "members_number", "copy", "damaged_items", "last_time_us")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PROMISED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    INSTALLED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    SCL_FIELD_NUMBER: _ClassVar[int]
    VDL_FIELD_NUMBER: _ClassVar[int]
    FLOOR_LSN_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_LSN_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    COALESCED_LSN_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_US_FIELD_NUMBER: _ClassVar[int]
    group: int
    promised_epoch: int
    installed_epoch: int
    truncations: _containers.RepeatedCompositeFieldContainer[Truncation]
    scl: int
    vdl: int
    floor_lsn: int
    highest_lsn: int
    tail: _containers.RepeatedCompositeFieldContainer[BatchInfo]
    log_bytes: int
    coalesced_lsn: int
    members: _containers.RepeatedScalarFieldContainer[str]
    next_members: _containers.RepeatedScalarFieldContainer[str]
    members_number: int
    copy: CopyProgress
    damaged_items: int
    last_time_us: int
    def __init__(self, group: _Optional[int] = ..., promised_epoch: _Optional[int] = ..., installed_epoch: _Optional[int] = ..., truncations: _Optional[_Iterable[_Union[Truncation, _Mapping]]] = ..., scl: _Optional[int] = ..., vdl: _Optional[int] = ..., floor_lsn: _Optional[int] = ..., highest_lsn: _Optional[int] = ..., tail: _Optional[_Iterable[_Union[BatchInfo, _Mapping]]] = ..., log_bytes: _Optional[int] = ..., coalesced_lsn: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ..., next_members: _Optional[_Iterable[str]] = ..., members_number: _Optional[int] = ..., copy: _Optional[_Union[CopyProgress, _Mapping]] = ..., damaged_items: _Optional[int] = ..., last_time_us: _Optional[int] = ...) -> None: ...

class CopyProgress(_message.Message):
    __slots__ = ("running", "bytes_copied", "bytes_total", "mb_per_s", "sources")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    BYTES_COPIED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MB_PER_S_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    running: bool
    bytes_copied: int
    bytes_total: int
    mb_per_s: float
    sources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, running: _Optional[bool] = ..., bytes_copied: _Optional[int] = ..., bytes_total: _Optional[int] = ..., mb_per_s: _Optional[float] = ..., sources: _Optional[_Iterable[str]] = ...) -> None: ...

class GroupMembers(_message.Message):
    __slots__ = ("group", "number", "members", "next_members")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    group: int
    number: int
    members: _containers.RepeatedScalarFieldContainer[str]
    next_members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, group: _Optional[int] = ..., number: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ..., next_members: _Optional[_Iterable[str]] = ...) -> None: ...

class SealRequest(_message.Message):
    __slots__ = ("volume", "epoch", "owner")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    epoch: int
    owner: bytes
    def __init__(self, volume: _Optional[bytes] = ..., epoch: _Optional[int] = ..., owner: _Optional[bytes] = ...) -> None: ...

class SealReply(_message.Message):
    __slots__ = ("promised", "promised_epoch", "segments")
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    PROMISED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    promised: bool
    promised_epoch: int
    segments: _containers.RepeatedCompositeFieldContainer[SegmentState]
    def __init__(self, promised: _Optional[bool] = ..., promised_epoch: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[SegmentState, _Mapping]]] = ...) -> None: ...

class TruncateRequest(_message.Message):
    __slots__ = ("volume", "epoch", "owner", "truncations", "vdl", "tails", "members")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    VDL_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    epoch: int
    owner: bytes
    truncations: _containers.RepeatedCompositeFieldContainer[Truncation]
    vdl: int
    tails: _containers.RepeatedCompositeFieldContainer[GroupTail]
    members: _containers.RepeatedCompositeFieldContainer[GroupMembers]
    def __init__(self, volume: _Optional[bytes] = ..., epoch: _Optional[int] = ..., owner: _Optional[bytes] = ..., truncations: _Optional[_Iterable[_Union[Truncation, _Mapping]]] = ..., vdl: _Optional[int] = ..., tails: _Optional[_Iterable[_Union[GroupTail, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[GroupMembers, _Mapping]]] = ...) -> None: ...

class GroupTail(_message.Message):
    __slots__ = ("group", "lsn")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    group: int
    lsn: int
    def __init__(self, group: _Optional[int] = ..., lsn: _Optional[int] = ...) -> None: ...

class TruncateReply(_message.Message):
    __slots__ = ("segments",)
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[SegmentState]
    def __init__(self, segments: _Optional[_Iterable[_Union[SegmentState, _Mapping]]] = ...) -> None: ...

class CatchUpRequest(_message.Message):
    __slots__ = ("volume", "tails", "timeout_ms")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    tails: _containers.RepeatedCompositeFieldContainer[GroupTail]
    timeout_ms: int
    def __init__(self, volume: _Optional[bytes] = ..., tails: _Optional[_Iterable[_Union[GroupTail, _Mapping]]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class CatchUpReply(_message.Message):
    __slots__ = ("scls",)
    SCLS_FIELD_NUMBER: _ClassVar[int]
    scls: _containers.RepeatedCompositeFieldContainer[GroupTail]
    def __init__(self, scls: _Optional[_Iterable[_Union[GroupTail, _Mapping]]] = ...) -> None: ...

class FetchLogRequest(_message.Message):
    __slots__ = ("volume", "group", "after_lsn", "up_to_lsn")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    AFTER_LSN_FIELD_NUMBER: _ClassVar[int]
    UP_TO_LSN_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    group: int
    after_lsn: int
    up_to_lsn: int
    def __init__(self, volume: _Optional[bytes] = ..., group: _Optional[int] = ..., after_lsn: _Optional[int] = ..., up_to_lsn: _Optional[int] = ...) -> None: ...

class PageKey(_message.Message):
    __slots__ = ("file_id", "page")
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    file_id: int
    page: int
    def __init__(self, file_id: _Optional[int] = ..., page: _Optional[int] = ...) -> None: ...

class CopySegmentRequest(_message.Message):
    __slots__ = ("volume", "group", "lsn", "start", "stop")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    group: int
    lsn: int
    start: PageKey
    stop: PageKey
    def __init__(self, volume: _Optional[bytes] = ..., group: _Optional[int] = ..., lsn: _Optional[int] = ..., start: _Optional[_Union[PageKey, _Mapping]] = ..., stop: _Optional[_Union[PageKey, _Mapping]] = ...) -> None: ...

class PageChunk(_message.Message):
    __slots__ = ("pages", "next")
    PAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedCompositeFieldContainer[CopiedPage]
    next: PageKey
    def __init__(self, pages: _Optional[_Iterable[_Union[CopiedPage, _Mapping]]] = ..., next: _Optional[_Union[PageKey, _Mapping]] = ...) -> None: ...

class CopiedPage(_message.Message):
    __slots__ = ("file_id", "page", "crc32c", "image")
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    file_id: int
    page: int
    crc32c: int
    image: bytes
    def __init__(self, file_id: _Optional[int] = ..., page: _Optional[int] = ..., crc32c: _Optional[int] = ..., image: _Optional[bytes] = ...) -> None: ...

class OutlineSegmentRequest(_message.Message):
    __slots__ = ("volume", "group", "pages_per_range")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PAGES_PER_RANGE_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    group: int
    pages_per_range: int
    def __init__(self, volume: _Optional[bytes] = ..., group: _Optional[int] = ..., pages_per_range: _Optional[int] = ...) -> None: ...

class OutlineSegmentReply(_message.Message):
    __slots__ = ("splits", "pages")
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    splits: _containers.RepeatedCompositeFieldContainer[PageKey]
    pages: int
    def __init__(self, splits: _Optional[_Iterable[_Union[PageKey, _Mapping]]] = ..., pages: _Optional[int] = ...) -> None: ...

class DigestRequest(_message.Message):
    __slots__ = ("volume", "group", "lsn", "start", "stop", "pages_max", "with_log", "log_after_lsn")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PAGES_MAX_FIELD_NUMBER: _ClassVar[int]
    WITH_LOG_FIELD_NUMBER: _ClassVar[int]
    LOG_AFTER_LSN_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    group: int
    lsn: int
    start: PageKey
    stop: PageKey
    pages_max: int
    with_log: bool
    log_after_lsn: int
    def __init__(self, volume: _Optional[bytes] = ..., group: _Optional[int] = ..., lsn: _Optional[int] = ..., start: _Optional[_Union[PageKey, _Mapping]] = ..., stop: _Optional[_Union[PageKey, _Mapping]] = ..., pages_max: _Optional[int] = ..., with_log: _Optional[bool] = ..., log_after_lsn: _Optional[int] = ...) -> None: ...

class DigestReply(_message.Message):
    __slots__ = ("digest", "pages", "next", "log_digest", "log_batches")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOG_BATCHES_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    pages: int
    next: PageKey
    log_digest: bytes
    log_batches: int
    def __init__(self, digest: _Optional[bytes] = ..., pages: _Optional[int] = ..., next: _Optional[_Union[PageKey, _Mapping]] = ..., log_digest: _Optional[bytes] = ..., log_batches: _Optional[int] = ...) -> None: ...

class SetPeersRequest(_message.Message):
    __slots__ = ("addresses",)
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.ScalarMap[str, str]
    def __init__(self, addresses: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SetPeersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetReadPointRequest(_message.Message):
    __slots__ = ("volume", "holder", "lsn", "lease_ms")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    holder: str
    lsn: int
    lease_ms: int
    def __init__(self, volume: _Optional[bytes] = ..., holder: _Optional[str] = ..., lsn: _Optional[int] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class SetReadPointReply(_message.Message):
    __slots__ = ("lease_ms",)
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    def __init__(self, lease_ms: _Optional[int] = ...) -> None: ...

class SetRetentionRequest(_message.Message):
    __slots__ = ("volume", "retention")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    retention: Retention
    def __init__(self, volume: _Optional[bytes] = ..., retention: _Optional[_Union[Retention, _Mapping]] = ...) -> None: ...

class Retention(_message.Message):
    __slots__ = ("seconds", "log_bytes")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    seconds: int
    log_bytes: int
    def __init__(self, seconds: _Optional[int] = ..., log_bytes: _Optional[int] = ...) -> None: ...

class SetRetentionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    def __init__(self, volume: _Optional[bytes] = ...) -> None: ...

class VolumeState(_message.Message):
    __slots__ = ("volume", "page_size", "segments", "lost_groups", "lineage", "retention")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    LOST_GROUPS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    volume: bytes
    page_size: int
    segments: _containers.RepeatedCompositeFieldContainer[SegmentState]
    lost_groups: _containers.RepeatedScalarFieldContainer[int]
    lineage: Lineage
    retention: Retention
    def __init__(self, volume: _Optional[bytes] = ..., page_size: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[SegmentState, _Mapping]]] = ..., lost_groups: _Optional[_Iterable[int]] = ..., lineage: _Optional[_Union[Lineage, _Mapping]] = ..., retention: _Optional[_Union[Retention, _Mapping]] = ...) -> None: ...

class StateReply(_message.Message):
    __slots__ = ("node_id", "az", "pid", "volumes", "counters", "disk_bytes", "space")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    AZ_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    az: str
    pid: int
    volumes: _containers.RepeatedCompositeFieldContainer[VolumeState]
    counters: _containers.ScalarMap[str, int]
    disk_bytes: int
    space: Space
    def __init__(self, node_id: _Optional[str] = ..., az: _Optional[str] = ..., pid: _Optional[int] = ..., volumes: _Optional[_Iterable[_Union[VolumeState, _Mapping]]] = ..., counters: _Optional[_Mapping[str, int]] = ..., disk_bytes: _Optional[int] = ..., space: _Optional[_Union[Space, _Mapping]] = ...) -> None: ...

class Space(_message.Message):
    __slots__ = ("state", "free_bytes", "reserve_bytes", "history_share")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_SHARE_FIELD_NUMBER: _ClassVar[int]
    state: str
    free_bytes: int
    reserve_bytes: int
    history_share: float
    def __init__(self, state: _Optional[str] = ..., free_bytes: _Optional[int] = ..., reserve_bytes: _Optional[int] = ..., history_share: _Optional[float] = ...) -> None: ...

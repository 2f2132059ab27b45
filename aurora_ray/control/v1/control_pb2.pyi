from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Report(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("pid", "data_dir", "fleet_id", "region", "epoch", "open")
    PID_FIELD_NUMBER: _ClassVar[int]
    DATA_DIR_FIELD_NUMBER: _ClassVar[int]
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    pid: int
    data_dir: str
    fleet_id: str
    region: str
    epoch: int
    open: bool
    def __init__(self, pid: _Optional[int] = ..., data_dir: _Optional[str] = ..., fleet_id: _Optional[str] = ..., region: _Optional[str] = ..., epoch: _Optional[int] = ..., open: _Optional[bool] = ...) -> None: ...

class CreateClusterRequest(_message.Message):
    __slots__ = ("name", "engine", "engine_version", "bin_dir", "cache_bytes", "exist_ok", "timeout_s", "memory_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BIN_DIR_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    engine: str
    engine_version: str
    bin_dir: str
    cache_bytes: int
    exist_ok: bool
    timeout_s: float
    memory_bytes: int
    def __init__(self, name: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., bin_dir: _Optional[str] = ..., cache_bytes: _Optional[int] = ..., exist_ok: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class CreateClusterReply(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: bool
    def __init__(self, created: _Optional[bool] = ...) -> None: ...

class WaitAvailableRequest(_message.Message):
    __slots__ = ("name", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class WaitAvailableReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListClustersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeClusterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteClusterRequest(_message.Message):
    __slots__ = ("name", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DeleteClusterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FailoverClusterRequest(_message.Message):
    __slots__ = ("name", "target", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    target: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., target: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class FailoverClusterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModifyClusterRequest(_message.Message):
    __slots__ = ("name", "memory_bytes", "at_next_start", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    AT_NEXT_START_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_bytes: int
    at_next_start: bool
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., at_next_start: _Optional[bool] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ModifyParametersRequest(_message.Message):
    __slots__ = ("name", "set", "reset")
    class SetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    name: str
    set: _containers.ScalarMap[str, str]
    reset: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., set: _Optional[_Mapping[str, str]] = ..., reset: _Optional[_Iterable[str]] = ...) -> None: ...

class RepairClusterRequest(_message.Message):
    __slots__ = ("name", "kinds", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class RepairClusterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDeletedRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestoreClusterRequest(_message.Message):
    __slots__ = ("entry", "new_name", "timeout_s")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    entry: str
    new_name: str
    timeout_s: float
    def __init__(self, entry: _Optional[str] = ..., new_name: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class RestoreClusterReply(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PurgeClusterRequest(_message.Message):
    __slots__ = ("entry", "timeout_s")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    entry: str
    timeout_s: float
    def __init__(self, entry: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class PurgeClusterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeStateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RepairStateRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class RepairStateReply(_message.Message):
    __slots__ = ("clusters",)
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    clusters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, clusters: _Optional[_Iterable[str]] = ...) -> None: ...

class InjectFaultRequest(_message.Message):
    __slots__ = ("verb", "target", "cluster", "for_s", "for_good")
    VERB_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    FOR_S_FIELD_NUMBER: _ClassVar[int]
    FOR_GOOD_FIELD_NUMBER: _ClassVar[int]
    verb: str
    target: str
    cluster: str
    for_s: float
    for_good: bool
    def __init__(self, verb: _Optional[str] = ..., target: _Optional[str] = ..., cluster: _Optional[str] = ..., for_s: _Optional[float] = ..., for_good: _Optional[bool] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsReply(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    def __init__(self, text: _Optional[bytes] = ...) -> None: ...

class TrailRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

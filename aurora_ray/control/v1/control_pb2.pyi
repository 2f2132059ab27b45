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
    __slots__ = ("pid", "data_dir", "fleet_id", "region", "epoch", "open", "small")
    PID_FIELD_NUMBER: _ClassVar[int]
    DATA_DIR_FIELD_NUMBER: _ClassVar[int]
    FLEET_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SMALL_FIELD_NUMBER: _ClassVar[int]
    pid: int
    data_dir: str
    fleet_id: str
    region: str
    epoch: int
    open: bool
    small: bool
    def __init__(self, pid: _Optional[int] = ..., data_dir: _Optional[str] = ..., fleet_id: _Optional[str] = ..., region: _Optional[str] = ..., epoch: _Optional[int] = ..., open: _Optional[bool] = ..., small: _Optional[bool] = ...) -> None: ...

class CreateClusterRequest(_message.Message):
    __slots__ = ("name", "engine", "engine_version", "bin_dir", "cache_bytes", "exist_ok", "timeout_s", "memory_bytes", "readers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BIN_DIR_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    engine: str
    engine_version: str
    bin_dir: str
    cache_bytes: int
    exist_ok: bool
    timeout_s: float
    memory_bytes: int
    readers: int
    def __init__(self, name: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., bin_dir: _Optional[str] = ..., cache_bytes: _Optional[int] = ..., exist_ok: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., readers: _Optional[int] = ...) -> None: ...

class CreateClusterReply(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: bool
    def __init__(self, created: _Optional[bool] = ...) -> None: ...

class WaitAvailableRequest(_message.Message):
    __slots__ = ("name", "timeout_s", "all_readers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ALL_READERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    timeout_s: float
    all_readers: bool
    def __init__(self, name: _Optional[str] = ..., timeout_s: _Optional[float] = ..., all_readers: _Optional[bool] = ...) -> None: ...

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
    __slots__ = ("name", "timeout_s", "declare_only")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    DECLARE_ONLY_FIELD_NUMBER: _ClassVar[int]
    name: str
    timeout_s: float
    declare_only: bool
    def __init__(self, name: _Optional[str] = ..., timeout_s: _Optional[float] = ..., declare_only: _Optional[bool] = ...) -> None: ...

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

class AddReadersRequest(_message.Message):
    __slots__ = ("name", "count", "tier", "memory_bytes", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    count: int
    tier: int
    memory_bytes: int
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., count: _Optional[int] = ..., tier: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class RemoveReaderRequest(_message.Message):
    __slots__ = ("instance", "timeout_s")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    instance: str
    timeout_s: float
    def __init__(self, instance: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class AutoscaleReadersRequest(_message.Message):
    __slots__ = ("name", "off", "min", "max", "metric", "target", "cooldown_out_s", "cooldown_in_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_OUT_S_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_IN_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    off: bool
    min: int
    max: int
    metric: str
    target: float
    cooldown_out_s: float
    cooldown_in_s: float
    def __init__(self, name: _Optional[str] = ..., off: _Optional[bool] = ..., min: _Optional[int] = ..., max: _Optional[int] = ..., metric: _Optional[str] = ..., target: _Optional[float] = ..., cooldown_out_s: _Optional[float] = ..., cooldown_in_s: _Optional[float] = ...) -> None: ...

class CreateEndpointRequest(_message.Message):
    __slots__ = ("name", "endpoint", "kind", "members", "excluded", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    endpoint: str
    kind: str
    members: _containers.RepeatedScalarFieldContainer[str]
    excluded: _containers.RepeatedScalarFieldContainer[str]
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., endpoint: _Optional[str] = ..., kind: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ..., excluded: _Optional[_Iterable[str]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DeleteEndpointRequest(_message.Message):
    __slots__ = ("name", "endpoint", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    endpoint: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., endpoint: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

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

class ScaleClusterRequest(_message.Message):
    __slots__ = ("name", "off", "min_acu", "max_acu", "pause_after_s", "timeout_s", "provisioned", "serverless", "by_powers", "safe_timeout_s", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    MIN_ACU_FIELD_NUMBER: _ClassVar[int]
    MAX_ACU_FIELD_NUMBER: _ClassVar[int]
    PAUSE_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    PROVISIONED_FIELD_NUMBER: _ClassVar[int]
    SERVERLESS_FIELD_NUMBER: _ClassVar[int]
    BY_POWERS_FIELD_NUMBER: _ClassVar[int]
    SAFE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    off: bool
    min_acu: float
    max_acu: float
    pause_after_s: float
    timeout_s: float
    provisioned: _containers.RepeatedScalarFieldContainer[str]
    serverless: _containers.RepeatedScalarFieldContainer[str]
    by_powers: bool
    safe_timeout_s: float
    force: bool
    def __init__(self, name: _Optional[str] = ..., off: _Optional[bool] = ..., min_acu: _Optional[float] = ..., max_acu: _Optional[float] = ..., pause_after_s: _Optional[float] = ..., timeout_s: _Optional[float] = ..., provisioned: _Optional[_Iterable[str]] = ..., serverless: _Optional[_Iterable[str]] = ..., by_powers: _Optional[bool] = ..., safe_timeout_s: _Optional[float] = ..., force: _Optional[bool] = ...) -> None: ...

class DescribeUsageRequest(_message.Message):
    __slots__ = ("name", "since", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    since: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., since: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

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

class CloneClusterRequest(_message.Message):
    __slots__ = ("source", "name", "at", "memory_bytes", "temporary_s", "timeout_s", "engine_version", "bin_dir")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPORARY_S_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BIN_DIR_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    at: str
    memory_bytes: int
    temporary_s: float
    timeout_s: float
    engine_version: str
    bin_dir: str
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ..., at: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., temporary_s: _Optional[float] = ..., timeout_s: _Optional[float] = ..., engine_version: _Optional[str] = ..., bin_dir: _Optional[str] = ...) -> None: ...

class BacktrackClusterRequest(_message.Message):
    __slots__ = ("name", "to", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    to: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., to: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class MarkClusterRequest(_message.Message):
    __slots__ = ("name", "label", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    timeout_s: float
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class SetBacktrackWindowRequest(_message.Message):
    __slots__ = ("name", "window_s", "log_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    window_s: int
    log_bytes: int
    def __init__(self, name: _Optional[str] = ..., window_s: _Optional[int] = ..., log_bytes: _Optional[int] = ...) -> None: ...

class SetBackupRequest(_message.Message):
    __slots__ = ("name", "url", "key_file", "retention_s", "location")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    KEY_FILE_FIELD_NUMBER: _ClassVar[int]
    RETENTION_S_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    url: str
    key_file: str
    retention_s: int
    location: str
    def __init__(self, name: _Optional[str] = ..., url: _Optional[str] = ..., key_file: _Optional[str] = ..., retention_s: _Optional[int] = ..., location: _Optional[str] = ...) -> None: ...

class RestoreBackupRequest(_message.Message):
    __slots__ = ("url", "name", "cluster", "at", "key_file", "timeout_s")
    URL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KEY_FILE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    url: str
    name: str
    cluster: str
    at: str
    key_file: str
    timeout_s: float
    def __init__(self, url: _Optional[str] = ..., name: _Optional[str] = ..., cluster: _Optional[str] = ..., at: _Optional[str] = ..., key_file: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class CreateGlobalClusterRequest(_message.Message):
    __slots__ = ("global_cluster", "cluster")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    cluster: str
    def __init__(self, global_cluster: _Optional[str] = ..., cluster: _Optional[str] = ...) -> None: ...

class InviteRegionRequest(_message.Message):
    __slots__ = ("global_cluster", "guest")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    GUEST_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    guest: bytes
    def __init__(self, global_cluster: _Optional[str] = ..., guest: _Optional[bytes] = ...) -> None: ...

class JoinGlobalClusterRequest(_message.Message):
    __slots__ = ("invitation", "readers", "memory_bytes", "timeout_s")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    invitation: bytes
    readers: int
    memory_bytes: int
    timeout_s: float
    def __init__(self, invitation: _Optional[bytes] = ..., readers: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class WaitCopiedRequest(_message.Message):
    __slots__ = ("global_cluster", "timeout_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    timeout_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class RemoveRegionRequest(_message.Message):
    __slots__ = ("global_cluster", "region", "keep", "force", "timeout_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    region: str
    keep: bool
    force: bool
    timeout_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., region: _Optional[str] = ..., keep: _Optional[bool] = ..., force: _Optional[bool] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class LeaveGlobalClusterRequest(_message.Message):
    __slots__ = ("global_cluster", "keep", "timeout_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    keep: bool
    timeout_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., keep: _Optional[bool] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class TurnRequest(_message.Message):
    __slots__ = ("global_cluster", "region", "way", "timeout_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    region: str
    way: str
    timeout_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., region: _Optional[str] = ..., way: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class SetCommitLimitsRequest(_message.Message):
    __slots__ = ("global_cluster", "lease_s", "rpo_s", "timeout_s", "failover_after_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    RPO_S_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    FAILOVER_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    lease_s: float
    rpo_s: float
    timeout_s: float
    failover_after_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., lease_s: _Optional[float] = ..., rpo_s: _Optional[float] = ..., timeout_s: _Optional[float] = ..., failover_after_s: _Optional[float] = ...) -> None: ...

class SetForwardingRequest(_message.Message):
    __slots__ = ("global_cluster", "on", "timeout_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    on: bool
    timeout_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., on: _Optional[bool] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class SetResidencyRequest(_message.Message):
    __slots__ = ("global_cluster", "regions", "jurisdictions", "timeout_s")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    JURISDICTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    regions: _containers.RepeatedScalarFieldContainer[str]
    jurisdictions: _containers.RepeatedScalarFieldContainer[str]
    timeout_s: float
    def __init__(self, global_cluster: _Optional[str] = ..., regions: _Optional[_Iterable[str]] = ..., jurisdictions: _Optional[_Iterable[str]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DescribeRegionRequest(_message.Message):
    __slots__ = ("global_cluster",)
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    def __init__(self, global_cluster: _Optional[str] = ...) -> None: ...

class ExchangeViewsRequest(_message.Message):
    __slots__ = ("global_cluster", "view")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    view: bytes
    def __init__(self, global_cluster: _Optional[str] = ..., view: _Optional[bytes] = ...) -> None: ...

class MakeWayRequest(_message.Message):
    __slots__ = ("global_cluster", "generation")
    GLOBAL_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    global_cluster: str
    generation: int
    def __init__(self, global_cluster: _Optional[str] = ..., generation: _Optional[int] = ...) -> None: ...

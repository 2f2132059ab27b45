"""A fleet's control plane from outside, for the command line and for programs: gRPC, with the fleet's secret.

Everything here blocks. Where it answers, and the secret, stand in the data directory, in files that only the fleet's
owner can read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from aurora_ray.control.model.custom_endpoints import CustomKind
from aurora_ray.control.model.regional import SEALED
from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.control.model.scaling import ReaderScaling
from aurora_ray.control.model.sealing import seal
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.control.v1.control_pb2_grpc import ControlStub
from aurora_ray.errors import UNDECODABLE, AuroraError, NodeUnreachableError
from aurora_ray.rpc import secret_file
from aurora_ray.rpc.admission import ImpostorError
from aurora_ray.rpc.channel import open_channel
from aurora_ray.rpc.status import CONTROL

CALL_TIMEOUT_S: Final = 30.0
LONG_TIMEOUT_S: Final = 180.0
SLACK_S: Final = 30.0  # a call's own timeout speaks first, with a sentence
PROGRESS_EVERY_S: Final = 0.3
LOOK_AGAIN_S: Final = 0.05

Progress = Callable[[str], None]
T = TypeVar("T")


class NotRunningError(AuroraError):
    """There is no fleet, or it is stopped."""


class ControlClient:
    """A connection to a running fleet's control plane. `close` it, or let it end with the process.

    Calls raise what the control plane raises (see ControlApi), and NotRunningError when it does not answer.
    """

    def __init__(self, data_dir: Path, address: str) -> None:
        """Raises ConfigurationError, FileNotFoundError for the secret's file."""
        self.data_dir = data_dir
        self.address = address
        self._secret = secret_file.load_secret(data_dir / secret_file.FILE_NAME)
        self._runner = asyncio.Runner()
        self._stub: Any = None

    @classmethod
    def connect(cls, data_dir: Path, timeout_s: float, go_on: Callable[[], bool] = lambda: True) -> Self:
        """Connects to what stands in the file, and again to what stands there next, until one answers.

        Raises NotRunningError when the time is over, or earlier when `go_on` says that it is no use.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            client, last = None, time.monotonic() >= deadline_s
            try:
                client = cls(data_dir, _address_in(data_dir))
                client.require_own()
            except (NotRunningError, ImpostorError, OSError) as error:
                if client is not None:
                    client.close()
                if last or not go_on():
                    raise NotRunningError(f"the control plane of {data_dir} does not answer: {error}") from error
                time.sleep(LOOK_AGAIN_S)
            else:
                return client

    def close(self) -> None:
        """Ends the connection."""
        if self._stub is not None:
            self._runner.run(self._channel.close())
        self._runner.close()

    def _call(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        return self._run(self._ask(method, request, timeout_s))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except NodeUnreachableError as error:
            raise NotRunningError(
                f"the control plane does not answer ({error}); what it was asked may be done (`aurora events`); if it "
                "does not come back by itself, `aurora down` and `aurora up` start anew"
            ) from None

    async def _ask(self, method: str, request: Any, timeout_s: float) -> Any:
        if self._stub is None:
            self._channel = open_channel(self.address, CONTROL, self._secret)
            self._stub = ControlStub(self._channel)  # type: ignore[no-untyped-call]
        return await getattr(self._stub, method)(request, timeout=timeout_s)

    # ---- calls

    def info(self) -> dict[str, Any]:
        """The control plane: process id, data directory, fleet, region, epoch."""
        reply: pb.InfoReply = self._call("Info", pb.InfoRequest(), CALL_TIMEOUT_S)
        return {field.name: getattr(reply, field.name) for field in pb.InfoReply.DESCRIPTOR.fields}

    def require_own(self) -> None:
        """Raises NotRunningError unless what answers serves this data directory: files may be copies of another's."""
        theirs = self.info()["data_dir"]
        if theirs != str(self.data_dir):
            raise NotRunningError(f"it is that of {theirs} that answers")

    def create(
        self,
        name: str,
        *,
        engine: str = "",
        version: str | None = None,
        bin_dir: str | None = None,
        cache_bytes: int = 0,
        memory_bytes: int = 0,
        readers: int = 0,
        exist_ok: bool = False,
        timeout_s: float = LONG_TIMEOUT_S,
    ) -> bool:
        """Declares a cluster; whether it is new. One that is there gets as many readers as are lacking to `readers`.
        `engine` empty: of the one that is there, else the default."""
        request = pb.CreateClusterRequest(
            name=name,
            engine=engine,
            engine_version=version,
            bin_dir=bin_dir,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            readers=readers,
            exist_ok=exist_ok,
            timeout_s=timeout_s,
        )
        return bool(self._call("CreateCluster", request, timeout_s + SLACK_S).created)

    def wait_available(
        self,
        name: str,
        *,
        all_readers: bool = False,
        timeout_s: float = LONG_TIMEOUT_S,
        progress: Progress = lambda _: None,
    ) -> dict[str, Any]:
        """Waits until a cluster accepts statements, and so do all of its readers if that is asked for; its status."""
        request = pb.WaitAvailableRequest(name=name, timeout_s=timeout_s, all_readers=all_readers)
        self._run(self._watched("WaitAvailable", request, 3 * timeout_s + SLACK_S, progress))
        return self.status(name)

    async def _watched(self, method: str, request: Any, timeout_s: float, progress: Progress) -> Any:
        """A long call; meanwhile `progress` is told what is decided."""
        waiting = asyncio.ensure_future(self._ask(method, request, timeout_s))
        try:
            while not (await asyncio.wait({waiting}, timeout=PROGRESS_EVERY_S))[0]:
                trail = json.loads((await self._ask("Trail", pb.TrailRequest(), CALL_TIMEOUT_S)).json)
                if trail:
                    progress(trail[-1][1])
            return await waiting
        finally:  # both fail when the control plane dies; one of the errors is enough
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    def status(self, name: str) -> dict[str, Any]:
        """The cluster, its instances and the storage nodes."""
        return dict(self._report("DescribeCluster", pb.DescribeClusterRequest(name=name)))

    def clusters(self) -> list[dict[str, Any]]:
        """All clusters, a few words each."""
        return list(self._report("ListClusters", pb.ListClustersRequest()))

    def delete(self, name: str, *, declare_only: bool = False, timeout_s: float = LONG_TIMEOUT_S) -> None:
        """Takes a cluster away; what it takes to restore it is kept. `declare_only`: its end is not waited for."""
        request = pb.DeleteClusterRequest(name=name, timeout_s=timeout_s, declare_only=declare_only)
        self._call("DeleteCluster", request, 2 * timeout_s + SLACK_S)

    def look_at_state(self) -> dict[str, Any]:
        """Versions of the control state, and what the storage nodes hold."""
        return dict(self._report("DescribeState", pb.DescribeStateRequest(), LONG_TIMEOUT_S))

    def repair_state(self, version: int | None) -> list[str]:
        """Puts a version in force, or makes a state anew (None); the names of its clusters."""
        return list(self._call("RepairState", pb.RepairStateRequest(version=version), LONG_TIMEOUT_S).clusters)

    def graveyard(self) -> list[dict[str, Any]]:
        """The deleted clusters that can be restored."""
        return list(self._report("ListDeleted", pb.ListDeletedRequest()))

    def restore(self, entry: str, new_name: str, *, timeout_s: float = LONG_TIMEOUT_S) -> str:
        """Declares a deleted cluster again; the name that it has now."""
        request = pb.RestoreClusterRequest(entry=entry, new_name=new_name, timeout_s=timeout_s)
        return str(self._call("RestoreCluster", request, timeout_s + SLACK_S).name)

    def purge(self, entry: str, *, timeout_s: float = LONG_TIMEOUT_S) -> None:
        """Gives a deleted cluster up for good."""
        request = pb.PurgeClusterRequest(entry=entry, timeout_s=timeout_s)
        self._call("PurgeCluster", request, 2 * timeout_s + SLACK_S)

    def metrics(self) -> str:
        """All metrics of the fleet, as Prometheus text."""
        return bytes(self._call("Metrics", pb.MetricsRequest()).text).decode()

    def failover(self, name: str, target: str | None, *, timeout_s: float) -> dict[str, Any]:
        """Moves the writer; the status afterwards."""
        request = pb.FailoverClusterRequest(name=name, target=target, timeout_s=timeout_s)
        self._call("FailoverCluster", request, 2 * timeout_s + SLACK_S)
        return self.status(name)

    def add_readers(
        self,
        name: str,
        count: int,
        *,
        tier: int,
        memory_bytes: int = 0,
        timeout_s: float = LONG_TIMEOUT_S,
        progress: Progress = lambda _: None,
    ) -> dict[str, Any]:
        """Adds readers and waits until they accept statements; which they are."""
        request = pb.AddReadersRequest(
            name=name, count=count, tier=tier, memory_bytes=memory_bytes, timeout_s=timeout_s
        )
        done = self._run(self._watched("AddReaders", request, 2 * timeout_s + SLACK_S, progress))
        return dict(json.loads(done.json))

    def clone(
        self,
        source: str,
        name: str,
        at: str = "",
        *,
        memory_bytes: int = 0,
        temporary_s: float = 0.0,
        version: str | None = None,
        bin_dir: str | None = None,
        timeout_s: float = LONG_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Declares a clone, for good or for a while (then the name may be empty); what is to be made."""
        request = pb.CloneClusterRequest(
            source=source,
            name=name,
            at=at,
            memory_bytes=memory_bytes,
            temporary_s=temporary_s,
            engine_version=version,
            bin_dir=bin_dir,
            timeout_s=timeout_s,
        )
        return dict(self._report("CloneCluster", request, 2 * timeout_s + SLACK_S))

    def backtrack(self, name: str, to: str, *, timeout_s: float = LONG_TIMEOUT_S) -> dict[str, Any]:
        """Rewinds a cluster; what was done."""
        request = pb.BacktrackClusterRequest(name=name, to=to, timeout_s=timeout_s)
        return dict(self._report("BacktrackCluster", request, 3 * timeout_s + SLACK_S))

    def mark(self, name: str, label: str, *, timeout_s: float = LONG_TIMEOUT_S) -> dict[str, Any]:
        """Gives the present a name; what it means."""
        request = pb.MarkClusterRequest(name=name, label=label, timeout_s=timeout_s)
        return dict(self._report("MarkCluster", request, 2 * timeout_s + SLACK_S))

    def set_window(self, name: str, window_s: int, log_bytes: int) -> dict[str, Any]:
        """For how long history is kept (0: as it is); what is in force."""
        request = pb.SetBacktrackWindowRequest(name=name, window_s=window_s, log_bytes=log_bytes)
        return dict(self._report("SetBacktrackWindow", request))

    def set_backup(self, name: str, url: str, key_file: str, retention_s: int, location: str = "") -> dict[str, Any]:
        """Declares where a cluster is backed up (no URL: nowhere); what is in force."""
        request = pb.SetBackupRequest(name=name, url=url, key_file=key_file, retention_s=retention_s, location=location)
        return dict(self._report("SetBackup", request))

    def restore_backup(
        self, url: str, name: str, cluster: str, at: str, key_file: str, *, timeout_s: float = LONG_TIMEOUT_S
    ) -> dict[str, Any]:
        """Declares a cluster that is made out of a backup; what is to be made."""
        request = pb.RestoreBackupRequest(
            url=url, name=name, cluster=cluster, at=at, key_file=key_file, timeout_s=timeout_s
        )
        return dict(self._report("RestoreBackup", request, 2 * timeout_s + SLACK_S))

    def remove_reader(self, instance: str, *, timeout_s: float = LONG_TIMEOUT_S) -> dict[str, Any]:
        """Ends a reader and forgets it; what was done."""
        request = pb.RemoveReaderRequest(instance=instance, timeout_s=timeout_s)
        return dict(self._report("RemoveReader", request, 2 * timeout_s + SLACK_S))

    def autoscale_readers(self, name: str, rule: ReaderScaling | None) -> dict[str, Any]:
        """Declares by what rule the number of readers follows their load, or None; what is in force."""
        request = pb.AutoscaleReadersRequest(name=name, off=True)
        if rule is not None:
            request = pb.AutoscaleReadersRequest(
                name=name,
                min=rule.min_readers,
                max=rule.max_readers,
                metric=str(rule.metric),
                target=rule.target,
                cooldown_out_s=rule.cooldown_out_s,
                cooldown_in_s=rule.cooldown_in_s,
            )
        return dict(self._report("AutoscaleReaders", request))

    def scale(self, name: str, *, timeout_s: float = LONG_TIMEOUT_S, **said: Any) -> dict[str, Any]:
        """Declares between which capacities a cluster scales; `said`: see api.capacity.Scaling, what is None stays."""
        request = pb.ScaleClusterRequest(name=name, timeout_s=timeout_s, **said)
        return dict(self._report("ScaleCluster", request, timeout_s + SLACK_S))

    def usage(self, name: str, since: str = "", timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """What a cluster has used since a moment (empty: since it is counted)."""
        request = pb.DescribeUsageRequest(name=name, since=since, timeout_s=timeout_s)
        return dict(self._report("DescribeUsage", request, timeout_s + SLACK_S))

    def create_endpoint(
        self,
        name: str,
        endpoint: str,
        kind: CustomKind,
        *,
        members: Sequence[str] = (),
        excluded: Sequence[str] = (),
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Creates a custom endpoint and waits until it listens; what it is."""
        request = pb.CreateEndpointRequest(
            name=name, endpoint=endpoint, kind=str(kind), members=members, excluded=excluded, timeout_s=timeout_s
        )
        return dict(self._report("CreateEndpoint", request, 2 * timeout_s + SLACK_S))

    def delete_endpoint(self, name: str, endpoint: str, *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """Deletes a custom endpoint and waits until it is closed; what was done."""
        request = pb.DeleteEndpointRequest(name=name, endpoint=endpoint, timeout_s=timeout_s)
        return dict(self._report("DeleteEndpoint", request, 2 * timeout_s + SLACK_S))

    def set_parameters(self, name: str, changes: dict[str, str | None]) -> list[dict[str, Any]]:
        """Sets parameters of a cluster (None: resets them); what was done, by parameter."""
        wanted = {key: value for key, value in changes.items() if value is not None}
        reset = [key for key, value in changes.items() if value is None]
        request = pb.ModifyParametersRequest(name=name, set=wanted, reset=reset)
        return list(self._report("ModifyParameters", request, 2 * CALL_TIMEOUT_S))

    def modify(self, name: str, memory_bytes: int, *, at_next_start: bool, timeout_s: float) -> dict[str, Any]:
        """Another size for the instances of a cluster (0: by the rule); what was done."""
        request = pb.ModifyClusterRequest(
            name=name, memory_bytes=memory_bytes, at_next_start=at_next_start, timeout_s=timeout_s
        )
        return dict(self._report("ModifyCluster", request, 2 * timeout_s + SLACK_S))

    def repair(self, name: str, kinds: list[str], *, timeout_s: float) -> None:
        """Declares repairs and waits until they are made."""
        request = pb.RepairClusterRequest(name=name, kinds=kinds, timeout_s=timeout_s)
        self._call("RepairCluster", request, 2 * timeout_s + SLACK_S)

    # ---- global clusters

    def create_global(self, name: str, cluster: str) -> dict[str, Any]:
        """Declares a cluster to be the primary of a new global cluster."""
        request = pb.CreateGlobalClusterRequest(global_cluster=name, cluster=cluster)
        return dict(self._report("CreateGlobalCluster", request))

    def invite_region(self, name: str, guest: ControlClient) -> dict[str, Any]:
        """Declares that the guest's fleet is a region of the global cluster; what it is to be told."""
        info = guest.info()
        secret = seal(SEALED, guest._secret.to_text(), self._secret)
        told = {each: info[each] for each in ("region", "fleet_id", "data_dir")}
        document = json.dumps({**told, "address": guest.address, "secret": secret}).encode()
        return dict(self._report("InviteRegion", pb.InviteRegionRequest(global_cluster=name, guest=document)))

    def join_global(
        self,
        invitation: dict[str, Any],
        *,
        readers: int,
        memory_bytes: int = 0,
        timeout_s: float = LONG_TIMEOUT_S,
        progress: Progress = lambda _: None,
    ) -> dict[str, Any]:
        """Declares this region's copy and waits until it can be read; the region as it is then."""
        request = pb.JoinGlobalClusterRequest(
            invitation=json.dumps(invitation).encode(), readers=readers, memory_bytes=memory_bytes, timeout_s=timeout_s
        )
        self._report("JoinGlobalCluster", request, timeout_s + SLACK_S)
        waiting = pb.WaitCopiedRequest(global_cluster=str(invitation["global"]), timeout_s=timeout_s)
        done = self._run(self._watched("WaitCopied", waiting, 3 * timeout_s + SLACK_S, progress))
        return dict(json.loads(done.json))

    def remove_region(self, name: str, region: str, *, keep: bool, force: bool, timeout_s: float) -> dict[str, Any]:
        """Has a secondary region leave; with `keep`, as a cluster of its own."""
        request = pb.RemoveRegionRequest(
            global_cluster=name, region=region, keep=keep, force=force, timeout_s=timeout_s
        )
        return dict(self._report("RemoveRegion", request, 3 * timeout_s + SLACK_S))

    def leave_global(self, name: str, *, timeout_s: float) -> dict[str, Any]:
        """Has this region leave, with its data, as a cluster of its own."""
        request = pb.LeaveGlobalClusterRequest(global_cluster=name, keep=True, timeout_s=timeout_s)
        return dict(self._report("LeaveGlobalCluster", request, 2 * timeout_s + SLACK_S))

    def turn_global(
        self, name: str, to: str, way: str, *, timeout_s: float, progress: Progress = lambda _: None
    ) -> dict[str, Any]:
        """Another primary, by a switchover or a failover; what that came to."""
        request = pb.TurnRequest(global_cluster=name, region=to, way=way, timeout_s=timeout_s)
        done = self._run(self._watched("TurnGlobalCluster", request, 3 * timeout_s + SLACK_S, progress))
        return dict(json.loads(done.json))

    def set_residency(
        self, name: str, regions: Sequence[str], jurisdictions: Sequence[str], *, timeout_s: float
    ) -> dict[str, Any]:
        """Where the data of a global cluster may lie, none of both: anywhere; the rule in words."""
        request = pb.SetResidencyRequest(
            global_cluster=name, regions=regions, jurisdictions=jurisdictions, timeout_s=timeout_s
        )
        return dict(self._report("SetResidency", request, timeout_s + SLACK_S))

    def set_limits(
        self,
        name: str,
        lease_s: float | None,
        rpo_s: float | None,
        failover_after_s: float | None = None,
        *,
        timeout_s: float,
    ) -> dict[str, Any]:
        """When the primary acknowledges commits (0: without that limit, None: as it is), and when a secondary takes
        over by itself; what is in force."""
        request = pb.SetCommitLimitsRequest(
            global_cluster=name, lease_s=lease_s, rpo_s=rpo_s, failover_after_s=failover_after_s, timeout_s=timeout_s
        )
        return dict(self._report("SetCommitLimits", request, timeout_s + SLACK_S))

    def set_forwarding(self, name: str, *, on: bool, timeout_s: float) -> dict[str, Any]:
        """Whether sessions on readers of a global cluster may write; what is in force."""
        request = pb.SetForwardingRequest(global_cluster=name, on=on, timeout_s=timeout_s)
        return dict(self._report("SetForwarding", request, timeout_s + SLACK_S))

    def residency(self, name: str) -> dict[str, Any]:
        """The policy as that region knows it, and its audit log."""
        return dict(self._report("DescribeResidency", pb.DescribeRegionRequest(global_cluster=name)))

    def global_status(self, name: str) -> dict[str, Any]:
        """All regions of a global cluster."""
        return dict(self._report("DescribeGlobalCluster", pb.DescribeRegionRequest(global_cluster=name)))

    def chaos(
        self, verb: str, target: str, name: str, for_s: float | None, *, for_good: bool = False
    ) -> list[dict[str, Any]]:
        """A fault on purpose; what was struck."""
        request = pb.InjectFaultRequest(verb=verb, target=target, cluster=name, for_s=for_s, for_good=for_good)
        return list(self._report("InjectFault", request))

    def trail(self) -> list[tuple[float, str]]:
        """What was decided and why."""
        return [(at_s, said) for at_s, said in self._report("Trail", pb.TrailRequest())]

    def _report(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        return json.loads(self._call(method, request, timeout_s).json)


def _address_in(data_dir: Path) -> str:
    """Raises NotRunningError."""
    try:
        return str(json.loads((data_dir / ADDRESS_FILE).read_text())["address"])
    except FileNotFoundError:
        raise NotRunningError(
            f"there is no {data_dir / ADDRESS_FILE}: it is still starting, or of an older version (`aurora down`, then "
            "`aurora up`)"
        ) from None
    except (OSError, *UNDECODABLE) as error:
        raise NotRunningError(f"{data_dir / ADDRESS_FILE} does not say where it is ({type(error).__name__})") from None

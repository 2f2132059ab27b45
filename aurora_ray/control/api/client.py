"""A fleet's control plane from outside, for the command line and for programs: gRPC, with the fleet's secret.

Everything here blocks. Where it answers, and the secret, stand in the data directory, in files that only the fleet's
owner can read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.control.v1 import control_pb2 as pb
from aurora_ray.control.v1.control_pb2_grpc import ControlStub
from aurora_ray.engine.registry import DEFAULT_ENGINE
from aurora_ray.errors import AuroraError, NodeUnreachableError
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
                f"the control plane does not answer ({error}); `aurora down` and `aurora up` start anew"
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
        engine: str = DEFAULT_ENGINE,
        version: str | None = None,
        bin_dir: str | None = None,
        cache_bytes: int = 0,
        memory_bytes: int = 0,
        exist_ok: bool = False,
        timeout_s: float = LONG_TIMEOUT_S,
    ) -> bool:
        """Declares a cluster; whether it is new."""
        request = pb.CreateClusterRequest(
            name=name,
            engine=engine,
            engine_version=version,
            bin_dir=bin_dir,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            exist_ok=exist_ok,
            timeout_s=timeout_s,
        )
        return bool(self._call("CreateCluster", request, timeout_s + SLACK_S).created)

    def wait_available(
        self, name: str, *, timeout_s: float = LONG_TIMEOUT_S, progress: Progress = lambda _: None
    ) -> dict[str, Any]:
        """Waits until a cluster accepts statements; its status."""
        self._run(self._wait_available(name, timeout_s, progress))
        return self.status(name)

    async def _wait_available(self, name: str, timeout_s: float, progress: Progress) -> None:
        request = pb.WaitAvailableRequest(name=name, timeout_s=timeout_s)
        waiting = asyncio.ensure_future(self._ask("WaitAvailable", request, 2 * timeout_s + SLACK_S))
        while not (await asyncio.wait({waiting}, timeout=PROGRESS_EVERY_S))[0]:
            trail = json.loads((await self._ask("Trail", pb.TrailRequest(), CALL_TIMEOUT_S)).json)
            if trail:
                progress(trail[-1][1])
        await waiting

    def status(self, name: str) -> dict[str, Any]:
        """The cluster, its instances and the storage nodes."""
        return dict(self._report("DescribeCluster", pb.DescribeClusterRequest(name=name)))

    def clusters(self) -> list[dict[str, Any]]:
        """All clusters, a few words each."""
        return list(self._report("ListClusters", pb.ListClustersRequest()))

    def delete(self, name: str, *, timeout_s: float = LONG_TIMEOUT_S) -> None:
        """Takes a cluster away; what it takes to restore it is kept."""
        request = pb.DeleteClusterRequest(name=name, timeout_s=timeout_s)
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotRunningError(f"{data_dir / ADDRESS_FILE} does not say where it is ({type(error).__name__})") from None

"""What can be asked of the control plane: change the declared state, wait for the actual, report both."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from aurora_ray.compute.role import Role
from aurora_ray.control.api import administration, backups, cloning, custom, readers, regional, repair_state
from aurora_ray.control.api.capacity import Scaling, report_capacity, scale, usage, wake
from aurora_ray.control.api.moving import fail_over
from aurora_ray.control.api.regional_calls import LOOK_TIMEOUT_S, RegionalCalls
from aurora_ray.control.api.sizing import modify
from aurora_ray.control.decide import graveyard, sizing
from aurora_ray.control.decide.readers import DEFAULT_TIER, with_readers
from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.placement import place_group, place_next
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet, VolumeState
from aurora_ray.control.observe.endpoints import cluster_endpoint
from aurora_ray.control.perform import backing, passfiles
from aurora_ray.control.perform.ports import free_ports
from aurora_ray.control.report import status as report
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from aurora_ray.errors import AuroraError, ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.model.custom_endpoints import CustomEndpoint
    from aurora_ray.control.model.scaling import ReaderScaling
    from aurora_ray.storage.v1 import storage_pb2 as pb

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")


class ControlApi(RegionalCalls):
    """The calls; everything belongs to the control plane's event loop."""

    # ---- clusters

    async def create(
        self,
        name: str,
        *,
        engine: str = "",
        version: str | None = None,
        bin_dir: str | None = None,
        cache_bytes: int = 0,
        memory_bytes: int = 0,
        reader_count: int = 0,
        exist_ok: bool = False,
        timeout_s: float = 60.0,
    ) -> bool:
        """Declares a cluster; whether it is new. Raises UsageError, ConfigurationError, QuorumLostError.

        `engine` empty: that of the one that exists, else the default. `memory_bytes` is the size of its instances (0:
        see engine.sizes), `cache_bytes` that of their page caches. One that exists (`exist_ok`) gets as many readers as
        are lacking to `reader_count`, and loses none.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no cluster name: lower-case letters, digits and dashes, a letter first")
        if engine:
            adapter(engine)
        await self.wait_open(timeout_s)
        existing = next((c for c in self._plane.fleet.clusters if c.name == name), None)
        engine = engine or (existing.engine if existing is not None else DEFAULT_ENGINE)
        known = adapter(engine)
        if existing is not None:
            if not exist_ok:
                raise UsageError(f"there is a cluster {name!r} already")
            _check_same(existing, engine, version, memory_bytes)
            await readers.declare(self._plane, name, reader_count, free=self._free)
            return False
        found = await asyncio.to_thread(known.find, version, Path(bin_dir) if bin_dir else None)
        readers.check(reader_count, engine)
        config, machine = self._plane.config, this_machine()
        memory_bytes = memory_bytes or config.instance_bytes
        sizing.check_memory(memory_bytes, machine)
        # The series only: the next minor version of the same installation opens the same data.
        wanted = DBCluster(name, engine, found.series, bin_dir or "", 0, "", _no_volume(), cache_bytes=cache_bytes)

        def change(fleet: Fleet) -> Fleet:
            fleet = self._with_new(fleet, replace(wanted, superuser_password=password), memory_bytes)
            fleet = with_readers(
                fleet, name, reader_count, tier=DEFAULT_TIER, memory_bytes=memory_bytes, ports=self._free
            )
            return sizing.with_sizes(fleet, machine)

        with passfiles.following(config.data_dir, lambda: self._plane.fleet, self._plane.say):
            password = await asyncio.to_thread(known.ensure_passfile, report.passfile(config.data_dir, name, engine))
            await self._plane.commit(change)
        return True

    def _with_new(self, fleet: Fleet, wanted: DBCluster, memory_bytes: int) -> Fleet:
        if any(cluster.name == wanted.name for cluster in fleet.clusters):
            raise UsageError(f"there is a cluster {wanted.name!r} already")
        group = place_group(0, fleet.azs, fleet.nodes, fleet.volumes())
        volume = VolumeState(uuid4(), adapter(wanted.engine).page_bytes, self._plane.config.group_bytes, (group,))
        port, reader_port, writer_port = free_ports(fleet, self._plane.config.listen_host, 3)
        az = place_next(fleet)
        writer = DBInstance(f"{wanted.name}-1", Role.WRITER, az, writer_port, memory_bytes=memory_bytes)
        cluster = replace(
            wanted,
            volume=volume,
            port=port,
            reader_port=reader_port,
            instances=(writer,),
            created_at_s=time.time(),
        )
        return fleet.with_cluster(cluster)

    def _free(self, fleet: Fleet, count: int) -> list[int]:
        return free_ports(fleet, self._plane.config.listen_host, count)

    async def wait_available(self, name: str, timeout_s: float, *, all_readers: bool = False) -> None:
        """Waits until statements are accepted at the cluster endpoint, and by all readers if that is asked for. Raises
        what keeps it from that for good."""
        await self.wait_open(timeout_s)

        def available() -> bool:
            cluster = self._plane.fleet.cluster(name)
            check_hope(self._plane.attempts, key(Kind.INSTANCE, cluster.writer().instance_id))
            problem = self._plane.endpoints.problem(cluster)
            if problem and not self._plane.endpoints.taken(cluster):
                raise ConfigurationError(problem)
            if cluster.is_secondary:  # nobody writes here: what there is to wait for is the copy
                return self._state(cluster) == "following"
            if cluster.paused_since_s:  # whoever connects has it
                return self._plane.endpoints.told(cluster_endpoint(name))
            return self._state(cluster) in ("available", "restoring") and self._plane.endpoints.serves(cluster)

        await self._plane.wait_until(available, timeout_s, f"starting {name}")
        if all_readers and not self._plane.fleet.cluster(name).paused_since_s:
            ids = [reader.instance_id for reader in self._plane.fleet.cluster(name).readers()]
            await readers.wait(self._plane, ids, timeout_s)

    async def delete(self, name: str, timeout_s: float, *, declare_only: bool = False) -> None:
        """Takes a cluster away, and waits until its processes are gone unless that shall only be declared; what it
        takes to restore it is kept."""
        await self.wait_open(timeout_s)
        regional.require_alone(self._plane.fleet.cluster(name), "be deleted")
        graveyard.require_room(self._plane.fleet)
        await self._plane.commit(
            lambda fleet: fleet.with_cluster(replace(fleet.cluster(name), phase=ClusterPhase.DELETING))
        )
        if declare_only:
            self._plane.notify()
            return

        def gone() -> bool:
            return all(cluster.name != name for cluster in self._plane.fleet.clusters)

        await self._plane.wait_until(gone, timeout_s, f"deleting {name}")
        self._plane.events.note(EventKind.CLUSTER, name, f"{name} was deleted", name)

    # ---- the past

    async def clone(
        self,
        source: str,
        name: str,
        at: str,
        *,
        memory_bytes: int = 0,
        temporary_s: float = 0.0,
        version: str | None = None,
        bin_dir: str | None = None,
        timeout_s: float,
    ) -> dict[str, Any]:
        """See cloning.clone; without a name, one is made up."""
        name = name or f"{source[:26].rstrip('-')}-as-of-{secrets.token_hex(3)}"
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no cluster name: lower-case letters, digits and dashes, a letter first")
        await self.wait_open(timeout_s)
        return await cloning.clone(
            self._plane,
            source,
            name,
            at,
            memory_bytes=memory_bytes,
            temporary_s=temporary_s,
            version=version,
            bin_dir=bin_dir,
            free=self._free,
            timeout_s=timeout_s,
        )

    async def backtrack(self, name: str, to: str, timeout_s: float) -> dict[str, Any]:
        """See cloning.backtrack."""
        await self.wait_open(timeout_s)
        regional.require_alone(self._plane.fleet.cluster(name), "be rewound")
        await wake(self._plane, name, "a rewind was asked for", timeout_s)
        return await cloning.backtrack(self._plane, name, to, timeout_s)

    async def mark(self, name: str, label: str, timeout_s: float) -> dict[str, Any]:
        """See cloning.mark."""
        await self.wait_open(timeout_s)
        regional.require_writer(self._plane.fleet.cluster(name), "be given marks")
        await wake(self._plane, name, "a mark was asked for", timeout_s)
        return await cloning.mark(self._plane, name, label, timeout_s)

    async def set_window(self, name: str, window_s: int, log_bytes: int) -> dict[str, Any]:
        """See cloning.set_window."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await cloning.set_window(self._plane, name, window_s, log_bytes)

    # ---- backups

    async def set_backup(
        self, name: str, url: str, key_file: str, retention_s: int, location: str = ""
    ) -> dict[str, Any]:
        """See backups.set_backup."""
        await self.wait_open(LOOK_TIMEOUT_S)
        if url:
            regional.require_writer(self._plane.fleet.cluster(name), "be backed up")
        return await backups.set_backup(self._plane, name, url, key_file, retention_s, self._free, location=location)

    async def restore_backup(
        self, url: str, name: str, *, cluster: str, at: str, key_file: str, timeout_s: float
    ) -> dict[str, Any]:
        """See backups.restore."""
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no cluster name: lower-case letters, digits and dashes, a letter first")
        await self.wait_open(timeout_s)
        source = await backups.look_up(url, cluster, backups.moment_of(at), key_file)
        return await backups.restore(self._plane, source, name, self._free)

    # ---- repairs

    async def look_at_state(self) -> dict[str, Any]:
        """See repair_state.look; also while no state can be loaded."""
        return await repair_state.look(self._plane)

    async def repair_state(self, version: int | None) -> list[str]:
        """Puts a version in force, or makes a state anew from the storage nodes (None); the names of its clusters."""
        if version is None:
            return await repair_state.rebuild(self._plane, self._free)
        await repair_state.choose(self._plane, version)
        return [cluster.name for cluster in self._plane.fleet.clusters]

    # ---- the graveyard

    async def graveyard(self) -> list[dict[str, Any]]:
        """The deleted clusters that can be restored, the newest first: see graveyard.report."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return graveyard.report(self._plane.fleet.deleted)

    async def restore(self, entry: str, new_name: str, timeout_s: float) -> str:
        """Declares a deleted cluster (by its name or volume id) again; the name that it has now.

        Raises UsageError, ConfigurationError, QuorumLostError.
        """
        await self.wait_open(timeout_s)
        if new_name and not NAME.fullmatch(new_name):
            raise UsageError(f"{new_name!r} is no cluster name: lower-case letters, digits and dashes, a letter first")
        old = graveyard.find(self._plane.fleet, entry).cluster
        name = new_name or old.name
        volume_id = old.volume.volume_id
        fleet = await self._plane.commit(
            lambda fleet: graveyard.with_restored(fleet, str(volume_id), new_name, self._free)
        )
        cluster = fleet.cluster(name)
        path = report.passfile(self._plane.config.data_dir, name, cluster.engine)
        await asyncio.to_thread(adapter(cluster.engine).write_passfile, path, cluster.superuser_password)
        self._plane.events.note(EventKind.CLUSTER, name, f"{old.name}, which had been deleted, was restored", name)
        return name

    async def purge(self, entry: str, timeout_s: float) -> None:
        """Gives a deleted cluster up for good, and waits until the nodes that run have nothing of it any more."""
        await self.wait_open(timeout_s)
        record = graveyard.find(self._plane.fleet, entry)
        volume_id = record.cluster.volume.volume_id
        await backing.end_backups(self._plane.fleet.fleet_id, record, self._plane.say)
        await self._plane.commit(lambda fleet: fleet.without_deleted(str(volume_id)))
        self._plane.events.note(EventKind.CLUSTER, record.cluster.name, "what was kept of it was purged")

        def gone() -> bool:
            held = {n for v in self._plane.fleet.dropped_volumes if v.volume_id == volume_id for n in _created_on(v)}
            return not held.intersection(self._plane.processes.nodes)

        await self._plane.wait_until(gone, timeout_s, f"purging {entry}")

    async def set_parameters(self, name: str, changes: Mapping[str, str | None]) -> list[dict[str, Any]]:
        """See administration.set_parameters."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await administration.set_parameters(self._plane, name, changes)

    async def modify(self, name: str, memory_bytes: int, at_next_start: bool, timeout_s: float) -> dict[str, Any]:
        """See sizing.modify."""
        await self.wait_open(timeout_s)
        await wake(self._plane, name, "another size was asked for", timeout_s)
        return await modify(self._plane, name, memory_bytes, at_next_start=at_next_start, timeout_s=timeout_s)

    async def scale(self, name: str, said: Scaling, timeout_s: float) -> dict[str, Any]:
        """See capacity.scale."""
        await self.wait_open(timeout_s)
        return await scale(self._plane, name, said, timeout_s)

    async def usage(self, name: str, since: str, timeout_s: float) -> dict[str, Any]:
        """See capacity.usage."""
        await self.wait_open(timeout_s)
        return usage(self._plane, name, since)

    async def repair(self, name: str, kinds: Sequence[str], timeout_s: float) -> None:
        """See administration.repair."""
        await self.wait_open(timeout_s)
        regional.require_writer(self._plane.fleet.cluster(name), "be repaired")
        await wake(self._plane, name, "a repair was asked for", timeout_s)
        await administration.repair(self._plane, name, kinds, timeout_s)

    async def failover(self, name: str, target: str | None, timeout_s: float) -> None:
        """See moving.fail_over; waits until the writer is available."""
        await self.wait_open(timeout_s)
        regional.require_writer(self._plane.fleet.cluster(name), "have its writer moved")
        await wake(self._plane, name, "a failover was asked for", timeout_s)
        await fail_over(self._plane, name, target, timeout_s)
        await self.wait_available(name, timeout_s)

    # ---- readers

    async def add_readers(
        self, name: str, count: int, *, tier: int, memory_bytes: int, timeout_s: float
    ) -> dict[str, Any]:
        """See readers.add."""
        await self.wait_open(timeout_s)
        await wake(self._plane, name, "a reader was asked for", timeout_s)
        return await readers.add(
            self._plane, name, count, tier=tier, memory_bytes=memory_bytes, free=self._free, timeout_s=timeout_s
        )

    async def autoscale_readers(self, name: str, rule: ReaderScaling | None) -> dict[str, Any]:
        """See readers.set_scaling."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return await readers.set_scaling(self._plane, name, rule)

    async def remove_reader(self, instance_id: str, timeout_s: float) -> dict[str, Any]:
        """See readers.remove."""
        await self.wait_open(timeout_s)
        return await readers.remove(self._plane, instance_id, timeout_s)

    # ---- custom endpoints

    async def create_endpoint(self, name: str, wanted: CustomEndpoint, timeout_s: float) -> dict[str, Any]:
        """See custom.create; as `status` reports it."""
        await self.wait_open(timeout_s)
        await custom.create(self._plane, name, wanted, free=self._free, timeout_s=timeout_s)
        found: list[dict[str, Any]] = (await self.status(name))["endpoints"]["custom"]
        return {"cluster": name} | next(each for each in found if each["name"] == wanted.name)

    async def delete_endpoint(self, name: str, endpoint: str, timeout_s: float) -> dict[str, Any]:
        """See custom.delete."""
        await self.wait_open(timeout_s)
        return await custom.delete(self._plane, name, endpoint, timeout_s)

    # ---- reports

    async def clusters(self) -> list[dict[str, Any]]:
        """All clusters, a few words each."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return [
            {
                "cluster": cluster.name,
                "engine": cluster.engine,
                "engine_version": cluster.engine_version,
                "state": self._state(cluster),
                "instances": len(cluster.instances),
                "readers": len(cluster.readers()),
                "port": cluster.port,
            }
            for cluster in self._plane.fleet.clusters
        ]

    async def status(self, name: str) -> dict[str, Any]:
        """The cluster, its instances and the storage nodes, looked at now. Raises UsageError."""
        await self.wait_open(LOOK_TIMEOUT_S)
        plane = self._plane
        cluster = plane.fleet.cluster(name)
        processes = plane.processes
        instances = dict(processes.instances)
        nodes = dict(processes.nodes)
        wanted = [i.instance_id for i in cluster.instances if i.instance_id in instances]
        statuses = await asyncio.gather(*(self._look(instance_id) for instance_id in wanted))
        states = await asyncio.gather(*(self._node_state(node_id) for node_id in nodes))
        looked = dict(zip(wanted, statuses, strict=True))
        addresses = {each: plane.endpoints.address(cluster, each, instances) for each in cluster.endpoint_ports()}
        return report.report_cluster(
            cluster,
            plane.fleet,
            data_dir=plane.config.data_dir,
            listen_host=plane.config.listen_host,
            nodes=nodes,
            instances=instances,
            statuses=looked,
            node_states={n: state for n, state in zip(nodes, states, strict=True) if state is not None},
            attempts=plane.attempts,
            endpoints=report.report_endpoints(
                cluster, plane.config.data_dir, addresses, await plane.endpoints.states(LOOK_TIMEOUT_S)
            ),
            notes=(*plane.notes, *plane.metrics_port.notes, *report.small_notes(small=plane.config.small)),
            faults=plane.chaos.in_force(),
            troubles=plane.own_troubles(),
            limit_bytes=plane.config.volume_limit_bytes,
        ) | {
            "metrics": plane.metrics_port.url,
            "capacity": report_capacity(plane, cluster),
            "backtrack": await cloning.window(plane, cluster),
            "backup": backups.report_backup(cluster, looked),
        }

    async def secret(self, name: str) -> str:
        """The superuser's password, for the passfile on the caller's machine."""
        await self.wait_open(LOOK_TIMEOUT_S)
        return self._plane.fleet.cluster(name).superuser_password

    def trail(self) -> list[tuple[float, str]]:
        """What was decided and why, oldest first: (unix time in seconds, sentence)."""
        return list(self._plane.journal.trail)

    def _state(self, cluster: DBCluster) -> str:
        return report.cluster_state(cluster, self._plane.processes.instances, self._plane.attempts)

    async def _look(self, instance_id: str) -> InstanceStatus | None:
        instance = self._plane.processes.instances.get(instance_id)
        if instance is None:
            return None
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await instance.process.status()
        except (TimeoutError, ProcessGoneError):
            return instance.status

    async def _node_state(self, node_id: str) -> pb.StateReply | None:
        node = self._plane.processes.nodes[node_id]
        try:
            return await self._plane.processes.clients.state(node_id, node.seen.address, timeout_s=LOOK_TIMEOUT_S)
        except AuroraError:
            return None


def _created_on(volume: VolumeState) -> set[str]:
    return {node_id for group in volume.groups for node_id in group.created_on}


def _no_volume() -> VolumeState:
    return VolumeState(uuid4(), 0, 0, ())


def _check_same(existing: DBCluster, engine: str, version: str | None, memory_bytes: int) -> None:
    if memory_bytes not in (0, existing.writer().memory_bytes):
        raise UsageError(f"cluster {existing.name!r} exists with another size: `aurora modify` changes it")
    if engine != existing.engine or (version is not None and not _same_series(version, existing.engine_version)):
        raise UsageError(
            f"cluster {existing.name!r} exists with {existing.engine} {existing.engine_version}; "
            f"choose another name for one with {engine} {version or ''}".rstrip()
        )


def _same_series(version: str, series: str) -> bool:
    """Whether "18.4" or "10" can mean what was declared as "18" or "10.11"."""
    return f"{version}.".startswith(f"{series}.") or f"{series}.".startswith(f"{version}.")

"""Backups, by a user's word: on, off, and a new cluster out of one."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from aurora_ray.backup import catalogue
from aurora_ray.backup.bucket import Bucket, normal_url
from aurora_ray.backup.frame import Key
from aurora_ray.backup.manifest import RETENTION_MAX_S
from aurora_ray.compute.role import Role
from aurora_ray.control.api import moves
from aurora_ray.control.decide import sizing
from aurora_ray.control.decide.backups import with_backup
from aurora_ray.control.decide.readers import DEFAULT_TIER, with_readers
from aurora_ray.control.model.backups import DAY_S, RETENTION_MIN_S, BackupPlan, RestorePlan
from aurora_ray.control.model.moments import Moment, parse
from aurora_ray.control.model.placement import place_group, place_instance
from aurora_ray.control.model.state import DBCluster, DBInstance, Fleet, Group, VolumeState
from aurora_ray.control.perform import passfiles
from aurora_ray.control.report import status as report
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.registry import adapter
from aurora_ray.engine.sizes import memory_for_instances
from aurora_ray.errors import UsageError
from aurora_ray.replication.residency import Policy, Purpose
from aurora_ray.volume.origin import describe_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aurora_ray.backup.manifest import Subject
    from aurora_ray.compute.config import InstanceStatus
    from aurora_ray.control.plane import ControlPlane

    FreePorts = Callable[[Fleet, int], list[int]]


async def set_backup(  # noqa: PLR0917
    plane: ControlPlane,
    name: str,
    url: str,
    key_file: str,
    retention_s: int,
    free: FreePorts,
    *,
    location: str = "",
) -> dict[str, Any]:
    """Declares where a cluster is backed up, and for how long history is kept there; without a URL, that it is not
    backed up any more. What is in the bucket stays. `location`: the region in which that place lies; where it is not
    said, the `region` of the URL.

    Raises UsageError, ConfigurationError for a key that cannot be read, BackupError for a place that cannot be used,
    ResidencyError for one where the cluster's data may not lie.
    """
    plan = None
    if url:
        if not RETENTION_MIN_S <= retention_s <= RETENTION_MAX_S:
            raise UsageError(f"a backup is kept for 1 to {RETENTION_MAX_S // DAY_S} days, as --retention 7d")
        if key_file:
            await asyncio.to_thread(Key.load, Path(key_file))
        location = located(url, location)
        moves.require_place(plane.config, plane.fleet.cluster(name), plane.fleet.region, location)
        await asyncio.to_thread(Bucket.at, url)
        plan = BackupPlan(normal_url(url), key_file, retention_s, location)
    await plane.commit(lambda fleet: with_backup(fleet, name, plan, free))
    told = f"{name} is backed up to {plan.url}" if plan is not None else f"{name} is not backed up any more"
    plane.events.note(EventKind.CLUSTER, name, told, name)
    plane.notify()
    return {"cluster": name, "url": plan.url if plan else None, "retention_s": plan.retention_s if plan else None}


def located(url: str, location: str) -> str:
    """The region in which the place of a backup lies, as its user says or its URL does; empty if neither. Raises
    UsageError if they differ: who is right cannot be told from here."""
    there = dict(parse_qsl(urlsplit(url).query)).get("region", "")
    if there and location and there != location:
        raise UsageError(f"{url} is in {there} by its own word, not in {location}: leave --location out")
    return location or there


def report_backup(cluster: DBCluster, statuses: dict[str, InstanceStatus | None]) -> dict[str, Any] | None:
    """For `status`: where it goes and how far it is; None if there is no backup."""
    plan = cluster.backup
    if plan is None:
        return None
    found = next((statuses.get(each.instance_id) for each in cluster.instances if each.role.traits.archives), None)
    stats = found.stats if found is not None else {}
    return {
        "url": plan.url,
        "location": plan.location or None,
        "encrypted": bool(plan.key_file),
        "retention_s": plan.retention_s,
        "lsn": int(stats.get("backup_lsn", 0)),
        "time": describe_time(int(stats.get("backup_time_s", 0) * 1e6)) if stats.get("backup_time_s") else None,
        "lag_s": stats.get("backup_lag_s"),
        "lag_bytes": int(stats.get("backup_source_lsn", 0) - stats.get("backup_lsn", 0)),
        "restorable_from_lsn": int(stats.get("backup_restorable_lsn", 0)) or None,
    }


# ---- restoring


@dataclass(frozen=True, slots=True)
class Source:
    """What is going to be restored."""

    plan: RestorePlan
    subject: Subject
    groups: tuple[int, ...]
    volume_id: str
    time_us: int


async def look_up(url: str, cluster: str, moment: Moment, key_file: str) -> Source:
    """Where a moment lies in a place for backups. Raises UsageError, OutOfRangeError, BackupError,
    ConfigurationError."""
    key = await asyncio.to_thread(Key.load, Path(key_file)) if key_file else None
    bucket = await asyncio.to_thread(Bucket.at, url)
    entries = await catalogue.entries(bucket, key)
    found = await catalogue.find(entries, cluster, moment.time_us, moment.lsn, moment.mark)
    plan = RestorePlan(bucket.url, found.store.place, found.lsn, key_file)
    manifest = found.manifest
    return Source(plan, manifest.subject, manifest.groups, manifest.volume_id, found.time_us)


async def restore(plane: ControlPlane, source: Source, name: str, free: FreePorts) -> dict[str, Any]:
    """Declares `name`, a new cluster with all that the source's had at a moment: its size, parameters and readers.

    What may lie here is up to the policy that stands in the backup, which the new cluster has as well.

    Its password is the source's where that is known: it stands in an encrypted backup, and in this fleet's state if it
    has that cluster. Otherwise it gets a new one when it opens for writing. Raises UsageError, ConfigurationError,
    ResidencyError.
    """
    subject, machine, config = source.subject, this_machine(), plane.config
    policy = Policy.from_pair(subject.residency)
    moves.require(config, policy, subject.cluster, Purpose.RESTORE, [(subject.region, plane.fleet.region)])
    known = adapter(subject.engine)
    await asyncio.to_thread(known.find, subject.engine_version, None)
    password = subject.password or _known_password(plane.fleet, source.volume_id)
    memory = subject.memory_bytes if subject.memory_bytes <= memory_for_instances(machine) else 0

    def change(fleet: Fleet) -> Fleet:
        if any(cluster.name == name for cluster in fleet.clusters):
            raise UsageError(f"there is a cluster {name!r} already")
        fleet = fleet.with_cluster(_restored(fleet, source, name, password, free(fleet, 3)))
        writer = replace(fleet.cluster(name).writer(), memory_bytes=memory)
        repairs = () if known_before else (f"roles:{secrets.token_hex(4)}",)
        fleet = fleet.with_cluster(replace(fleet.cluster(name), instances=(writer,), repairs=repairs))
        fleet = with_readers(fleet, name, subject.readers, tier=DEFAULT_TIER, memory_bytes=memory, ports=free)
        return sizing.with_sizes(fleet, machine)

    known_before = bool(password)
    path = report.passfile(config.data_dir, name, subject.engine)
    with passfiles.following(config.data_dir, lambda: plane.fleet, plane.say):
        if not password:
            password = await asyncio.to_thread(known.ensure_passfile, path)
        await plane.commit(change)
    moment = f"{describe_time(source.time_us)} (lsn:{source.plan.lsn})"
    told = f"{name} is {subject.cluster} as of {moment}, out of {source.plan.url}"
    plane.events.note(EventKind.CLUSTER, name, told, name)
    plane.notify()
    return {
        "cluster": name,
        "source": subject.cluster,
        "lsn": source.plan.lsn,
        "time": describe_time(source.time_us),
        "password": "as before" if known_before else "new",
    }


def _restored(fleet: Fleet, source: Source, name: str, password: str, ports: Sequence[int]) -> DBCluster:
    subject, groups = source.subject, list[Group]()
    volume = VolumeState(uuid4(), subject.page_size, subject.group_bytes, (), restore=source.plan)
    for number in source.groups:
        placed = place_group(number, fleet.azs, fleet.nodes, (*fleet.volumes(), replace(volume, groups=tuple(groups))))
        groups.append(placed)
    az = place_instance(fleet.azs, [i.az for c in fleet.clusters for i in c.instances])
    writer = DBInstance(f"{name}-1", Role.WRITER, az, ports[2])
    return DBCluster(
        name,
        subject.engine,
        subject.engine_version,
        "",
        ports[0],
        password,
        replace(volume, groups=tuple(groups)),
        (writer,),
        created_at_s=time.time(),
        reader_port=ports[1],
        parameters=subject.parameters,
        residency=Policy.from_pair(subject.residency),
    )


def _known_password(fleet: Fleet, volume_id: str) -> str:
    """Of the cluster that has, or had, that volume, if this fleet knows it."""
    clusters = (*fleet.clusters, *(deleted.cluster for deleted in fleet.deleted))
    for cluster in clusters:
        volumes = (cluster.volume, *(past.volume for past in cluster.past))
        if any(str(volume.volume_id) == volume_id for volume in volumes):
            return cluster.superuser_password
    return ""


def moment_of(text: str) -> Moment:
    """A moment as people write it; a bare number is an LSN, too. Raises UsageError."""
    return parse(f"lsn:{text}" if text.isdigit() else text, time.time())

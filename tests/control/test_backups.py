"""Backups of clusters that are gone for good are noted to have ended, and nothing else is done to them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aurora_ray.backup.bucket import Bucket
from aurora_ray.backup.store import Store
from aurora_ray.control.decide import backups, graveyard
from aurora_ray.control.model.backups import BackupPlan
from aurora_ray.control.perform.backing import end_backups
from tests.backup.test_collect import Writer
from tests.control.fleets import running_fleet
from tests.control.test_forks import rewound

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_deleted_cluster_is_given_up_in_its_backups(tmp_path: Path) -> None:
    fleet = rewound(running_fleet(), 100.0)
    fleet = fleet.with_cluster(replace(fleet.cluster("demo"), backup=BackupPlan(str(tmp_path))))
    cluster = fleet.cluster("demo")
    former, present = cluster.past[0].volume.volume_id, cluster.volume.volume_id
    order = backups.order_of(fleet, cluster)
    assert order is not None
    assert order.former == ((str(former), 100.0),)
    bucket = Bucket.at(str(tmp_path))
    stores = [Store(bucket, f"{fleet.fleet_id}/{volume}", None) for volume in (former, present, "another")]
    for store in stores:
        writer = Writer(bucket)
        writer.store = store
        await writer.work()
    said: list[str] = []
    deleted = graveyard.find(graveyard.with_deleted(fleet, "demo", 60.0), "demo")
    await end_backups(fleet.fleet_id, deleted, said.append)
    assert [(await store.present()).ended_s for store in stores] == [100.0, deleted.deleted_at_s, 0.0]
    assert said == []

    (tmp_path / "file").write_text("")
    nowhere = replace(deleted.cluster, backup=BackupPlan(str(tmp_path / "file")))
    await end_backups(fleet.fleet_id, replace(deleted, cluster=nowhere), said.append)
    assert "stay in" in said[0]

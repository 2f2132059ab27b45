"""What a machine has, what an instance gets of it by default, and what that means for PostgreSQL."""

from pathlib import Path

import pytest

from aurora_ray.engine.machine import Machine, this_machine
from aurora_ray.engine.postgres.sizes import size_settings
from aurora_ray.engine.sizes import (
    MEMORY_MIN_BYTES,
    InstanceSize,
    default_memory,
    memory_for_instances,
    size_on,
)

MIB, GIB = 1 << 20, 1 << 30


def sizes_of(machine: Machine, instances: int) -> list[int]:
    """Of instances that are made one after the other."""
    sizes: list[int] = []
    for _ in range(instances):
        sizes.append(default_memory(machine, sum(sizes)))
    return sizes


def test_one_cluster_on_24_gib_gets_gigabytes_and_twenty_fit() -> None:
    sizes = sizes_of(Machine(24 * GIB, 8), 20)
    assert sizes[0] == 4608 * MIB
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 256 * MIB
    assert sum(sizes) <= 20 * GIB  # storage nodes, Ray and the system have the rest


@pytest.mark.parametrize(
    ("machine_bytes", "first_bytes"),
    [(1 * GIB, 256 * MIB), (2 * GIB, 384 * MIB), (8 * GIB, 1536 * MIB), (256 * GIB, 48 * GIB)],
)
def test_the_first_instance_of_other_machines(machine_bytes: int, first_bytes: int) -> None:
    machine = Machine(machine_bytes, 2)
    assert default_memory(machine, 0) == first_bytes
    assert first_bytes <= memory_for_instances(machine) <= machine_bytes


def test_a_machine_that_is_smaller_than_a_size_gives_what_it_has() -> None:
    small = Machine(2 * GIB, 2)
    assert size_on(small, 16 * GIB) == InstanceSize(1536 * MIB, 1.5, 2)
    assert size_on(small, 512 * MIB) == InstanceSize(512 * MIB, 0.5, 2)
    assert size_on(small, 0) == InstanceSize(384 * MIB, 0.38, 2)
    assert size_on(Machine(96 * MIB, 1), 0).memory_bytes == MEMORY_MIN_BYTES
    assert size_on(Machine(24 * GIB, 8), 3 * GIB).acu == 1.5


def test_the_table() -> None:
    middle = size_settings(InstanceSize(4 * GIB, 1, 8), major=18)
    assert middle == {
        "shared_buffers": "1048576kB",
        "effective_cache_size": "3145728kB",
        "work_mem": "8192kB",
        "maintenance_work_mem": "262144kB",
        "max_connections": "512",
        "max_wal_size": "524288kB",
        "max_worker_processes": "10",
        "max_parallel_workers": "8",
        "max_parallel_workers_per_gather": "4",
        "io_workers": "16",
    }
    least = size_settings(InstanceSize(MEMORY_MIN_BYTES, 0.1, 1), major=16)
    assert least["shared_buffers"] == "32768kB"
    assert least["work_mem"] == "4096kB"
    assert least["max_connections"] == "100"
    assert "io_workers" not in least
    most = size_settings(InstanceSize(512 * GIB, 64, 128), major=18)
    assert most["max_connections"] == "5000"
    assert most["maintenance_work_mem"] == "1048576kB"
    assert most["max_wal_size"] == "524288kB"


# ---- the machine


def machine_in(root: Path, groups: str, files: dict[str, str]) -> Machine:
    for name, text in {"proc/meminfo": "MemTotal:       8388608 kB\n", "proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return this_machine(root)


def test_without_control_groups_the_machine_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert machine_in(tmp_path, "0::/\n", {}).memory_bytes == 8 * GIB
    (tmp_path / "proc/self/cgroup").unlink()
    assert this_machine(tmp_path).memory_bytes == 8 * GIB


def test_limits_of_version_2_count_also_those_further_up(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/a/b/memory.max": f"{3 * GIB}\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
    }
    assert machine_in(tmp_path, "0::/a/b\n", files) == Machine(2 * GIB, 0.5)


def test_limits_of_version_1_count_also_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    groups = "4:memory:/docker/0123\n2:cpu:/docker/0123\n1:name=systemd:/docker/0123\n0::/docker/0123\n"
    assert machine_in(tmp_path, groups, files) == Machine(GIB, 0.25)
    unlimited = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    }
    assert machine_in(tmp_path, groups, unlimited).memory_bytes == 8 * GIB


def test_the_machine_that_the_tests_run_on() -> None:
    machine = this_machine()
    assert machine.memory_bytes > 512 * MIB
    assert machine.cpus > 0

"""An instance's size: how much memory it may use, and what share of the CPUs goes with it.

The rule for an instance whose owner named no size: three quarters of a machine's memory are for instances (the rest is
for storage nodes, Ray and the system); a new one gets a quarter of what no other instance was given yet, at least
256 MiB, in steps of 64 MiB. On 24 GiB the first gets 4.5 GiB, the second 3.3 GiB, and twenty fit; on 2 GiB the first
gets 384 MiB. A size is declared when the instance is: it changes by `aurora modify` alone. Where an instance runs on a
machine that is smaller than its size, it gets what instances can have there.

**Serverless capacity** is in ACUs: ACU_BYTES of memory and CPUS_PER_ACU of a CPU each (another share by
AURORA_CPUS_PER_ACU). It changes while the engine runs, and some of what follows a size cannot: buffers are those of the
least capacity, since an engine never gives memory of them back, and what more there is goes to the page cache, which
does; connections are those of the most, since sessions must have room when they come.

What a size means for an engine is the engine's own table (sizes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.config import GIB, MIB

if TYPE_CHECKING:
    from aurora_ray.engine.machine import Machine

MEMORY_MIN_BYTES: Final = 128 * MIB
DEFAULT_MIN_BYTES: Final = 256 * MIB
STEP_BYTES: Final = 64 * MIB
ACU_BYTES: Final = 2 * GIB  # Aurora's capacity unit
ACU_STEP: Final = 0.5
CPUS_PER_ACU: Final = 0.25
CACHE_SHARE: Final = 0.75  # of the memory that a capacity gives, for pages; the engine's own is the rest


@dataclass(frozen=True, slots=True)
class InstanceSize:
    """`memory_bytes` for everything that an engine does; `cpus` of the machine's, in the same proportion: what the
    instance can count on when all others are busy. `machine_cpus`: what it may use when they are not.

    Of one that changes while its engine runs, `least_bytes` and `most_bytes` are what it can become (0: as it is).
    """

    memory_bytes: int
    cpus: float
    machine_cpus: float
    least_bytes: int = 0
    most_bytes: int = 0

    @property
    def acu(self) -> float:
        """The memory in Aurora's capacity units."""
        return round(self.memory_bytes / ACU_BYTES, 2)


LEAST_SIZE: Final = InstanceSize(MEMORY_MIN_BYTES, 0.25, 1.0)


def memory_for_instances(machine: Machine) -> int:
    """What all instances on a machine can have in sum, in bytes; and one at most."""
    return max(machine.memory_bytes * 3 // 4 // STEP_BYTES * STEP_BYTES, MEMORY_MIN_BYTES)


def default_memory(machine: Machine, given_bytes: int) -> int:
    """The memory of a new instance whose owner named none; `given_bytes`: what others on the machine were given."""
    free = max(memory_for_instances(machine) - given_bytes, 0)
    return min(max(free // 4 // STEP_BYTES * STEP_BYTES, DEFAULT_MIN_BYTES), memory_for_instances(machine))


def size_on(machine: Machine, memory_bytes: int) -> InstanceSize:
    """What an instance with a declared memory (0: none was declared) has on a machine."""
    wanted = memory_bytes or default_memory(machine, 0)
    memory = max(min(wanted, memory_for_instances(machine)), MEMORY_MIN_BYTES)
    share = machine.cpus * memory / max(machine.memory_bytes, memory)
    return InstanceSize(memory, round(share, 2), machine.cpus)


def acu_on(machine: Machine) -> float:
    """The largest capacity that an instance can have on a machine."""
    return max(memory_for_instances(machine) / ACU_BYTES // ACU_STEP * ACU_STEP, ACU_STEP)


def size_of_acu(machine: Machine, acu: float, *, least: float, most: float, cpus_per_acu: float) -> InstanceSize:
    """What a capacity gives on a machine, as far as it has that. It may become any from `least` to `most`."""
    room = acu_on(machine)
    memory, lowest, highest = (int(min(each, room) * ACU_BYTES) for each in (acu, least, most))
    return InstanceSize(memory, round(acu * cpus_per_acu, 3), machine.cpus, min(lowest, memory), max(highest, memory))

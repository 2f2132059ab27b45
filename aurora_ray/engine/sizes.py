"""An instance's size: how much memory it may use, and what share of the CPUs goes with it.

The rule for an instance whose owner named no size: three quarters of a machine's memory are for instances (the rest is
for storage nodes, Ray and the system); a new one gets a quarter of what no other instance was given yet, at least
256 MiB, in steps of 64 MiB. On 24 GiB the first gets 4.5 GiB, the second 3.3 GiB, and twenty fit; on 2 GiB the first
gets 384 MiB. A size is declared when the instance is: it changes by `aurora modify` alone. Where an instance runs on a
machine that is smaller than its size, it gets what instances can have there.

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


@dataclass(frozen=True, slots=True)
class InstanceSize:
    """`memory_bytes` for everything that an engine does; `cpus` of the machine's, in the same proportion: what the
    instance can count on when all others are busy. `machine_cpus`: what it may use when they are not."""

    memory_bytes: int
    cpus: float
    machine_cpus: float

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

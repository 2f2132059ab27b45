"""Faults of a whole fleet on Ray, by the process ids that `aurora status --json` shows."""

import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.fleet import CliFleet, pids_of_fleet, pids_titled
from tests.support.polling import poll_until_blocking
from tests.support.stack_process import children_of

CONTROL, INSTANCE = "ray::ControlActor", "ray::InstanceActor"


@dataclass(frozen=True, slots=True)
class FleetArena:
    """What a fault acts on; `status` is from before it."""

    fleet: CliFleet
    status: dict[str, Any]
    random: random.Random
    pause: Callable[[float], None]

    @property
    def engine_pid(self) -> int:
        """The writer's."""
        writer = next(each for each in self.status["instances"] if each["role"] == "writer")
        return int(writer["pid"])

    def node_pids(self, count: int) -> list[int]:
        """Of some storage nodes."""
        return [int(node["pid"]) for node in self.random.sample(self.status["storage_nodes"], count)]


FleetFault = Callable[[FleetArena], None]


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_engine(arena: FleetArena) -> None:
    """The postmaster."""
    _kill(arena.engine_pid)


def kill_backend(arena: FleetArena) -> None:
    """One of its children."""
    _kill(*arena.random.sample(children_of(arena.engine_pid), 1))


def kill_instance(arena: FleetArena) -> None:
    """The process that drives the volume, with the engine in its care."""
    _kill(*pids_titled(INSTANCE, arena.fleet.data_dir))


def kill_two_nodes(arena: FleetArena) -> None:
    """Any two storage nodes."""
    _kill(*arena.node_pids(2))


def kill_four_nodes(arena: FleetArena) -> None:
    """More than the volume bears: commits wait until they are back."""
    _kill(*arena.node_pids(4))


def kill_zone(arena: FleetArena) -> None:
    """Everything of one zone, the writer too if it is there."""
    az = arena.random.choice(sorted({node["az"] for node in arena.status["storage_nodes"]}))
    _kill(*(int(node["pid"]) for node in arena.status["storage_nodes"] if node["az"] == az))
    _kill(*(int(each["pid"]) for each in arena.status["instances"] if each["az"] == az and each["pid"]))


def kill_control_and_engine(arena: FleetArena) -> None:
    """The control plane, in the middle of what it does about a dead engine."""
    _kill(arena.engine_pid)
    arena.pause(arena.random.uniform(0, 1.5))
    _kill(*pids_titled(CONTROL, arena.fleet.data_dir))


def kill_twice(arena: FleetArena) -> None:
    """The engine, and while the next one comes up its process as well."""
    _kill(arena.engine_pid)
    arena.pause(arena.random.uniform(0, 2.0))
    _kill(*pids_titled(INSTANCE, arena.fleet.data_dir))


def hang_instance(arena: FleetArena) -> None:
    """The writer hangs for longer than it takes to notice, and then goes on as if nothing had been."""
    pids = pids_titled(INSTANCE, arena.fleet.data_dir)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    arena.pause(arena.random.uniform(1.0, 12.0))
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def ask_for_failover(arena: FleetArena) -> None:
    """An orderly one, by the command."""
    arena.fleet.run("failover", "demo")


def power_cut(arena: FleetArena) -> None:
    """Every process of the fleet and of its Ray; then `aurora up`."""
    host = json.loads((arena.fleet.data_dir / "ray.json").read_text())["pid"]
    victims = {host, arena.engine_pid, *arena.node_pids(6), *pids_of_fleet(arena.fleet.data_dir)}
    _kill(*victims)
    poll_until_blocking(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in victims), 20, what="all are dead")
    arena.fleet.up()


FLEET_FAULTS: dict[str, tuple[FleetFault, int]] = {
    fault.__name__: (fault, weight)
    for fault, weight in (
        (kill_engine, 3),
        (kill_backend, 2),
        (kill_instance, 3),
        (kill_two_nodes, 2),
        (kill_four_nodes, 2),
        (kill_zone, 2),
        (kill_control_and_engine, 3),
        (kill_twice, 2),
        (hang_instance, 2),
        (ask_for_failover, 2),
        (power_cut, 1),
    )
}


def choose_fleet_fault(choose: random.Random) -> str:
    """The name of a fault."""
    return choose.choices(list(FLEET_FAULTS), [weight for _, weight in FLEET_FAULTS.values()])[0]

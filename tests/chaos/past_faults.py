"""Clones and rewinds of a whole fleet under load, alone and in the middle of other faults."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from tests.chaos.fleet_faults import NEXT_WRITER_TIMEOUT_S, FleetArena, control_of, instance_of, kill
from tests.chaos.mysql_session import session_at
from tests.cli.fleet import CliFleet
from tests.histories.rewinds import Rewind
from tests.support.polling import poll_until_blocking

TWIN = "twin"


def until(fleet: CliFleet, name: str, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """A cluster's status once it is so; the control plane may be away meanwhile."""
    status: dict[str, Any] = {}

    def look() -> bool:
        done = fleet.run("status", name, "--json")
        if done.returncode == 0:
            status.clear()
            status.update(json.loads(done.stdout))
        return done.returncode == 0 and holds(status)

    poll_until_blocking(look, 2 * NEXT_WRITER_TIMEOUT_S, interval_s=0.2, what=f"{what}\n{fleet.trail()}")
    return status


def is_available(status: dict[str, Any]) -> bool:
    """Whether the cluster is."""
    return bool(status["state"] == "available")


def clone(arena: FleetArena, interrupt: Callable[[], None] = lambda: None) -> None:
    """A clone of the present, looked at beside the history; whoever asked for it may have been left without an answer,
    then it is there whole, or not at all."""
    asked_ns = time.monotonic_ns()
    asking = Asking(arena.fleet, "clone", "demo", TWIN)
    interrupt()
    done = asking.wait()
    until(arena.fleet, "demo", is_available, "the fleet is well")
    if TWIN not in [each["cluster"] for each in arena.fleet.json("list")]:
        assert not done, f"the clone that was promised is not there\n{arena.fleet.trail()}"
        return
    try:
        dsn = until(arena.fleet, TWIN, is_available, "the clone serves")["endpoints"]["cluster"]["dsn"]
        poll_until_blocking(lambda: _looked_at(arena, dsn, asked_ns), NEXT_WRITER_TIMEOUT_S, what="a look at the clone")
    finally:
        arena.fleet.check("delete", TWIN, "--yes")
        arena.fleet.check("graveyard", "purge", TWIN, "--yes")


def _looked_at(arena: FleetArena, dsn: str, asked_ns: int) -> bool:
    with suppress(psycopg.OperationalError), session_at(dsn) as session:
        arena.history.look_at_clone(session, asked_ns)
        return True
    return False


def rewind(arena: FleetArena, interrupt: Callable[[], None] = lambda: None) -> None:
    """All that was written since a mark is taken back, and nothing else; where that was cut short, all or nothing."""
    before = times_rewound(until(arena.fleet, "demo", has_past, "the past is known"))
    arena.tables.may_be_taken_back = True
    mark_began_ns = time.monotonic_ns()
    arena.fleet.check("mark", "demo", "here")
    mark_ended_ns = time.monotonic_ns()
    arena.writes_go_on("after the mark")
    began_ns = time.monotonic_ns()
    asking = Asking(arena.fleet, "backtrack", "demo", "--to", "mark:here")
    interrupt()
    done = asking.wait()
    status = until(arena.fleet, "demo", has_followed, "all instances are on the cluster's volume")
    happened = times_rewound(status) > before
    assert happened or not done, f"the rewind that was promised did not happen\n{arena.fleet.trail()}"
    if happened:
        arena.recorder.rewound(Rewind(mark_began_ns, mark_ended_ns, began_ns, time.monotonic_ns()))


def has_past(status: dict[str, Any]) -> bool:
    """Whether the storage nodes say how far back it goes."""
    return status.get("backtrack") is not None


def times_rewound(status: dict[str, Any]) -> int:
    """How often the cluster was rewound."""
    return int(status["backtrack"]["rewound"])


def has_followed(status: dict[str, Any]) -> bool:
    """Whether each instance serves, on the volume that is declared."""
    volume = status["volume"]["id"]
    serve = all(each["state"] == "available" and each["volume"] == volume for each in status["instances"])
    return has_past(status) and serve


class Asking:
    """A command that runs beside the fault."""

    def __init__(self, fleet: CliFleet, *words: str) -> None:
        self._done: list[int] = []
        self._thread = threading.Thread(
            target=lambda: self._done.append(fleet.run(*words, timeout_s=2 * NEXT_WRITER_TIMEOUT_S).returncode),
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> bool:
        """Whether it succeeded, once it has ended."""
        self._thread.join(3 * NEXT_WRITER_TIMEOUT_S)
        return self._done == [0]


def _something_dies(arena: FleetArena) -> None:
    """In the middle: the control plane, the writer's engine or process, or as many nodes as the volume bears."""
    arena.pause(arena.random.uniform(0.5, 4.0))  # a command takes a second to begin
    kill(*arena.random.choice([control_of(arena), [arena.engine_pid], instance_of(arena), arena.node_pids(2)]))


def clone_and_kill(arena: FleetArena) -> None:
    """A clone during a failover, or while what makes it is lost."""
    clone(arena, lambda: _something_dies(arena))


def rewind_and_kill(arena: FleetArena) -> None:
    """A rewind during a failover, or while what makes it is lost."""
    rewind(arena, lambda: _something_dies(arena))


def rewind_during_replacement(arena: FleetArena) -> None:
    """A node is lost with its data, and the cluster rewound while another node takes its place."""
    node = arena.random.choice(arena.nodes)
    arena.chaos("kill", f"node:{node['id']}", "--for-good")
    arena.pause(arena.random.uniform(0.0, 6.0))
    rewind(arena)

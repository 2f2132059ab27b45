"""Faults of a whole fleet on Ray: signals to the process ids that `aurora status --json` shows, and `aurora chaos`."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ray.compute.signals import family
from tests.chaos.clients import Tables
from tests.chaos.faults import harm_segment
from tests.chaos.history_round import HistoryRound
from tests.chaos.recorder import Recorder
from tests.cli.fleet import CliFleet, parent_of, pids_of_fleet, pids_titled
from tests.support.polling import poll_until_blocking
from tests.support.stack_process import children_of

CONTROL, INSTANCE, ENDPOINT = "ray::ControlActor", "ray::InstanceActor", "ray::EndpointActor"
PROGRESS_WRITES = 20
NEXT_WRITER_TIMEOUT_S = 60.0
READS = 15
READS_TIMEOUT_S = 20.0
GONE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class FleetArena:
    """What a fault acts on, under load; `status` is from before it. `processes`: of instances, by id."""

    fleet: CliFleet
    status: dict[str, Any]
    random: random.Random
    pause: Callable[[float], None]
    history: HistoryRound
    processes: dict[str, int]
    tables: Tables

    @property
    def recorder(self) -> Recorder:
        """Of the round's history."""
        return self.history.recorder

    @property
    def writer(self) -> dict[str, Any]:
        """The instance that is the writer."""
        instances: list[dict[str, Any]] = self.status["instances"]
        return next(each for each in instances if each["role"] == "writer")

    @property
    def engine_pid(self) -> int:
        """The writer's."""
        return int(self.writer["pid"])

    @property
    def reader(self) -> dict[str, Any]:
        """One of the readers."""
        return self.random.choice([each for each in self.status["instances"] if each["role"] == "reader"])

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The storage nodes."""
        nodes: list[dict[str, Any]] = self.status["storage_nodes"]
        return nodes

    def node_pids(self, count: int) -> list[int]:
        """Of some storage nodes."""
        return [int(node["pid"]) for node in self.random.sample(self.nodes, count)]

    def an_az(self, *, but: Iterable[str] = ()) -> str:
        """Any."""
        return self.random.choice(sorted({str(node["az"]) for node in self.nodes} - set(but)))

    def writes_go_on(self, what: str, timeout_s: float = NEXT_WRITER_TIMEOUT_S, count: int = PROGRESS_WRITES) -> None:
        """Waits for some more acknowledged writes."""
        goal = self.recorder.ok["writes"] + count
        poll_until_blocking(
            lambda: self.recorder.ok["writes"] >= goal, timeout_s, what=f"writes go on {what}\n{self.fleet.trail()}"
        )

    def chaos(self, *arguments: str) -> None:
        """`aurora chaos …`."""
        self.fleet.check("chaos", *arguments)


FleetFault = Callable[[FleetArena], None]


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _hang(arena: FleetArena, pids: list[int], seconds: float) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    arena.pause(seconds)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def instances_of(status: dict[str, Any]) -> dict[str, int]:
    """The processes that drive the instances, by id."""
    return {each["id"]: parent_of(int(each["pid"])) for each in status["instances"]}


def instance_of(arena: FleetArena) -> list[int]:
    """The writer's, if it still runs."""
    return [pid for pid in [arena.processes[arena.writer["id"]]] if _runs(pid)]


def control_of(arena: FleetArena) -> list[int]:
    return pids_titled(CONTROL, arena.fleet.data_dir)


def kill_engine(arena: FleetArena) -> None:
    """The postmaster."""
    kill(arena.engine_pid)


def kill_backend(arena: FleetArena) -> None:
    """One of its children; an engine of threads has none, and ends itself."""
    kill(*arena.random.sample(children_of(arena.engine_pid) or [arena.engine_pid], 1))


def kill_instance(arena: FleetArena) -> None:
    """The process that drives the volume, with the engine in its care."""
    kill(*instance_of(arena))


def kill_all_instances(arena: FleetArena) -> None:
    """The processes of the writer and of the readers, and those in waiting."""
    kill(*pids_titled(INSTANCE, arena.fleet.data_dir))


def kill_readers_engine(arena: FleetArena) -> None:
    """No client of the cluster endpoint notices."""
    kill(int(arena.reader["pid"]))
    arena.writes_go_on("without a reader", 10)


def kill_reader(arena: FleetArena) -> None:
    """The process that drives a reader."""
    kill(arena.processes[arena.reader["id"]])
    arena.writes_go_on("without a reader", 10)


def hang_reader(arena: FleetArena) -> None:
    """A reader and all that it started hang for longer than it takes to notice, and go on if they still can."""
    pid = arena.processes[arena.reader["id"]]
    _hang(arena, [pid, *family(int(arena.reader["pid"]))], arena.random.uniform(1.0, 6.0))


def kill_reader_and_engine(arena: FleetArena) -> None:
    """A reader, and shortly before or after the writer's engine."""
    victims = [int(arena.reader["pid"]), arena.engine_pid]
    arena.random.shuffle(victims)
    kill(victims[0])
    arena.pause(arena.random.uniform(0, 1.5))
    kill(victims[1])


def fail_over_and_kill(arena: FleetArena) -> None:
    """Roles change, and on the way one of those that change them is lost: an instance, or the control plane."""
    target = arena.reader
    victims = [[arena.engine_pid], [int(target["pid"])], list(arena.processes.values()), control_of(arena)]
    asking = threading.Thread(target=arena.fleet.run, args=("failover", "demo", "--target", target["id"]), daemon=True)
    asking.start()
    arena.pause(arena.random.uniform(0.5, 3.0))  # the command takes a second to begin
    kill(*arena.random.choice(victims))
    asking.join(NEXT_WRITER_TIMEOUT_S)


def hang_engine(arena: FleetArena) -> None:
    """All of the engine's processes hang for longer than it takes to notice, and whoever is left goes on then."""
    _hang(arena, family(arena.engine_pid), arena.random.uniform(3.0, 8.0))


def hang_instance(arena: FleetArena) -> None:
    """The process that drives the volume does, while the engine wants to go on."""
    _hang(arena, instance_of(arena), arena.random.uniform(4.0, 10.0))


def hang_instance_for_a_moment(arena: FleetArena) -> None:
    """About as long as it takes to notice: it may be replaced or not."""
    _hang(arena, instance_of(arena), arena.random.uniform(1.0, 3.5))


def hang_writer_and_control(arena: FleetArena) -> None:
    """Both hang; the control plane wakes up first, with no idea of the time, and then the writer that it suspects."""
    control = control_of(arena)
    for pid in control:
        os.kill(pid, signal.SIGSTOP)
    instance = instance_of(arena)
    for pid in instance:
        os.kill(pid, signal.SIGSTOP)
    arena.pause(arena.random.uniform(3.0, 6.0))
    for pid in control:
        os.kill(pid, signal.SIGCONT)
    arena.pause(arena.random.uniform(0.0, 4.0))
    for pid in instance:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def cut_writer_from_nodes(arena: FleetArena) -> None:
    """No storage node hears the writer; it cannot make anything durable, and is replaced."""
    arena.chaos("partition", "writer", "--for", "20")
    arena.writes_go_on("with a writer that the nodes hear")


def cut_control_off(arena: FleetArena) -> None:
    """The control plane reaches neither the writer nor any storage node for longer than it takes to notice that a
    writer hangs, and must not take that for the writer's fault; in the end the engine dies, of which it hears later."""
    arena.chaos("partition", "control", "--for", "9")
    arena.pause(arena.random.uniform(4.0, 7.0))
    arena.writes_go_on("without a control plane", 10)
    assert _runs(arena.engine_pid), f"the writer was replaced for nothing\n{arena.fleet.trail()}"
    kill(arena.engine_pid)


def hang_control(arena: FleetArena) -> None:
    """Nobody looks after the writer, which needs nobody; then its engine dies, and nobody notices for a while."""
    control = control_of(arena)
    for pid in control:
        os.kill(pid, signal.SIGSTOP)
    arena.writes_go_on("without a control plane", 10)
    kill(arena.engine_pid)
    arena.pause(arena.random.uniform(1.0, 4.0))
    for pid in control:
        os.kill(pid, signal.SIGCONT)


def kill_control(arena: FleetArena) -> None:
    """It alone: no client notices."""
    kill(*control_of(arena))
    arena.writes_go_on("without a control plane", 10)


def kill_control_and_engine(arena: FleetArena) -> None:
    """The control plane, in the middle of what it does about a dead engine."""
    kill(arena.engine_pid)
    arena.pause(arena.random.uniform(0, 1.5))
    kill(*control_of(arena))


def kill_control_and_instance(arena: FleetArena) -> None:
    """The same with a dead process, for which a new one must be started."""
    kill(*instance_of(arena))
    arena.pause(arena.random.uniform(0, 2.5))
    kill(*control_of(arena))


def kill_twice(arena: FleetArena) -> None:
    """The engine, and while the next one comes up its process as well."""
    kill(arena.engine_pid)
    arena.pause(arena.random.uniform(0, 2.0))
    kill(*instance_of(arena))


def fail_over_twice(arena: FleetArena) -> None:
    """A second writer is lost as soon as it has acknowledged something."""
    kill(arena.engine_pid)
    arena.writes_go_on("with the second writer", count=1)
    kill(*instance_of(arena))


def ask_for_failover(arena: FleetArena) -> None:
    """An orderly one, by the command: the reader becomes the writer."""
    arena.fleet.run("failover", "demo")


def kill_endpoint_and_engine(arena: FleetArena) -> None:
    """What relays all sessions, and the writer shortly before or after."""
    victims = [pids_titled(ENDPOINT, arena.fleet.data_dir), [arena.engine_pid]]
    arena.random.shuffle(victims)
    kill(*victims[0])
    arena.pause(arena.random.uniform(0, 1.0))
    kill(*victims[1])


def hang_endpoint(arena: FleetArena) -> None:
    """It hangs with all sessions in it while the writer is replaced, and goes on as if nothing had been."""
    endpoint = pids_titled(ENDPOINT, arena.fleet.data_dir)
    for pid in endpoint:
        os.kill(pid, signal.SIGSTOP)
    kill(arena.engine_pid)
    _hang(arena, endpoint, arena.random.uniform(1.0, 5.0))


def kill_two_nodes(arena: FleetArena) -> None:
    """Any two storage nodes."""
    kill(*arena.node_pids(2))


def kill_four_nodes(arena: FleetArena) -> None:
    """More than the volume bears: commits wait until they are back."""
    kill(*arena.node_pids(4))


def lose_zone(arena: FleetArena) -> None:
    """Everything of one zone for a while, the writer too if it is there: writes go on without it."""
    az = arena.an_az()
    arena.chaos("kill", f"az:{az}", "--for", "25")
    arena.writes_go_on(f"without {az}", 20)
    arena.chaos("resume", f"az:{az}")


def lose_zone_and_node(arena: FleetArena) -> None:
    """A zone (not the writer's) and one more node: with three copies left, reads go on and no write is acknowledged.

    A MariaDB shows what is not durable yet, so its answers wait for the commits under way: it is readers that go on.
    """
    reads, needed = "reads", [arena.writer]
    if arena.status["engine"] != "postgres":
        reads, needed = "snapshots", arena.status["instances"]
    az = arena.an_az(but=[str(each["az"]) for each in needed])
    node = arena.random.choice([node for node in arena.nodes if node["az"] != az])
    pids = [int(each["pid"]) for each in arena.nodes if each["az"] == az or each is node]
    arena.chaos("kill", f"az:{az}", "--for", "60")
    arena.chaos("kill", f"node:{node['id']}", "--for", "60")
    poll_until_blocking(lambda: not any(map(_runs, pids)), GONE_TIMEOUT_S, what="three nodes are gone")
    arena.pause(1.0)  # whose acknowledgement was on its way has got it
    ok = dict(arena.recorder.ok)
    poll_until_blocking(
        lambda: arena.recorder.ok[reads] >= ok[reads] + READS, READS_TIMEOUT_S, what="reads go on with three copies"
    )
    arena.pause(1.0)  # and none is acknowledged meanwhile
    acknowledged = arena.recorder.ok["writes"] - ok["writes"]
    assert not acknowledged, f"{acknowledged} writes were acknowledged with three copies"
    arena.chaos("resume", f"node:{node['id']}")
    arena.writes_go_on(f"without {az}")
    arena.chaos("resume", f"az:{az}")


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").exists()


def fail_over_during_repair(arena: FleetArena) -> None:
    """A node comes back with damaged files, and the writer is lost while the peers make it whole."""
    node = arena.random.choice(arena.nodes)
    arena.chaos("kill", f"node:{node['id']}", "--for", "60")
    poll_until_blocking(lambda: not _runs(int(node["pid"])), GONE_TIMEOUT_S, what="the node is gone")
    volume = arena.status["volume"]["id"]
    harm_segment(arena.fleet.data_dir / "nodes" / node["id"] / "volumes" / volume / "0", arena.random)
    arena.chaos("resume", f"node:{node['id']}")
    arena.pause(arena.random.uniform(0.0, 2.5))
    kill(*([arena.engine_pid] if arena.random.random() < 0.5 else instance_of(arena)))


def fail_over_during_replacement(arena: FleetArena) -> None:
    """A node is lost with its data, and the writer while another node takes its place."""
    node = arena.random.choice(arena.nodes)
    arena.chaos("kill", f"node:{node['id']}", "--for-good")
    arena.pause(arena.random.uniform(0.0, 6.0))
    kill(*([arena.engine_pid] if arena.random.random() < 0.5 else instance_of(arena)))


def power_cut(arena: FleetArena) -> None:
    """Every process of the fleet and of its Ray; then `aurora up`."""
    host = json.loads((arena.fleet.data_dir / "ray.json").read_text())["pid"]
    victims = {host, arena.engine_pid, *arena.node_pids(6), *pids_of_fleet(arena.fleet.data_dir)}
    kill(*victims)
    poll_until_blocking(lambda: not any(map(_runs, victims)), GONE_TIMEOUT_S, what="all are dead")
    arena.fleet.up()

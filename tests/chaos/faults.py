"""The faults: each is done to a stack under load, and says what the load may expect.

A fault is a generator-free function of (arena): it hurts, perhaps waits for the load to go on or to stand still, and
returns. Bringing back what is down afterwards is the round's business.
"""

import asyncio
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.clients import Load
from tests.support.polling import poll_until, poll_until_blocking
from tests.support.stack import NODES, Stack
from tests.support.stack_process import children_of
from tests.support.stack_view import state_of

AZS = ("a", "b", "c")
PROGRESS_COMMITS = 5
PROGRESS_TIMEOUT_S = 20.0
WHOLE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Arena:
    """What a fault acts on."""

    stack: Stack
    load: Load
    random: random.Random
    pause: Callable[[float], None]

    def progress(self, what: str) -> None:
        """Waits until several more commits were acknowledged."""
        goal = self.load.acked_count + PROGRESS_COMMITS
        poll_until_blocking(
            lambda: self.load.acked_count >= goal or not self.stack.writer.alive,
            PROGRESS_TIMEOUT_S,
            what=f"commits go on {what}",
        )
        assert self.stack.writer.alive, f"the writer ended {what}:\n{self.stack.writer.log_tail()}"

    def writer_ends(self, what: str) -> None:
        """Waits until the writer has torn everything down by itself."""
        writer = self.stack.writer
        poll_until_blocking(lambda: not writer.alive, PROGRESS_TIMEOUT_S, what=f"the writer ends {what}")
        writer.wait_engine_gone()

    def some_nodes(self, count: int) -> list[str]:
        """Any nodes."""
        return self.random.sample(NODES, count)

    def zone(self) -> list[str]:
        """The nodes of any zone."""
        az = self.random.choice(AZS)
        return [node for node in NODES if node[0] == az]


Fault = Callable[[Arena], None]


def kill_postmaster(arena: Arena) -> None:
    """The engine's main process."""
    os.kill(arena.stack.writer.report.pid, signal.SIGKILL)
    arena.writer_ends("after its engine was killed")


def kill_backend(arena: Arena) -> None:
    """One of the engine's other processes: a session's, the checkpointer, the WAL writer, an I/O worker."""
    children = children_of(arena.stack.writer.report.pid)
    try:
        os.kill(arena.random.choice(children), signal.SIGKILL)
    except (IndexError, ProcessLookupError):  # it was leaving anyway
        return
    arena.writer_ends("after a process of its engine was killed")


def kill_writer(arena: Arena) -> None:
    """The volume's driver; the engine must go with it."""
    arena.stack.writer.kill()


def kill_one_node(arena: Arena) -> None:
    """Any node; writes go on; it comes back under load."""
    node = arena.some_nodes(1)
    arena.stack.kill_nodes(node)
    arena.progress(f"without {node}")
    arena.stack.revive_nodes()
    arena.progress(f"with {node} back")


def kill_two_nodes(arena: Arena) -> None:
    """Any two."""
    nodes = arena.some_nodes(2)
    arena.stack.kill_nodes(nodes)
    arena.progress(f"without {nodes}")


def kill_zone(arena: Arena) -> None:
    """All of one zone."""
    nodes = arena.zone()
    arena.stack.kill_nodes(nodes)
    arena.progress(f"without {nodes}")


def kill_zone_and_writer(arena: Arena) -> None:
    """A zone, and the writer while the zone is away."""
    nodes = arena.zone()
    arena.stack.kill_nodes(nodes)
    arena.pause(arena.random.uniform(0, 0.3))
    arena.stack.writer.kill()
    arena.stack.writer.wait_engine_gone()
    arena.stack.writer.open()
    arena.progress(f"without {nodes} and with a new writer")


def kill_three_nodes(arena: Arena) -> None:
    """Nothing is acknowledged while three are away; with one of them back, commits go on by themselves."""
    nodes = arena.some_nodes(3)
    arena.stack.kill_nodes(nodes)
    arena.pause(0.05)  # acknowledgements that the clients have not counted yet
    before = arena.load.acked_count
    arena.pause(arena.random.uniform(0.1, 1.0))
    assert arena.load.acked_count == before, f"commits were acknowledged without {nodes}"
    arena.stack.start_nodes(arena.random.sample(nodes, 1))
    arena.progress(f"with one of {nodes} back")


def power_cut(arena: Arena) -> None:
    """Everything at once."""
    arena.stack.power_cut()


def stop_nodes(arena: Arena) -> None:
    """One or two nodes hang for a while; writes do not wait for them."""
    nodes = arena.some_nodes(arena.random.choice((1, 2)))
    for node in nodes:
        arena.stack.nodes[node].stop()
    arena.progress(f"while {nodes} hang")
    arena.pause(arena.random.uniform(0, 1.0))
    arena.stack.revive_nodes()
    arena.progress(f"after {nodes} hung")


def stop_all_nodes(arena: Arena) -> None:
    """All hang for a moment; nothing is acknowledged meanwhile."""
    for node in arena.stack.nodes.values():
        node.stop()
    arena.pause(0.05)
    before = arena.load.acked_count
    arena.pause(arena.random.uniform(0.1, 1.0))
    assert arena.load.acked_count == before, "commits were acknowledged while all nodes hung"
    arena.stack.revive_nodes()
    arena.progress("after all nodes hung")


def stop_nodes_and_kill_writer(arena: Arena) -> None:
    """Up to two nodes hang when a new writer must open; they come back with the old history."""
    nodes = arena.some_nodes(arena.random.choice((1, 2)))
    for node in nodes:
        arena.stack.nodes[node].stop()
    arena.pause(arena.random.uniform(0, 0.3))
    arena.stack.writer.kill()
    arena.stack.writer.wait_engine_gone()
    arena.stack.writer.open()
    arena.progress(f"with a new writer while {nodes} hang")
    arena.stack.revive_nodes()
    arena.progress(f"after {nodes} hung")


def stop_writer(arena: Arena) -> None:
    """The driver hangs for a moment, the engine waits."""
    arena.stack.writer.stop()
    arena.pause(arena.random.uniform(0.1, 1.0))
    arena.stack.writer.resume()
    arena.progress("after the writer hung")


def kill_while_opening(arena: Arena) -> None:
    """The writer dies, and its successors die while they open, at random moments."""
    arena.stack.writer.kill()
    for _ in range(arena.random.randrange(1, 4)):
        arena.stack.writer.wait_engine_gone()
        arena.stack.writer.begin()
        arena.pause(arena.random.uniform(0.2, 1.2))
        if arena.random.random() < 0.5:
            arena.stack.kill_nodes(arena.some_nodes(1))
        arena.stack.writer.kill()
        arena.stack.revive_nodes()


def kill_nodes_in_turn(arena: Arena) -> None:
    """One after the other goes down and comes back, not waiting until the one before has caught up."""
    for node in arena.some_nodes(3):
        arena.stack.kill_nodes([node])
        arena.progress(f"without {node}")
        arena.stack.revive_nodes()


def damage_a_node(arena: Arena) -> None:
    """A node dies and finds some of its files cut, overwritten or gone when it comes back; its peers make it whole."""
    (name,) = arena.some_nodes(1)
    node = arena.stack.nodes[name]
    node.kill()
    harm_segment(next((node.data_dir / "volumes").glob("*/0")), arena.random)
    node.start()
    arena.progress(f"with {name}, whose files were damaged")
    # It must be whole before the next one is hurt: that it counts for nothing until then is the point.
    asyncio.run(_wait_whole(arena.stack, name))


def harm_segment(directory: Path, choose: random.Random) -> None:
    """Harms some files of a segment whose node does not run."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in ("LOCK", "LOG"))
    for path in choose.sample(files, min(len(files), choose.randrange(1, 4))):
        _harm(path, choose)


def _harm(path: Path, choose: random.Random) -> None:
    size = path.stat().st_size
    kind = choose.choice(("cut", "overwrite", "remove"))
    if kind == "remove":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, choose.randrange(size + 1))
    elif size:
        with path.open("r+b") as file:
            file.seek(choose.randrange(size))
            file.write(choose.randbytes(16))


async def _wait_whole(stack: Stack, name: str) -> None:
    others = [node.address for other, node in stack.nodes.items() if other != name]
    states = [await state_of(node, stack.spec) for node in others]
    goal = max(state.scl for state in states if state is not None)

    async def whole() -> bool:
        state = await state_of(stack.nodes[name].address, stack.spec)
        return state is not None and state.scl >= goal

    await poll_until(whole, WHOLE_TIMEOUT_S, interval_s=0.1, what=f"{name} is whole again")


def take_over(arena: Arena) -> None:
    """Another writer opens the volume while the first is at work: the first must end by itself."""
    other = arena.stack.add_writer(f"rival-{arena.stack.writer.report.epoch}")
    other.open()
    arena.writer_ends("after it was sealed out")
    arena.stack.writer = other
    arena.progress("with the new writer")


# Fault: how often, in relation to the others.
FAULTS: dict[str, tuple[Fault, int]] = {
    fault.__name__: (fault, weight)
    for fault, weight in (
        (kill_postmaster, 3),
        (kill_backend, 3),
        (kill_writer, 4),
        (kill_one_node, 2),
        (kill_two_nodes, 3),
        (kill_zone, 2),
        (kill_zone_and_writer, 3),
        (kill_three_nodes, 3),
        (power_cut, 5),
        (stop_nodes, 2),
        (stop_all_nodes, 2),
        (stop_nodes_and_kill_writer, 3),
        (stop_writer, 1),
        (kill_while_opening, 3),
        (kill_nodes_in_turn, 2),
        (take_over, 3),
        (damage_a_node, 3),
    )
}


def fault_of_round(seed: int, number: int) -> str:
    """Each fault once, in a random order, then as many by their weights, and so on: a short run misses no kind."""
    turn, place = divmod(number - 1, len(FAULTS))
    choose, names = random.Random(f"faults {seed}:{turn}"), sorted(FAULTS)
    if turn % 2:
        return choose.choices(names, [FAULTS[name][1] for name in names], k=len(names))[place]
    choose.shuffle(names)
    return names[place]

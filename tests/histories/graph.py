"""What must come before what: a graph of transactions, and its shortest telling cycles.

An edge says why its source precedes its target: WW (the next version is the target's), WR (the target read it), RW (the
source read what was there before it), TIME (the source had ended before the target began). Of n transactions, n² pairs
can be ordered in time or by a version that nobody read; so such edges go through *joints*, nodes without a meaning of
their own: an edge into a joint has a kind, those that lead on from it have JOIN, and together they are one step.

A cycle is a proof that no serial order exists. Cycles are named as by Adya and by Elle (Kingsbury and Alvaro, VLDB
2020), the worst first: G0 (WW only), G1c (also WR), G-single (one RW), G2 (several). `-realtime` is added if the cycle
needs TIME: then a serial order may exist, but not one that clients who talk to each other would accept.

Finding out that there is no cycle takes time in proportion to the graph. Where there is one, the search for a simple
one is bounded (`TRIES`), and a G-single that is not found in that time is called a G2.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

JOIN, WW, WR, RW, TIME = 0, 1, 2, 4, 8
TRIES: Final = 400
# A class, the kind of the first step, which gives the class its name, and the kinds that lead back.
_SEARCHES: Final = (("G0", WW, WW), ("G1c", WR, WW | WR), ("G-single", RW, WW | WR), ("G2", RW, WW | WR | RW))
_CLASSES: Final = {WW: "G0", WR: "G1c", RW: "G-single"}  # of cycles with one step besides that in time


@dataclass(frozen=True, slots=True)
class Edge:
    """`key` and `value` say what it is about: for WW and RW the value that the target wrote, for WR the one it read."""

    target: int
    kind: int
    key: str = ""
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """An edge between two transactions, joints left out."""

    source: int
    target: int
    kind: int
    key: str
    value: int | None


class Graph:
    """`count` transactions, which are the nodes 0 to count - 1; joints follow."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.edges: list[list[Edge]] = [[] for _ in range(count)]

    def joint(self) -> int:
        """A new one."""
        self.edges.append([])
        return len(self.edges) - 1

    def add(self, source: int, edge: Edge) -> None:
        """Says that `source` precedes; of itself nothing does."""
        if source != edge.target:
            self.edges[source].append(edge)

    def add_time(self, began: Sequence[int], ended: Sequence[int | None]) -> None:
        """Whoever ended precedes whoever began later: one joint for each moment at which ends turn into beginnings.

        The joints form a chain, so 3n edges carry up to n² facts. None: it never ended, as far as anyone knows.
        """
        beginnings = [(time, 0, node) for node, time in enumerate(began)]
        ends = [(time, 1, node) for node, time in enumerate(ended) if time is not None]
        joint, ending = -1, False
        for _, is_end, node in sorted(beginnings + ends):
            if is_end:
                if not ending:
                    before, joint, ending = joint, self.joint(), True
                    if before >= 0:
                        self.edges[before].append(Edge(joint, JOIN))
                self.edges[node].append(Edge(joint, TIME))
            else:
                ending = False
                if joint >= 0:
                    self.edges[joint].append(Edge(node, JOIN))

    def components(self, kinds: int, within: Iterable[int] | None = None) -> Iterator[list[int]]:
        """Sets of several nodes that all reach each other by edges of these kinds (Tarjan, without recursion)."""
        nodes = range(len(self.edges)) if within is None else list(within)
        inside = None if within is None else set(nodes)
        order: dict[int, int] = {}
        low: dict[int, int] = {}
        open_: list[int] = []
        is_open: set[int] = set()
        for root in nodes:
            if root in order:
                continue
            work = [(root, self._targets(root, kinds, inside))]
            order[root] = low[root] = len(order)
            open_.append(root)
            is_open.add(root)
            while work:
                node, targets = work[-1]
                for target in targets:
                    if target not in order:
                        order[target] = low[target] = len(order)
                        open_.append(target)
                        is_open.add(target)
                        work.append((target, self._targets(target, kinds, inside)))
                        break
                    if target in is_open:
                        low[node] = min(low[node], order[target])
                else:
                    work.pop()
                    if work:
                        parent = work[-1][0]
                        low[parent] = min(low[parent], low[node])
                    if low[node] == order[node]:
                        component = _pop_through(open_, node)
                        is_open.difference_update(component)
                        if len(component) > 1:
                            yield component

    def _targets(self, node: int, kinds: int, inside: set[int] | None) -> Iterator[int]:
        for edge in self.edges[node]:
            if (not edge.kind or edge.kind & kinds) and (inside is None or edge.target in inside):
                yield edge.target

    def path(self, source: int, target: int, kinds: int, inside: set[int]) -> "list[Arc] | None":
        """The way with the fewest steps by these kinds, None if there is none. Joints cost nothing."""
        came: dict[int, Arc] = {}
        queue, done = deque([source]), set()
        while queue:
            node = queue.popleft()
            if node == target:
                return _way_back(came, source, target)
            if node in done:
                continue
            done.add(node)
            for edge in self.edges[node]:
                if (edge.kind and not edge.kind & kinds) or edge.target not in inside or edge.target in done:
                    continue
                if edge.kind == JOIN:
                    came[edge.target] = (node, edge)
                    queue.appendleft(edge.target)
                elif edge.target not in came:
                    came[edge.target] = (node, edge)
                    queue.append(edge.target)
        return None

    def steps(self, arcs: "Iterable[Arc]") -> list[Step]:
        """The steps that these arcs, in order, make."""
        steps: list[Step] = []
        pending: Arc | None = None
        for source, edge in arcs:
            if edge.kind != JOIN:
                pending = (source, edge)
            if pending is not None and edge.target < self.count:
                first = pending[1]
                value = first.value if edge.value is None else edge.value
                steps.append(Step(pending[0], edge.target, first.kind, first.key or edge.key, value))
        return steps


Arc = tuple[int, Edge]  # an edge and its source
Cycle = tuple[str, list[Step]]


def _way_back(came: dict[int, Arc], source: int, target: int) -> list[Arc]:
    arcs: list[Arc] = []
    node = target
    while node != source:
        arcs.append(came[node])
        node = came[node][0]
    return arcs[::-1]


def _pop_through(stack: list[int], node: int) -> list[int]:
    place = len(stack) - 1
    while stack[place] != node:
        place -= 1
    component = stack[place:]
    del stack[place:]
    return component


def find_cycles(graph: Graph, began: Sequence[int], ended: Sequence[int | None]) -> Iterator[Cycle]:
    """The worst simple cycle of each strongly connected part, with its class."""
    for component in graph.components(WW | WR | RW | TIME):
        yield _explain(graph, component, lambda a, b: _before(ended[a], began[b]))


def _before(ended: int | None, began: int) -> bool:
    return ended is not None and ended < began


def _explain(graph: Graph, component: list[int], precedes: Callable[[int, int], bool]) -> Cycle:
    for time, suffix in ((0, ""), (TIME, "-realtime")):
        cycle = _against_time(graph, component, precedes) if time else None
        if cycle is not None:
            return _CLASSES[cycle[0].kind] + suffix, cycle
        for name, first, back in _SEARCHES:
            cycle = _search(graph, component, first, back | time)
            if cycle is not None:
                return name + suffix, cycle
    raise AssertionError("a strongly connected part without a cycle")


def _against_time(graph: Graph, component: list[int], precedes: Callable[[int, int], bool]) -> list[Step] | None:
    """One step against the clock, the worst: its target had ended before its source began."""
    inside = set(component)
    found: list[Step] = []
    for source in component:
        if source >= graph.count:
            continue
        for edge in graph.edges[source]:
            steps = _whole_steps(graph, source, edge, inside)
            found += (step for step in steps if precedes(step.target, source))
    if not found:
        return None
    worst = min(found, key=lambda step: step.kind)
    return [worst, Step(worst.target, worst.source, TIME, "", None)]


def _whole_steps(graph: Graph, source: int, edge: Edge, inside: set[int]) -> list[Step]:
    if edge.kind == TIME or edge.target not in inside:
        return []
    if edge.target < graph.count:
        return graph.steps([(source, edge)])
    more = [each for each in graph.edges[edge.target] if each.target in inside]
    return [step for each in more for step in graph.steps([(source, edge), (edge.target, each)])]


def _search(graph: Graph, component: list[int], first: int, back: int) -> list[Step] | None:
    """The shortest cycle found that begins with a step of kind `first` and comes back by the kinds `back`."""
    best: list[Step] | None = None
    tries = 0
    for part in graph.components(first | back, component):
        inside = set(part)
        for source in part:
            for edge in graph.edges[source]:
                if edge.kind != first or edge.target not in inside:
                    continue
                tries += 1
                way = graph.path(edge.target, source, back, inside)
                if way is not None:
                    cycle = graph.steps([(source, edge), *way])
                    if best is None or len(cycle) < len(best):
                        best = cycle
                if tries >= TRIES or (best is not None and len(best) == 2):
                    return best
    return best

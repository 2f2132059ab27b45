"""The declared state in force: read from the control volume, changed by `commit` alone, followed by the fleet's file.

Until the control volume is open, it is what the fleet's file knows: nodes, and no clusters. A control plane that finds
itself fenced there was replaced by another, and never changes anything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ControlConfig, SupersededError
from aurora_ray.control.model.store import ControlStore
from aurora_ray.errors import ConfigurationError, FencedError
from aurora_ray.troubles import Trouble, TroubleCode

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.model.store import Version
    from aurora_ray.volume.spec import NodeAddress

OPEN_TIMEOUT_S: Final = 30.0


class Declared:
    """Belongs to one event loop. `say` is told what people may want to know, `on_change` of each change that is in
    force."""

    def __init__(self, config: ControlConfig, say: Callable[[str], None], on_change: Callable[[], None]) -> None:
        self.fleet = bootstrap.found_or_new(config.data_dir, config.region, config.azs, config.fleet_id)
        self.store: ControlStore | None = None
        self._data_dir = config.data_dir
        self._say = say
        self._on_change = on_change
        self._saving = asyncio.Lock()
        self._fenced = asyncio.Event()
        self._file_problem = ""  # why the bootstrap file does not follow

    @property
    def is_open(self) -> bool:
        """Whether the state is loaded; until then it has no clusters."""
        return self.store is not None

    @property
    def is_superseded(self) -> bool:
        """Whether another control plane has taken over: what this one knows is old."""
        return self._fenced.is_set()

    @property
    def epoch(self) -> int:
        """The control volume's epoch; 0 before it is open."""
        return self.store.epoch if self.store is not None else 0

    def supersede(self) -> None:
        """Another control plane was heard of."""
        self._fenced.set()

    def troubles(self) -> list[Trouble]:
        """What is not as it shall be with the state and its file."""
        found = []
        if self._file_problem:
            found.append(Trouble(TroubleCode.FLEET_FILE, "control", self._file_problem))
        damaged = self.store.damaged if self.store is not None else ()
        found += [Trouble(TroubleCode.STATE_DAMAGED, "control", passed_over(version)) for version in damaged]
        return found

    async def open(
        self, addresses: Sequence[NodeAddress], *, choice: int | None = None, rebuilt: Fleet | None = None
    ) -> ControlStore:
        """Opens the control volume, fencing an older control plane, and takes over the newest state in it that is whole
        (or the one of version `choice`; `rebuilt` if none is). Raises ConfigurationError, QuorumLostError, what is in
        store.py."""
        with self._own_volume():
            store, loaded = await ControlStore.open(
                self.fleet.control_volume,
                addresses,
                timeout_s=OPEN_TIMEOUT_S,
                on_fenced=self._fenced.set,
                choice=choice,
                even_damaged=rebuilt is not None,
            )
        try:
            loaded = loaded or rebuilt
            _check_loaded(self.fleet, loaded)
            async with self._saving:
                fleet = self.fleet if loaded is None else merge(self.fleet, loaded)
                if fleet != loaded or store.damaged or choice is not None or rebuilt is not None:
                    fleet = replace(fleet, revision=fleet.revision + 1)
                    with self._own_volume():
                        await store.save(fleet)
                self.fleet, self.store = fleet, store
        finally:
            if self.store is not store:
                await store.close()
        self.follow()
        return store

    async def commit(self, change: Callable[[Fleet], Fleet]) -> Fleet:
        """Changes the state: durable first, then in force. Raises SupersededError, QuorumLostError."""
        async with self._saving:
            changed = change(self.fleet)
            if changed == self.fleet:
                return changed
            if self.store is not None:
                changed = replace(changed, revision=self.fleet.revision + 1)
                with self._own_volume():
                    await self.store.save(changed)
                # It is durable, whatever becomes of the file: the next change must build on it.
                self.fleet = changed
                self.follow()
            else:
                bootstrap.save(self._data_dir, changed)
                self.fleet = changed
        self._on_change()
        return changed

    async def save_usage(self, counts: bytes) -> None:
        """See ControlStore.save_usage. Raises SupersededError, QuorumLostError."""
        async with self._saving:
            if self.store is not None:
                with self._own_volume():
                    await self.store.save_usage(counts)

    @property
    def file_follows(self) -> bool:
        """Whether the fleet's file says what is in force."""
        return not self._file_problem

    def follow(self) -> None:
        """Has the fleet's file follow. If it cannot be written, the next cycle tries again: its content is not needed
        while we run, and a control plane that starts with an older one finds its way from there."""
        try:
            bootstrap.save(self._data_dir, self.fleet)
            self._file_problem = ""
        except ConfigurationError as error:
            if self._file_problem != str(error):
                self._file_problem = str(error)
                self._say(str(error))

    @contextmanager
    def _own_volume(self) -> Iterator[None]:
        """Who is fenced in here is this control plane itself."""
        try:
            yield
        except FencedError as error:
            self._fenced.set()
            raise SupersededError(str(error)) from error


def passed_over(version: Version) -> str:
    """What is said of a damaged version."""
    return (
        f"version {version.number} of the control state cannot be used ({version.problem}) and the one before it is in "
        "force: what was declared in between is forgotten; `aurora repair state` shows all versions"
    )


def _check_loaded(local: Fleet, loaded: Fleet | None) -> None:
    """Raises ConfigurationError if the state cannot be that of the fleet's file: then nobody may go on from it."""
    if loaded is None and local.revision > 0:
        raise ConfigurationError(
            "the control volume is empty, though a state was saved in it: nothing is made in its place; bring back the "
            "storage nodes' data, or see `aurora repair state`"
        )
    if loaded is not None and local.fleet_id not in (loaded.fleet_id, bootstrap.UNKNOWN_FLEET):
        raise ConfigurationError(
            f"{bootstrap.FILE_NAME} is that of fleet {local.fleet_id}, the control volume that of {loaded.fleet_id}: "
            "restore the right file, or have it made anew with `aurora repair fleet`"
        )


def merge(local: Fleet, loaded: Fleet) -> Fleet:
    """The saved state, with what was learnt about nodes while it was not open yet."""
    hosts = {node.node_id: node.host for node in local.nodes}
    nodes = tuple(replace(node, host=hosts.get(node.node_id) or node.host) for node in loaded.nodes)
    groups = []
    for mine, saved in zip(local.control_volume.groups, loaded.control_volume.groups, strict=True):
        learnt = tuple(n for n in mine.created_on if n in saved.node_ids and n not in saved.created_on)
        groups.append(replace(saved, created_on=(*saved.created_on, *learnt)))
    return replace(loaded, nodes=nodes, control_volume=replace(loaded.control_volume, groups=tuple(groups)))

"""A fleet from the outside, for the command line and for programs: start it or find it, ask it, stop it, remove it.

Everything here blocks. One process talks to one fleet at a time: Ray allows one connection, and its settings come from
the environment when it is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.compute.directories import prepare_data_dir
from aurora_ray.compute.limits import raise_descriptor_limit
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ControlConfig
from aurora_ray.durable import replace_file
from aurora_ray.errors import AuroraError, ConfigurationError, UsageError
from aurora_ray.ray import local as local_ray
from aurora_ray.ray.data_dir import JOINED_NAME, end_leftovers, locked, remove, require_unserved
from aurora_ray.rpc import secret_file

if TYPE_CHECKING:
    from aurora_ray.config import Settings

CALL_TIMEOUT_S: Final = 30.0
UP_TIMEOUT_S: Final = 180.0
DOWN_TIMEOUT_S: Final = 260.0
PROGRESS_EVERY_S: Final = 0.3

Progress = Callable[[str], None]


class NotRunningError(AuroraError):
    """There is no fleet, or it is stopped."""


class OtherFleetError(NotRunningError):
    """What runs there is another fleet: nothing of it may be touched."""


class Fleet:
    """A connection to a running fleet's control plane."""

    def __init__(self, control: Any, data_dir: Path) -> None:
        self._control = control
        self.data_dir = data_dir

    # ---- starting and finding

    @classmethod
    def up(cls, settings: Settings, *, region: str | None = None, progress: Progress = lambda _: None) -> Fleet:
        """Starts the fleet of the data directory, or finds it running. Raises ConfigurationError, LocalRayError."""
        from aurora_ray.engine.account import find_account

        raise_descriptor_limit()
        account = find_account(settings.engine_user)  # what is missing on the machine is said before anything starts
        data_dir = settings.data_dir
        prepare_data_dir(data_dir, passable=account.switch)
        with locked(data_dir):
            with contextlib.suppress(FileNotFoundError):  # the control plane makes it
                secret_file.load_secret(data_dir / secret_file.FILE_NAME)
            config = _control_config(settings, region)
            running = _find_serving(data_dir, progress)
            if settings.ray_address is not None:
                if running is not None:
                    raise UsageError(f"this fleet runs on a Ray of its own at {running.address}: `aurora down` first")
                return cls._join(settings.ray_address, config)
            if running is None and (data_dir / JOINED_NAME).exists():
                return cls._join((data_dir / JOINED_NAME).read_text().strip(), config)
            if running is None:
                config = _with_fleet(config)
                progress("starting Ray")
                running = _start_ray(data_dir, config)
            _connect(running.address, data_dir, own=True)
            return cls(_ensure_control(running.address, config), data_dir)

    @classmethod
    def _join(cls, address: str, config: ControlConfig) -> Fleet:
        """Runs the fleet on a Ray cluster of the user's. Nothing is noted, made or started if another fleet runs there,
        or if this one's file may be on another machine."""
        control = _connect(address, config.data_dir, own=False)
        if control is not None:
            _require_ours(control, config.data_dir, address)
        else:
            if not bootstrap.exists(config.data_dir):
                _require_nowhere(config.data_dir)
            config = _with_fleet(config)
        control = _ensure_control(address, config)
        _require_ours(control, config.data_dir, address)  # somebody else may have been faster
        replace_file(config.data_dir / JOINED_NAME, address + "\n")
        return cls(control, config.data_dir)

    @classmethod
    def find(cls, data_dir: Path) -> Fleet:
        """The running fleet of a data directory; a Ray that starts anew is waited for. Raises NotRunningError."""
        running = _find_serving(data_dir)
        joined = data_dir / JOINED_NAME
        if running is not None:
            control = _connect(running.address, data_dir, own=True)
        elif joined.exists():
            address = joined.read_text().strip()
            control = _connect(address, data_dir, own=False)
            if control is not None:
                _require_ours(control, data_dir, address)
        else:
            control = None
        if control is None:
            if not bootstrap.exists(data_dir):
                bootstrap.require_no_signs(data_dir)
            state = "is stopped" if bootstrap.exists(data_dir) else "does not exist"
            raise NotRunningError(f"the fleet in {data_dir} {state}; start it with `aurora up`")
        return cls(control, data_dir)

    # ---- calls

    def info(self) -> dict[str, Any]:
        """The control plane: process id, region, epoch."""
        return dict(self._get(self._control.info.remote(), CALL_TIMEOUT_S))

    def create(self, name: str, *, timeout_s: float = UP_TIMEOUT_S, **options: Any) -> bool:
        """Declares a cluster; whether it is new. See ControlApi.create for the options."""
        return bool(self._get(self._control.create.remote(name, options, timeout_s), timeout_s + CALL_TIMEOUT_S))

    def wait_available(
        self, name: str, *, timeout_s: float = UP_TIMEOUT_S, progress: Progress = lambda _: None
    ) -> dict[str, Any]:
        """Waits until a cluster accepts statements; its status."""
        import ray

        ref = self._control.wait_available.remote(name, timeout_s)
        while not ray.wait([ref], timeout=PROGRESS_EVERY_S)[0]:
            trail = self.trail()
            if trail:
                progress(trail[-1][1])
        self._get(ref, CALL_TIMEOUT_S)
        return self.status(name)

    def status(self, name: str) -> dict[str, Any]:
        """See ControlApi.status."""
        status: dict[str, Any] = self._get(self._control.status.remote(name), CALL_TIMEOUT_S)
        return status

    def clusters(self) -> list[dict[str, Any]]:
        """See ControlApi.clusters."""
        clusters: list[dict[str, Any]] = self._get(self._control.clusters.remote(), CALL_TIMEOUT_S)
        return clusters

    def delete(self, name: str, *, timeout_s: float = UP_TIMEOUT_S) -> None:
        """See ControlApi.delete."""
        self._get(self._control.delete.remote(name, timeout_s), 2 * timeout_s + CALL_TIMEOUT_S)

    def look_at_state(self) -> dict[str, Any]:
        """See ControlApi.look_at_state."""
        found: dict[str, Any] = self._get(self._control.look_at_state.remote(), UP_TIMEOUT_S)
        return found

    def repair_state(self, version: int | None) -> list[str]:
        """See ControlApi.repair_state."""
        names: list[str] = self._get(self._control.repair_state.remote(version), UP_TIMEOUT_S)
        return names

    def graveyard(self) -> list[dict[str, Any]]:
        """See ControlApi.graveyard."""
        deleted: list[dict[str, Any]] = self._get(self._control.graveyard.remote(), CALL_TIMEOUT_S)
        return deleted

    def restore(self, entry: str, new_name: str, *, timeout_s: float = UP_TIMEOUT_S) -> str:
        """See ControlApi.restore."""
        return str(self._get(self._control.restore.remote(entry, new_name, timeout_s), timeout_s + CALL_TIMEOUT_S))

    def purge(self, entry: str, *, timeout_s: float = UP_TIMEOUT_S) -> None:
        """See ControlApi.purge."""
        self._get(self._control.purge.remote(entry, timeout_s), 2 * timeout_s + CALL_TIMEOUT_S)

    def metrics(self) -> str:
        """All metrics of the fleet, as Prometheus text."""
        text: bytes = self._get(self._control.metrics.remote(), CALL_TIMEOUT_S)
        return text.decode()

    def failover(self, name: str, target: str | None, *, timeout_s: float) -> dict[str, Any]:
        """See ControlApi.failover; the status afterwards."""
        self._get(self._control.failover.remote(name, target, timeout_s), 2 * timeout_s + CALL_TIMEOUT_S)
        return self.status(name)

    def set_parameters(self, name: str, changes: dict[str, str | None]) -> list[dict[str, Any]]:
        """See ControlApi.set_parameters."""
        ref = self._control.set_parameters.remote(name, changes, CALL_TIMEOUT_S)
        done: list[dict[str, Any]] = self._get(ref, 2 * CALL_TIMEOUT_S)
        return done

    def modify(self, name: str, memory_bytes: int, *, at_next_start: bool, timeout_s: float) -> dict[str, Any]:
        """See ControlApi.modify."""
        ref = self._control.modify.remote(name, memory_bytes, at_next_start, timeout_s)
        done: dict[str, Any] = self._get(ref, 2 * timeout_s + CALL_TIMEOUT_S)
        return done

    def repair(self, name: str, kinds: list[str], *, timeout_s: float) -> None:
        """See ControlApi.repair."""
        self._get(self._control.repair.remote(name, kinds, timeout_s), 2 * timeout_s + CALL_TIMEOUT_S)

    def chaos(
        self, verb: str, target: str, name: str, for_s: float | None, *, for_good: bool = False
    ) -> list[dict[str, Any]]:
        """See Chaos.strike."""
        ref = self._control.chaos.remote(verb, target, name, for_s, for_good)
        struck: list[dict[str, Any]] = self._get(ref, CALL_TIMEOUT_S)
        return struck

    def trail(self) -> list[tuple[float, str]]:
        """What was decided and why."""
        trail: list[tuple[float, str]] = self._get(self._control.trail.remote(), CALL_TIMEOUT_S)
        return trail

    def shutdown(self, *, destroy: bool) -> None:
        """Stops every process in order, the control plane last. Raises NotRunningError if Ray dies meanwhile."""
        import ray

        own = local_ray.find(self.data_dir)
        ref = self._control.shutdown.remote(destroy)
        deadline_s = time.monotonic() + DOWN_TIMEOUT_S
        while not ray.wait([ref], timeout=PROGRESS_EVERY_S)[0] and time.monotonic() < deadline_s:
            if own is not None and not own.serves:
                raise NotRunningError("Ray died")
        try:
            self._get(ref, PROGRESS_EVERY_S)
        finally:
            ray.kill(self._control, no_restart=True)
            ray.shutdown()  # while there still is something to say goodbye to

    @staticmethod
    def _get(ref: Any, timeout_s: float) -> Any:
        from aurora_ray.ray.calls import wait_for

        try:
            return wait_for(ref, timeout_s)
        except TimeoutError:
            raise NotRunningError(
                "the control plane does not answer; `aurora down` and `aurora up` start anew"
            ) from None


def down(data_dir: Path, *, destroy: bool, progress: Progress = lambda _: None) -> bool:
    """Stops the fleet, in order as far as it answers, and removes its data if asked; whether it ran."""
    joined = (data_dir / JOINED_NAME).exists()
    if not (bootstrap.exists(data_dir) or bootstrap.signs(data_dir) or joined or local_ray.find(data_dir)):
        if destroy or not data_dir.exists():
            return False
        raise NotRunningError(f"there is no fleet in {data_dir} on this machine")
    with locked(data_dir):
        was_running = False
        running = local_ray.find(data_dir)
        if running.serves if running is not None else joined:  # else nobody is there to be asked
            with contextlib.suppress(NotRunningError):
                fleet = Fleet.find(data_dir)
                was_running = True
                progress("stopping engines and storage nodes")
                fleet.shutdown(destroy=destroy)
        progress("stopping Ray")
        was_running = local_ray.stop(data_dir) or was_running
        require_unserved(data_dir)
        end_leftovers(data_dir)
        (data_dir / JOINED_NAME).unlink(missing_ok=True)
        if destroy:
            progress("removing data")
            remove(data_dir)
    return was_running


def repair_file(settings: Settings, region: str | None, *, write: bool) -> dict[str, Any]:
    """Makes the fleet's file anew from the storage nodes' directories on this machine; what was found, and the file.

    Raises UsageError while the fleet runs, ConfigurationError if the directories do not tell enough.
    """
    from aurora_ray.control.api import repair_file as repair
    from aurora_ray.regions import load_regions

    data_dir = settings.data_dir
    if not bootstrap.signs(data_dir):
        raise NotRunningError(f"there is no sign of a fleet in {data_dir}")
    with locked(data_dir):
        if local_ray.find(data_dir) is not None:
            raise UsageError(f"the fleet in {data_dir} runs: `aurora down` first")
        require_unserved(data_dir)
        found = repair.survey(data_dir)
        fleet = repair.fleet_of(found, load_regions(settings.regions_dir), region)
        kept = repair.write_fleet_file(data_dir, fleet) if write else None
    return {
        "found": found.report(),
        "file": bootstrap.render(fleet),
        "written": write,
        "replaced_file_kept_as": str(kept) if kept else None,
    }


# ---- helpers


def _find_serving(data_dir: Path, progress: Progress = lambda _: None) -> local_ray.LocalRay | None:
    """Raises NotRunningError if Ray died and does not come back."""
    running = local_ray.find(data_dir)
    if running is None or running.serves:
        return running
    progress("waiting for Ray, which died and starts anew")
    try:
        return local_ray.find_serving(data_dir)
    except local_ray.LocalRayError as error:
        raise NotRunningError(str(error)) from error


def _control_config(settings: Settings, region: str | None) -> ControlConfig:
    from aurora_ray.regions import load_region

    existing = bootstrap.load(settings.data_dir)
    if existing is not None:
        if region is not None and region != existing.region:
            raise UsageError(f"the fleet in {settings.data_dir} is in region {existing.region}, not {region}")
        name, azs = existing.region, existing.azs
    else:
        found = load_region(region or settings.region, settings.regions_dir)
        name, azs = found.name, found.availability_zones
    return ControlConfig(
        data_dir=settings.data_dir,
        region=name,
        azs=tuple(azs),
        group_bytes=int(settings.group_bytes),
        cache_bytes=int(settings.cache_bytes or 0),
        retention_s=settings.retention_s,
        retention_bytes=int(settings.retention_bytes),
        listen_host=settings.listen_host,
        engine_user=settings.engine_user,
        hung_after_s=settings.hung_after_s,
        give_up_after_s=settings.give_up_after_s,
        answer_within_s=settings.answer_within_s,
        stuck_after_s=settings.stuck_after_s,
        metrics_port=settings.metrics_port,
        replace_after_s=settings.replace_after_s,
        replace_empty_after_s=settings.replace_empty_after_s,
        graveyard_s=settings.graveyard_s,
    )


def _start_ray(data_dir: Path, config: ControlConfig) -> local_ray.LocalRay:
    """Starts the local Ray and imports it here meanwhile: both take a while."""
    os.environ.update(local_ray.environment(data_dir))
    importer = threading.Thread(target=__import__, args=("ray",), name="import ray", daemon=True)
    importer.start()
    running = local_ray.start(data_dir, ["--config", json.dumps(config.to_dict())])
    importer.join()
    return running


def _with_fleet(config: ControlConfig) -> ControlConfig:
    """Knows which fleet it is: the one of the file, which is made here, and nowhere else, for a new one."""
    fleet = bootstrap.found_or_new(config.data_dir, config.region, config.azs)
    bootstrap.save(config.data_dir, fleet)
    return replace(config, fleet_id=str(fleet.fleet_id))


def _require_ours(control: Any, data_dir: Path, address: str) -> None:
    """Raises OtherFleetError unless that control plane says it runs the fleet of our file; then it is let go of."""
    import ray

    theirs = Fleet(control, data_dir).info()
    ours = bootstrap.load(data_dir)
    if ours is None or theirs["data_dir"] != str(data_dir) or theirs["fleet_id"] != str(ours.fleet_id):
        ray.shutdown()
        raise OtherFleetError(
            f"the Ray cluster at {address} runs fleet {theirs['fleet_id']} of {theirs['data_dir']}, not the one of "
            f"{data_dir}: name that directory with --data-dir, or another Ray cluster with --address"
        )


def _require_nowhere(data_dir: Path) -> None:
    """Raises ConfigurationError if a machine of the connected Ray cluster has a fleet in this directory, or does not
    tell: then none may be made here."""
    import ray

    from aurora_ray.ray.runtime import CRUMB

    look = ray.remote(_fleet_here)
    asked = {
        node["NodeManagerAddress"]: look.options(
            num_cpus=0, resources={f"node:{node['NodeManagerAddress']}": CRUMB}, max_retries=0
        ).remote(str(data_dir))
        for node in ray.nodes()
        if node["Alive"]
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=CALL_TIMEOUT_S)
    for machine, ref in asked.items():
        try:
            found = ray.get(ref, timeout=0.1)
        except Exception as error:
            raise ConfigurationError(
                f"machine {machine} does not tell whether a fleet is in its {data_dir}, so none is made here: {error}"
            ) from None
        if found:
            raise ConfigurationError(
                f"machine {machine} has {found}: a fleet is there already; run `aurora up` on the machine that has its "
                f"{bootstrap.FILE_NAME}, or have that made anew with `aurora repair fleet`"
            )


def _fleet_here(data_dir: str) -> str:
    """What tells of a fleet on the machine where this runs; empty if nothing does."""
    path = Path(data_dir)
    return str(path / bootstrap.FILE_NAME) if bootstrap.exists(path) else next(iter(bootstrap.signs(path)), "")


def _ensure_control(address: str, config: ControlConfig) -> Any:
    from aurora_ray.ray.control import ensure_control

    _require_azs(config.azs, address)
    return ensure_control(config)


def _connect(address: str, data_dir: Path, *, own: bool) -> Any:
    """Connects to a Ray cluster; its control actor, or None. Raises NotRunningError."""
    if own:
        os.environ.update(local_ray.environment(data_dir))
        atexit.register(local_ray.forget_command_logs, data_dir)
    import logging

    import ray

    from aurora_ray.ray.runtime import NAMESPACE

    try:
        with _silenced():
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NotRunningError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error
    from aurora_ray.ray.control import find_control

    return find_control()


def _require_azs(azs: Sequence[str], address: str) -> None:
    import ray

    from aurora_ray.ray.runtime import az_resource

    resources = ray.cluster_resources()
    missing = [az for az in azs if az_resource(az) not in resources]
    if missing:
        wanted = ", ".join(f'{{"{az_resource(az)}": 1000}}' for az in missing)
        raise ConfigurationError(
            f"no machine of the Ray cluster at {address} is in {', '.join(missing)}: start machines there with "
            f"`ray start --resources='…'` and these resources: {wanted}"
        )


@contextmanager
def _silenced() -> Iterator[None]:
    """Ray writes a few lines about itself to stderr whatever its logging level."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield

"""A fleet from the outside, for the command line and for programs: start it or find it, ask it, stop it, remove it.

Everything here blocks. Who asks a fleet something talks to its control plane by gRPC and needs no Ray. Starting it and
stopping it does: one process does that for one fleet, because Ray allows one connection, and its settings come from the
environment when it is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from aurora_ray.compute.directories import prepare_data_dir
from aurora_ray.compute.limits import raise_descriptor_limit
from aurora_ray.control.api.client import ControlClient, NotRunningError, Progress
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ControlConfig
from aurora_ray.durable import replace_file
from aurora_ray.errors import AuroraError, ConfigurationError, UsageError
from aurora_ray.ray import local as local_ray
from aurora_ray.ray.data_dir import JOINED_NAME, end_leftovers, locked, remove, require_unserved
from aurora_ray.ray.probe import require_answer
from aurora_ray.regions import load_region, load_regions
from aurora_ray.replication.residency import Purpose, judge
from aurora_ray.rpc import secret_file

if TYPE_CHECKING:
    from aurora_ray.config import Settings

CALL_TIMEOUT_S: Final = 30.0
UP_TIMEOUT_S: Final = 180.0
DOWN_TIMEOUT_S: Final = 260.0
PROGRESS_EVERY_S: Final = 0.3
FIND_TIMEOUT_S: Final = 30.0  # for a control plane that is just being started anew
ANSWER_TIMEOUT_S: Final = 3.0


class OtherFleetError(NotRunningError):
    """What runs there is another fleet: nothing of it may be touched."""


class Fleet(ControlClient):
    """A running fleet: how to start it and find it, and the calls of its control plane."""

    is_new = False  # whether `up` started it where no fleet had been yet

    @classmethod
    def up(cls, settings: Settings, *, region: str | None = None, progress: Progress = lambda _: None) -> Self:
        """Starts the fleet of the data directory, or finds it running. Raises ConfigurationError, LocalRayError.

        If it fails where no fleet had been yet, nothing that it started goes on.
        """
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
            joined = data_dir / JOINED_NAME
            is_new = running is None and not joined.exists() and not _existed(data_dir)
            if settings.ray_address is not None and running is not None:
                raise UsageError(f"this fleet runs on a Ray of its own at {running.address}: `aurora down` first")
            if settings.small and (settings.ray_address is not None or (running is None and joined.exists())):
                raise UsageError("a small fleet has a Ray of its own, on one machine: leave out --small or --address")
            try:
                if settings.ray_address is not None or (running is None and joined.exists()):
                    _join(settings.ray_address or joined.read_text().strip(), config)
                elif running is None:
                    config = _with_fleet(config)
                    progress("starting Ray")
                    running = local_ray.start(data_dir, ["--config", json.dumps(config.to_dict())])
                elif not cls._answers(data_dir):
                    _connect(running.address, data_dir, own=True)
                    _ensure_control(running.address, config)
                fleet = cls.connect(data_dir, UP_TIMEOUT_S, lambda: _may_answer(data_dir))
            except OtherFleetError:
                raise
            except Exception:
                if is_new:
                    _end_again(data_dir, progress)
                raise
            fleet.is_new = is_new
            if settings.small and not fleet.info()["small"]:
                fleet.close()
                raise UsageError("this fleet runs, and is no small one: `aurora down`, then `aurora up --small`")
            return fleet

    @contextmanager
    def ended_unless_made(self, progress: Progress = lambda _: None) -> Iterator[None]:
        """Around what makes a new fleet's first cluster. If that fails, and waiting longer is no use, the fleet ends as
        well, unless it has a cluster that serves: what is declared stays, and the next `up` goes on from there."""
        try:
            yield
        except Exception as error:
            if self.is_new and not (isinstance(error, AuroraError) and error.retryable and _existed(self.data_dir)):
                self._end_unless_it_serves(progress)
            raise

    def _end_unless_it_serves(self, progress: Progress) -> None:
        with contextlib.suppress(AuroraError):  # the state is not loaded, or nobody answers
            if any(cluster["state"] == "available" for cluster in self.clusters()):
                return
        self.close()
        with locked(self.data_dir):
            _end_again(self.data_dir, progress)

    @classmethod
    def find(cls, data_dir: Path) -> Self:
        """The running fleet of a data directory; a Ray that starts anew is waited for. Raises NotRunningError."""
        if _find_serving(data_dir) is None and not (data_dir / JOINED_NAME).exists():
            if not bootstrap.exists(data_dir):
                bootstrap.require_no_signs(data_dir)
            state = "is stopped" if bootstrap.exists(data_dir) else "does not exist"
            raise NotRunningError(f"the fleet in {data_dir} {state}; start it with `aurora up`")
        return cls.connect(data_dir, FIND_TIMEOUT_S, lambda: _may_answer(data_dir))

    @classmethod
    def _answers(cls, data_dir: Path) -> bool:
        try:
            cls.connect(data_dir, ANSWER_TIMEOUT_S).close()
        except NotRunningError:
            return False
        return True


def _existed(data_dir: Path) -> bool:
    """Whether a fleet ever had a state here. Raises ConfigurationError."""
    known = bootstrap.load(data_dir)
    return known is not None and known.revision > 0


def _may_answer(data_dir: Path) -> bool:
    """Whether a control plane that does not answer yet may do so: nothing that it runs on is known to be gone."""
    own = local_ray.find(data_dir)
    return (data_dir / JOINED_NAME).exists() if own is None else own.serves


def _join(address: str, config: ControlConfig) -> None:
    """Runs the fleet on a Ray cluster of the user's. Nothing is noted, made or started if another fleet has the same
    directory there, or if this one's file may be on another machine."""
    _connect(address, config.data_dir, own=False)
    if _find_ours(config.data_dir) is None and not bootstrap.exists(config.data_dir):
        _require_nowhere(config.data_dir)
    _ensure_control(address, config)
    replace_file(config.data_dir / JOINED_NAME, address + "\n")


def connect_ray(data_dir: Path) -> None:
    """Connects this process to the Ray cluster that the fleet of a data directory runs on. Raises NotRunningError."""
    own = local_ray.find(data_dir)
    joined = data_dir / JOINED_NAME
    if own is None and not joined.exists():
        raise NotRunningError(f"no fleet runs in {data_dir}")
    _connect(own.address if own is not None else joined.read_text().strip(), data_dir, own=own is not None)


def _shut_down(data_dir: Path, *, destroy: bool) -> None:
    """Stops every process in order, the control plane last. By way of Ray, which also reaches a fleet that runs an
    older version. Raises NotRunningError if there is no control plane, or if Ray dies meanwhile."""
    own = local_ray.find(data_dir)
    connect_ray(data_dir)
    control = _find_ours(data_dir)
    if control is None:
        raise NotRunningError(f"no control plane of {data_dir} runs there")
    import ray

    ref = control.shutdown.remote(destroy=destroy)  # by name: of an older version's method Ray knows no positions
    deadline_s = time.monotonic() + DOWN_TIMEOUT_S
    while not ray.wait([ref], timeout=PROGRESS_EVERY_S)[0] and time.monotonic() < deadline_s:
        if own is not None and not own.serves:
            raise NotRunningError("Ray died")
    try:
        _get(ref, PROGRESS_EVERY_S)
    finally:
        ray.kill(control, no_restart=True)
        ray.shutdown()  # while there still is something to say goodbye to


def _get(ref: Any, timeout_s: float) -> Any:
    from aurora_ray.ray.calls import wait_for

    try:
        return wait_for(ref, timeout_s)
    except TimeoutError:
        raise NotRunningError("the control plane does not answer; `aurora down` and `aurora up` start anew") from None


def down(data_dir: Path, *, destroy: bool, progress: Progress = lambda _: None) -> bool | None:
    """Stops the fleet, in order as far as it answers, and removes its data if asked; whether it ran, None if there was
    no trace of any."""
    joined = (data_dir / JOINED_NAME).exists()
    if not (bootstrap.exists(data_dir) or bootstrap.signs(data_dir) or joined or local_ray.find(data_dir)):
        if destroy or not data_dir.exists():
            return None
        raise NotRunningError(f"there is no fleet in {data_dir} on this machine")
    with locked(data_dir):
        was_running = _end(data_dir, progress, destroy=destroy)
        if destroy:
            progress("removing data")
            remove(data_dir)
    return was_running


def _end_again(data_dir: Path, progress: Progress) -> None:
    """Ends what was just started; what it failed of is what people shall hear."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()  # another connection is needed, to whatever there is now
    with contextlib.suppress(AuroraError):
        _end(data_dir, progress)


def _end(data_dir: Path, progress: Progress, *, destroy: bool = False) -> bool:
    """Ends all that runs; whether anything did. The caller holds the directory's lock. Raises UsageError."""
    was_running = False
    running = local_ray.find(data_dir)
    if running.serves if running is not None else (data_dir / JOINED_NAME).exists():  # else nobody is to be asked
        with contextlib.suppress(NotRunningError):
            progress("stopping engines and storage nodes")
            _shut_down(data_dir, destroy=destroy)
            was_running = True
    progress("stopping Ray")
    was_running = local_ray.stop(data_dir) or was_running
    require_unserved(data_dir)
    end_leftovers(data_dir)
    (data_dir / JOINED_NAME).unlink(missing_ok=True)
    return was_running


def repair_file(settings: Settings, region: str | None, *, write: bool) -> dict[str, Any]:
    """Makes the fleet's file anew from the storage nodes' directories on this machine; what was found, and the file.

    Raises UsageError while the fleet runs, ConfigurationError if the directories do not tell enough.
    """
    from aurora_ray.control.api import repair_file as repair

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


def _exports_to(settings: Settings) -> str | None:
    """The region that traces and metrics of this fleet go to, empty if nobody said it; None if none go anywhere."""
    from aurora_ray.telemetry import otlp

    exported = any(otlp.wanted(os.environ, signal) for signal in ("TRACES", "METRICS"))
    return settings.telemetry_region if exported else None


def _require_quiet(settings: Settings, region: str) -> None:
    """Raises ResidencyError if they would go where a policy of this fleet lets nothing go."""
    exports_to = _exports_to(settings)
    if exports_to is None:
        return
    known = load_regions(settings.regions_dir)
    for policy in bootstrap.policies(settings.data_dir):
        where = known.get(exports_to, exports_to or "a place that AURORA_TELEMETRY_REGION does not name")
        judge(policy, "this fleet", Purpose.DIAGNOSTICS, region, where).require()


def _control_config(settings: Settings, region: str | None) -> ControlConfig:
    existing = bootstrap.load(settings.data_dir)
    if existing is not None:
        if region is not None and region != existing.region:
            raise UsageError(f"the fleet in {settings.data_dir} is in region {existing.region}, not {region}")
        name, azs = existing.region, existing.azs
        _require_quiet(settings, name)
    else:
        found = load_region(region or settings.region, settings.regions_dir)
        name, azs = found.name, found.availability_zones
    return ControlConfig(
        data_dir=settings.data_dir,
        region=name,
        exports_to=_exports_to(settings),
        azs=tuple(azs),
        group_bytes=int(settings.group_bytes),
        volume_limit_bytes=int(settings.volume_limit_bytes),
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
        promote_in_place=settings.promote_in_place,
        graveyard_s=settings.graveyard_s,
        cpus_per_acu=settings.cpus_per_acu,
        regions_dir=str(settings.regions_dir or ""),
        small=settings.small,
    )


def _with_fleet(config: ControlConfig) -> ControlConfig:
    """Knows which fleet it is: the one of the file, which is made here, and nowhere else, for a new one."""
    fleet = bootstrap.found_or_new(config.data_dir, config.region, config.azs)
    bootstrap.save(config.data_dir, fleet)
    return replace(config, fleet_id=str(fleet.fleet_id))


def _find_ours(data_dir: Path, *, older: bool = True) -> Any:
    """Of the control actors of the connected Ray cluster that of our fleet, in whatever namespace; None if it does not
    run. Raises OtherFleetError for that of another fleet of the same directory, on another machine: both would have
    the same directories of storage nodes; and UsageError for one of an older version, unless that will do."""
    from aurora_ray.ray.runtime import LEGACY_NAMESPACE

    ours, unknown = bootstrap.load(data_dir), str(bootstrap.UNKNOWN_FLEET)
    for namespace, control in _controls():
        theirs = _get(control.info.remote(), CALL_TIMEOUT_S)
        if theirs["data_dir"] != str(data_dir):
            continue
        fleet_id = theirs.get("fleet_id", unknown)  # the first version did not say
        if ours is None or fleet_id not in (str(ours.fleet_id), unknown):
            import ray

            ray.shutdown()
            raise OtherFleetError(
                f"that Ray cluster runs fleet {fleet_id} of {data_dir} on another machine, not the one that "
                "is here: name another directory with --data-dir, or another Ray cluster with --address"
            )
        if namespace == LEGACY_NAMESPACE and not older:
            raise UsageError(f"the fleet in {data_dir} runs an older version: `aurora down`, then `aurora up`")
        return control
    return None


def _controls() -> list[tuple[str, Any]]:
    """The control actors of all fleets of the connected Ray cluster, each with its namespace."""
    import ray.util

    from aurora_ray.ray.runtime import CONTROL_NAME, LEGACY_NAMESPACE

    found = []
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["name"] == CONTROL_NAME and one["namespace"].startswith(LEGACY_NAMESPACE):
            with contextlib.suppress(ValueError):  # it ended just now
                found.append((one["namespace"], ray.get_actor(CONTROL_NAME, one["namespace"])))
    return found


def _require_nowhere(data_dir: Path) -> None:
    """Raises ConfigurationError if a machine of the connected Ray cluster has a fleet in this directory, or does not
    tell: then none may be made here."""
    import ray

    from aurora_ray.ray.reach import CRUMB

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
    from aurora_ray.ray.control import ensure_control, require_made

    _require_azs(config.azs, address)
    _find_ours(config.data_dir, older=False)
    control = ensure_control(_with_fleet(config))
    require_made(control)
    return control


def _connect(address: str, data_dir: Path, *, own: bool) -> None:
    """Connects to a Ray cluster. Raises NotRunningError."""
    if own:
        os.environ.update(local_ray.environment(data_dir))
        atexit.register(local_ray.forget_command_logs, data_dir)
    else:
        require_answer(address)
    import logging

    import ray

    try:
        with _silenced():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NotRunningError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error


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

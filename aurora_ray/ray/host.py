"""The process that holds the local Ray cluster: `python -m aurora_ray.ray.host --data-dir D --config JSON`.

It starts Ray with the three AZs as custom resources, starts the control actor, notes the address, and waits to be
terminated. The daemons of the cluster are children that the kernel ends when this process ends, however it ends.

If one of them dies, Ray cannot be mended: actors serve on for a while, and nothing heals any more. Then this process
kills all the others of the cluster and executes itself anew. What was acknowledged is on disk, and the new control
actor finds it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final, NoReturn

from aurora_ray.compute.directories import PRIVATE_UMASK
from aurora_ray.control.model.runtime import ControlConfig
from aurora_ray.ray import local as local_ray

_log = logging.getLogger(__name__)

OBJECT_STORE_BYTES: Final = 100 << 20
# Worker processes that Ray starts ahead of demand and in parallel. Actors ask for no CPU, so this bounds nothing else.
PARALLEL_STARTS: Final = 8
PER_AZ: Final = 1000.0
WATCH_EVERY_S: Final = 1.0
# A cluster that dies more often than this has a reason that starting it once more does not remove.
RESTARTS_MAX: Final = 3
RESTARTS_WITHIN_S: Final = 600.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aurora_ray.ray.host")
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--config", required=True, help="the control plane's, as JSON")
    parser.add_argument("--restarts", nargs="*", default=[], type=float, help="when it started itself anew (monotonic)")
    return parser.parse_args()


def main() -> None:
    """Holds the cluster until told to end."""
    arguments = _arguments()
    os.umask(PRIVATE_UMASK)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.update(local_ray.environment(arguments.data_dir))  # before ray is imported: it reads them then
    environ = dict(os.environ)  # ray adds to it what shall not reach a successor
    ended = threading.Event()
    _end_on_signals(ended)
    try:
        daemons = _start(arguments.data_dir, ControlConfig.from_dict(json.loads(arguments.config)), ended)
        gone = _watch(daemons, ended)
        if gone:
            _start_anew(arguments, gone, environ, ended)
        import ray

        ray.shutdown()
    except Exception:
        _log.exception("everything is ended")  # the last line of it is told to whoever starts the fleet
        local_ray.end_processes(arguments.data_dir)
        os._exit(1)  # not an orderly exit: ray would report the error to a cluster that is not there, for ever
    finally:
        local_ray.end_processes(arguments.data_dir)


def _end_on_signals(ended: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())


def _start(data_dir: Path, config: ControlConfig, ended: threading.Event) -> dict[str, tuple[int, int]]:
    """Starts the cluster and notes its address; its daemons."""
    import ray

    from aurora_ray.ray.runtime import az_resource, namespace_of

    ray.init(
        num_cpus=PARALLEL_STARTS,
        resources={az_resource(az): PER_AZ for az in config.azs},
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        namespace=namespace_of(config.fleet_id),
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(local_ray.socket_dir(data_dir)),
    )
    from aurora_ray.ray.control import ensure_control, require_made

    require_made(ensure_control(config))  # detached: it needs no handle to live
    _end_on_signals(ended)  # ray.init has handlers of its own for these
    daemons = local_ray.daemons_of(os.getpid())
    local_ray.note(data_dir, ray.get_runtime_context().gcs_address, daemons)
    return daemons


def _watch(daemons: dict[str, tuple[int, int]], ended: threading.Event) -> dict[str, int]:
    """Until told to end, or until daemons are gone: those."""
    while not ended.wait(WATCH_EVERY_S):
        gone = local_ray.dead(daemons)
        if gone:
            return gone
    return {}


def _start_anew(
    arguments: argparse.Namespace, gone: dict[str, int], environ: dict[str, str], ended: threading.Event
) -> NoReturn:
    """Kills what is left and becomes a successor with the same process id; or gives up."""
    who = " and ".join(f"{name} (process {pid})" for name, pid in gone.items())
    now_s = time.monotonic()
    restarts = [at_s for at_s in arguments.restarts if now_s - at_s < RESTARTS_WITHIN_S]
    local_ray.note(arguments.data_dir, "", {})
    killed = local_ray.end_processes(arguments.data_dir)
    if len(restarts) >= RESTARTS_MAX:
        _log.error(
            "Ray's %s died, for the %dth time within %g minutes: everything is ended; look for the reason (memory? "
            "someone who kills it?), then `aurora up` starts the fleet with the same data",
            who,
            len(restarts) + 1,
            RESTARTS_WITHIN_S / 60,
        )
        os._exit(1)  # not an orderly exit: ray would take leave of a cluster that is not there
    if ended.is_set():
        os._exit(0)
    _log.warning("Ray's %s died: killed the %d processes that were left, starting anew", who, killed)
    local_ray.make_private_dir(arguments.data_dir)
    _forget_children_and_files()
    command = [sys.executable, "-m", "aurora_ray.ray.host"]
    command += ["--data-dir", str(arguments.data_dir), "--config", arguments.config]
    command += ["--restarts", *map(str, [*restarts, now_s])]
    os.execve(sys.executable, command, environ)  # noqa: S606  (no shell is what we want)


def _forget_children_and_files() -> None:
    """A successor knows nothing of them: children would stay as corpses, ray's own descriptors as open files."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if int(name) > 2:
                os.set_inheritable(int(name), False)


if __name__ == "__main__":
    main()

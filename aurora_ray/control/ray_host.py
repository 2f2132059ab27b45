"""The process that holds the local Ray cluster: `python -m aurora_ray.control.ray_host --data-dir D --config JSON`.

It starts Ray with the three AZs as custom resources, starts the control actor, notes the address, and waits to be
terminated. Everything of the cluster is a child that the kernel ends when this process ends, however it ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Final

from aurora_ray.control import local_ray
from aurora_ray.control.runtime import ControlConfig

OBJECT_STORE_BYTES: Final = 100 << 20
# Worker processes that Ray starts ahead of demand and in parallel. Actors ask for no CPU, so this bounds nothing else.
PARALLEL_STARTS: Final = 8
PER_AZ: Final = 1000.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aurora_ray.control.ray_host")
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--config", required=True, help="the control plane's, as JSON")
    return parser.parse_args()


def main() -> None:
    """Holds the cluster until told to end."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.update(local_ray.environment(arguments.data_dir))  # before ray is imported: it reads them then
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    config = ControlConfig.from_dict(json.loads(arguments.config))
    import ray

    from aurora_ray.control.ray_runtime import NAMESPACE, az_resource

    ray.init(
        num_cpus=PARALLEL_STARTS,
        resources={az_resource(az): PER_AZ for az in config.azs},
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(local_ray.socket_dir(arguments.data_dir)),
    )
    from aurora_ray.control.actor import ensure_control

    control = ensure_control(config)
    # ray.init has handlers of its own for these.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    local_ray.note(arguments.data_dir, ray.get_runtime_context().gcs_address)
    ended.wait()
    del control
    ray.shutdown()


if __name__ == "__main__":
    main()

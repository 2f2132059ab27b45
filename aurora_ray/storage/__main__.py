"""A storage node as a program of its own, without Ray: `python -m aurora_ray.storage --node-id n1 --az a --data-dir D`.

Writes its address as one line to standard output once it serves. Every setting of StorageConfig is an option.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import signal
import sys
from pathlib import Path

from aurora_ray.errors import AuroraError
from aurora_ray.rpc.admission import OURS
from aurora_ray.rpc.process import expect_long_service
from aurora_ray.rpc.secret_file import FILE_NAME, ensure_secret
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.disk import effects
from aurora_ray.storage.server.server import StorageServer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aurora_ray.storage", description=__doc__.partition("\n")[0])
    parser.add_argument("--node-id", required=True)
    parser.add_argument("--az", required=True)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--secret-file", type=Path, help="its fleet's secret (default: one of its own, in --data-dir)")
    for setting in dataclasses.fields(StorageConfig):
        if setting.default is not dataclasses.MISSING:
            option = "--" + setting.name.replace("_", "-")
            parser.add_argument(option, type=type(setting.default), default=setting.default)
    return parser.parse_args()


async def _serve(config: StorageConfig) -> None:
    server = StorageServer(config)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    address = await server.start()
    sys.stdout.write(address + "\n")
    sys.stdout.flush()
    await ended.wait()
    await server.stop()


def main() -> None:
    """Serves until told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    arguments = vars(_arguments())
    secret_file = arguments.pop("secret_file")
    config = StorageConfig(**arguments)
    expect_long_service()
    try:
        effects.make_directory(config.data_dir)
        OURS.set(ensure_secret(secret_file or config.data_dir / FILE_NAME))
        asyncio.run(_serve(config))
    except AuroraError as error:
        sys.exit(f"storage node {config.node_id} does not start: {error}")


if __name__ == "__main__":
    main()

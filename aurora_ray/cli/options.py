"""Options that many commands share, and where they lead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_ray.engine.registry import ENGINES

if TYPE_CHECKING:
    from aurora_ray.config import Settings
    from aurora_ray.ray.fleet import Fleet

ROOT_DATA_DIR = Path("/var/lib/aurora-ray")  # engines run as another account then, which must get there

Name = Annotated[str, typer.Argument(metavar="[NAME]", help="The cluster.", show_default=True)]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where everything lives (or AURORA_DATA_DIR).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TimeoutS = Annotated[float, typer.Option("--timeout", metavar="S", min=1, help="Give up waiting after S seconds.")]
DEFAULT_NAME = "demo"


def parse_bytes(text: str) -> int:
    """ "2GiB" as bytes. Raises typer.BadParameter."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is no size: say it as 2GiB or 512MiB") from error


Engine = Annotated[str, typer.Option(help=f"{', '.join(ENGINES)}.")]
Readers = Annotated[
    int, typer.Option("--readers", metavar="N", min=0, help="Reader instances that there shall be at least.")
]
Memory = Annotated[
    int,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=parse_bytes,
        help="The size of its instances, as 2GiB; by default a quarter of what no instance was given yet.",
        show_default=False,
    ),
]
Small = Annotated[
    bool,
    typer.Option(
        "--small",
        help="Little memory: storage nodes of an AZ share a process, and its end is that of all of them; no process in "
        "waiting; instances of 512 MiB. To be said at each start (or AURORA_SMALL=1).",
    ),
]


def settings(data_dir: Path | None, **overrides: Any) -> Settings:
    """The settings in force. Without any word about it, root's data lies below /var/lib."""
    from aurora_ray.config import load_settings

    if data_dir is None and "AURORA_DATA_DIR" not in os.environ and os.geteuid() == 0:
        data_dir = ROOT_DATA_DIR
    return load_settings(data_dir=data_dir, **overrides)


def find(data_dir: Path | None) -> Fleet:
    """The running fleet. Raises NotRunningError."""
    from aurora_ray.ray.fleet import Fleet

    return Fleet.find(settings(data_dir).data_dir)

"""`aurora`: the entry point. Errors are one sentence; exit code 2 for wrong use, 1 for failure."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from aurora_ray.cli import (
    administration,
    backups,
    bench,
    capacity,
    chaos,
    clusters,
    endpoints,
    events,
    fleet,
    global_clusters,
    graveyard,
    past,
    readers,
    repair,
    trace,
)
from aurora_ray.cli.output import Results, error_line, write_line
from aurora_ray.errors import AuroraError, UsageError

WRONG_USE = 2
FAILURE = 1
# Typer brings its own copy of click since 0.29 and used the installed one before; this is the base class of either.
WRONG_ARGUMENTS: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="aurora",
    help="An open Amazon Aurora: unmodified PostgreSQL on a six-copy, log-structured volume, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
fleet.register(app)
clusters.register(app)
readers.register(app)
capacity.register(app)
past.register(app)
backups.register(app)
global_clusters.register(app)
endpoints.register(app)
graveyard.register(app)
events.register(app)
repair.register(app)
trace.register(app)
chaos.register(app)
bench.register(app)
administration.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        write_line(version("aurora-ray"))
        raise typer.Exit


@app.callback()
def _root(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An open Amazon Aurora: unmodified PostgreSQL on a six-copy, log-structured volume, on Ray."""


def main() -> None:
    """Runs one command and exits."""
    sys.stdout = Results()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command; its exit code."""
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="aurora", standalone_mode=False)
    except WRONG_ARGUMENTS as error:
        error.show()
        return WRONG_USE
    except (typer.Abort, KeyboardInterrupt):
        error_line("interrupted; what was started goes on")
        return FAILURE
    except AuroraError as error:
        error_line(str(error))
        return WRONG_USE if isinstance(error, UsageError) else FAILURE
    except BrokenPipeError:
        return FAILURE
    except Exception as error:
        if os.environ.get("AURORA_DEBUG"):
            raise
        error_line(f"unexpected {type(error).__name__}: {error} (AURORA_DEBUG=1 shows where)")
        return FAILURE
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()

"""`python -m benchmarks failover`: how long clients are without a writer when it is lost, again and again, under load.

Both databases take turns: load for some seconds, the fault, the outage as a client had it, the account of where the
time went, and whether any acknowledged row is missing. The file is written after every turn, so that a run can be cut
short and continued (`run --resume FILE`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks import machine
from benchmarks.failover_client import Client, PgbenchLoad
from benchmarks.failover_peers import KINDS, PEERS, Account, Peer
from benchmarks.raw import Saved, end_in_order, file_of
from benchmarks.runner import console_for
from benchmarks.site import prepared
from benchmarks.systems.base import Site, query

FORMAT: Final = 1
LOAD_S: Final = "6,20"  # before a fault, drawn anew each time: it decides how much WAL there is to replay
# What `--steady` stands for: longer than a checkpoint's interval, so that there is as much to replay as there ever is.
STEADY: Final[Mapping[str, Any]] = {"clients": 24, "scale": 20, "load_s": "70,110"}
SETTLED_S: Final = 6.0  # above control.plane.SETTLED_AFTER_S
OUTAGE_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One fault. `outage_s` is the client's, `account` what the system itself recorded, `lost` must be 0."""

    peer: str
    kind: str
    number: int
    at: str  # RFC 3339, UTC
    load_s: float
    load_tps: float
    outage_s: float
    fault_to_write_s: float
    lost: int
    account: Account | None


@dataclass(slots=True, kw_only=True)
class FailoverResult(Saved):
    """A run."""

    started: str
    seed: int
    kills: int
    kinds: list[str]
    peers: list[str]
    clients: int
    load_s: list[float]  # before each fault: shortest, longest
    scale: int
    commit: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    titles: dict[str, str]
    turns: list[Turn] = field(default_factory=list)
    load_averages: list[float] = field(default_factory=list)  # of the last minute, when each turn began
    suite: str = "failover"
    format: int = FORMAT

    @classmethod
    def load(cls, path: Path) -> FailoverResult:
        """The inverse of `save`. Raises ValueError for a file of another kind."""
        values = json.loads(path.read_text())
        if (values.get("suite"), values.get("format")) != ("failover", FORMAT):
            raise ValueError(f"{path} is no result of this benchmark, or from another version of it")
        values["turns"] = [
            Turn(**{**turn, "account": Account(**turn["account"]) if turn["account"] else None})
            for turn in values["turns"]
        ]
        return cls(**values)

    def of(self, peer: str, kind: str) -> list[Turn]:
        """The turns of one kind with one database."""
        return [turn for turn in self.turns if (turn.peer, turn.kind) == (peer, kind)]

    def left(self) -> Iterator[tuple[int, str, str]]:
        """(number, kind, peer) of what is still to be done, in order; the databases take turns."""
        done = {(turn.number, turn.kind, turn.peer) for turn in self.turns}
        for number in range(self.kills):
            for kind in self.kinds:
                for peer in self.peers:
                    if (number, kind, peer) not in done:
                        yield number, kind, peer


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Lose the writer under load, again and again.")


@app.command()
def run(
    *,
    kills: Annotated[int, typer.Option(min=1, help="of each kind, with each database")] = 30,
    kinds: Annotated[str, typer.Option(help=f"of faults, as 'kill,stop': {', '.join(KINDS)}")] = "kill,stop",
    peers: Annotated[str, typer.Option(help=f"which databases, in turn: {', '.join(PEERS)}")] = "aurora,stock",
    clients: Annotated[int, typer.Option(min=1, help="of pgbench's load")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale factor")] = 10,
    load_s: Annotated[str, typer.Option(help="of load before each fault, as 'shortest,longest'")] = LOAD_S,
    steady: Annotated[
        bool, typer.Option("--steady", help="under a load that goes on: for --clients 24 --scale 20 --load-s 70,110")
    ] = False,
    limit_s: Annotated[float, typer.Option(help="no further turn begins after so many seconds")] = float("inf"),
    seed: Annotated[int, typer.Option(help="of the lengths of the load")] = 1,
    resume: Annotated[Path | None, typer.Option(help="go on with this file; its options count")] = None,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[
        Path | None, typer.Option(help="the JSON file; default: benchmarks/out/failover-<time>.json")
    ] = None,
) -> None:
    """Measure. Example: python -m benchmarks failover run --kills 3 --load-s 6,8."""
    from benchmarks.failover_report import show

    started_s = time.monotonic()
    console = console_for()
    end_in_order()
    before = FailoverResult.load(resume) if resume is not None else None
    if steady:
        clients, scale, load_s = STEADY["clients"], STEADY["scale"], STEADY["load_s"]
    scale = before.scale if before is not None else scale
    with prepared(scale=scale, version=None, work_dir=work_dir, keep=False) as site:
        result = before or _new_result(
            site,
            kills=kills,
            kinds=_chosen(kinds, KINDS),
            peers=_chosen(peers, PEERS),
            clients=clients,
            load_s=_bounds(load_s),
            seed=seed,
        )
        path = out or resume or file_of("failover", result.started)
        with contextlib.ExitStack() as cleanup:
            running = {name: cleanup.enter_context(PEERS[name](site)) for name in result.peers}
            for number, kind, name in list(result.left()):
                if time.monotonic() - started_s > limit_s:
                    break
                if not running[name].takes(kind):
                    continue
                result.load_averages.append(round(os.getloadavg()[0], 2))
                turn = take_turn(running[name], kind, number, result)
                result.turns.append(turn)
                result.save(path)
                words = f"{number + 1:3}  {kind:6} {name:7} {turn.outage_s:6.2f} s"
                console.print(words + ("" if not turn.lost else f"  LOST {turn.lost}"), highlight=False)
    show(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)
    if left := sum(running[name].takes(kind) for _, kind, name in result.left()):
        console.print(f"{left} turns are left: run --resume {os.path.relpath(path)}", highlight=False)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="a result of `run`")],
    charts: Annotated[Path, typer.Option(help="where charts go")] = machine.ROOT / "benchmarks" / "results",
) -> None:
    """Print a result's tables and draw its charts. Example: python -m benchmarks failover report FILE."""
    from benchmarks.failover_report import draw, show

    result = FailoverResult.load(file)
    console = console_for()
    show(result, console)
    for path in draw(result, file.stem, charts):
        console.print(f"Drawn: {os.path.relpath(path)}", highlight=False)


def take_turn(peer: Peer, kind: str, number: int, result: FailoverResult) -> Turn:
    """Load, fault, outage, account, healing."""
    drawn_s = random.Random(f"{result.seed} {kind} {number}").uniform(*result.load_s)  # the same for every database
    load = PgbenchLoad(peer.dsn, bin_dir=peer.site.bin_dir, clients=result.clients, scale=result.scale)
    with Client(peer.dsn) as client:
        with load:
            commits, since_s = _commits(peer.dsn), time.monotonic()
            time.sleep(drawn_s)
            strike = peer.strike(kind)
            tps = (_commits(peer.dsn) - commits) / (time.monotonic() - since_s)
            at, fault_s = datetime.now(UTC), time.time()
            strike()
            outage = client.wait_outage(fault_s, OUTAGE_TIMEOUT_S)
        account = peer.explain(fault_s, outage.first_s)
        lost = client.lost()
    peer.heal()
    return Turn(
        peer=peer.name,
        kind=kind,
        number=number,
        at=at.isoformat(timespec="milliseconds"),
        load_s=round(drawn_s, 2),
        load_tps=round(tps, 1),
        outage_s=round(outage.seconds, 4),
        fault_to_write_s=round(outage.first_s - fault_s, 4),
        lost=lost,
        account=account,
    )


def _commits(dsn: str) -> int:
    return int(query(dsn, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")[0][0])


def _new_result(
    site: Site, *, kills: int, kinds: list[str], peers: list[str], clients: int, load_s: list[float], seed: int
) -> FailoverResult:
    return FailoverResult(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        kills=kills,
        kinds=kinds,
        peers=peers,
        clients=clients,
        load_s=load_s,
        scale=site.scale,
        commit=machine.commit(),
        machine=machine.describe(site.work_dir),
        versions=machine.versions(site.install.version),
        titles={name: PEERS[name].title for name in peers},
    )


def _chosen(words: str, known: Sequence[str] | dict[str, Any] | Any) -> list[str]:
    names = [each for each in words.split(",") if each]
    if not names or (unknown := set(names) - set(known)):
        raise typer.BadParameter(f"choose among {', '.join(known)}, not {', '.join(sorted(unknown)) if names else ''}")
    return names


def _bounds(words: str) -> list[float]:
    try:
        low, high = (float(each) for each in words.split(","))
    except ValueError:
        raise typer.BadParameter(f"two numbers are needed, as '{LOAD_S}', not {words!r}") from None
    if not SETTLED_S <= low <= high:
        raise typer.BadParameter(f"the shortest load is {SETTLED_S:g} s: a writer that ends sooner is given a pause")
    return [low, high]


if __name__ == "__main__":
    app()

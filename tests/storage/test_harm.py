"""Whatever happens to a copy's files: what it still answers is right."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import AuroraError
from aurora_ray.log import record as rec
from tests.storage.harness import PAGE_SIZE, Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE, PAGES = 9, 12
KINDS = ("cut", "overwrite", "remove")  # each file suffers one a seed: three seeds in a row are all of them

pytestmark = pytest.mark.allowed_logs("")


def harm(path: Path, kind: str, choose: random.Random) -> None:
    size = path.stat().st_size
    if kind == "remove":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, choose.randrange(size + 1))
    elif size:
        with path.open("r+b") as file:
            file.seek(choose.randrange(size))
            file.write(choose.randbytes(16))


async def history(start: Callable) -> tuple:
    server = await start("n1", retention_bytes=1 << 40)
    writer = await Writer().open(server)
    choose = random.Random(1)
    first = [rec.create(FILE, b"file"), rec.size(FILE, PAGES * PAGE_SIZE), rec.extent(FILE, 0, 0)]
    for layer in range(6):
        for _ in range(4):
            records = [rec.page_full(FILE, choose.randrange(PAGES), choose.randbytes(700)) for _ in range(3)]
            records += [rec.page_delta(FILE, choose.randrange(PAGES), [(choose.randrange(900), b"delta")])]
            await server.send(writer.flush(*first, *records))
            first = []
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
        if layer in (1, 3):
            await server.segment(writer).store.flush_all()
    await server.send(writer.flush(rec.page_full(FILE, 0, b"last")))
    await server.send([writer.heartbeat()])
    return server, writer


async def wrong_answers(server, writer: Writer) -> list[str]:
    """What is answered and is not so. Refusing is right."""
    wrong = []
    for lsn in writer.ends[1::2]:
        right = [writer.page_at(lsn, FILE, page) for page in range(PAGES)]
        for first, count in ((0, PAGES), *((page, 1) for page in range(PAGES))):
            try:
                answer = await server.pages(writer, lsn, FILE, first=first, count=count, required_scl=lsn)
            except AuroraError:
                continue
            if answer != right[first : first + count]:
                wrong.append(f"pages {first} to {first + count} at {lsn}")
            if count == PAGES:
                break
    return wrong


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in (1, 2))])
async def test_harm(start, tmp_path, seed):
    server, writer = await history(start)
    await server.stop()
    pristine = tmp_path / "pristine"
    shutil.copytree(server.config.data_dir, pristine)
    choose = random.Random(seed)
    bad = []
    segment = next((pristine / "volumes").glob("*/0"))
    paths = sorted(path for path in segment.rglob("*") if path.is_file() and path.name not in ("LOCK", "LOG"))
    for number, path in enumerate(paths, seed):
        name, kind = path.relative_to(segment), KINDS[number % len(KINDS)]
        shutil.rmtree(server.config.data_dir)
        shutil.copytree(pristine, server.config.data_dir)
        directory = next((server.config.data_dir / "volumes").glob("*/0"))
        harm(directory / name, kind, choose)
        await server.restart_stopped()
        held = server.server.node.volumes[writer.volume]
        assert 0 in held.segments or 0 in held.lost, "it is not forgotten"
        wrong = await wrong_answers(server, writer)
        await server.stop()
        if wrong:
            bad.append((name, kind, len(wrong), wrong[:3]))
    assert not bad, "\n".join(map(str, bad))

"""Old mounts: out of the way at once, gone after a while, never many of them."""

from pathlib import Path

from aurora_ray.mount.discarding import set_aside, sweep


def _mount(path: Path) -> Path:
    (path / "base").mkdir(parents=True)
    (path / "base" / "1").write_bytes(b"x" * 10_000)
    return path


def _below(path: Path) -> list[Path]:
    return sorted(path.iterdir())


async def test_the_name_is_free_at_once_and_the_content_goes_later(tmp_path: Path) -> None:
    mount = _mount(tmp_path / "mount")
    old = set_aside(mount)
    assert old is not None
    assert (old / "base" / "1").exists()
    _mount(mount)
    other = _mount(tmp_path / "mount2")
    await sweep(mount, after_s=0)
    assert _below(tmp_path) == [mount, other]


async def test_nothing_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "mount") is None
    await sweep(tmp_path / "mount", after_s=60)


def test_they_do_not_pile_up(tmp_path: Path) -> None:
    for _ in range(10):
        set_aside(_mount(tmp_path / "mount"))
    assert len(_below(tmp_path)) <= 5

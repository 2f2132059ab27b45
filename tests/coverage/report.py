"""What did not run, and whether enough did."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.coverage.plan import found
from tests.house.source import ROOT


class Reach(NamedTuple):
    """Of a module: statements that ran, of how many; functions that never began."""

    name: str
    ran: int
    statements: int
    never_called: list[tuple[str, int]]

    @property
    def percent(self) -> float:
        """Of its statements."""
        return percent(self.ran, self.statements)


def percent(ran: int, statements: int) -> float:
    """100 where there is nothing to run."""
    return 100.0 * ran / statements if statements else 100.0


def reached(directory: Path) -> list[Reach]:
    """Of each module, the least reached first."""
    modules = [
        Reach(
            name,
            sum(block.statements for block, hit in blocks if hit),
            sum(block.statements for block, _ in blocks),
            [(block.name, block.line) for block, hit in blocks if block.is_function and not hit],
        )
        for name, (_, blocks) in found(directory).items()
    ]
    return sorted(modules, key=lambda module: (module.percent, module.name))


def floor_percent(pyproject: Path = ROOT / "pyproject.toml") -> float:
    """What the project holds itself to."""
    return float(tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["aurora-ray"]["coverage_floor_percent"])


def total_percent(modules: list[Reach]) -> float:
    """Over all modules."""
    return percent(sum(module.ran for module in modules), sum(module.statements for module in modules))


def lines(modules: list[Reach], floor: float) -> Iterator[str]:
    """The report: modules and functions that no test reaches, then the sum."""
    for module in modules:
        if module.percent < floor:
            yield f"{module.percent:5.1f} %  {module.name} ({module.ran} of {module.statements} statements)"
    for module in modules:
        for name, line in module.never_called:
            yield f"never called: {module.name}:{line} {name}"
    yield f"{total_percent(modules):.1f} % of the statements ran; the floor is {floor:g} %"


def complaints(modules: list[Reach], floor: float) -> list[str]:
    """Why this is not enough; nothing if it is. A module of protocols alone has nothing to run: only types name it."""
    found = [f"no test runs {module.name}" for module in modules if module.never_called and not module.ran]
    total = total_percent(modules)
    if total < floor:
        found.append(f"the tests run {total:.1f} % of the statements, the floor is {floor:g} % (pyproject.toml)")
    return found

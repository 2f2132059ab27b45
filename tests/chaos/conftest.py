"""Real processes for single scenarios; the random rounds make their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_ray.engine.account import find_account
from aurora_ray.errors import ConfigurationError
from tests.support.ports import PortAllocator
from tests.support.stack import Stack
from tests.support.stack_writer import ACCOUNT

MakeStack = Callable[..., Stack]


@pytest.fixture
def make_stack(data_dir: Path, ports: PortAllocator) -> Iterator[MakeStack]:
    """Makes a stack that is not started yet; all its processes end with the test. Options are those of Stack."""
    stacks: list[Stack] = []

    def make(**options: object) -> Stack:
        directory = data_dir / f"s{len(stacks)}"
        directory.mkdir(mode=0o755)
        stacks.append(Stack(directory, ports, **options))  # type: ignore[arg-type]
        return stacks[-1]

    yield make
    for stack in stacks:
        stack.close()


@pytest.fixture
def stack(make_stack: MakeStack) -> Stack:
    """Six nodes with a volume and an open writer."""
    try:
        find_account(ACCOUNT)
    except ConfigurationError as error:
        pytest.skip(str(error))
    stack = make_stack()
    stack.start()
    stack.writer.open()
    return stack

"""What the kinds of instance are, and are not."""

import pytest

from aurora_ray.cli.clusters import writer_of
from aurora_ray.compute.kinds import require_runnable
from aurora_ray.compute.role import Role
from aurora_ray.errors import UnsupportedRoleError, UsageError

RUN = {Role.WRITER, Role.READER, Role.BACKUP, Role.REPLICATOR}


def those(trait: str) -> set[Role]:
    return {role for role in Role if getattr(role.traits, trait)}


def test_what_opens_as_an_owner_seals_and_nothing_else_does() -> None:
    assert those("owns") == {Role.WRITER, Role.REPLICATOR}
    assert those("writes") <= those("owns") & those("engine"), "who takes clients' writes has an engine and the volume"
    assert not those("writes") & (those("reads") | those("copies") | those("archives"))


def test_only_what_has_or_may_get_an_engine_has_an_address() -> None:
    assert set(Role) - those("addressed") == {Role.BACKUP}


@pytest.mark.parametrize("role", Role)
def test_a_kind_that_nothing_can_run_is_refused(role: Role) -> None:
    if role in RUN:
        require_runnable(role, "demo-1")
    else:
        with pytest.raises(UnsupportedRoleError, match=f"demo-1 is a {role}"):
            require_runnable(role, "demo-1")


def test_where_nobody_writes_the_command_says_so() -> None:
    copier = {"id": "demo-1", "role": "replicator"}
    assert writer_of({"cluster": "demo", "instances": [copier, {"id": "demo-2", "role": "writer"}]})["id"] == "demo-2"
    with pytest.raises(UsageError, match="nobody writes to demo in this region"):
        writer_of({"cluster": "demo", "instances": [copier]})

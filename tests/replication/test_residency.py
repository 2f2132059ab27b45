"""A residency policy refuses by name what it forbids, allows the rest, and leaves a line of either."""

from __future__ import annotations

import pytest

from aurora_ray.errors import ResidencyError, UsageError
from aurora_ray.regions import load_regions
from aurora_ray.replication.residency import Policy, Purpose, judge

REGIONS = load_regions()


@pytest.mark.parametrize(
    ("regions", "jurisdictions", "allowed"),
    [
        ((), (), set(REGIONS)),
        (("eu-west-1",), (), {"eu-west-1"}),
        ((), ("EU",), {name for name, region in REGIONS.items() if region.jurisdiction == "EU"}),
        (("us-east-1",), ("EU",), {"us-east-1", "eu-west-1", "eu-central-1"}),
    ],
)
def test_what_either_rule_names_is_allowed(
    regions: tuple[str, ...], jurisdictions: tuple[str, ...], allowed: set[str]
) -> None:
    policy = Policy.of(regions, jurisdictions, REGIONS)
    assert {name for name, region in REGIONS.items() if policy.allows(region)} == allowed
    assert Policy.from_dict(policy.to_dict()) == policy


def test_a_forbidden_move_is_refused_with_the_rule_and_written_down() -> None:
    policy = Policy.of((), ("EU",), REGIONS)
    ireland, virginia = REGIONS["eu-west-1"], REGIONS["us-east-1"]
    for purpose in Purpose:
        verdict = judge(policy, "g", purpose, ireland.name, virginia)
        with pytest.raises(ResidencyError, match=r"to us-east-1 is forbidden: data stays in jurisdictions EU"):
            verdict.require()
        line = verdict.audit_line("2026-11-29T00:00:00Z")
        assert (line["verdict"], line["purpose"], line["to"]) == ("refused", purpose.value, "us-east-1")
        judge(policy, "g", purpose, virginia.name, ireland).require()
    staying = judge(policy, "g", Purpose.BACKUP, virginia.name, virginia)
    staying.require()
    assert staying.audit_line("now")["verdict"] == "allowed"


def test_a_place_that_nobody_knows_gets_what_is_free_alone() -> None:
    assert not judge(Policy(frozenset({"eu-west-1"})), "g", Purpose.BACKUP, "eu-west-1", "a bucket").allowed
    assert judge(Policy(), "g", Purpose.BACKUP, "eu-west-1", "a bucket").allowed


def test_a_policy_names_what_there_is() -> None:
    for regions, jurisdictions in ((("eu-west-9",), ()), ((), ("Mars",))):
        with pytest.raises(UsageError, match=r"eu-west-9|Mars"):
            Policy.of(regions, jurisdictions, REGIONS)

"""The rule by which a silent writer is called hung, or not."""

from dataclasses import replace

import pytest

from aurora_ray.compute.health import Finding, Health, HealthRules, Look, Verdict

RULES = HealthRules()
STEP_S = 0.75


def run(*looks: Look, rules: HealthRules = RULES) -> list[Finding]:
    """One look every 0.75 s after an answer at 0."""
    health = Health(rules, 0.0)
    return [health.look(replace(look, now_s=STEP_S * (number + 1))) for number, look in enumerate(looks)]


def silent(**more: object) -> Look:
    return replace(Look(0.0, answered=False, vdl=100, cpu_s=1.0), **more)  # type: ignore[arg-type]


GOOD = Look(0.0, answered=True)


def test_silence_without_movement_is_hung_when_both_count_and_time_are_reached() -> None:
    verdicts = [finding.verdict for finding in run(*[silent()] * 5)]
    assert verdicts == [Verdict.SUSPECT] * 3 + [Verdict.HUNG] * 2  # 3 looks are 2.25 s, the 4th is at 3.0 s


@pytest.mark.parametrize(
    ("what", "looks"),
    [
        ("one look was late", [silent(), GOOD, silent(), GOOD] * 5),
        ("the VDL moves", [silent(vdl=100 + n) for n in range(20)]),
        ("a starved engine gets a little CPU", [silent(cpu_s=1 + n * 1e-6) for n in range(20)]),
        ("it moves at every third look only", [silent(vdl=100 + n // 3) for n in range(20)]),
        ("storage has no write quorum", [silent(stalled=True)] * 100),
        ("whoever looks was delayed itself", [silent(late_s=0.7)] * 30),
    ],
)
def test_no_false_alarm(what: str, looks: list[Look]) -> None:
    assert all(finding.verdict is not Verdict.HUNG for finding in run(*looks)), what


def test_a_stopped_process_is_not_excused_by_the_traffic_of_its_sessions() -> None:
    findings = run(*[silent(stopped=True, vdl=100 + n, cpu_s=1.0 + n) for n in range(4)])
    assert findings[-1].verdict is Verdict.HUNG
    assert "stopped by a signal" in findings[-1].why


def test_what_moves_and_never_answers_is_given_up_in_the_end() -> None:
    findings = run(*[silent(cpu_s=float(n)) for n in range(60)])
    hung = [number for number, finding in enumerate(findings) if finding.verdict is Verdict.HUNG]
    assert hung[0] == pytest.approx(RULES.give_up_after_s / STEP_S, abs=1)


def test_what_commits_is_never_given_up() -> None:
    findings = run(*[silent(vdl=100 + n // 5) for n in range(400)], rules=replace(RULES, failures=8))
    assert findings[-1].silent_s > 5 * RULES.give_up_after_s
    assert all(finding.verdict is Verdict.SUSPECT for finding in findings)


def test_time_stands_still_during_a_storage_stall_and_counts_afterwards() -> None:
    findings = run(*[silent(stalled=True)] * 20, *[silent()] * 4)
    assert [finding.verdict for finding in findings[-4:]] == [Verdict.SUSPECT] * 3 + [Verdict.HUNG]


def test_time_that_the_looker_was_away_is_taken_off() -> None:
    health = Health(RULES, 0.0)
    assert health.look(silent(now_s=60.0, late_s=59.5)).verdict is Verdict.EXCUSED
    assert [health.look(silent(now_s=60 + n * STEP_S)).verdict for n in (1, 2)] == [Verdict.SUSPECT] * 2


def test_one_answer_forgets_everything() -> None:
    findings = run(*[silent()] * 3, GOOD, *[silent()] * 3)
    assert all(finding.verdict is not Verdict.HUNG for finding in findings)


def test_without_cpu_time_only_the_vdl_counts() -> None:
    assert run(*[silent(cpu_s=None)] * 4)[-1].verdict is Verdict.HUNG
    assert run(*[silent(cpu_s=None, vdl=n) for n in range(4)])[-1].verdict is Verdict.SUSPECT

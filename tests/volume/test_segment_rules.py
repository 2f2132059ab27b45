from __future__ import annotations

from aurora_ray.log.segment_rules import (
    HISTORY_MAX,
    AppendVerdict,
    SegmentEpochs,
    Truncation,
    adopt,
    annulled,
    doubtful,
    extend_history,
    install,
    judge_append,
    knows,
    promise,
)

ME, OTHER = b"m" * 16, b"o" * 16


def installed(epoch: int, owner: bytes = ME, *cuts: Truncation) -> SegmentEpochs:
    sealed = promise(SegmentEpochs(), epoch, owner)
    assert sealed is not None
    result = install(sealed, epoch, owner, cuts)
    assert result is not None
    return result


def test_an_epoch_is_promised_to_one_owner_only() -> None:
    held = promise(SegmentEpochs(), 5, ME)
    assert held is not None
    assert promise(held, 5, ME) == held
    assert promise(held, 5, OTHER) is None
    assert promise(held, 4, ME) is None
    assert promise(held, 6, OTHER) is not None


def test_nobody_installs_against_a_promise() -> None:
    held = promise(SegmentEpochs(), 5, ME)
    assert held is not None
    assert install(held, 5, OTHER, ()) is None
    assert install(held, 4, ME, ()) is None
    assert install(held, 5, ME, (Truncation(5, 10),)) == SegmentEpochs(5, ME, 5, (Truncation(5, 10),))
    assert install(SegmentEpochs(4, OTHER, 4), 5, ME, ()) == SegmentEpochs(5, ME, 5, ())


def test_appends_need_promise_and_history_of_their_epoch() -> None:
    held = installed(5)
    assert judge_append(held, 5) is AppendVerdict.ACCEPT
    assert judge_append(held, 4) is AppendVerdict.FENCED
    assert judge_append(held, 6) is AppendVerdict.STALE
    sealed = promise(held, 6, OTHER)
    assert sealed is not None
    assert judge_append(sealed, 5) is AppendVerdict.FENCED
    assert judge_append(sealed, 6) is AppendVerdict.STALE


def test_gossip_never_overrides_a_promise() -> None:
    held = promise(installed(5), 7, OTHER)
    assert held is not None
    assert adopt(held, 6, (Truncation(6, 10),)) is None
    assert adopt(held, 5, ()) is None
    assert adopt(held, 7, ()) == SegmentEpochs(7, OTHER, 7, ())
    adopted = adopt(held, 8, (Truncation(8, 10),))
    assert adopted == SegmentEpochs(8, b"", 8, (Truncation(8, 10),))
    assert promise(adopted, 8, ME) == SegmentEpochs(8, ME, 8, (Truncation(8, 10),))


def test_a_truncation_annuls_lower_epochs_above_it() -> None:
    history = (Truncation(3, 100), Truncation(5, 200))
    assert annulled(history, 2, 101)
    assert not annulled(history, 2, 100)
    assert not annulled(history, 3, 150)
    assert annulled(history, 4, 201)
    assert not annulled(history, 5, 300)


def test_histories_shed_what_a_newer_truncation_covers() -> None:
    history = extend_history((Truncation(2, 50), Truncation(3, 200)), Truncation(5, 100), 100)
    assert history == (Truncation(2, 50), Truncation(5, 100))


def test_a_history_that_is_long_begins_anew_once_its_last_epoch_has_written() -> None:
    old = tuple(Truncation(epoch, 10 * epoch) for epoch in range(1, HISTORY_MAX + 1))
    last, cut = old[-1], Truncation(HISTORY_MAX + 1, 10 * HISTORY_MAX + 5)
    assert extend_history(old, cut, last.lsn) == (*old, cut)
    assert extend_history(old[1:], cut, last.lsn + 1) == (*old[1:], cut)
    history = extend_history(old, cut, last.lsn + 1)
    assert history == (Truncation(last.epoch, last.lsn, first=True), cut)
    assert not knows(history, last.epoch - 1)
    assert knows(history, last.epoch)
    assert doubtful(history, last.epoch - 1, 7, 8)
    assert not doubtful(history, last.epoch - 1, 7, 7)
    assert not doubtful(history, last.epoch, 7, 8)

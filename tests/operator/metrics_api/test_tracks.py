"""What is kept of a pod's answers, for how long, and the wait that is told from them."""

from __future__ import annotations

import pytest
from tests.operator.metrics_api.loads import load

from octavo_operator.metrics_api.tracks import KEPT_SECONDS, Track


def wait(track: Track) -> float | None:
    assert track.last is not None
    return track.last.wait_seconds


def test_figures_are_kept_for_30_s() -> None:
    track = Track()
    assert track.fresh(0.0) is None
    track.heard(load(waiting=2), 10.0)
    kept = track.fresh(10.0 + KEPT_SECONDS)
    assert kept is not None and kept.load.waiting == 2
    assert track.fresh(10.1 + KEPT_SECONDS) is None


def test_an_answer_that_was_overtaken_is_no_news() -> None:
    track = Track()
    track.heard(load(waiting=2), 10.0)
    track.heard(load(waiting=9), 9.0)
    assert track.last is not None and track.last.load.waiting == 2


def test_silence_is_counted_from_the_last_answer_or_from_when_it_was_ready() -> None:
    track = Track()
    track.saw(ready=False, now=1.0)
    assert track.since is None and track.silent_seconds(5.0) == 0
    track.saw(ready=True, now=5.0)
    track.saw(ready=False, now=6.0)
    track.saw(ready=True, now=7.0)
    assert track.silent_seconds(8.0) == 3.0
    track.heard(load(), 9.0)
    assert track.silent_seconds(11.0) == 2.0


def test_nobody_waits_where_nobody_waits() -> None:
    track = Track()
    track.heard(load(running=512, admitted=3), 0.0)
    assert wait(track) == 0.0


def test_those_that_wait_are_taken_up_at_the_rate_of_late() -> None:
    track = Track()
    for second in range(6):
        track.heard(load(waiting=12, admitted=100 + 4 * second), float(second))
    assert wait(track) == pytest.approx(3.0)  # 12 at 4 a second


def test_the_rate_forgets_what_is_long_ago() -> None:
    track = Track()
    admitted = 0
    for second in range(200):
        admitted += 10 if second < 100 else 2
        track.heard(load(waiting=20, admitted=admitted), float(second))
    assert wait(track) == pytest.approx(10.0)


def test_where_none_is_taken_up_it_is_at_least_as_long_as_they_waited() -> None:
    track = Track()
    for second in range(90):
        track.heard(load(waiting=1, admitted=5), float(second))
        if second == 20:
            assert wait(track) == 20.0
    assert wait(track) >= 30.0  # type: ignore[operator]


def test_a_queue_that_ended_tells_nothing_of_the_next() -> None:
    track = Track()
    track.heard(load(waiting=5, admitted=0), 0.0)
    track.heard(load(waiting=5, admitted=1), 1.0)
    assert wait(track) == 5.0
    track.heard(load(admitted=500), 2.0)
    track.heard(load(waiting=5, admitted=500), 3.0)
    track.heard(load(waiting=5, admitted=510), 4.0)
    assert wait(track) == 0.5


def test_a_server_that_was_started_again_begins_anew() -> None:
    track = Track()
    track.heard(load(waiting=5, admitted=900), 0.0)
    track.heard(load(waiting=5, admitted=910), 1.0)
    track.heard(load(waiting=5, admitted=0), 2.0)
    track.heard(load(waiting=5, admitted=10), 3.0)
    assert wait(track) == 0.5


def test_a_server_of_before_cannot_tell() -> None:
    track = Track()
    track.heard(load(waiting=5, admitted=None), 0.0)
    assert wait(track) is None

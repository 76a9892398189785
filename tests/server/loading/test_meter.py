"""What a download's meter says."""

from __future__ import annotations

from octavo_server.loading.meter import RATE_SECONDS, Meter, Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_at_first() -> None:
    assert Meter().read() == Progress(0, 0, 0.0)


def test_what_was_there_is_not_fetched_now() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.expect(total=1000, done=400)
    clock.now += 2
    meter.add(100)
    assert meter.read() == Progress(500, 1000, 50.0)


def test_the_rate_is_the_last_seconds() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.expect(total=10**6, done=0)
    for _ in range(30):
        clock.now += 1
        meter.add(1000)
        meter.read()
    assert abs(meter.read().rate - 1000) < 1
    for _ in range(int(RATE_SECONDS) + 2):  # and then it stalls
        clock.now += 1
        meter.read()
    assert meter.read().rate == 0
    assert meter.read().done == 30_000


def test_never_more_than_all_of_it() -> None:
    meter = Meter()
    meter.expect(total=10, done=10)
    meter.add(5)
    assert meter.read().done == 10
    meter.add(-100)
    assert meter.read().done == 0

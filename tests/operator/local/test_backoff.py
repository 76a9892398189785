from octavo_operator.local.backoff import Backoff, delay_seconds


def test_delays_are_a_kubelets() -> None:
    assert [delay_seconds(n) for n in range(1, 9)] == [0, 10, 20, 40, 80, 160, 300, 300]


def test_base_scales_all() -> None:
    assert [delay_seconds(n, 0.1) for n in (1, 2, 3, 20)] == [0, 0.1, 0.2, 3.0]


def test_many_failures_do_not_overflow() -> None:
    assert delay_seconds(100_000) == 300


def test_ten_good_minutes_start_anew() -> None:
    backoff = Backoff()
    assert [backoff.next_delay_seconds(1) for _ in range(3)] == [0, 10, 20]
    assert backoff.next_delay_seconds(599) == 40
    assert backoff.next_delay_seconds(601) == 0
    assert backoff.next_delay_seconds(1) == 10

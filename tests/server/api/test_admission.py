"""Bounds on what waits: exact counts, who is refused and how, and when to come again."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from octavo_server.api.admission import REASONS, Admission, Bounds
from octavo_server.api.errors import Overloaded, error_body, error_response
from octavo_server.engine.messages import EngineStats
from octavo_server.errors import InvalidRequest

ROWS, CACHE = 4, 100


def make(requests: int = 0, tokens: int = 0, per_key: int = 0) -> Admission:
    admission = Admission(Bounds(requests, tokens, per_key), dict.fromkeys(REASONS, 0))
    admission.set_capacity(ROWS, CACHE)
    return admission


def send(admission: Admission, sequences: int, tokens_each: int, now: float = 0.0) -> None:
    admission.admit(sequences, sequences * tokens_each, None, now)
    for _ in range(sequences):
        admission.sent(tokens_each)


def report(running: int, waiting: int, tokens: int, added: int, usage: float = 0.0) -> EngineStats:
    return EngineStats(running, waiting, usage, waiting_tokens=tokens, added=added)


def refusal(admission: Admission, sequences: int, tokens: int, now: float = 0.0) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        admission.admit(sequences, tokens, None, now)
    return caught.value


def test_an_idle_server_takes_what_it_can_start_and_what_may_wait() -> None:
    admission = make(requests=3)
    for _ in range(ROWS + 3):
        send(admission, 1, 5)
    error = refusal(admission, 1, 5)
    assert error.status == 503
    assert admission.queued == (3, 0)
    admission.on_report(report(ROWS, 3, 15, ROWS + 3), 1.0)
    assert admission.queued == (3, 15)
    assert refusal(admission, 1, 5).status == 503
    admission.on_report(report(ROWS, 2, 10, 0), 2.0)
    send(admission, 1, 5)
    assert admission.queued == (3, 15)


def test_tokens_are_bounded_too_beyond_the_cache_of_an_idle_server() -> None:
    admission = make(tokens=50)
    send(admission, 2, 50)  # fills the cache
    send(admission, 1, 30)
    assert admission.queued == (0, 30)
    assert "30 prompt tokens wait" in str(refusal(admission, 1, 21))
    send(admission, 1, 20)
    admission.on_report(report(2, 2, 50, 4, usage=1.0), 1.0)
    assert admission.queued == (2, 50)
    assert refusal(admission, 1, 1).status == 503


def test_what_no_idle_server_could_take_is_the_requests_fault() -> None:
    admission = make(requests=3, tokens=50, per_key=5)
    for sequences, tokens, key in ((ROWS + 4, 0, None), (1, CACHE + 51, None), (6, 6, 0)):
        with pytest.raises(InvalidRequest, match="send several requests"):
            admission.admit(sequences, tokens, key, 0.0)
    assert admission.queued == (0, 0)
    admission.admit(5, CACHE + 50, 0, 0.0)


def test_one_key_has_its_own_bound_and_hurts_no_other() -> None:
    refused = dict.fromkeys(REASONS, 0)
    admission = Admission(Bounds(per_key=2), refused)
    for key in (0, 0, 1):
        admission.admit(1, 1, key, 0.0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(1, 1, 0, 0.0)
    assert caught.value.status == 429
    with pytest.raises(Overloaded):
        admission.check(0, 0.0)
    assert refused["max_reqs_per_key"] == 2
    admission.check(1, 0.0)
    admission.admit(1, 1, 1, 0.0)
    admission.ended(0)
    admission.check(0, 0.0)
    admission.withdrawn(1, 1, 0)
    admission.admit(2, 2, 0, 0.0)
    assert error_body(caught.value)[1]["error"]["code"] == "rate_limit_exceeded"


def test_when_to_come_again_follows_the_pace_of_the_queue() -> None:
    admission = make(requests=40)
    send(admission, ROWS + 40, 1)
    admission.on_report(report(ROWS, 40, 40, ROWS + 40), 100.0)
    assert refusal(admission, 1, 1, 100.0).seconds == 1  # nothing is known yet
    for second in range(1, 11):  # one leaves a second, and as many come
        admission.on_report(report(ROWS, 39, 39, int(second > 1)), 100.0 + second)
        send(admission, 1, 1)
    error = refusal(admission, 1, 1, 110.0)
    assert error.seconds == 20  # half of the 40 that wait
    assert error_response(error).headers["retry-after"] == "20"
    assert refusal(admission, 1, 1, 200.0).seconds > 20  # none left since
    quick = make(requests=40)
    send(quick, ROWS + 40, 1)
    quick.on_report(report(ROWS, 40, 40, ROWS + 40), 100.0)
    quick.on_report(report(ROWS, 40, 40, 0), 100.5)
    assert refusal(quick, 1, 1, 100.5).seconds == 10  # the first may leave now
    quick.on_report(report(ROWS, 40, 40, 0), 300.0)
    assert refusal(quick, 1, 1, 300.0).seconds == 60


def test_a_server_without_bounds_refuses_nobody() -> None:
    admission = make()
    for _ in range(100):
        admission.check(None, 0.0)
        send(admission, 100, 1000)


class Engine:
    """What the engine does with what it is sent, one by one."""

    def __init__(self) -> None:
        self.mail: deque[tuple[int, int] | None] = deque()  # number, tokens; None: an abort
        self.waiting: dict[int, int] = {}
        self.running: set[int] = set()
        self.added = 0

    def take(self, count: int) -> None:
        for _ in range(min(count, len(self.mail))):
            if (sent := self.mail.popleft()) is not None:
                self.waiting[sent[0]] = sent[1]
                self.added += 1

    def start(self, count: int) -> None:
        for number in list(self.waiting)[: min(count, ROWS - len(self.running))]:
            del self.waiting[number]
            self.running.add(number)

    def preempt(self) -> None:
        if self.running:
            self.waiting[self.running.pop()] = 3

    def report(self) -> EngineStats:
        added, self.added = self.added, 0
        return report(len(self.running), len(self.waiting), sum(self.waiting.values()), added)


ACTIONS = st.one_of(
    st.tuples(st.just("admit"), st.integers(1, 6), st.integers(1, 40)),
    st.tuples(st.sampled_from(["send", "take", "start", "end"]), st.integers(1, 6), st.just(0)),
    st.tuples(st.sampled_from(["withdraw", "preempt", "report"]), st.just(0), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=60), st.integers(1, 8), st.integers(1, 60))
def test_nothing_is_lost_or_counted_twice(
    actions: list[tuple[str, int, int]], requests: int, tokens: int
) -> None:
    admission, engine = make(requests, tokens), Engine()
    unsent: deque[tuple[int, int]] = deque()
    number, now = 0, 1.0
    for name, count, size in actions:
        now += 0.1
        if name == "admit":
            try:
                admission.admit(count, count * size, None, now)
            except (InvalidRequest, Overloaded):
                continue
            waits, waiting_tokens = admission.queued
            assert waits <= requests and waiting_tokens <= tokens
            for _ in range(count):
                number += 1
                unsent.append((number, size))
        elif name == "send":
            for _ in range(min(count, len(unsent))):
                engine.mail.append(unsent.popleft())
                admission.sent(engine.mail[-1][1])  # type: ignore[index]
        elif name == "withdraw" and unsent:
            admission.withdrawn(1, unsent.pop()[1], None)
        elif name == "take":
            engine.take(count)
        elif name == "start":
            engine.start(count)
        elif name == "end" and engine.running:
            engine.running.pop()
        elif name == "preempt":
            engine.preempt()
        elif name == "report":
            admission.on_report(engine.report(), now)
    for _, size in unsent:
        admission.withdrawn(1, size, None)
    engine.take(10**6)
    admission.on_report(engine.report(), now + 1)
    assert admission.queued == (len(engine.waiting), sum(engine.waiting.values()))
    while engine.waiting:
        engine.running.clear()
        engine.start(ROWS)
    admission.on_report(engine.report(), now + 2)
    assert admission.queued == (0, 0)
    assert (admission._coming, admission._coming_tokens, len(admission._sent)) == (0, 0, 0)

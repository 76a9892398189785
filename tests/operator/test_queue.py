"""Who gets a pass, and when: with a clock that only the test turns."""

from __future__ import annotations

import asyncio

import pytest

from octavo_operator.queue import MOST_BACK_OFF_SECONDS, Key, Queue, work

A, B = ("ns", "a"), ("ns", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Queue:
    return Queue(clock)


def test_many_events_one_pass(queue: Queue) -> None:
    for _ in range(5):
        queue.add(A)
    assert queue.pop() == A
    assert queue.pop() is None
    queue.done(A)
    assert queue.pop() is None


def test_a_key_is_never_in_work_twice(queue: Queue) -> None:
    queue.add(A)
    assert queue.pop() == A
    queue.add(A)
    assert queue.pop() is None
    queue.done(A)
    assert queue.pop() == A


def test_delays_are_brought_forward_never_back(queue: Queue, clock: Clock) -> None:
    queue.add(A, 10)
    queue.add(A, 1)
    queue.add(A, 5)
    assert queue.pop() is None
    clock.now += 1
    assert queue.pop() == A
    queue.done(A)
    clock.now += 20
    assert queue.pop() is None


def test_back_off_doubles_and_ends_with_success(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    waits = []
    for _ in range(10):
        before = clock.now
        while queue.pop() is None:
            clock.now += 0.5
        waits.append(clock.now - before)
        queue.done(A, failed=True)
    assert waits[:5] == [0, 1, 2, 4, 8]
    assert waits[-1] == MOST_BACK_OFF_SECONDS
    clock.now += MOST_BACK_OFF_SECONDS
    assert queue.pop() == A
    queue.done(A)
    queue.add(A)
    assert queue.pop() == A
    queue.done(A, failed=True)
    clock.now += 1
    assert queue.pop() == A


def test_a_failing_key_does_not_hold_others_up(queue: Queue, clock: Clock) -> None:
    queue.add(A)
    assert queue.pop() == A
    queue.done(A, failed=True)
    queue.add(B)
    assert queue.pop() == B


def test_an_event_outweighs_back_off(queue: Queue) -> None:
    queue.add(A)
    queue.pop()
    queue.done(A, failed=True)
    queue.add(A)
    assert queue.pop() == A


def test_overdue(queue: Queue, clock: Clock) -> None:
    assert queue.overdue_seconds() == 0
    queue.add(A, 5)
    assert queue.overdue_seconds() == 0
    clock.now += 12
    assert queue.overdue_seconds() == 7
    queue.pop()
    assert queue.overdue_seconds() == 0


async def test_workers() -> None:
    """One key hangs and one always fails; the others are done, each key by one worker at a time."""
    queue = Queue()
    done: list[Key] = []
    at_once: set[Key] = set()

    async def do(key: Key) -> None:
        assert key not in at_once
        at_once.add(key)
        try:
            if key[1] == "hangs":
                await asyncio.sleep(3600)
            if key[1] == "fails":
                raise RuntimeError("no")
            await asyncio.sleep(0)
            done.append(key)
        finally:
            at_once.discard(key)

    workers = [asyncio.create_task(work(queue, do)) for _ in range(3)]
    keys = [("ns", name) for name in ("hangs", "fails", "c", "d", "e")]
    for _ in range(3):
        for key in keys:
            queue.add(key)
        await asyncio.sleep(0.02)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert set(keys[2:]) <= set(done)
    assert len(queue) <= 2


async def test_a_sleeping_worker_wakes_for_a_due_key() -> None:
    queue = Queue()
    queue.add(A, 0.05)
    assert await asyncio.wait_for(queue.take(), 2) == A

"""Frames through shared memory: whole, in order, to every reader, whatever their sizes."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest

from octavo_server.distributed.ring import Handles, Reader, Writer, make_ring

CAPACITY = 1 << 12


@pytest.fixture
def ring():
    handles = make_ring(2, CAPACITY)
    yield handles
    for descriptor in handles.all:
        os.close(descriptor)


@pytest.mark.parametrize("spin_seconds", [0.0, 100e-6])
def test_every_reader_gets_every_frame(ring: Handles, spin_seconds: float) -> None:
    draw = random.Random(1)
    sizes = [0, 1, 5, 100, 3000, CAPACITY - 8, CAPACITY, 3 * CAPACITY + 1]
    frames = [draw.randbytes(draw.choice(sizes)) for _ in range(400)]
    found: list[list[bytes]] = [[], []]

    def read(index: int) -> None:
        reader = Reader(ring, index, spin_seconds)
        for number in range(len(frames)):
            if number % 100 == 50 * index:
                time.sleep(0.01)  # one falls behind, then the other
            found[index].append(reader.receive())

    threads = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    writer = Writer(ring)
    for frame in frames:
        writer.send(frame)
    for thread in threads:
        thread.join(30)
    assert found[0] == frames
    assert found[1] == frames


def test_a_writer_without_room_asks_whether_its_readers_live(ring: Handles) -> None:
    class Gone(Exception):
        pass

    def check() -> None:
        raise Gone

    writer = Writer(ring)
    writer.send(b"x" * (CAPACITY // 2), check)  # fits, though nobody reads
    with pytest.raises(Gone):
        writer.send(b"x" * CAPACITY, check)


def test_a_waiting_reader_sleeps(ring: Handles) -> None:
    reader, found = Reader(ring, 0), []
    thread = threading.Thread(target=lambda: found.append(reader.receive()))
    thread.start()
    time.sleep(0.1)
    before = time.thread_time(), time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before[1] < 0.1
    Writer(ring).send(b"awake")
    thread.join(10)
    assert found == [b"awake"]

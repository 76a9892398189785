"""Signals, health and sockets at the edges of a server's life."""

from __future__ import annotations

import json
import re
import signal
import socket
import time

import pytest
from tests.server.api.test_serve_process import Process
from tests.server.tiny_models import make_tiny

from octavo_server.api.lifecycle import Lifecycle
from octavo_server.api.serve import listen
from octavo_server.engine.messages import Heartbeat


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny("llama2", tmp_path_factory.mktemp("model") / "tiny"))


def connect(port: int, seconds: float = 20) -> socket.socket:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.002)


def test_sigterm_right_after_the_socket_is_bound(tmp_path, model):
    """As PID 1 of a container the signal would be ignored, not fatal: the whole grace is lost."""
    process = Process(tmp_path, model)
    try:
        connect(process.port).close()
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(20) == 0
        assert re.search(r"\] shutting down$", process.errors.read_text(), re.MULTILINE)
    finally:
        process.end()


def test_a_second_sigterm_does_not_wait_for_a_client_that_does_not_read(tmp_path, model):
    process = Process(tmp_path, model, "--shutdown-timeout", "30")
    try:
        process.wait(lambda: process.status("/ready") == 200, 60)
        client = connect(process.port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        body = {"prompt": "The", "n": 100, "max_tokens": 490, "ignore_eos": True}
        content = json.dumps({**body, "stream": True, "logprobs": 5}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        time.sleep(4)
        process.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        process.process.send_signal(signal.SIGTERM)
        second = time.monotonic()
        assert process.process.wait(60) == 130  # the answer was cut
        seconds = time.monotonic() - second
        assert seconds < 5, f"{seconds:.0f} s after the second SIGTERM"
        assert "Traceback" not in process.errors.read_text()
    finally:
        process.end()


def test_an_engine_that_has_work_and_makes_no_steps_is_unhealthy():
    """Stuck outside `runner.execute` (in schedule(), in a send): beats come, steps do not."""
    lifecycle = Lifecycle(step_limit_seconds=300)
    lifecycle.loaded(0.0)
    for second in range(1000):
        lifecycle.beat(Heartbeat(float(second), has_work=True, steps_done=7), float(second))
    assert lifecycle.health(1000.0) is not None


def test_answers_do_not_wait_for_delayed_acks():
    """asyncio sets TCP_NODELAY only on sockets of proto IPPROTO_TCP; ours has 0. Without uvloop
    (any system but Linux) each answer takes 44 ms instead of 1.
    """
    listener = listen("127.0.0.1", 0)
    client = socket.create_connection(listener.getsockname())
    listener.setblocking(True)
    accepted, _ = listener.accept()
    nodelay = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for each in (accepted, client, listener):
        each.close()
    assert nodelay or accepted.proto == socket.IPPROTO_TCP


def test_idle_engines_and_those_that_make_progress_are_healthy():
    lifecycle = Lifecycle(step_limit_seconds=300)
    lifecycle.loaded(0.0)
    for second in range(1000):
        lifecycle.beat(Heartbeat(float(second), has_work=False, steps_done=7), float(second))
    assert lifecycle.health(1000.0) is None
    for second in range(1000, 2000):
        steps = 7 + second // 200
        lifecycle.beat(Heartbeat(float(second), has_work=True, steps_done=steps), float(second))
    assert lifecycle.health(2000.0) is None


def test_work_after_a_long_rest_starts_the_clock_anew():
    lifecycle = Lifecycle(step_limit_seconds=300)
    lifecycle.loaded(0.0)
    lifecycle.beat(Heartbeat(999.0, has_work=False, steps_done=7), 999.0)
    lifecycle.beat(Heartbeat(1000.0, has_work=True, steps_done=7), 1000.0)
    assert lifecycle.health(1001.0) is None


def test_the_shutdown_timeout_holds_for_a_client_that_does_not_read(tmp_path, model):
    process = Process(tmp_path, model, "--shutdown-timeout", "3")
    try:
        process.wait(lambda: process.status("/ready") == 200, 60)
        client = connect(process.port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        body = {"prompt": "The", "n": 100, "max_tokens": 490, "ignore_eos": True, "stream": True}
        content = json.dumps({**body, "logprobs": 5}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        time.sleep(3)
        process.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.process.wait(30) == 0
        assert time.monotonic() - started < 7  # 3, and the engine's leave
        assert "Traceback" not in process.errors.read_text()
    finally:
        process.end()

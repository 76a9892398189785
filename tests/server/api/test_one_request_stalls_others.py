"""One body must not hold up the event loop, fill the log, or be multiplied into gigabytes."""

from __future__ import annotations

import json
import logging
import threading
import time

import httpx
import msgspec
import pytest
from tests.server.api.fake_engine import MAX_MODEL_LEN, serving

from octavo_server.engine.messages import ToEngine

# Generous, as a crowded machine is slow: unbounded, these bodies stalled everybody for up to 12 s.
LONGEST_STALL_SECONDS = 2.5


def worst_latency(server, path: str, body: bytes) -> tuple[int, float]:
    """Status of `body`, and the slowest answer to anybody else meanwhile."""
    server.wait(lambda: server.http.get("/ready").status_code == 200)
    latencies: list[float] = []
    done = threading.Event()

    def others() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                started = time.monotonic()
                client.get("/version")
                latencies.append(time.monotonic() - started)
                time.sleep(0.01)

    thread = threading.Thread(target=others)
    thread.start()
    status = server.http.post(path, content=body, timeout=60).status_code
    time.sleep(0.2)
    done.set()
    thread.join()
    return status, max(latencies)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            b'{"messages":[{"role":"user","content":[' + b"{}," * 8_000_000 + b"{}]}]}",
        ),
        ("/detokenize", b'{"tokens":[' + b"5," * 15_000_000 + b"5]}"),
        (
            "/v1/completions",
            json.dumps({"prompt": "a"} | {f"f{i}": 1 for i in range(1_000_000)}).encode(),
        ),
    ],
    ids=["content parts", "detokenize", "unknown fields"],
)
def test_nobody_waits_for_anothers_body(path: str, body: bytes) -> None:
    with serving() as server:
        _, worst = worst_latency(server, path, body)
    assert worst < LONGEST_STALL_SECONDS, f"another request waited {worst:.2f} s"


def test_unknown_fields_fill_neither_the_log_nor_the_memory(caplog) -> None:
    with serving() as server, caplog.at_level(logging.WARNING):
        server.wait(lambda: server.http.get("/ready").status_code == 200)
        server.completion(**{f"field{i}": 1 for i in range(5000)})
        server.completion(**{"x\nERROR forged line": 1})
        kept = len(server.service._unknown_fields)
    texts = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert all(len(text) < 2000 for text in texts), f"a log line of {max(map(len, texts))}"
    assert all("\n" not in text for text in texts), "a client forged a log line"
    assert kept <= 200


def test_n_does_not_multiply_the_prompt_on_its_way_to_the_engine() -> None:
    """16 prompts of a full context, n=128: one body of 3.7 MB was 200 MB of messages and 3.1 GB in
    an engine of 32,768 tokens context, and stopped all its streams for 7 s (at 131,072: 4x that).
    """
    prompt = [300] * (MAX_MODEL_LEN - 1)
    body = {"prompt": [prompt] * 16, "n": 128, "max_tokens": 1}
    encoder = msgspec.msgpack.Encoder()
    with serving() as server:
        server.wait(lambda: server.http.get("/ready").status_code == 200)
        sizes: list[int] = []
        send = server.service.requests._send

        def count(message: ToEngine) -> None:
            sizes.append(len(encoder.encode(message)))
            send(message)

        server.service.requests._send = count
        response = server.http.post("/v1/completions", json=body, timeout=60)
    assert response.status_code in (200, 400)
    ratio = sum(sizes) / len(json.dumps(body))
    assert ratio < 20, f"the engine got {ratio:.0f} times the body's bytes"

"""A flood: each request is answered whole or refused with the time to come again, none is lost."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.server.api.fake_engine import say, serving

from octavo_server.api import intake as intakes
from octavo_server.api.errors import BodyTooLarge, Overloaded
from octavo_server.api.intake import LARGE_BODIES, LARGE_BYTES, Intake

FIVE = say("one two three four five", finish="length")
ROWS = 8  # of the engine, as its Ready says


def rejections(server) -> dict[str, float]:
    lines = server.http.get("/metrics").text.splitlines()
    found = {}
    for line in lines:
        if line.startswith("vllm:admission_rejections_total{"):
            labels, value = line.rsplit(" ", 1)
            assert 'model_name="tiny"' in labels
            found[labels.split('reason="')[1].split('"')[0]] = float(value)
    return found


def test_a_flood_loses_nothing_that_was_accepted():
    with serving(FIVE, rows=ROWS, step_seconds=0.002, max_num_queued_reqs=6) as server:

        async def flood():
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client:

                async def one(index):
                    body = {"prompt": [5] * 9, "n": 1 + index % 3, "stream": index % 2 == 1}
                    body |= {"max_tokens": 4}
                    return index, await client.post("/v1/completions", json=body)

                return await asyncio.gather(*map(one, range(150)))

        answers = asyncio.run(flood())
        kinds = {200: 0, 503: 0}
        for index, answer in answers:
            kinds[answer.status_code] += 1
            if answer.status_code == 503:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["error"]["code"] == "overloaded"
            elif index % 2:
                lines = [x for x in answer.text.splitlines() if x]
                assert lines[-1] == "data: [DONE]"
                ends = [json.loads(x[6:])["choices"][0]["finish_reason"] for x in lines[:-1]]
                assert ends.count("length") == 1 + index % 3
            else:
                choices = answer.json()["choices"]
                assert [c["finish_reason"] for c in choices] == ["length"] * (1 + index % 3)
        assert kinds[200] >= 7 and kinds[503] >= 20, kinds
        assert rejections(server)["max_num_queued_reqs"] == kinds[503]
        server.wait(lambda: len(server.service.requests) == 0)
        server.wait(lambda: server.service.admission.queued == (0, 0))
        assert server.completion().status_code == 200


def fill(server, pool, count, **body):
    """So many requests that the stopped engine holds; they end when its gate is opened."""
    before = len(server.engine.adds)
    started = [pool.submit(server.completion, max_tokens=2, **body) for _ in range(count)]
    server.wait(lambda: len(server.engine.adds) == before + count)
    return started


def test_a_full_queue_is_refused_before_the_body_is_read():
    with serving(FIVE, max_num_queued_reqs=2) as server, ThreadPoolExecutor(20) as pool:
        server.call(server.engine.gate.clear)
        held = fill(server, pool, ROWS + 2)
        for refused in (server.completion(), server.chat(), server.completion(prompt=5)):
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
        for path in ("/v1/models", "/health", "/metrics"):
            assert server.http.get(path).status_code == 200
        assert server.http.post("/tokenize", json={"prompt": "a"}).status_code == 200
        server.call(server.engine.gate.set)
        assert [each.result().status_code for each in held] == [200] * (ROWS + 2)
        assert server.completion().status_code == 200


def test_tokens_that_wait_are_bounded():
    with serving(FIVE, max_num_queued_tokens=200) as server, ThreadPoolExecutor(20) as pool:
        server.call(server.engine.gate.clear)
        held = fill(server, pool, 10, prompt=[5] * 175)  # 1,584 tokens fit the cache
        refused = server.completion(prompt=[5] * 40)
        assert (refused.status_code, rejections(server)["max_num_queued_tokens"]) == (503, 1)
        held += fill(server, pool, 1, prompt=[5] * 20)
        server.call(server.engine.gate.set)
        assert {each.result().status_code for each in held} == {200}


def test_a_request_too_large_for_the_queue_is_a_400():
    with serving(FIVE, max_num_queued_reqs=2) as server:
        refused = server.completion(prompt=["a"] * (ROWS + 3))
        assert refused.status_code == 400
        assert "send several requests" in refused.json()["error"]["message"]
        assert sum(rejections(server).values()) == 0
        assert server.completion(prompt=["a"] * (ROWS + 2)).status_code == 200


def test_a_key_with_too_many_is_a_429_and_other_keys_go_on():
    with (
        serving(FIVE, api_keys=("a", "b"), max_reqs_per_key=3) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        server.call(server.engine.gate.clear)
        server.http.headers["Authorization"] = "Bearer a"
        held = fill(server, pool, 3)
        refused = server.completion()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        server.http.headers["Authorization"] = "Bearer b"
        held += fill(server, pool, 3)
        server.call(server.engine.gate.set)
        assert {each.result().status_code for each in held} == {200}
        assert rejections(server)["max_reqs_per_key"] == 1
        for key in "ab":
            server.http.headers["Authorization"] = f"Bearer {key}"
            assert server.completion(n=3).status_code == 200
            assert server.completion(n=4).status_code == 400


def test_places_of_clients_that_left_are_free_again():
    with serving(FIVE, max_num_queued_reqs=1) as server:
        server.call(server.engine.gate.clear)
        payload = json.dumps({"prompt": "hello", "n": ROWS + 1}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + payload)
            server.wait(lambda: len(server.engine.adds) == ROWS + 1)
            assert server.completion().status_code == 503
        server.wait(lambda: len(server.service.requests) == 0)
        server.call(server.engine.gate.set)
        server.wait(lambda: server.completion().status_code == 200)


class Sent:
    """A request whose body comes in parts, each when the test says so."""

    headers: dict[str, str] = {}

    def __init__(self, *parts: int) -> None:
        self.parts = list(parts)
        self.next = asyncio.Event()

    async def receive(self):
        await self.next.wait()
        size = self.parts.pop(0)
        if self.parts:
            self.next.clear()
        return {"type": "http.request", "body": b"x" * size, "more_body": bool(self.parts)}


def test_large_bodies_share_a_bound_and_small_ones_pass():
    async def main():
        refused = dict.fromkeys(intakes.REASONS, 0)
        intake = Intake(LARGE_BYTES * 2, refused)
        slow = [Sent(2 * LARGE_BYTES, 0) for _ in range(LARGE_BODIES)]
        reads = [asyncio.create_task(intake.read_body(each)) for each in slow]
        for each in slow:
            each.next.set()
        await asyncio.sleep(0.01)
        assert intake.large_bytes == LARGE_BODIES * 2 * LARGE_BYTES
        late = Sent(LARGE_BYTES + 1)
        late.next.set()
        with pytest.raises(Overloaded):
            await intake.read_body(late)
        small = Sent(LARGE_BYTES)
        small.next.set()
        assert len(await intake.read_body(small)) == LARGE_BYTES
        over = Sent(2 * LARGE_BYTES + 1)
        over.next.set()
        with pytest.raises(BodyTooLarge):
            await intake.read_body(over)
        reads[0].cancel()
        for each in slow[1:]:
            each.next.set()
        await asyncio.wait(reads)
        assert intake.large_bytes == 0
        assert refused["max_body_bytes"] == 1

    asyncio.run(main())


def test_texts_that_wait_for_the_tokenizer_are_bounded(monkeypatch):
    monkeypatch.setattr(intakes, "MAX_CHARACTERS", 600)
    monkeypatch.setattr(intakes, "INLINE_CHARACTERS", 100)
    with serving() as server, ThreadPoolExecutor(4) as pool:
        run = server.service.model.pool.run

        async def in_slow_pool(work, *, size):
            await asyncio.sleep(0.3)
            return await run(work, size=size)

        monkeypatch.setattr(server.service.model.pool, "run", in_slow_pool)
        text = "one two three " * 25
        first = pool.submit(server.completion, prompt=text, max_tokens=1)
        server.wait(lambda: server.service.intake.characters)
        refused = server.completion(prompt=text, max_tokens=1)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert first.result().status_code == 200
        assert server.service.intake.characters == 0
        assert server.completion(prompt=text, max_tokens=1).status_code == 200

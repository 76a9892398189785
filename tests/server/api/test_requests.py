"""Requests in flight: disconnects, failures, draining, readiness, health, metrics."""

from __future__ import annotations

import json
import socket
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.server.api.fake_engine import make_ready, say, serving

from octavo_server.api.lifecycle import Lifecycle
from octavo_server.api.metrics import Metrics
from octavo_server.engine.messages import (
    EngineStats,
    Failed,
    Heartbeat,
    Outputs,
    TokenOutput,
)
from octavo_server.errors import EngineDead

LONG = say("word " * 150, finish="length")


def post_and_leave(server, body, *, after_bytes=0):
    """Send a request on a raw socket, read a little, close it."""
    payload = json.dumps({"prompt": "hello", "max_tokens": 190, **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    connection.sendall(head.encode() + payload)
    received = b""
    while len(received) < after_bytes:
        received += connection.recv(4096)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queued", "decoding"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_disconnect_aborts(stream, stage, n):
    with serving(LONG, step_seconds=0.01) as server:
        if stage == "queued":
            server.call(server.engine.gate.clear)
        after_bytes = 300 if stream and stage == "decoding" else 0
        connection = post_and_leave(server, {"stream": stream, "n": n}, after_bytes=after_bytes)
        server.wait(lambda: len(server.engine.adds) == n)
        if stage == "decoding":
            time.sleep(0.05)
        connection.close()
        server.wait(lambda: not server.engine.running)
        assert sorted(server.engine.aborted) == sorted(add.request_id for add in server.engine.adds)
        server.wait(lambda: not len(server.service.requests))
        server.call(server.engine.gate.set)
        server.wait(lambda: server.service.lifecycle.active == 0)
        assert server.service.metrics.finished["abort"] == n
        assert server.completion(max_tokens=2).status_code == 200


def test_many_disconnects_leave_nothing():
    with serving(LONG, step_seconds=0.001) as server:
        for index in range(60):
            post_and_leave(server, {"stream": bool(index % 2), "n": 1 + index % 3}).close()
        server.wait(lambda: server.service.lifecycle.active == 0)
        server.wait(lambda: not server.engine.running)
        assert len(server.service.requests) == 0


def test_a_disconnect_while_the_body_is_still_coming():
    with serving() as server:
        connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"
        connection.sendall(head + b"{")
        server.wait(lambda: server.service.lifecycle.active == 1)
        connection.close()
        server.wait(lambda: server.service.lifecycle.active == 0)
        assert not server.engine.adds


def test_outputs_of_aborted_requests_are_dropped():
    with serving(LONG) as server:
        server.call(server.service.requests.on_outputs, _outputs("unknown"))
        assert server.completion(max_tokens=2).status_code == 200


def _outputs(request_id):
    return Outputs([TokenOutput(request_id, [5])], EngineStats(0, 0, 0.0), 0.0)


def test_a_dead_engine_ends_a_stream_with_an_error_event():
    with serving(LONG, step_seconds=0.01) as server:
        body = {"prompt": "hello", "stream": True, "max_tokens": 150}
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.call(server.service.on_message, Failed("EngineFailed", "a rank died"))
            rest = [line for line in lines if line]
        assert rest[-2] == "event: error"
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert "a rank died" in error["message"]
        assert error["code"] == "engine_dead"
        assert server.http.get("/health").status_code == 503
        assert server.http.get("/ready").status_code == 503
        refused = server.completion()
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "engine_dead")
        assert server.service.metrics.finished["error"] == 1


def test_a_dead_engine_ends_waiting_requests_with_500():
    with serving(LONG) as server:
        server.call(server.engine.gate.clear)
        for stream in (False, True):
            server.loop.call_soon_threadsafe(
                server.loop.call_later,
                0.2,
                server.service.requests.fail_all,
                EngineDead("gone"),
            )
            response = server.completion(stream=stream)
            assert response.status_code == 500
            assert response.json()["error"]["type"] == "server_error"


def test_an_error_of_one_request_ends_it_alone():
    def script(add):
        yield TokenOutput(add.request_id, [5])
        if add.params.stop_token_ids:
            yield TokenOutput(add.request_id, [], finish_reason="error", error="bad row")
        yield TokenOutput(add.request_id, [6], finish_reason="length")

    with serving(script) as server:
        response = server.completion(stop_token_ids=[9], n=2)
        assert (response.status_code, response.json()["error"]["message"]) == (500, "bad row")
        assert server.completion().status_code == 200
        assert len(server.service.requests) == 0


def test_a_failing_tokenizer_ends_one_request(monkeypatch):
    with serving(LONG, step_seconds=0.001) as server:
        import octavo_server.api.requests as requests

        class Broken(requests.Assembler):
            def push(self, output):
                raise RuntimeError("no such piece")

        monkeypatch.setattr(requests, "Assembler", Broken)
        assert server.completion().status_code == 500
        monkeypatch.undo()
        assert server.completion(max_tokens=2).status_code == 200
        assert server.engine.aborted


def test_nothing_is_served_before_the_model_is_ready():
    with serving(ready=False) as server:
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/ready").status_code == 503
        for response in (server.completion(), server.chat(), server.http.get("/v1/models")):
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert response.json()["error"]["type"] == "service_unavailable"
        assert server.http.get("/metrics").status_code == 200
        server.call(make_ready, server.service)
        assert server.http.get("/ready").status_code == 200
        assert server.completion().status_code == 200


def test_draining_refuses_new_work_and_ends_what_runs():
    with serving(LONG, step_seconds=0.005) as server:
        body = {"prompt": "hello", "stream": True, "max_tokens": 50}
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.call(server.service.lifecycle.drain)
            assert server.http.get("/ready").status_code == 503
            assert server.http.get("/health").status_code == 200
            refused = server.completion()
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) == 50  # 49 more tokens, [DONE]
        server.wait(lambda: server.service.lifecycle.active == 0)


def test_health_tells_stuck_from_busy():
    life = Lifecycle(step_limit_seconds=60)
    assert life.health(0.0) is None  # loading takes as long as it takes
    life.loaded(100.0)
    assert life.health(109.0) is None
    assert "silent" in life.health(111.0)
    life.beat(Heartbeat(now=0, has_work=True, steps_done=1, step_started=110.0), 111.0)
    assert life.health(112.0) is None
    life.beat(Heartbeat(now=0, has_work=True, steps_done=1, step_started=110.0), 171.0)
    assert "step" in life.health(171.5)
    life.beat(Heartbeat(now=0, has_work=False, steps_done=2, step_started=None), 172.0)
    assert life.health(173.0) is None
    life.fail("it broke")
    assert "it broke" in life.health(173.0)


EXPECTED = {
    "gauge": ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"],
    "counter": [
        *("prompt_tokens", "generation_tokens", "request_success", "num_preemptions"),
        *("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens_cached"),
    ],
    "histogram": [
        *("time_to_first_token_seconds", "inter_token_latency_seconds"),
        *("request_time_per_output_token_seconds", "e2e_request_latency_seconds"),
        *("request_queue_time_seconds", "request_inference_time_seconds"),
        *("request_prefill_time_seconds", "request_decode_time_seconds"),
        *("iteration_tokens_total", "request_prompt_tokens", "request_generation_tokens"),
        "request_params_n",
    ],
}
VLLM_BUCKETS = {
    "time_to_first_token_seconds": ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5"
    " 10 20 40 80 160 640 2560",
    "inter_token_latency_seconds": ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5"
    " 10 20 40 80",
    "e2e_request_latency_seconds": ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480"
    " 960 1920 7680",
    "iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    "request_prompt_tokens": "1 2 5 10 20 50 100 200",
}


@pytest.mark.parametrize("prefix", ["vllm:", "octavo:"])
def test_metrics(prefix):
    with serving(metrics_prefix=prefix) as server:
        assert server.completion(prompt="hello", max_tokens=3).status_code == 200
        server.completion(prompt="hello", max_tokens=2, n=2, stream=True)
        text = server.http.get("/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        for kind, names in EXPECTED.items():
            for name in names:
                family = families[prefix + name]
                assert family.type == kind, name
                labels = family.samples[0].labels
                assert (labels["model_name"], labels["engine"]) == ("tiny", "0")
        for name, bounds in VLLM_BUCKETS.items():
            samples = families[prefix + name].samples
            got = {float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")}
            assert {float(bound) for bound in bounds.split()} <= got, name
        values = {s.name: s.value for f in families.values() for s in f.samples}
        assert values[prefix + "generation_tokens_total"] == 7
        assert values[prefix + "time_to_first_token_seconds_count"] == 3
        assert values[prefix + "inter_token_latency_seconds_count"] == 4
        assert values[prefix + "e2e_request_latency_seconds_count"] == 3
        success = families[prefix + "request_success"].samples
        assert {s.labels["finished_reason"]: s.value for s in success} == {
            "stop": 1,
            "length": 2,
            "abort": 0,
            "error": 0,
        }


def test_histograms_count_like_prometheus():
    metrics = Metrics("m")
    for value in (0.0005, 0.001, 0.0011, 3000.0):
        metrics.time_to_first_token.observe(value)
    buckets = dict(metrics.time_to_first_token.buckets())
    assert (buckets["0.001"], buckets["0.005"], buckets["2560.0"], buckets["+Inf"]) == (2, 3, 3, 4)

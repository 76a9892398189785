"""The server's figures under vLLM's names: dashboards, KEDA and endpoint pickers carry over.

Counters and histograms are plain numbers that cost well under a microsecond each to update; they
become prometheus-client's families only when /metrics is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from octavo_server.api import admission, intake
from octavo_server.engine.messages import EngineStats

# vLLM's buckets, with finer ones below them where Octavo's steps are shorter than a bucket.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.004, 0.006),
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.025, 0.05, 0.1, 0.2),
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
ITERATION_BUCKETS = (
    *(1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0),
)
FINISH_REASONS = ("stop", "length", "abort", "error")


class Histogram:
    """Counts per bucket (`counts[i]`: bounds[i-1] < value <= bounds[i]; the last: above all)."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = list(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        result: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            running += count
            result.append(("+Inf" if bound == float("inf") else str(bound), running))
        return result


class Metrics(Collector):
    """All figures of one server with one engine. Gauges and token counters are the engine's own."""

    def __init__(self, model_name: str, *, prefix: str = "vllm:", engine: str = "0") -> None:
        self._labels = {"model_name": model_name, "engine": engine}
        self._prefix = prefix
        self.stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0)
        self.preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.admission_rejections = dict.fromkeys(admission.REASONS + intake.REASONS, 0)
        self.cache_config: dict[str, str] = {}
        self.time_to_first_token = Histogram(TTFT_BUCKETS)
        self.inter_token_latency = Histogram(ITL_BUCKETS)
        self.time_per_output_token = Histogram(ITL_BUCKETS)
        self.e2e_latency = Histogram(REQUEST_BUCKETS)
        self.queue_time = Histogram(REQUEST_BUCKETS)
        self.prefill_time = Histogram(REQUEST_BUCKETS)
        self.decode_time = Histogram(REQUEST_BUCKETS)
        self.inference_time = Histogram(REQUEST_BUCKETS)
        self.iteration_tokens = Histogram(ITERATION_BUCKETS)
        self.request_prompt_tokens = Histogram(_one_two_five(131072))
        self.request_generation_tokens = Histogram(_one_two_five(131072))
        self.request_n = Histogram((1.0, 2.0, 5.0, 10.0, 20.0))
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def set_context_length(self, max_model_len: int) -> None:
        """Token histograms end at the context length, as vLLM's do; called before any request."""
        self.request_prompt_tokens = Histogram(_one_two_five(max_model_len))
        self.request_generation_tokens = Histogram(_one_two_five(max_model_len))

    def on_step(self, stats: EngineStats) -> None:
        """Take the engine's gauges and add its counters."""
        self.stats = stats
        self.preemptions += stats.preemptions
        self.prefix_cache_queries += stats.prefix_cache_queries
        self.prefix_cache_hits += stats.prefix_cache_hits
        self.prompt_tokens += stats.prompt_tokens
        self.generation_tokens += stats.generation_tokens
        if stats.step_tokens:
            self.iteration_tokens.observe(stats.step_tokens)

    def engine_gone(self) -> None:
        """Nothing runs or waits in an engine that is dead."""
        self.stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0)

    def describe(self) -> Iterator[Metric]:
        """Registered without a collect: names are checked by the tests instead."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield self._gauge(
            "num_requests_running", "Requests in the running batch.", self.stats.running
        )
        yield self._gauge(
            "num_requests_waiting", "Requests that wait to be scheduled.", self.stats.waiting
        )
        usage = self.stats.kv_cache_usage
        yield self._gauge("kv_cache_usage_perc", "Used part of the KV cache, 0 to 1.", usage)
        yield self._cache_config_info()
        yield self._counter("prompt_tokens", "Prompt tokens processed.", self.prompt_tokens)
        yield self._counter(
            "prompt_tokens_cached",
            "Prompt tokens found in the cache.",
            self.prompt_tokens_cached,
        )
        yield self._counter("generation_tokens", "Tokens generated.", self.generation_tokens)
        yield self._counter("num_preemptions", "Requests preempted.", self.preemptions)
        yield self._counter(
            "prefix_cache_queries",
            "Tokens looked up in the cache.",
            self.prefix_cache_queries,
        )
        yield self._counter(
            "prefix_cache_hits", "Tokens found in the cache.", self.prefix_cache_hits
        )
        success = CounterMetricFamily(
            self._prefix + "request_success",
            "Requests that ended, by reason.",
            labels=[*self._labels, "finished_reason"],
        )
        for reason, count in self.finished.items():
            success.add_metric([*self._labels.values(), reason], count)
        yield success
        rejected = CounterMetricFamily(
            self._prefix + "admission_rejections",
            "Requests refused because too many wait, by the flag that says so.",
            labels=["model_name", "reason"],
        )
        for reason, count in self.admission_rejections.items():
            rejected.add_metric([self._labels["model_name"], reason], count)
        yield rejected
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Arrival to first token.", self.time_to_first_token),
            ("inter_token_latency_seconds", "Between outputs.", self.inter_token_latency),
            (
                "request_time_per_output_token_seconds",
                "Mean time per token after the first, per request.",
                self.time_per_output_token,
            ),
            ("e2e_request_latency_seconds", "Arrival to last token.", self.e2e_latency),
            ("request_queue_time_seconds", "Arrival to first scheduling.", self.queue_time),
            ("request_prefill_time_seconds", "Scheduling to first token.", self.prefill_time),
            ("request_decode_time_seconds", "First to last token.", self.decode_time),
            ("request_inference_time_seconds", "Scheduling to last token.", self.inference_time),
            ("iteration_tokens_total", "Tokens per engine step.", self.iteration_tokens),
            ("request_prompt_tokens", "Prompt tokens of a request.", self.request_prompt_tokens),
            (
                "request_generation_tokens",
                "Generated tokens of a request.",
                self.request_generation_tokens,
            ),
            ("request_params_n", "The n of a request.", self.request_n),
        ):
            yield self._histogram(name, text, histogram)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(self._prefix + name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(self._prefix + name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(self._prefix + name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), histogram.buckets(), histogram.total)
        return family

    def _cache_config_info(self) -> Metric:
        labels = {**self.cache_config, "engine": self._labels["engine"]}
        family = GaugeMetricFamily(
            self._prefix + "cache_config_info", "Settings of the KV cache.", labels=list(labels)
        )
        if self.cache_config:
            family.add_metric(list(labels.values()), 1)
        return family


def _one_two_five(largest: int) -> list[float]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`."""
    bounds: list[float] = []
    power = 1
    while power <= largest:
        bounds += [float(power * digit) for digit in (1, 2, 5) if power * digit <= largest]
        power *= 10
    return bounds

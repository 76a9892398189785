"""The rows over HTTP: `octavo serve` as a process, cold and warm, and clients beside it.

    python -m benchmarks.rows.over_http --model gpt2 --folder DIR --scenarios gpt2_warm,gpt2_burst

Every start is timed from the process's start to the first 200 of /ready. Cold: TRITON_CACHE_DIR
is an empty folder, so every kernel is compiled. Warm: the same folder, filled.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.rows.client import Clients, http_request, percentile, requests_per_second
from benchmarks.rows.reporting import note, sample, scenario
from benchmarks.rows.workloads import (
    FULL,
    MODELS,
    PROMPT,
    TINY,
    model,
    poisson_arrivals,
    random_prompts,
)
from benchmarks.servers import Server, free_port, running

PATH = "/v1/completions"
_NAME = "bench"

_PROCESSES = 4
"""Clients: one is busy for a tenth of a second with 500 requests at once; the machine has 16
cores, of which the server takes two.
"""

_SINGLE_REPEATS = 10
"""Of one request at a time: as many as vLLM's figure has."""


class HttpRows:
    """The scenarios of one model; the server of those that share one starts with the first."""

    def __init__(self, args: argparse.Namespace, clients: Clients, exits: ExitStack) -> None:
        self._key: str = args.model
        self._args = args
        self._folder: Path = args.folder
        self._clients = clients
        self._exits = exits
        self._model = model(args.model, tiny=args.tiny, tp=args.tp)
        self._sizes = TINY if args.tiny else FULL
        self._cache = Path(tempfile.mkdtemp(prefix="cache-", dir=args.folder.parent))
        self._cache_filled = False
        self._server: Server | None = None
        self._seed = 0

    def scenarios(self) -> dict[str, Callable[[], None]]:
        found = {
            "cold": self.cold, "warm": self.warm, "one": self.one, "burst": self.burst,
            "flood": self.flood, "s5": self.poisson, "s5_inf": self.unlimited,
        }  # fmt: skip
        return {f"{self._key}_{name}": run for name, run in found.items()}

    # -- start-up ---------------------------------------------------------------------------------

    def cold(self) -> None:
        row = f"ready_cold_{self._key}"
        with self._serving(row) as server:
            self._cache_filled = True
            self._report_start(row, server)

    def warm(self) -> None:
        """The server stays: the scenarios after this one need it."""
        if not self._cache_filled:
            with self._serving("fill"):
                self._cache_filled = True
        row = f"ready_{self._key}"
        self._server = self._exits.enter_context(self._serving(row))
        self._report_start(row, self._server)
        if self._key == "gpt2":
            sample("kv_gpt2", _cache_tokens(self._server))

    def _report_start(self, row: str, server: Server) -> None:
        first = self._clients.send(_port(server), [self._s1_request(server)], [0.0])[0]
        sample(row, server.start_seconds)
        stages = _stages(self._log(row))
        note(row, first_request_ms=(first.ended - first.sent) * 1e3, stages=stages)

    # -- S1 ---------------------------------------------------------------------------------------

    def one(self) -> None:
        server = self._shared()
        for repeat in range(2 + _SINGLE_REPEATS):
            answer = self._clients.send(_port(server), [self._s1_request(server)], [0.0])[0]
            if repeat > 1:
                sample("s1_1", (answer.ended - answer.sent) * 1e3)

    def burst(self) -> None:
        self._at_once("s1_50", self._sizes.s1_requests)

    def flood(self) -> None:
        self._at_once("s1_500", self._sizes.s1_flood)

    def _at_once(self, row: str, count: int) -> None:
        server = self._shared()
        for repeat in range(2 + max(self._args.repeats, 5)):
            requests = [self._s1_request(server)] * count
            answers = self._clients.send(_port(server), requests, [0.0] * count)
            made = {answer.completion_tokens for answer in answers}
            if made != {self._sizes.s1_tokens}:
                raise RuntimeError(f"asked for {self._sizes.s1_tokens} tokens, got {made}")
            if repeat > 1:
                sample(row, requests_per_second(answers))

    def _s1_request(self, server: Server) -> bytes:
        body = {"model": _NAME, "prompt": PROMPT, "max_tokens": self._sizes.s1_tokens}
        return http_request(_port(server), PATH, {**body, "temperature": 0, "ignore_eos": True})

    # -- S5 ---------------------------------------------------------------------------------------

    def poisson(self) -> None:
        for repeat in range(1 + self._args.repeats):
            answers = self._stream(self._sizes.s5_rate, warm_up=not repeat)
            if not repeat:
                continue
            tokens = self._sizes.single_out
            firsts = [answer.first_token_seconds * 1e3 for answer in answers]
            gaps = [gap * 1e3 for answer in answers for gap in answer.gap_seconds]
            per_token = [answer.token_seconds(tokens) * 1e3 for answer in answers]
            sample("llama_s5_ttft_p99", percentile(firsts, 0.99))
            sample("llama_s5_tpot_mean", statistics.mean(per_token))
            sample("llama_s5_itl_p99", percentile(gaps, 0.99))
            note("llama_s5_ttft_p99", mean=statistics.mean(firsts), p50=percentile(firsts, 0.5))
            note("llama_s5_itl_p99", mean=statistics.mean(gaps), p50=percentile(gaps, 0.5))

    def unlimited(self) -> None:
        for repeat in range(1 + self._args.repeats):
            answers = self._stream(float("inf"), warm_up=not repeat)
            if repeat:
                sample("llama_s5_inf", requests_per_second(answers))

    def _stream(self, rate: float, *, warm_up: bool) -> list[Any]:
        """One round of S5; a warm-up is a fifth of it. Raises if tokens are missing."""
        server = self._shared()
        sizes = self._sizes
        count = sizes.s5_requests // 5 if warm_up else sizes.s5_requests
        self._seed += 1
        lengths = [sizes.single_in] * count
        body = {"model": _NAME, "max_tokens": sizes.single_out, "temperature": 0}
        requests = [
            http_request(
                _port(server), PATH, {**body, "prompt": prompt, "ignore_eos": True, "stream": True}
            )
            for prompt in random_prompts(self._model.vocab_size, lengths, self._seed)
        ]
        arrivals = poisson_arrivals(count, rate, self._seed)
        answers = self._clients.send(_port(server), requests, arrivals)
        short = [a for a in answers if len(a.event_times) != sizes.single_out]
        if short:
            raise RuntimeError(
                f"{len(short)} of {count} streams had not {sizes.single_out} events but, say, "
                f"{len(short[0].event_times)}"
            )
        return answers

    # -- servers ----------------------------------------------------------------------------------

    def _shared(self) -> Server:
        if self._server is None:
            self._server = self._exits.enter_context(self._serving("serve"))
        return self._server

    def _log(self, label: str) -> Path:
        log: Path = self._args.logs / f"{self._key}-{label}.log"
        return log

    @contextmanager
    def _serving(self, label: str) -> Iterator[Server]:
        port = free_port()
        argv = [sys.executable, "-m", "octavo_server.cli", "serve", str(self._folder)]
        argv += ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", _NAME]
        argv += [*self._model.flags(), "--shutdown-timeout", "5"]
        with running(
            f"octavo ({label})",
            argv,
            port=port,
            ready_path="/ready",
            log=self._log(label),
            env=self._environment(),
            ready_timeout_seconds=self._args.start_limit,
        ) as server:
            yield server

    def _environment(self) -> dict[str, str]:
        """Caches of this run's own: empty at first, and no kernels that an image ships."""
        return {
            "TRITON_CACHE_DIR": str(self._cache / "triton"),
            "CUDA_CACHE_PATH": str(self._cache / "cuda"),
            "OCTAVO_KERNELS": "",
        }


def _port(server: Server) -> int:
    return int(server.url.rsplit(":", 1)[1])


def _stages(log: Path) -> list[str]:
    """The server's progress lines, with the seconds it gives them."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if re.match(r"\[ *[\d.]+ s\]", line)][:40]


def _cache_tokens(server: Server) -> int:
    """KV tokens by the labels of vllm:cache_config_info, block 0 counted as vLLM does."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    line = next(x for x in text.splitlines() if x.startswith("vllm:cache_config_info{"))
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    return int(labels["num_gpu_blocks"]) * int(labels["block_size"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--scenarios", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--start-limit", type=float, default=140, help="seconds of one start")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tp", type=int, default=1)
    args = parser.parse_args()
    with ExitStack() as exits:
        clients = exits.enter_context(Clients(2 if args.tiny else _PROCESSES))
        runs = HttpRows(args, clients, exits).scenarios()
        for name in args.scenarios.split(","):
            with scenario(name):
                runs[name]()


if __name__ == "__main__":
    main()

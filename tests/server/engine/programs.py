"""Random programs of requests for a real engine of a tiny model, and what each gets alone.

Requests of every kind (sampling, penalties, log probabilities, stops, streaming or not) come at any
time, share prefixes, are preempted, aborted with steps in flight, or end with a step that fails at
any point of its way.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.core import EngineCore
from octavo_server.engine.messages import Add, TokenLogprobs, TokenOutput
from octavo_server.engine.step import Sampled, Step
from octavo_server.sampling_params import SamplingParams
from tests.server.tiny_models import VOCAB_SIZE

REQUESTS = 60
KINDS = 60
CONTEXT = 64
WHERE = ("before", "rows", "inputs", "layers", "draw", "wait")
"""At which point of a step its failure comes."""


ERRORS = ("1.00 GiB", "a step that fails on purpose")
"""What the requests of a step that is made to fail are told."""


class Answer:
    """What one request got."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.end: tuple[str | None, int | None] | None = None

    def take(self, output: TokenOutput) -> None:
        assert self.end is None, "an output after the end"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "prompt log probabilities came twice"
            self.prompt_logprobs = output.prompt_logprobs
        if output.error is not None:
            assert any(error in output.error for error in ERRORS), output.error
        if output.finish_reason is not None:
            self.end = (output.finish_reason, output.stop_token_id)

    def check_begins(self, whole: Answer) -> None:
        """What came so far is the beginning of `whole`."""
        assert self.token_ids == whole.token_ids[: len(self.token_ids)]
        for mine, wanted in zip(self.logprobs, whole.logprobs, strict=False):
            check_judged(mine, wanted)
        for mine, wanted in zip(
            self.prompt_logprobs or (), whole.prompt_logprobs or (), strict=False
        ):
            check_judged(mine, wanted)

    def check_is(self, whole: Answer) -> None:
        assert self.token_ids == whole.token_ids
        assert self.end == whole.end
        assert len(self.logprobs) == len(whole.logprobs)
        assert len(self.prompt_logprobs or ()) == len(whole.prompt_logprobs or ())
        self.check_begins(whole)


def check_judged(mine: TokenLogprobs | None, wanted: TokenLogprobs | None) -> None:
    assert (mine is None) == (wanted is None)
    if mine is not None and wanted is not None:
        assert mine.token_id == wanted.token_id and mine.top_ids == wanted.top_ids
        assert mine.rank == wanted.rank
        values, expected = ([e.logprob, *e.top_logprobs] for e in (mine, wanted))
        assert values == pytest.approx(expected, abs=1e-3)


Alone = tuple[list[int], SamplingParams, Answer]


class FailingRunner:
    """A runner whose next step fails at the point named by `at`."""

    def __init__(self, runner: Any, error: Callable[[], Exception]) -> None:
        self.runner = runner
        self.error = error
        self.at: str | None = None
        self.doomed: set[int] = set()

    def launch(self, step: Step) -> Any:
        at, self.at = self.at, None
        if at == "before":
            raise self.error()
        if at in (None, "wait"):
            launched = self.runner.launch(step)
            if at == "wait":
                self.doomed.add(id(launched))
            return launched
        with self._failing(at):
            return self.runner.launch(step)

    def wait(self, launched: Any) -> Sampled:
        if id(launched) in self.doomed:
            self.doomed.clear()
            raise self.error()
        sampled: Sampled = self.runner.wait(launched)
        return sampled

    def close(self) -> None:
        self.runner.close()

    @contextmanager
    def _failing(self, at: str) -> Iterator[None]:
        runner = self.runner
        owner, name = {
            "rows": (runner._sampler, "take_row"),
            "inputs": (runner, "_layers"),
            "layers": (runner._model, "forward"),
            "draw": (runner._sampler, "draw"),
        }[at]

        def fail(*_: object, **__: object) -> None:
            raise self.error()

        setattr(owner, name, fail)
        try:
            yield
        finally:
            delattr(owner, name)


def random_kinds(chance: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """Prompts that share beginnings, with every parameter in every company."""
    stems = [[chance.randrange(VOCAB_SIZE) for _ in range(24)] for _ in range(3)]
    kinds = []
    for seed in range(KINDS):
        stem = chance.choice(stems)
        prompt = stem[: chance.randrange(25)]
        prompt += [
            chance.randrange(VOCAB_SIZE) for _ in range(chance.randrange(0 if prompt else 1, 12))
        ]
        most = chance.choice([1, 2, 5, 9, 17, 30, None])

        def maybe(value: Any, default: Any, share: float = 0.25) -> Any:
            return value if chance.random() < share else default

        # Few ids that may come, so that pairs of them would: from a chance of their own.
        own = random.Random(seed)
        allowed = own.sample(range(3, VOCAB_SIZE), 6) if own.random() < 0.2 else None
        letters = allowed or range(VOCAB_SIZE)
        bad = [own.choices(letters, k=own.choice([1, 2, 3])) for _ in range(8)]
        stops = chance.sample(range(VOCAB_SIZE), chance.choice([0, 0, 8, 60]))
        kinds.append(
            (
                prompt,
                SamplingParams(
                    temperature=chance.choice([0.0, 0.0, 0.3, 1.0, 2.0]),
                    seed=chance.choice([seed, -seed, 2**63 - 1 - seed]),
                    top_p=maybe(chance.choice([1e-6, 0.3, 0.9, 0.999]), 1.0),
                    top_k=maybe(chance.choice([1, 2, 40, VOCAB_SIZE - 1, 100_000]), -1),
                    min_p=maybe(chance.choice([0.01, 0.3, 1.0]), 0.0),
                    presence_penalty=maybe(1.5, 0.0, 0.15),
                    frequency_penalty=maybe(-1.0, 0.0, 0.15),
                    repetition_penalty=maybe(1.3, 1.0, 0.15),
                    logit_bias=maybe({chance.randrange(VOCAB_SIZE): 7.5}, None, 0.15),
                    logprobs=maybe(chance.choice([0, 3]), None),
                    prompt_logprobs=maybe(chance.choice([0, 2]), None, 0.15),
                    allowed_token_ids=allowed,
                    bad_words_token_ids=bad if own.random() < 0.2 or allowed else [],
                    max_tokens=most,
                    min_tokens=maybe(min(most or 6, 6), 0),
                    stop_token_ids=stops,
                    eos_token_ids=[2],
                    ignore_eos=chance.random() < 0.2,
                ),
            )
        )
    return kinds


def build(folder: Path, **settings: Any) -> EngineCore:
    common: dict[str, Any] = {
        "model": str(folder), "device": "cpu", "dtype": "float32", "max_model_len": CONTEXT,
        "kv_cache_memory_bytes": 8 << 20,
    }  # fmt: skip
    return build_engine(EngineConfig(**common | settings), lambda _: None)


def answers_alone(folder: Path) -> list[Alone]:
    """Each request with what it gets by itself, in an engine that keeps nothing."""
    core = build(folder, enable_prefix_caching=False, async_scheduling=False)
    found = []
    for index, (prompt, params) in enumerate(random_kinds(random.Random(20))):
        params.validate(vocab_size=VOCAB_SIZE)
        answer = Answer()
        core.add(Add(str(index), prompt, params, 0.0))
        while core.has_work:
            report = core.step()
            for output in report.outputs if report else ():
                answer.take(output)
        assert answer.end is not None
        found.append((prompt, params, answer))
    return found


def run_program(core: EngineCore, chance: random.Random, alone: list[Alone]) -> Counter[str]:
    """`REQUESTS` of them at random times; returns how many ended in which way."""
    runner = FailingRunner(
        core.runner,
        lambda: (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            if chance.random() < 0.7
            else ValueError(ERRORS[1])
        ),
    )
    core.runner = runner
    fails, failed_at = chance.random() < 0.7, -10
    wanted: dict[str, Answer] = {}
    answers: dict[str, Answer] = {}
    aborted: set[str] = set()
    seen = Counter[str]()
    for turn in range(5000):
        while len(wanted) < REQUESTS and chance.random() < 0.4:
            prompt, params, answer = chance.choice(alone)
            name = str(len(wanted))
            wanted[name], answers[name] = answer, Answer()
            salt, stream = chance.choice([None, "a"]), chance.random() < 0.6
            priority = random.Random(name).choice([0, 0, 0, -1, 5])
            core.add(Add(name, prompt, params, 0.0, salt, stream, priority))
        live = [name for name, answer in answers.items() if not answer.end and name not in aborted]
        if live and chance.random() < 0.02:
            gone = chance.sample(live, chance.randint(1, min(3, len(live))))
            core.abort([*gone, "unknown"])
            aborted.update(gone)
        if fails and live and chance.random() < 0.04 and turn > failed_at + 4:
            runner.at, failed_at = chance.choice(WHERE), turn
        report = core.step()
        for output in report.outputs if report else ():
            assert output.request_id not in aborted, "an output after an abort"
            answers[output.request_id].take(output)
        seen["preempted"] += report.stats.preemptions if report else 0
        core.scheduler.check_integrity()
        if len(wanted) == REQUESTS and not core.has_work:
            break
    else:
        raise AssertionError("requests that never end")
    for name, answer in answers.items():
        if name in aborted:
            seen["aborted"] += 1
            answer.check_begins(wanted[name])
        elif answer.end == ("error", None):
            assert fails, "an error out of nowhere"
            seen["failed"] += 1
            answer.check_begins(wanted[name])
        else:
            seen["whole"] += 1
            answer.check_is(wanted[name])
    assert core.scheduler.pool.usage == 0
    assert core.scheduler._free_count_slots == core.scheduler.config.count_slots
    return seen


def random_settings(chance: random.Random) -> dict[str, Any]:
    """Of an engine: pages, rows and steps from the fewest that will do."""
    block_size = chance.choice([1, 4, 16])
    return {
        "block_size": block_size,
        # From one request of full length up: preemptions in most programs.
        "num_gpu_blocks_override": 1 + CONTEXT // block_size * chance.choice([1, 1, 2, 8]),
        "max_num_seqs": chance.choice([1, 3, 8, 32]),
        "max_num_batched_tokens": chance.choice([32, 48, 512]),
        "enable_prefix_caching": chance.random() < 0.7,
        "async_scheduling": chance.random() < 0.7,
    }

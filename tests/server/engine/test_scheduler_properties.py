"""Random requests, aborts and failures against scheduler and block pool, with every page read
checked.
"""

from __future__ import annotations

import os
from collections import deque

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.messages import Add
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.step import Sampled
from octavo_server.sampling_params import SamplingParams
from tests.server.engine.recording_runner import VOCAB, RecordingRunner, expected_output

EXAMPLES = int(os.environ.get("OCTAVO_SOAK_EXAMPLES", "200"))
STEPS_TO_END = 2000

steps_run = 0
"""By all examples of this process."""


class Engine(RuleBasedStateMachine):
    """Small pages, small pool, tiny vocabulary: hits, evictions and preemptions in almost every
    run.
    """

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_seqs=st.integers(1, 5),
        spare_blocks=st.integers(0, 12),
        step_tokens=st.integers(5, 24),
        caching=st.booleans(),
        most_in_flight=st.integers(0, 1),
    )
    def start(
        self,
        block_size: int,
        num_seqs: int,
        spare_blocks: int,
        step_tokens: int,
        caching: bool,
        most_in_flight: int,
    ) -> None:
        self.config = SchedulerConfig(
            max_model_len=24,
            max_num_seqs=num_seqs,
            max_step_tokens=step_tokens,
            max_mixed_tokens=max(num_seqs, step_tokens // 2),
            block_size=block_size,
            count_slots=1,
        )
        # The smallest pool that start-up would accept: one request of max_model_len.
        blocks = 1 + -(-24 // block_size) + spare_blocks
        self.pool = BlockPool(blocks, enable_caching=caching)
        self.scheduler = Scheduler(self.config, self.pool, clock=lambda: 0.0)
        self.runner = RecordingRunner(self.config)
        self.most_in_flight = most_in_flight
        self.in_flight: deque[Sampled] = deque()
        self.outputs: dict[str, list[int]] = {}
        self.expected: dict[str, list[int]] = {}
        self.prompts: dict[str, list[int]] = {}
        self.count = 0

    @rule(
        stem=st.sampled_from([[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]]),
        tail=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=11),
        max_tokens=st.integers(1, 20),
        stop_ids=st.sets(st.integers(0, VOCAB - 1), max_size=2),
        min_tokens=st.integers(0, 3),
        penalised=st.booleans(),
        judged=st.booleans(),
        salt=st.sampled_from([None, "a"]),
        streams=st.booleans(),
        priority=st.sampled_from([0, 0, 0, -1, 3]),
    )
    def add(
        self,
        stem: list[int],
        tail: list[int],
        max_tokens: int,
        stop_ids: set[int],
        min_tokens: int,
        penalised: bool,
        judged: bool,
        salt: str | None,
        streams: bool,
        priority: int,
    ) -> None:
        self.count += 1
        request_id, prompt = str(self.count), stem + tail
        params = SamplingParams(
            max_tokens=max_tokens,
            stop_token_ids=sorted(stop_ids),
            min_tokens=min_tokens,
            presence_penalty=0.5 if penalised else 0.0,
            prompt_logprobs=0 if judged else None,
        )
        self.scheduler.add(Add(request_id, prompt, params, 0.0, salt, streams, priority))
        self.outputs[request_id] = []
        self.prompts[request_id] = prompt
        self.expected[request_id] = expected_output(
            prompt, max_tokens, params.stop_ids, min_tokens, self.config.max_model_len
        )

    @rule(times=st.integers(1, 6))
    def run(self, times: int) -> None:
        for _ in range(times):
            self._step()

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), between=st.booleans())
    def abort(self, data: st.DataObject, between: bool) -> None:
        """Abort a live request, between steps or while one runs (its row must then get nothing)."""
        request_id = data.draw(st.sampled_from(sorted(self.expected)))
        step = self.scheduler.schedule() if between else None
        self.scheduler.abort([request_id])
        self._forget(request_id)
        if step is not None:
            self.in_flight.append(self.runner.launch(step))
            self._collect(self.most_in_flight)

    @precondition(lambda self: self.scheduler.has_work)
    @rule()
    def fail(self) -> None:
        """A step that dies before it wrote anything takes its own requests along, and those of the
        step in front of it, whose results are lost with it.
        """
        step = self.scheduler.schedule()
        if step is None:
            return
        self.runner._apply(step)
        lost = len(self.in_flight)
        self.in_flight.clear()
        failed = self.scheduler.fail_steps("broken")
        assert len(failed) == len({output.request_id for output in failed})
        assert len(failed) >= len(step.rows) or lost
        for output in failed:
            assert output.finish_reason == "error" and output.error == "broken"
            self._forget(output.request_id)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.runner.most_tokens_in_a_step <= self.config.max_step_tokens

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(STEPS_TO_END):
            if not self.scheduler.has_work:
                break
            self._step()
        assert not self.scheduler.has_work and not self.expected, "a request did not end"
        assert self.pool.usage == 0.0
        self.scheduler.check_integrity()

    def _step(self) -> None:
        global steps_run
        step = self.scheduler.schedule()
        if step is not None:
            steps_run += 1
            self.in_flight.append(self.runner.launch(step))
        self._collect(0 if step is None else self.most_in_flight)

    def _collect(self, limit: int) -> None:
        while len(self.in_flight) > limit:
            self._take(self.scheduler.update(self.runner.wait(self.in_flight.popleft())))

    def _take(self, outputs: list) -> None:  # type: ignore[type-arg]
        for output in outputs:
            request_id = output.request_id
            assert request_id in self.expected, "an output for a request that ended"
            if not self.outputs[request_id] and output.prompt_logprobs is not None:
                judged = [entry and entry.token_id for entry in output.prompt_logprobs]
                assert judged == [None, *self.prompts[request_id][1:]]
            self.outputs[request_id] += output.token_ids
            if output.finish_reason is not None:
                assert self.outputs[request_id] == self.expected[request_id]
                self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self.expected.pop(request_id, None)


def test_any_schedule_gives_every_request_its_one_right_output() -> None:
    run_state_machine_as_test(
        Engine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert steps_run > 10 * EXAMPLES, "too few steps to mean anything"

"""First come, first served also holds for a prompt that is admitted but not yet computed."""

from __future__ import annotations

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.messages import Add
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.step import Sampled, Step
from octavo_server.sampling_params import SamplingParams


class ConstantRunner:
    """Every sampled token is 3."""

    def launch(self, step: Step) -> Sampled:
        return Sampled([3 if s else None for s in step.samples])


def test_a_long_prompt_in_chunks_is_not_starved_by_younger_short_requests() -> None:
    config = SchedulerConfig(
        max_model_len=2400,
        max_num_seqs=64,
        max_step_tokens=2048,
        max_mixed_tokens=256,
        block_size=4,
    )
    pool = BlockPool(1 + 750, enable_caching=False)
    scheduler, runner = Scheduler(config, pool), ConstantRunner()

    def add(name: str, length: int, max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        scheduler.add(Add(name, [1] * length, params, 0.0))

    for i in range(40):
        add(f"old{i}", 20, 5 + i % 60)
    step = scheduler.schedule()
    assert step is not None
    scheduler.update(runner.launch(step))
    add("LONG", 2000, 2)  # the pool has 750 pages, it needs 500; all before it are small
    count = younger_served = 0
    for _ in range(2000):
        while len(scheduler.waiting) < 40:  # short requests keep coming
            count += 1
            add(f"young{count}", 20, 5 + count % 60)
        step = scheduler.schedule()
        assert step is not None
        outputs = scheduler.update(runner.launch(step))
        if any(output.request_id == "LONG" for output in outputs):
            return
        younger_served += sum(
            output.finish_reason is not None and output.request_id.startswith("young")
            for output in outputs
        )
        long = scheduler._live["LONG"]
        assert younger_served < 200, (
            f"{younger_served} younger requests were served while LONG stands at "
            f"{long.num_computed} of 2000 prompt tokens, {pool.num_free} pages free"
        )
    raise AssertionError("LONG never got its first token")

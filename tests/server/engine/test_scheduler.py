from __future__ import annotations

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.messages import Add, TokenOutput
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.step import Step
from octavo_server.sampling_params import SamplingParams
from tests.server.engine.recording_runner import RecordingRunner


class Bench:
    """A scheduler on a recording runner, and what came out of it."""

    def __init__(self, *, blocks: int = 100, **config: int) -> None:
        settings = {
            "max_model_len": 64,
            "max_num_seqs": 8,
            "max_step_tokens": 64,
            "max_mixed_tokens": 16,
            "block_size": 4,
        }
        self.config = SchedulerConfig(**(settings | config))  # type: ignore[arg-type]
        self.pool = BlockPool(blocks)
        self.scheduler = Scheduler(self.config, self.pool, clock=lambda: 5.0)
        self.runner = RecordingRunner(self.config)

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        stream: bool = True,
        priority: int = 0,
        **params: object,
    ) -> None:
        asked = SamplingParams(**({"ignore_eos": True} | params))  # type: ignore[arg-type]
        self.scheduler.add(Add(request_id, prompt, asked, 0.0, stream=stream, priority=priority))

    def step(self) -> tuple[Step, list[TokenOutput]]:
        step = self.scheduler.schedule()
        assert step is not None
        outputs = self.scheduler.update(self.runner.launch(step))
        self.scheduler.check_integrity()
        return step, outputs

    def run(self) -> list[TokenOutput]:
        outputs = []
        while self.scheduler.has_work:
            outputs += self.step()[1]
        return outputs


def test_prompts_are_computed_whole_while_nobody_decodes_and_in_chunks_beside_a_decode() -> None:
    bench = Bench()
    bench.add("a", [1] * 40)
    step, _ = bench.step()
    assert (step.counts, step.samples) == ([40], [True])
    bench.add("b", [2] * 40)
    step, outputs = bench.step()
    assert (step.counts, step.samples) == ([1, 16], [True, False])
    assert [output.request_id for output in outputs] == ["a"]
    step, _ = bench.step()
    assert step.starts == [41, 16]


def test_the_longer_the_queue_the_more_of_it_is_computed_beside_a_stream() -> None:
    bench = Bench(blocks=1000, max_step_tokens=256, max_num_seqs=32)
    bench.add("a", [1] * 40)
    bench.step()
    for index in range(24):
        bench.add(f"b{index}", [10 + index] * 60)
    step, _ = bench.step()
    assert step.counts == [1, 48]  # an eighth of 16 tokens each of 24 that wait, not 16
    bench.scheduler.abort([f"b{index}" for index in range(2, 24)])
    step, _ = bench.step()
    assert step.counts == [1, 12, 4]  # two wait: 16 as ever


def test_one_long_prompt_is_no_queue() -> None:
    bench = Bench(blocks=1000, max_model_len=2000, max_step_tokens=256)
    bench.add("a", [1] * 40)
    bench.step()
    bench.add("b", [2] * 1900)
    for _ in range(3):
        step, _ = bench.step()
        assert step.counts == [1, 16]


def test_beside_rows_that_nobody_watches_prompts_are_computed_whole() -> None:
    bench = Bench()
    bench.add("a", [1] * 40, stream=False)
    bench.step()
    bench.add("b", [2] * 40)
    step, _ = bench.step()
    assert step.counts == [1, 40]


def test_a_request_that_does_not_stream_gets_one_output_with_its_times() -> None:
    bench = Bench()
    bench.add("a", [1] * 5, stream=False, max_tokens=3)
    bench.add("b", [1] * 5, max_tokens=3)
    outputs = bench.run()
    assert [out.request_id for out in outputs] == ["b", "b", "a", "b"]
    whole = outputs[2]
    assert whole.token_ids == [token for out in outputs for token in out.token_ids if out != whole]
    assert (whole.finish_reason, whole.scheduled, whole.first_token) == ("length", 5.0, 5.0)


def test_first_come_first_served_within_the_rows_there_are() -> None:
    bench = Bench(max_num_seqs=2)
    for name in "abc":
        bench.add(name, [1, 2, 3], max_tokens=2)
    _, outputs = bench.step()
    assert [output.request_id for output in outputs] == ["a", "b"]
    _, outputs = bench.step()
    assert [output.finish_reason for output in outputs] == ["length", "length"]
    step, outputs = bench.step()
    assert outputs[0].request_id == "c" and step.freed_rows


def test_128_cold_requests_with_one_prefix_compute_it_once() -> None:
    bench = Bench(max_num_seqs=128, max_step_tokens=512, blocks=400)
    prefix = [3] * 40
    for index in range(128):
        bench.add(str(index), [*prefix, index, index], max_tokens=1)
    bench.run()
    assert bench.runner.computed_tokens == 128 * 2 + 40
    stats = bench.scheduler.take_stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (128 * 42, 127 * 40)


def test_a_cached_prompt_still_computes_its_last_token() -> None:
    bench = Bench()
    for name in "ab":
        bench.add(name, [1] * 8, max_tokens=1)
        (output,) = bench.run()
    assert output.cached_tokens == 4
    assert output.scheduled == 5.0


def test_salts_do_not_share() -> None:
    bench = Bench()
    for name, salt in (("a", "x"), ("b", "y")):
        bench.scheduler.add(Add(name, [1] * 9, SamplingParams(max_tokens=1), 0.0, salt))
        (output,) = bench.run()
        assert output.cached_tokens == 0


def test_the_youngest_is_preempted_and_comes_back_before_later_arrivals() -> None:
    bench = Bench(blocks=1 + 16, max_num_seqs=2)  # one request of max_model_len, or two of half
    for name in "abc":
        bench.add(name, [ord(name) % 7] * 24, max_tokens=30)
    while bench.scheduler.take_stats().preemptions == 0:
        bench.step()
    assert [sequence.request_id for sequence in bench.scheduler.running] == ["a"]
    assert [sequence.request_id for sequence in bench.scheduler.waiting] == ["b", "c"]
    finished = [output.request_id for output in bench.run() if output.finish_reason]
    assert finished == ["a", "b", "c"]


def test_admission_waits_until_the_whole_prompt_fits() -> None:
    bench = Bench(blocks=1 + 16)
    bench.add("a", [1] * 30, max_tokens=10)
    bench.add("b", [2] * 36, max_tokens=1)
    step, _ = bench.step()
    assert len(step.rows) == 1
    assert [out.request_id for out in bench.run() if out.finish_reason] == ["a", "b"]
    assert bench.scheduler.take_stats().preemptions == 0


def test_stats_tell_what_waits_and_what_was_taken_in() -> None:
    bench = Bench(blocks=1 + 16)
    bench.add("a", [1] * 30, max_tokens=10)
    bench.add("b", [2] * 36, max_tokens=1)
    bench.add("c", [3] * 5, max_tokens=1)
    bench.step()
    stats = bench.scheduler.take_stats()
    assert (stats.waiting, stats.waiting_tokens, stats.added) == (2, 41, 3)
    bench.scheduler.abort(["b"])
    stats = bench.scheduler.take_stats()
    assert (stats.waiting, stats.waiting_tokens, stats.added) == (1, 5, 0)


def test_the_smallest_priority_is_served_first_whoever_came_before() -> None:
    bench = Bench(max_num_seqs=1)
    for name, priority in (("a", 0), ("late", 7), ("b", 0), ("soon", -1), ("c", 0)):
        bench.add(name, [1, 2], priority=priority, max_tokens=2)
    finished = [out.request_id for out in bench.run() if out.finish_reason]
    assert finished == ["soon", "a", "b", "c", "late"]


def test_the_last_priority_is_preempted_first_though_it_came_first() -> None:
    bench = Bench(blocks=1 + 16, max_num_seqs=3)
    bench.add("late", [1] * 20, priority=5, max_tokens=20)
    bench.step()
    bench.add("old", [2] * 12, max_tokens=20)
    bench.add("young", [3] * 12, max_tokens=20)
    while not bench.scheduler.take_stats().preemptions:
        bench.step()
    assert [sequence.request_id for sequence in bench.scheduler.waiting] == ["late"]
    finished = [out.request_id for out in bench.run() if out.finish_reason]
    assert finished == ["old", "young", "late"]


def test_the_last_page_goes_to_the_first_priority() -> None:
    """Both come to a page's end in one step."""
    bench = Bench(blocks=1 + 5)
    bench.add("late", [1] * 7, priority=5, max_tokens=6)
    bench.step()
    bench.add("soon", [2] * 8, max_tokens=6)
    bench.step()
    assert bench.pool.num_free == 1
    bench.step()
    assert [sequence.request_id for sequence in bench.scheduler.waiting] == ["late"]
    assert [out.request_id for out in bench.run() if out.finish_reason] == ["soon", "late"]


def test_count_slots_bound_the_rows_with_penalties() -> None:
    bench = Bench(count_slots=1)
    bench.add("a", [1, 2], max_tokens=3, presence_penalty=1.0)
    bench.add("b", [1, 2], max_tokens=3, frequency_penalty=1.0)
    bench.step()
    assert bench.scheduler.take_stats().waiting == 1
    assert [out.request_id for out in bench.run() if out.finish_reason] == ["a", "b"]


def test_who_waits_for_a_count_slot_holds_up_only_those_who_need_one_too() -> None:
    bench = Bench(count_slots=1)
    bench.add("p1", [1, 2], max_tokens=3, presence_penalty=1.0)
    bench.add("p2", [1, 2], max_tokens=3, presence_penalty=1.0)
    bench.add("a", [1, 2], max_tokens=9)
    bench.add("p3", [1, 2], max_tokens=3, presence_penalty=1.0)
    bench.add("b", [1, 2], max_tokens=9)
    _, outputs = bench.step()
    assert [out.request_id for out in outputs] == ["p1", "a", "b"]
    finished = [out.request_id for out in bench.run() if out.finish_reason]
    assert finished == ["p1", "p2", "a", "b", "p3"]


def test_who_waited_for_a_count_slot_is_next_once_one_is_free() -> None:
    """Younger requests that need none keep coming, and would fill every row and page for ever."""
    bench = Bench(count_slots=1, blocks=1 + 20, max_num_seqs=4)
    bench.add("p1", [1] * 4, max_tokens=4, presence_penalty=1.0)
    bench.add("p2", [2] * 40, max_tokens=2, presence_penalty=1.0)  # half of all pages
    order: list[str] = []
    for index in range(40):
        bench.add(str(index), [3 + index % 4] * 12, max_tokens=12)
        for out in bench.step()[1]:
            order += [out.request_id] if out.cached_tokens is not None else []
            order += ["p1 ended"] if (out.request_id, out.finish_reason) == ("p1", "length") else []
    assert order[:2] == ["p1", "0"]
    assert order[order.index("p1 ended") + 1] == "p2", order


def test_a_preempted_row_gets_its_count_slot_back_before_those_who_waited_for_one() -> None:
    bench = Bench(blocks=1 + 16, max_num_seqs=2, count_slots=1)
    bench.add("a", [1] * 24, max_tokens=30)
    bench.add("p1", [2] * 24, max_tokens=30, presence_penalty=1.0)
    bench.add("p2", [3] * 4, max_tokens=2, presence_penalty=1.0)
    while bench.scheduler.take_stats().preemptions == 0:
        bench.step()
    assert [sequence.request_id for sequence in bench.scheduler.waiting] == ["p1", "p2"]
    finished = [out.request_id for out in bench.run() if out.finish_reason]
    assert finished == ["a", "p1", "p2"]


def test_stop_ids_count_only_after_min_tokens() -> None:
    every_id = list(range(7))
    bench = Bench()
    bench.add("a", [1, 2], max_tokens=9, stop_token_ids=every_id, min_tokens=4)
    outputs = bench.run()
    assert len(outputs) == 5
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].stop_token_id == outputs[-1].token_ids[0]


def test_a_request_ends_at_max_model_len() -> None:
    bench = Bench()
    bench.add("a", [1] * 60, max_tokens=None)
    outputs = bench.run()
    assert len(outputs) == 4 and outputs[-1].finish_reason == "length"


def test_an_aborted_request_frees_its_pages_at_once_waiting_or_running() -> None:
    bench = Bench(max_num_seqs=1)
    bench.add("a", [1] * 20)
    bench.add("b", [2] * 20)
    bench.step()
    assert bench.pool.usage > 0
    bench.scheduler.abort(["a", "b", "never seen"])
    assert bench.pool.usage == 0.0
    assert not bench.scheduler.has_work
    assert bench.scheduler.schedule() is None
    bench.scheduler.check_integrity()

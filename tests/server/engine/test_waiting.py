"""The order of those who wait, against a sorted list."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from octavo_server.engine.messages import Add
from octavo_server.engine.sequence import Sequence
from octavo_server.engine.waiting import Waiting
from octavo_server.sampling_params import SamplingParams

PLAIN, COUNTED = SamplingParams(), SamplingParams(presence_penalty=1.0)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-2, 2), st.booleans()), max_size=60))
def test_by_priority_then_by_turn(actions: list[tuple[int, int, bool]]) -> None:
    waiting, judge = Waiting(), list[tuple[int, int, Sequence]]()
    gone: list[Sequence] = []
    for number, (action, priority, counted) in enumerate(actions):
        if action <= 2:  # arrives
            asked = COUNTED if counted else PLAIN
            sequence = Sequence(
                Add(str(number), [1] * (1 + number), asked, 0.0, priority=priority), 100
            )
            waiting.append(sequence)
            judge.append((priority, number, sequence))
        elif action == 3 and judge:  # its client leaves
            waiting.remove(judge.pop(number % len(judge))[2])
        elif action == 4 and gone:  # comes back from its row
            sequence = gone.pop()
            waiting.put_back(sequence)
            judge.append((sequence.priority, -number, sequence))
        elif action == 5:  # gets a row
            slots = int(counted)
            fit = [entry for entry in judge if slots or not entry[2].needs_counts]
            first = waiting.first(slots)
            assert first is (min(fit, key=lambda e: e[:2])[2] if fit else None)
            if first is not None:
                waiting.take(first)
                gone.append(first)
                judge = [entry for entry in judge if entry[2] is not first]
        wanted = [entry[2] for entry in sorted(judge, key=lambda e: e[:2])]
        assert list(waiting) == wanted
        assert len(waiting) == len(judge)
        assert waiting.num_tokens == sum(len(each.token_ids) for each in wanted)
        assert set(waiting.startable(100, 100)) == set(wanted)

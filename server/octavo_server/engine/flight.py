"""A step on its way out, filled sequence by sequence, and what has to be undone if it fails."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.sequence import Sequence
from octavo_server.engine.step import Step


@dataclass(slots=True)
class Flight:
    """A step that is handed out: its sequences in order, and the pages it made findable."""

    step: Step
    scheduled: list[Sequence] = field(default_factory=list)
    published: list[int] = field(default_factory=list)

    def give(self, sequence: Sequence, count: int) -> None:
        """Put `count` tokens of a sequence that has the pages into the step."""
        start = sequence.num_computed
        end = start + count
        samples = end == len(sequence.token_ids) + sequence.num_pending
        step = self.step
        step.rows.append(sequence.row)
        step.starts.append(start)
        step.counts.append(count)
        step.samples.append(samples)
        self.scheduled.append(sequence)
        sequence.num_computed = end
        sequence.num_pending += samples

    def give_decoding(self, decoding: list[Sequence], pool: BlockPool, block_size: int) -> None:
        """`give` with the one token left of each, and the page for it, of which `pool` has enough.

        This and `Scheduler.update` are what a decoding row costs the host: no calls in here.
        """
        step, starts = self.step, self.step.starts
        for sequence in decoding:
            start = sequence.num_computed
            if not start % block_size:  # its pages are full
                blocks = pool.allocate(1)
                sequence.block_ids += blocks
                step.appended_blocks.append((sequence.row, blocks))
            sequence.num_computed = start + 1
            sequence.num_pending += 1
            starts.append(start)
        step.rows += [sequence.row for sequence in decoding]
        step.counts += [1] * len(decoding)
        step.samples += [True] * len(decoding)
        self.scheduled += decoding

"""What a rank remembers of every running sequence on the host, and the packet that tells its device
the difference.

Pages, parameters and last tokens live on the device (`octavo_kernels.step_inputs`); the host keeps
what it alone needs: the ids that it knows, and how many pages a row has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo_kernels.step_inputs import HEADER, NEW_ROW, PacketLayout
from octavo_server.engine.step import Step
from octavo_server.sampling_params import SamplingParams

_SEED_MASK = 2**63 - 1
_GREEDY_TEMPERATURE = 1e-5  # as vLLM's

Int32s = npt.NDArray[np.int32]


class Rows:
    """Persistent rows; `max_rows` of them, each up to `max_model_len` tokens."""

    def __init__(self, max_rows: int, max_model_len: int) -> None:
        # Calloc'ed: pages of rows or lengths that are never used cost no memory.
        self.token_ids = np.zeros((max_rows, max_model_len), np.int32)  # [rows, positions]
        self.num_known = np.zeros(max_rows, np.int32)  # [rows] ids that came with the row
        self.num_prompt_tokens = np.zeros(max_rows, np.int32)  # [rows]
        self.num_blocks = np.zeros(max_rows, np.int32)  # [rows]
        self.params: dict[int, SamplingParams] = {}

    def write_packet(self, step: Step, packet: Int32s) -> int:
        """Bring the rows to `step`'s state and write its packet; returns its length in int32s."""
        for row in step.freed_rows:
            self.params.pop(row, None)
        seqs = len(step.rows)
        rows = np.array(step.rows, np.int32)
        starts = np.array(step.starts, np.int32)
        counts = np.array(step.counts, np.int32)
        tokens = step.num_tokens
        sampled = np.flatnonzero(np.array(step.samples, np.bool_))
        appended = dict(step.appended_blocks)
        have = self.num_blocks[rows]
        for new in step.new_rows:
            appended[new.row] = new.block_ids
            self._take(new.row, new.token_ids, new.num_prompt_tokens, new.params)
        fresh = np.zeros(seqs, np.int32)
        blocks: list[int] = []
        new_index = np.full(seqs, -1, np.int32)
        if appended:
            index_of = {row: index for index, row in enumerate(step.rows)}
            for order, new in enumerate(step.new_rows):
                new_index[index_of[new.row]] = order
                have[index_of[new.row]] = 0
            # In the order of the step's rows, as the packet wants them.
            for index in sorted(index_of[row] for row in appended):
                lent = appended[step.rows[index]]
                fresh[index] = len(lent)
                blocks += lent
            self.num_blocks[rows] = have + fresh
        at = PacketLayout.of(seqs, tokens, len(sampled), len(step.new_rows), len(blocks))
        packet[:HEADER] = (seqs, tokens, len(sampled), len(step.new_rows), len(blocks), 0, 0, 0)
        packet[at.rows : at.starts] = rows
        packet[at.starts : at.query_starts] = starts
        packet[at.query_starts] = packet[at.appended_starts] = 0
        np.cumsum(counts, out=packet[at.query_starts + 1 : at.appended_starts])
        np.cumsum(fresh, out=packet[at.appended_starts + 1 : at.have])
        packet[at.have : at.new_index] = have
        packet[at.new_index : at.sampled] = new_index
        packet[at.sampled : at.new] = sampled
        for order, new in enumerate(step.new_rows):
            place = at.new + order * NEW_ROW
            packet[place : place + NEW_ROW] = _parameters(new.params)
        packet[at.appended : at.token_ids] = blocks
        packet[at.token_ids : at.end] = self._known_ids(rows, starts, counts, tokens)
        return at.end

    def _known_ids(self, rows: Int32s, starts: Int32s, counts: Int32s, tokens: int) -> Int32s:
        """Ids of the step's tokens, -1 where only the device knows them."""
        if tokens > len(rows):
            owner = np.repeat(np.arange(len(rows)), counts)
            ends = np.cumsum(counts)
            positions = starts[owner] + np.arange(tokens) - (ends - counts)[owner]
            rows = rows[owner]
        else:
            positions = starts
        ids: Int32s = np.where(
            positions < self.num_known[rows], self.token_ids[rows, positions], np.int32(-1)
        )
        return ids

    def _take(
        self, row: int, token_ids: list[int], num_prompt_tokens: int, params: SamplingParams
    ) -> None:
        self.token_ids[row, : len(token_ids)] = token_ids
        self.num_known[row] = len(token_ids)
        self.num_prompt_tokens[row] = num_prompt_tokens
        self.params[row] = params


def packet_size(max_rows: int, max_tokens: int, max_blocks: int) -> int:
    """int32s of the largest packet: every row new and of full length."""
    return PacketLayout.of(max_rows, max_tokens, max_rows, max_rows, max_rows * max_blocks).end


def _parameters(params: SamplingParams) -> Int32s:
    # Below this, logits / temperature overflows float32 and the draw is not greedy but wrong.
    greedy = params.temperature < _GREEDY_TEMPERATURE
    packed = np.zeros(NEW_ROW, np.int32)
    floats = packed.view(np.float32)
    floats[0] = 0.0 if greedy else params.temperature
    packed[1] = params.top_k
    floats[2] = params.top_p
    floats[3] = params.min_p
    packed[4:6] = np.array([(params.seed or 0) & _SEED_MASK], np.int64).view(np.int32)
    return packed

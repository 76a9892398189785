"""What a rank remembers of every running sequence between steps: tokens, pages, sampling
parameters.

Arrays over rows, so that a step's inputs are gathers and not Python loops over requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo_server.engine.step import NewRow, Step
from octavo_server.sampling_params import SamplingParams

_SEED_MASK = 2**63 - 1
_GREEDY_TEMPERATURE = 1e-5  # as vLLM's


class Rows:
    """Persistent rows, all on the host; `max_rows` of them, each up to `max_model_len` tokens."""

    def __init__(self, max_rows: int, max_model_len: int, block_size: int) -> None:
        max_blocks = -(-max_model_len // block_size)
        self.block_size = block_size
        # Calloc'ed: pages of rows or lengths that are never used cost no memory.
        self.token_ids = np.zeros((max_rows, max_model_len), np.int32)  # [rows, positions]
        self.block_tables = np.zeros((max_rows, max_blocks), np.int32)  # [rows, blocks]
        self.num_blocks = np.zeros(max_rows, np.int32)  # [rows]
        self.num_tokens = np.zeros(max_rows, np.int32)  # [rows] known tokens
        self.num_prompt_tokens = np.zeros(max_rows, np.int32)  # [rows]
        self.temperature = np.zeros(max_rows, np.float32)  # [rows]
        self.top_p = np.ones(max_rows, np.float32)  # [rows]
        self.min_p = np.zeros(max_rows, np.float32)  # [rows]
        self.top_k = np.zeros(max_rows, np.int32)  # [rows]
        self.seeds = np.zeros(max_rows, np.int64)  # [rows]
        self.params: dict[int, SamplingParams] = {}

    def apply(self, step: Step) -> None:
        """Bring the rows to the state in which `step` is computed."""
        for row in step.freed_rows:
            self.params.pop(row, None)
        for new in step.new_rows:
            self._take(new)
        for row, blocks in step.appended_blocks:
            self._append_blocks(row, blocks)

    def append_token(self, row: int, token_id: int) -> None:
        self.token_ids[row, self.num_tokens[row]] = token_id
        self.num_tokens[row] += 1

    def slots(
        self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Cache slot of each (row, position): int64 `[tokens]`."""
        blocks = self.block_tables[rows, positions // self.block_size].astype(np.int64)
        return blocks * self.block_size + positions % self.block_size

    def _take(self, new: NewRow) -> None:
        row, params = new.row, new.params
        self.token_ids[row, : len(new.token_ids)] = new.token_ids
        self.num_tokens[row] = len(new.token_ids)
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.num_blocks[row] = 0
        self._append_blocks(row, new.block_ids)
        # Below this, logits / temperature overflows float32 and the draw is not greedy but wrong.
        greedy = params.temperature < _GREEDY_TEMPERATURE
        self.temperature[row] = 0.0 if greedy else params.temperature
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.top_k[row] = params.top_k
        self.seeds[row] = (params.seed or 0) & _SEED_MASK
        self.params[row] = params

    def _append_blocks(self, row: int, blocks: list[int]) -> None:
        have = self.num_blocks[row]
        self.block_tables[row, have : have + len(blocks)] = blocks
        self.num_blocks[row] += len(blocks)

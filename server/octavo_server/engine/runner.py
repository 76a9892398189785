"""Runs a step on one device: rows in, sampled tokens out.

Everything that touches the device is here, in the sampler and in the models; the scheduler never
sees a tensor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.engine.messages import TokenLogprobs
from octavo_server.engine.rows import Rows
from octavo_server.engine.sampler import Sampler
from octavo_server.engine.step import Sampled, Step
from octavo_server.models.causal_lm import Batch, CausalLM


class Runner:
    """Owns the model, the KV cache and the rows of one rank."""

    def __init__(
        self,
        model: CausalLM,
        ops: Ops,
        *,
        device: torch.device,
        dtype: torch.dtype,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        config = model.config
        self._model = model
        self._device = device
        self._rows = Rows(max_num_seqs, max_model_len, block_size)
        self._sampler = Sampler(self._rows, ops, device, config.vocab_size)
        shape = (num_blocks, config.num_kv_heads, block_size, config.head_size)
        # Per layer (key, value). Not zeroed: pages are never read past what was written.
        self._kv_caches = [
            (
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(config.num_layers)
        ]

    @torch.inference_mode()
    def execute(self, step: Step) -> Sampled:
        """Apply the difference, run the model, draw the tokens."""
        for row in step.freed_rows:
            self._sampler.free_row(row)
        self._rows.apply(step)
        for new in step.new_rows:
            self._sampler.take_row(new.row)
        hidden = self._forward(step)
        return self._sample(step, hidden)

    def _forward(self, step: Step) -> Tensor:
        """Hidden states of all the step's tokens `[tokens, hidden]`."""
        counts = np.asarray(step.counts, np.int64)  # [rows]
        starts = np.asarray(step.starts, np.int64)  # [rows]
        rows = np.asarray(step.rows, np.int64)  # [rows]
        query_starts = np.zeros(len(rows) + 1, np.int32)  # [rows + 1]
        np.cumsum(counts, out=query_starts[1:])
        row_of_token = np.repeat(rows, counts)  # [tokens]
        within = np.arange(len(row_of_token)) - np.repeat(query_starts[:-1], counts)
        positions = np.repeat(starts, counts) + within  # [tokens]
        context_lens = (starts + counts).astype(np.int32)  # [rows]
        max_context_len = int(context_lens.max())
        blocks_used = -(-max_context_len // self._rows.block_size)
        batch = Batch(
            slots=self._to_device(self._rows.slots(row_of_token, positions)),
            block_tables=self._to_device(self._rows.block_tables[rows, :blocks_used]),
            query_starts=self._to_device(query_starts),
            context_lens=self._to_device(context_lens),
            max_query_len=int(counts.max()),
            max_context_len=max_context_len,
            kv_caches=self._kv_caches,
        )
        token_ids = self._rows.token_ids[row_of_token, positions].astype(np.int64)
        return self._model.forward(self._to_device(token_ids), self._to_device(positions), batch)

    def _sample(self, step: Step, hidden: Tensor) -> Sampled:
        token_ids: list[int | None] = [None] * len(step.rows)
        logprobs: list[TokenLogprobs | None] = [None] * len(step.rows)
        prompt_logprobs: list[list[TokenLogprobs] | None] = [None] * len(step.rows)
        ends = np.cumsum(step.counts)
        for index, row in enumerate(step.rows):
            wanted = self._rows.params[row].prompt_logprobs
            start, count = step.starts[index], step.counts[index]
            if wanted is not None and start < self._rows.num_prompt_tokens[row] - 1:
                first = int(ends[index]) - count
                prompt_logprobs[index] = self._sampler.judge_prompt(
                    self._model.logits, hidden[first : first + count], row, start
                )
        sampled = np.flatnonzero(step.samples)  # [sampled rows] indices into the step
        if len(sampled):
            last = self._to_device(ends[sampled] - 1)
            rows = np.asarray(step.rows, np.int64)[sampled]
            ids, entries = self._sampler.sample(self._model.logits(hidden[last]), rows)
            for place, token_id, entry in zip(sampled.tolist(), ids, entries, strict=True):
                token_ids[place] = token_id
                logprobs[place] = entry
                self._append(step.rows[place], token_id)
        return Sampled(token_ids, logprobs, prompt_logprobs)

    def _append(self, row: int, token_id: int) -> None:
        # A sequence that reaches max_model_len ends with this token: there is no position for it.
        if self._rows.num_tokens[row] < self._rows.token_ids.shape[1]:
            self._rows.append_token(row, token_id)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)

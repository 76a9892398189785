"""From logits to token ids: the stages that only some rows ask for, then the one that all need.

Order as in vLLM: raw log probabilities are taken first; then bias, penalties and the min_tokens
mask; then temperature, top-k, top-p, min-p and the draw.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.engine.messages import TokenLogprobs
from octavo_server.engine.rows import Rows

_PROMPT_LOGITS_ROWS = 128
"""Prompt positions judged at a time: 128 x 152k float32 logits are 78 MB, and twice that
transiently.
"""


class Sampler:
    """Draws one token per row. Owns the token counts of rows with penalties (`slots`, bounded by
    the scheduler).
    """

    def __init__(self, rows: Rows, ops: Ops, device: torch.device, vocab_size: int) -> None:
        self._rows = rows
        self._ops = ops
        self._device = device
        self._vocab_size = vocab_size
        self._adjusted: set[int] = set()  # rows that ask for more than the common stage
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}
        # row -> (bool [vocab] in the prompt or output, int32 [vocab] times in the output)

    def take_row(self, row: int) -> None:
        """Prepare what a new row's parameters need, its token counts above all."""
        self.free_row(row)
        params = self._rows.params[row]
        if params.logit_bias or params.needs_counts or params.min_tokens:
            self._adjusted.add(row)
        if not params.needs_counts:
            return
        known = torch.from_numpy(
            self._rows.token_ids[row, : self._rows.num_tokens[row]].astype(np.int64)
        ).to(self._device)
        outputs = known[int(self._rows.num_prompt_tokens[row]) :]
        seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
        seen[known] = True
        counts = torch.bincount(outputs, minlength=self._vocab_size).to(torch.int32)
        self._counts[row] = (seen, counts)

    def free_row(self, row: int) -> None:
        self._adjusted.discard(row)
        self._counts.pop(row, None)

    def sample(
        self, logits: Tensor, rows: npt.NDArray[np.int64]
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Draw the next token of `rows`; logits float32 `[rows, vocab]`, overwritten."""
        judged = [i for i, row in enumerate(rows) if self._rows.params[row].logprobs is not None]
        raw = logits[judged].clone() if judged else None
        if self._adjusted:
            for i, row in enumerate(rows):
                if row in self._adjusted:
                    self._adjust(logits[i], int(row))
        token_ids = self._ops.sample(
            logits,
            self._gather(self._rows.temperature, rows),
            self._gather(self._rows.top_k, rows),
            self._gather(self._rows.top_p, rows),
            self._gather(self._rows.min_p, rows),
            self._gather(self._rows.seeds, rows),
            self._gather(self._rows.num_tokens, rows).long(),
        )
        ids: list[int] = token_ids.tolist()
        if self._counts:
            for i, row in enumerate(rows):
                if row in self._counts:
                    seen, counts = self._counts[int(row)]
                    seen[ids[i]] = True
                    counts[ids[i]] += 1
        logprobs: list[TokenLogprobs | None] = [None] * len(ids)
        if raw is not None:
            wanted = [self._rows.params[rows[i]].logprobs or 0 for i in judged]
            for i, entry in zip(judged, _judge(raw, token_ids[judged], wanted), strict=True):
                logprobs[i] = entry
        return ids, logprobs

    def judge_prompt(
        self, logits_of: LogitsOf, hidden: Tensor, row: int, start: int
    ) -> list[TokenLogprobs]:
        """Log probabilities of the prompt tokens that follow positions `[start, start +
        len(hidden))`.
        """
        end = min(start + len(hidden), int(self._rows.num_prompt_tokens[row]) - 1)
        wanted = self._rows.params[row].prompt_logprobs or 0
        entries: list[TokenLogprobs] = []
        for chunk in range(start, end, _PROMPT_LOGITS_ROWS):
            stop = min(chunk + _PROMPT_LOGITS_ROWS, end)
            targets = self._rows.token_ids[row, chunk + 1 : stop + 1].astype(np.int64)
            entries += _judge(
                logits_of(hidden[chunk - start : stop - start]),
                torch.from_numpy(targets).to(self._device),
                [wanted] * (stop - chunk),
            )
        return entries

    def _gather(self, values: npt.NDArray[np.generic], rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values[rows]).to(self._device, non_blocking=True)

    def _adjust(self, logits: Tensor, row: int) -> None:
        """Apply what this row asks beyond the common stage to its logits `[vocab]`, in place."""
        params = self._rows.params[row]
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=self._device)
            logits[ids] += torch.tensor(list(params.logit_bias.values()), device=self._device)
        if row in self._counts:
            seen, counts = self._counts[row]
            if params.repetition_penalty != 1.0:
                factor = params.repetition_penalty
                penalised = torch.where(logits > 0, logits / factor, logits * factor)
                torch.where(seen, penalised, logits, out=logits)
            logits -= params.frequency_penalty * counts
            logits -= params.presence_penalty * (counts > 0)
        num_output = int(self._rows.num_tokens[row] - self._rows.num_prompt_tokens[row])
        if num_output < params.min_tokens:
            # A checkpoint may name an EOS id that its embedding was never enlarged for.
            stops = [token_id for token_id in params.stop_ids if 0 <= token_id < len(logits)]
            logits[stops] = -torch.inf


class LogitsOf(Protocol):
    """`[rows, hidden] -> float32 [rows, vocab]`; a model's `logits`."""

    def __call__(self, hidden: Tensor) -> Tensor: ...


def _judge(logits: Tensor, token_ids: Tensor, wanted: list[int]) -> list[TokenLogprobs]:
    """Chosen and best log probabilities; logits `[rows, vocab]`, token_ids int64 `[rows]`."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, token_ids[:, None])
    ranks = (logprobs > chosen).sum(1) + 1
    most = min(max(wanted), logits.shape[1])
    top = torch.topk(logprobs, most, dim=-1) if most else None
    top_ids = top.indices.tolist() if top else [[]] * len(wanted)
    top_values = top.values.tolist() if top else [[]] * len(wanted)
    return [
        TokenLogprobs(token_id, logprob, rank, ids[:count], values[:count])
        for token_id, logprob, rank, ids, values, count in zip(
            token_ids.tolist(),
            chosen[:, 0].tolist(),
            ranks.tolist(),
            top_ids,
            top_values,
            wanted,
            strict=True,
        )
    ]

"""From logits to token ids: the stage that all rows need, and the one that only some ask for.

Order as in vLLM: raw log probabilities are taken first; then bias, penalties and the min_tokens
mask; then temperature, top-k, top-p, min-p and the draw. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo_kernels.ops import Ops, SamplingRows
from octavo_server.engine.bans import Bans
from octavo_server.engine.messages import TokenLogprobs
from octavo_server.engine.rows import Rows

_PROMPT_LOGITS_ROWS = 128
"""Prompt positions judged at a time: 128 x 152k float32 logits are 78 MB, and twice that
transiently.
"""

EXTRA_ROWS = 32
"""Rows that get the extra stage at a time: 32 x 152k float32 logits are 19 MB, and a few times that
transiently.
"""


@dataclass(slots=True)
class _Extra:
    """What one row asks for beyond the common stage; tensors on the device, None: not asked."""

    bias: tuple[Tensor, Tensor] | None  # int64 ids, float32 what to add
    stop_ids: Tensor | None  # int64, masked until min_tokens
    counts: tuple[Tensor, Tensor] | None
    # (bool [vocab] in the prompt or output, int32 [vocab] times in the output)
    bans: Bans | None


class Sampler:
    """Draws one token per row. Owns the token counts of rows with penalties (bounded by the
    scheduler).
    """

    def __init__(self, rows: Rows, ops: Ops, device: torch.device, vocab_size: int) -> None:
        self._rows = rows
        self._ops = ops
        self._device = device
        self._vocab_size = vocab_size
        self._extras: dict[int, _Extra] = {}
        self._judged: set[int] = set()
        self._filtered: set[int] = set()
        size = len(rows.num_known) + 1  # the last row is for padding

        def column(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((size,), value, dtype=dtype, device=device)

        self.state = SamplingRows(
            temperature=column(0, torch.float32),
            top_k=column(0, torch.int32),
            top_p=column(1, torch.float32),
            min_p=column(0, torch.float32),
            seeds=column(0, torch.int64),
            last_tokens=column(0, torch.int64),
        )

    def take_row(self, row: int) -> None:
        """Prepare what a new row's parameters need, its token counts above all."""
        self.free_row(row)
        params = self._rows.params[row]
        if params.logprobs is not None:
            self._judged.add(row)
        if params.top_k > 0 or params.top_p < 1 or params.min_p > 0:
            self._filtered.add(row)
        restricted = params.allowed_token_ids is not None or bool(params.bad_words_token_ids)
        if not (params.logit_bias or params.needs_counts or params.min_tokens or restricted):
            return
        bias = stop_ids = None
        if params.logit_bias:
            bias = (
                torch.tensor(list(params.logit_bias), device=self._device),
                torch.tensor(list(params.logit_bias.values()), device=self._device),
            )
        if params.min_tokens:
            # A checkpoint may name an EOS id that its embedding was never enlarged for.
            legal = [token_id for token_id in params.stop_ids if 0 <= token_id < self._vocab_size]
            stop_ids = torch.tensor(legal, dtype=torch.int64, device=self._device)
        counts = self._count(row) if params.needs_counts else None
        bans = self._ban(row) if restricted else None
        self._extras[row] = _Extra(bias, stop_ids, counts, bans)

    def free_row(self, row: int) -> None:
        self._extras.pop(row, None)
        self._judged.discard(row)
        self._filtered.discard(row)

    def filters(self, rows: Sequence[int]) -> bool:
        """Whether one of these rows has a filter, whose threshold is of the whole vocabulary."""
        return not self._filtered.isdisjoint(rows)

    def asks_more(self, rows: Sequence[int]) -> bool:
        """Whether one of these rows needs more than `draw`."""
        if not self._extras and not self._judged:
            return False
        return any(row in self._extras or row in self._judged for row in rows)

    def draw(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The common stage: int64 `[n]` ids, also left in the rows' last tokens.

        logits `[n, vocab]`; rows int32 `[n]`, positions int64 `[n]`.
        """
        return self._ops.sample(logits, rows, positions, self.state)

    def draw_extra(
        self,
        logits: Tensor,
        row_tensor: Tensor,
        positions: Tensor,
        rows: Sequence[int],
        num_tokens: Sequence[int],
    ) -> tuple[Tensor, list[Judgement]]:
        """Both stages, for `rows` of which some ask for more; `num_tokens` each had so far.

        The judgements cover the rows that asked for log probabilities.
        """
        token_ids = self.draw(logits, row_tensor, positions)
        asking = [i for i, row in enumerate(rows) if row in self._extras or row in self._judged]
        judgements: list[Judgement] = []
        for first in range(0, len(asking), EXTRA_ROWS):
            places = asking[first : first + EXTRA_ROWS]
            index = torch.tensor(places, device=self._device)
            part = logits.index_select(0, index).float()
            judged = [i for i, place in enumerate(places) if rows[place] in self._judged]
            raw = part[judged] if judged else None
            for i, place in enumerate(places):
                if rows[place] in self._extras:
                    self._adjust(part[i], rows[place], num_tokens[place])
            drawn = self.draw(part, row_tensor[index], positions[index])
            token_ids[index] = drawn
            self._note_drawn([rows[place] for place in places], drawn)
            if raw is not None:
                wanted = [self._rows.params[rows[places[i]]].logprobs or 0 for i in judged]
                where = [places[i] for i in judged]
                judgements.append(Judgement(raw, drawn[judged], wanted, where))
        return token_ids, judgements

    def _note_drawn(self, rows: Sequence[int], drawn: Tensor) -> None:
        for i, row in enumerate(rows):
            extra = self._extras.get(row)
            if extra is None:
                continue
            if extra.counts is not None:
                seen, counts = extra.counts
                seen[drawn[i : i + 1]] = True
                counts[drawn[i : i + 1]] += 1
            if extra.bans is not None:
                extra.bans.note(drawn[i : i + 1])

    def judge_prompt(
        self, logits_of: Callable[[Tensor], Tensor], residual: Tensor, row: int, start: int
    ) -> list[Judgement]:
        """Log probabilities of the prompt tokens that follow positions `[start, start +
        len(residual))`.
        """
        end = min(start + len(residual), int(self._rows.num_prompt_tokens[row]) - 1)
        wanted = self._rows.params[row].prompt_logprobs or 0
        found: list[Judgement] = []
        for chunk in range(start, end, _PROMPT_LOGITS_ROWS):
            stop = min(chunk + _PROMPT_LOGITS_ROWS, end)
            targets = self._rows.token_ids[row, chunk + 1 : stop + 1].astype(np.int64)
            logits = logits_of(residual[chunk - start : stop - start]).float()
            places = list(range(stop - chunk))
            ids = torch.from_numpy(targets).to(self._device)
            found.append(Judgement(logits, ids, [wanted] * len(places), places))
        return found

    def _count(self, row: int) -> tuple[Tensor, Tensor]:
        known = torch.from_numpy(
            self._rows.token_ids[row, : self._rows.num_known[row]].astype(np.int64)
        ).to(self._device)
        outputs = known[int(self._rows.num_prompt_tokens[row]) :]
        seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
        seen[known] = True
        return seen, torch.bincount(outputs, minlength=self._vocab_size).to(torch.int32)

    def _ban(self, row: int) -> Bans:
        params, rows = self._rows.params[row], self._rows
        outputs = rows.token_ids[row, rows.num_prompt_tokens[row] : rows.num_known[row]]
        return Bans(
            params.allowed_token_ids, params.bad_words_token_ids, outputs.tolist(), self._device
        )

    def _adjust(self, logits: Tensor, row: int, num_tokens: int) -> None:
        """Apply what this row asks beyond the common stage to its logits `[vocab]`, in place."""
        params, extra = self._rows.params[row], self._extras[row]
        if extra.bias is not None:
            ids, amounts = extra.bias
            logits[ids] += amounts
        if extra.counts is not None:
            seen, counts = extra.counts
            if params.repetition_penalty != 1.0:
                factor = params.repetition_penalty
                penalised = torch.where(logits > 0, logits / factor, logits * factor)
                torch.where(seen, penalised, logits, out=logits)
            logits -= params.frequency_penalty * counts
            logits -= params.presence_penalty * (counts > 0)
        unbanned = None
        if extra.bans is not None:
            extra.bans.keep_allowed(logits)
            unbanned = logits.clone()
            extra.bans.ban_words(logits)
        num_output = num_tokens - int(self._rows.num_prompt_tokens[row])
        if extra.stop_ids is not None and num_output < params.min_tokens:
            logits[extra.stop_ids] = -torch.inf
        if unbanned is not None:
            # Something must be drawn: where all is banned, what is allowed at all is.
            torch.where(torch.isneginf(logits).all(), unbanned, logits, out=logits)


class Judgement:
    """Chosen and best log probabilities of some rows, on their way to the host.

    `read` may be called once the device has passed the point where this was made.
    """

    def __init__(
        self, logits: Tensor, token_ids: Tensor, wanted: list[int], places: list[int]
    ) -> None:
        """logits float32 `[rows, vocab]`, token_ids int64 `[rows]`; `wanted` best ids of each."""
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.gather(1, token_ids[:, None])
        ranks = (logprobs > chosen).sum(1) + 1
        top = torch.topk(logprobs, min(max(wanted), logits.shape[1]), dim=-1)
        self.places = places
        self._wanted = wanted
        self._tensors = [
            tensor.to("cpu", non_blocking=True)
            for tensor in (token_ids, chosen[:, 0], ranks, top.indices, top.values)
        ]

    def read(self) -> list[TokenLogprobs]:
        columns = (tensor.tolist() for tensor in self._tensors)
        return [
            TokenLogprobs(token_id, logprob, rank, ids[:count], values[:count])
            for token_id, logprob, rank, ids, values, count in zip(
                *columns, self._wanted, strict=True
            )
        ]

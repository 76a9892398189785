"""A step's inputs, made on the device from one packet and what the rows keep there.

The host sends a difference: which rows compute which positions, pages they got, parameters of new
rows. Token ids that it does not know yet (-1: the previous step's samples) come from the rows'
last tokens, so the next step can be sent before the samples of the last one have been seen (as in
SGLang's zero-overhead scheduler, 2024, and vLLM's V2 runner).

A packet is int32: `HEADER` numbers, then the sections of `PacketLayout` one after another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .language import Variant, cdiv, jit, next_power_of_2, tl
from .ops import SamplingRows

HEADER = 8
"""seqs, tokens, sampled, new rows, appended blocks; the rest is spare."""

NEW_ROW = 7
"""Numbers of a new row's parameters: temperature, top_k, top_p, min_p, seed (low, high), spare."""

# Tokens or blocks that a program handles at a time; most programs have one of each.
_CHUNK = 256


class PacketLayout(NamedTuple):
    """Where each section starts, in int32s."""

    rows: int  # [seqs]
    starts: int  # [seqs] position of the first token
    query_starts: int  # [seqs + 1]
    appended_starts: int  # [seqs + 1] into `appended`
    have: int  # [seqs] blocks in the row's table before the appended ones
    new_index: int  # [seqs] into `new`, -1: the row keeps its parameters
    sampled: int  # [sampled] sequences whose last token is sampled, ascending
    new: int  # [new rows, NEW_ROW]
    appended: int  # [appended blocks]
    token_ids: int  # [tokens]; -1: the row's last token
    end: int

    @classmethod
    def of(cls, seqs: int, tokens: int, sampled: int, new: int, appended: int) -> PacketLayout:
        sizes = (
            seqs, seqs, seqs + 1, seqs + 1, seqs, seqs, sampled, new * NEW_ROW, appended, tokens,
        )  # fmt: skip
        places = [HEADER]
        for size in sizes:
            places.append(places[-1] + size)
        return cls(*places)


class StepBuffers(NamedTuple):
    """Inputs of a step, each as large as the largest step; a step or a graph uses the front."""

    token_ids: Tensor  # int64 [max_tokens]
    positions: Tensor  # int64 [max_tokens]
    slots: Tensor  # int64 [max_tokens]
    rows: Tensor  # int32 [max_seqs]
    query_starts: Tensor  # int32 [max_seqs + 1]
    context_lens: Tensor  # int32 [max_seqs]
    sampled_tokens: Tensor  # int64 [max_seqs] index of each sampled sequence's last token
    sampled_rows: Tensor  # int32 [max_seqs]
    sampled_positions: Tensor  # int64 [max_seqs] position that the sample will take

    @classmethod
    def allocate(cls, max_tokens: int, max_seqs: int, device: torch.device) -> StepBuffers:
        def buffer(size: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            token_ids=buffer(max_tokens, torch.int64),
            positions=buffer(max_tokens, torch.int64),
            slots=buffer(max_tokens, torch.int64),
            rows=buffer(max_seqs, torch.int32),
            query_starts=buffer(max_seqs + 1, torch.int32),
            context_lens=buffer(max_seqs, torch.int32),
            sampled_tokens=buffer(max_seqs, torch.int64),
            sampled_rows=buffer(max_seqs, torch.int32),
            sampled_positions=buffer(max_seqs, torch.int64),
        )


@jit
def step_inputs_kernel(
    packet,  # int32, see PacketLayout
    token_ids,
    positions,
    slots,
    rows,
    query_starts,
    context_lens,
    sampled_tokens,
    sampled_rows,
    sampled_positions,
    block_tables,  # int32 [max_rows + 1, max_blocks], written
    temperature,  # [max_rows + 1] each, written where a row is new
    top_k,
    top_p,
    min_p,
    seeds,
    last_tokens,
    seq_cap,  # sequences, samples and tokens up to here are filled with padding
    token_cap,
    pad_row,
    stride_bt: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    PAD: tl.constexpr,
):
    """One sequence a program; program i also fills the padding of tokens [i * PAD, (i + 1) * PAD).

    Padding: token 0 at position 0 with no slot; a sequence of no tokens and no context on pad_row.
    """
    index = tl.program_id(0)
    seqs = tl.load(packet)
    tokens = tl.load(packet + 1)
    sampled = tl.load(packet + 2)
    new = tl.load(packet + 3)
    appended = tl.load(packet + 4)
    rows_at = packet + 8
    starts_at = rows_at + seqs
    query_at = starts_at + seqs
    appended_at = query_at + seqs + 1
    have_at = appended_at + seqs + 1
    new_at = have_at + seqs
    sampled_at = new_at + seqs
    params_at = sampled_at + sampled
    blocks_at = params_at + new * 7
    ids_at = blocks_at + appended

    if index == 0:
        tl.store(query_starts, 0)
    padding = index * PAD + tl.arange(0, PAD)
    is_padding = (padding >= tokens) & (padding < token_cap)
    tl.store(token_ids + padding, tl.zeros([PAD], tl.int64), mask=is_padding)
    tl.store(positions + padding, tl.zeros([PAD], tl.int64), mask=is_padding)
    tl.store(slots + padding, tl.full([PAD], -1, tl.int64), mask=is_padding)

    if index < sampled:
        seq = tl.load(sampled_at + index)
        last = tl.load(query_at + seq + 1)
        count = last - tl.load(query_at + seq)
        tl.store(sampled_tokens + index, (last - 1).to(tl.int64))
        tl.store(sampled_rows + index, tl.load(rows_at + seq))
        tl.store(sampled_positions + index, (tl.load(starts_at + seq) + count).to(tl.int64))
    elif index < seq_cap:
        tl.store(sampled_tokens + index, tl.zeros([], tl.int64))
        tl.store(sampled_rows + index, pad_row)
        tl.store(sampled_positions + index, tl.zeros([], tl.int64))

    if index < seqs:
        row = tl.load(rows_at + index)
        start = tl.load(starts_at + index)
        begin = tl.load(query_at + index)
        end = tl.load(query_at + index + 1)
        tl.store(rows + index, row)
        tl.store(query_starts + index + 1, end)
        tl.store(context_lens + index, start + end - begin)

        which = tl.load(new_at + index)
        if which >= 0:
            params = params_at + which * 7
            tl.store(temperature + row, tl.load(params).to(tl.float32, bitcast=True))
            tl.store(top_k + row, tl.load(params + 1))
            tl.store(top_p + row, tl.load(params + 2).to(tl.float32, bitcast=True))
            tl.store(min_p + row, tl.load(params + 3).to(tl.float32, bitcast=True))
            low = tl.load(params + 4).to(tl.int64) & 0xFFFFFFFF
            high = tl.load(params + 5).to(tl.int64)
            tl.store(seeds + row, (high << 32) | low)

        table = block_tables + row.to(tl.int64) * stride_bt
        blocks_begin = tl.load(appended_at + index)
        count = tl.load(appended_at + index + 1) - blocks_begin
        have = tl.load(have_at + index)
        chunk = tl.arange(0, CHUNK)
        for first in range(0, count, CHUNK):
            inside = first + chunk < count
            blocks = tl.load(blocks_at + blocks_begin + first + chunk, mask=inside, other=0)
            tl.store(table + have + first + chunk, blocks, mask=inside)
        # The table is read below by other threads of this program than those that wrote it.
        tl.debug_barrier()
        last_token = tl.load(last_tokens + row)
        for first in range(begin, end, CHUNK):
            token = first + chunk
            inside = token < end
            position = start + token - begin
            known = tl.load(ids_at + token, mask=inside, other=0)
            block = tl.load(table + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
            slot = block * BLOCK_SIZE + position % BLOCK_SIZE
            tl.store(token_ids + token, tl.where(known < 0, last_token, known), mask=inside)
            tl.store(positions + token, position.to(tl.int64), mask=inside)
            tl.store(slots + token, slot, mask=inside)
    elif index < seq_cap:
        tl.store(rows + index, pad_row)
        tl.store(query_starts + index + 1, tokens)
        tl.store(context_lens + index, 0)


def step_inputs_triton(
    packet: Tensor,
    buffers: StepBuffers,
    block_tables: Tensor,
    state: SamplingRows,
    *,
    block_size: int,
    seq_cap: int,
    token_cap: int,
) -> None:
    programs = max(seq_cap, 1)
    step_inputs_kernel[(programs,)](
        packet, *buffers, block_tables, *state, seq_cap, token_cap, block_tables.shape[0] - 1,
        block_tables.stride(0), BLOCK_SIZE=block_size, CHUNK=_CHUNK,
        PAD=next_power_of_2(cdiv(token_cap, programs)), num_warps=4,
    )  # fmt: skip


def step_inputs_torch(
    packet: Tensor,
    buffers: StepBuffers,
    block_tables: Tensor,
    state: SamplingRows,
    *,
    block_size: int,
    seq_cap: int,
    token_cap: int,
) -> None:
    seqs, tokens, sampled, new, appended = packet[:5].tolist()
    at = PacketLayout.of(seqs, tokens, sampled, new, appended)
    rows = packet[at.rows : at.starts].long()
    starts = packet[at.starts : at.query_starts].long()
    query_starts = packet[at.query_starts : at.appended_starts].long()
    counts = query_starts.diff()
    if new:
        _take_parameters(packet, at, rows, state)
    if appended:
        appended_starts = packet[at.appended_starts : at.have].long()
        have = packet[at.have : at.new_index].long()
        fresh = appended_starts.diff()
        owner = torch.arange(seqs).repeat_interleave(fresh)
        column = have[owner] + torch.arange(appended) - appended_starts[owner]
        block_tables[rows[owner], column] = packet[at.appended : at.token_ids]

    owner = torch.arange(seqs).repeat_interleave(counts)
    position = starts[owner] + torch.arange(tokens) - query_starts[owner]
    known = packet[at.token_ids : at.end].long()
    block = block_tables[rows[owner], position // block_size].long()
    _fill(buffers.token_ids, torch.where(known < 0, state.last_tokens[rows[owner]], known),
          token_cap, 0)  # fmt: skip
    _fill(buffers.positions, position, token_cap, 0)
    _fill(buffers.slots, block * block_size + position % block_size, token_cap, -1)

    pad_row = block_tables.shape[0] - 1
    _fill(buffers.rows, rows, seq_cap, pad_row)
    _fill(buffers.query_starts, query_starts, seq_cap + 1, tokens)
    _fill(buffers.context_lens, starts + counts, seq_cap, 0)
    chosen = packet[at.sampled : at.new].long()
    _fill(buffers.sampled_tokens, query_starts[chosen + 1] - 1, seq_cap, 0)
    _fill(buffers.sampled_rows, rows[chosen], seq_cap, pad_row)
    _fill(buffers.sampled_positions, (starts + counts)[chosen], seq_cap, 0)


def _fill(buffer: Tensor, values: Tensor, cap: int, padding: int) -> None:
    buffer[: len(values)] = values
    buffer[len(values) : cap] = padding


def _take_parameters(packet: Tensor, at: PacketLayout, rows: Tensor, state: SamplingRows) -> None:
    new_index = packet[at.new_index : at.sampled].long()
    takers = (new_index >= 0).nonzero().squeeze(1)
    taken = rows[takers]
    params = packet[at.new : at.appended].view(-1, NEW_ROW)[new_index[takers]]
    state.temperature[taken] = params[:, 0].contiguous().view(torch.float32)
    state.top_k[taken] = params[:, 1]
    state.top_p[taken] = params[:, 2].contiguous().view(torch.float32)
    state.min_p[taken] = params[:, 3].contiguous().view(torch.float32)
    low = params[:, 4].long() & 0xFFFFFFFF
    state.seeds[taken] = (params[:, 5].long() << 32) | low


def variants() -> list[Variant]:
    buffers = {
        "token_ids": "*i64", "positions": "*i64", "slots": "*i64", "rows": "*i32",
        "query_starts": "*i32", "context_lens": "*i32", "sampled_tokens": "*i64",
        "sampled_rows": "*i32", "sampled_positions": "*i64",
    }  # fmt: skip
    state = {
        "temperature": "*fp32", "top_k": "*i32", "top_p": "*fp32", "min_p": "*fp32",
        "seeds": "*i64", "last_tokens": "*i64",
    }  # fmt: skip
    numbers = dict.fromkeys(("seq_cap", "token_cap", "pad_row"), "i32")
    return [
        Variant(
            name=f"step_inputs pad {pad}",
            kernel=step_inputs_kernel,
            signature={
                "packet": "*i32", **buffers, "block_tables": "*i32", **state, **numbers,
                "stride_bt": "i64",
            },
            constants={"BLOCK_SIZE": 16, "CHUNK": _CHUNK, "PAD": pad},
            divisible=("packet", *buffers, "block_tables", *state),
            warps=4,
        )
        for pad in (1, 64)
    ]  # fmt: skip

"""Which decoding sequences begin with the same pages, found on the device, once a step.

Prefix caching gives sequences with a common beginning the same blocks, so equal entries of their
block tables are all the evidence there is, and all that is needed. One level: a group is the
sequences with one page at a certain place, and shares the leading pages that all of it have. A
page that the step itself may write, a sequence's last, is never shared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .language import Variant, gdc_wait, jit, launch_options, tl
from .ops import AttentionBatch
from .tiles import SEQ_CLASSES, Sharing, seqs_pad

# Table entries that a program compares at a time: 64 registers a thread.
_COMPARED = 8192


class Group(NamedTuple):
    """What `find_shared` says of one sequence; all 0: it shares nothing worth the while."""

    keys: int  # leading ones that it shares, whole pages
    leader: int  # the group's first sequence
    rank: int  # its own place in the group
    count: int  # sequences of the group


@jit
def find_shared_kernel(
    groups,  # int32 [seqs, 4], see Group
    block_tables,  # int32 [table_rows, max_blocks]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    seqs,
    min_rows,
    key_page,  # whose block names a group; fewer pages than up to here are not shared
    stride_bt: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    SEQS_PAD: tl.constexpr,
    PAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program i is done at once unless sequence i is a group's first: it then compares the tables
    of the whole group, PAGES of each at a time, up to the first difference."""
    if PDL:
        gdc_wait()
    seq = tl.program_id(0)
    ids = tl.arange(0, SEQS_PAD)
    here = ids < seqs
    query_lens = tl.load(query_starts + ids + 1, mask=here, other=0)
    query_lens -= tl.load(query_starts + ids, mask=here, other=0)
    contexts = tl.load(context_lens + ids, mask=here, other=0)
    # Pages that end before the token of this step.
    full = tl.where(query_lens == 1, tl.maximum(contexts - 1, 0) // BLOCK_SIZE, 0)
    able = here & (full > key_page)
    tables = block_tables + tl.load(rows + ids, mask=here, other=0).to(tl.int64) * stride_bt
    names = tl.load(tables + key_page, mask=able, other=-1)
    name = tl.max(tl.where(ids == seq, names, -1), 0)
    members = able & (names == name)
    leader = tl.min(tl.where(members, ids, SEQS_PAD), 0)
    record = groups + ids * 4
    if name < 0:
        for field in tl.static_range(4):
            tl.store(groups + seq * 4 + field, 0)
    elif leader == seq:
        count = tl.sum(members.to(tl.int32), 0)
        common = tl.min(tl.where(members, full, 1 << 30), 0)
        if count < min_rows:
            common = common * 0
        own = block_tables + tl.load(rows + seq).to(tl.int64) * stride_bt
        start = 0
        while start < common:
            pages = start + tl.arange(0, PAGES)
            inside = pages < common
            mine = tl.load(own + pages, mask=inside, other=0)
            both = members[:, None] & inside[None, :]
            theirs = tl.load(tables[:, None] + pages[None, :], mask=both, other=0)
            differs = both & (theirs != mine[None, :])
            first = tl.min(tl.where(differs, pages[None, :], 1 << 30), 1)
            common = tl.minimum(common, tl.min(first, 0))
            start += PAGES
        keep = members & (common > key_page)
        tl.store(record, tl.where(keep, common * BLOCK_SIZE, 0), mask=members)
        tl.store(record + 1, tl.where(keep, seq, 0), mask=members)
        ranks = tl.cumsum(members.to(tl.int32), 0) - 1
        tl.store(record + 2, tl.where(keep, ranks, 0), mask=members)
        tl.store(record + 3, tl.where(keep, count, 0), mask=members)


def find_shared_triton(batch: AttentionBatch, block_size: int, sharing: Sharing) -> Tensor:
    """int32 `[num_decodes, 4]`: a `Group` for each sequence that may decode."""
    seqs = batch.num_decodes
    groups = torch.empty(seqs, 4, dtype=torch.int32, device=batch.context_lens.device)
    padded = seqs_pad(seqs)
    find_shared_kernel[(seqs,)](
        groups, batch.block_tables, batch.rows, batch.query_starts, batch.context_lens, seqs,
        sharing.rows, key_page(block_size, sharing), batch.block_tables.stride(0),
        BLOCK_SIZE=block_size, SEQS_PAD=padded, PAGES=_pages(padded), num_warps=4,
        **launch_options(batch.context_lens.device.index),
    )  # fmt: skip
    return groups


def key_page(block_size: int, sharing: Sharing) -> int:
    """The page that completes the fewest keys worth sharing: a group is known by its block, not by
    that of page 0, which a system prompt of a page gives to sequences that part right behind it."""
    return -(-sharing.keys // block_size) - 1


def _pages(seqs: int) -> int:
    return max(1, _COMPARED // max(seqs, 16))


def find_shared_torch(batch: AttentionBatch, block_size: int, sharing: Sharing) -> Tensor:
    """The same by hash maps: what the kernel is judged by."""
    seqs, page = batch.num_decodes, key_page(block_size, sharing)
    contexts, lengths = batch.context_lens.tolist(), batch.query_starts.diff().tolist()
    tables = batch.block_tables[batch.rows.long()].tolist()
    named: dict[int, list[int]] = {}
    for seq in range(seqs):
        if lengths[seq] == 1 and (contexts[seq] - 1) // block_size > page:
            named.setdefault(tables[seq][page], []).append(seq)
    groups = torch.zeros(seqs, 4, dtype=torch.int32)
    for members in named.values():
        common = 0
        most = min((contexts[seq] - 1) // block_size for seq in members)
        while common < most and len({tables[seq][common] for seq in members}) == 1:
            common += 1
        if len(members) >= sharing.rows and common > page:
            for rank, seq in enumerate(members):
                found = Group(common * block_size, members[0], rank, len(members))
                groups[seq] = torch.tensor(found, dtype=torch.int32)
    return groups


def variants() -> list[Variant]:
    tensors = ("groups", "block_tables", "rows", "query_starts", "context_lens")
    return [
        Variant(
            name=f"find_shared seqs {seqs}",
            kernel=find_shared_kernel,
            signature={
                **dict.fromkeys(tensors, "*i32"),
                **dict.fromkeys(("seqs", "min_rows", "key_page"), "i32"),
                "stride_bt": "i64",
            },
            constants={"BLOCK_SIZE": 16, "SEQS_PAD": seqs, "PAGES": _pages(seqs), "PDL": False},
            divisible=tensors,
            warps=4,
        )
        for seqs in SEQ_CLASSES
    ]

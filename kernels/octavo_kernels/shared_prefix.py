"""Which decoding sequences begin with the same pages, found on the device, once a step.

Prefix caching gives sequences with a common beginning the same blocks, so equal entries of their
block tables are all the evidence there is, and all that is needed. One level: a sequence is in one
group. It looks how many have its block at a few depths, each twice the one before, and takes the
depth where most reading is saved; a group is the sequences with one block at one depth, and shares
the leading pages that all of it have. (By the first page alone, one sequence that parts early would
spoil a group.) A page that the step itself may write, a sequence's last, is never shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
def _full_pages(query_starts, context_lens, seqs, BLOCK_SIZE: tl.constexpr, SEQS_PAD: tl.constexpr):
    """Pages of each decoding sequence that end before the token of this step; 0 of others."""
    ids = tl.arange(0, SEQS_PAD)
    here = ids < seqs
    query_lens = tl.load(query_starts + ids + 1, mask=here, other=0)
    query_lens -= tl.load(query_starts + ids, mask=here, other=0)
    contexts = tl.load(context_lens + ids, mask=here, other=0)
    return tl.where(query_lens == 1, tl.maximum(contexts - 1, 0) // BLOCK_SIZE, 0)


@jit
def name_groups_kernel(
    names,  # int32 [seqs, 2]: block and page that name a sequence's group; block -1: none
    block_tables,  # int32 [table_rows, max_blocks]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    seqs,
    min_rows,
    key_page,  # fewer pages than up to here are not shared
    stride_bt: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    SEQS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program i names the group of sequence i."""
    if PDL:
        gdc_wait()
    seq = tl.program_id(0)
    ids = tl.arange(0, SEQS_PAD)
    full = _full_pages(query_starts, context_lens, seqs, BLOCK_SIZE, SEQS_PAD)
    my_pages = tl.sum(tl.where(ids == seq, full, 0), 0)
    tables = block_tables + tl.load(rows + ids, mask=ids < seqs, other=0).to(tl.int64) * stride_bt
    own = block_tables + tl.load(rows + seq).to(tl.int64) * stride_bt
    page = key_page
    best = 0
    block = -1
    place = 0
    while page < my_pages:
        mine = tl.load(own + page)
        found = tl.load(tables + page, mask=full > page, other=-1)
        count = tl.sum((found == mine).to(tl.int32), 0)
        saved = tl.where(count >= min_rows, (count - 1) * (page + 1), 0)
        block = tl.where(saved > best, mine, block)
        place = tl.where(saved > best, page, place)
        best = tl.maximum(saved, best)
        page = page * 2 + 1
    tl.store(names + seq * 2, block)
    tl.store(names + seq * 2 + 1, place)


@jit
def find_shared_kernel(
    groups,  # int32 [seqs, 4], see Group
    names,  # int32 [seqs, 2]
    block_tables,  # int32 [table_rows, max_blocks]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    seqs,
    min_rows,
    key_page,
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
    block = tl.load(names + seq * 2)
    if block < 0:
        for field in tl.static_range(4):
            tl.store(groups + seq * 4 + field, 0)
        return
    members = tl.load(names + ids * 2, mask=here, other=-1) == block
    members &= tl.load(names + ids * 2 + 1, mask=here, other=-1) == tl.load(names + seq * 2 + 1)
    leader = tl.min(tl.where(members, ids, SEQS_PAD), 0)
    if leader == seq:
        full = _full_pages(query_starts, context_lens, seqs, BLOCK_SIZE, SEQS_PAD)
        tables = block_tables + tl.load(rows + ids, mask=here, other=0).to(tl.int64) * stride_bt
        own = block_tables + tl.load(rows + seq).to(tl.int64) * stride_bt
        count = tl.sum(members.to(tl.int32), 0)
        common = tl.min(tl.where(members, full, 1 << 30), 0)
        common = tl.where(count >= min_rows, common, 0)
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
        record = groups + ids * 4
        tl.store(record, tl.where(keep, common * BLOCK_SIZE, 0), mask=members)
        tl.store(record + 1, tl.where(keep, seq, 0), mask=members)
        ranks = tl.cumsum(members.to(tl.int32), 0) - 1
        tl.store(record + 2, tl.where(keep, ranks, 0), mask=members)
        tl.store(record + 3, tl.where(keep, count, 0), mask=members)


def find_shared_triton(batch: AttentionBatch, block_size: int, sharing: Sharing) -> Tensor:
    """int32 `[num_decodes, 4]`: a `Group` for each sequence that may decode."""
    seqs, device = batch.num_decodes, batch.context_lens.device
    groups = torch.empty(seqs, 4, dtype=torch.int32, device=device)
    names = torch.empty(seqs, 2, dtype=torch.int32, device=device)
    tables = (batch.block_tables, batch.rows, batch.query_starts, batch.context_lens)
    numbers = (seqs, sharing.rows, _key_page(block_size, sharing), batch.block_tables.stride(0))
    padded = seqs_pad(seqs)
    same = {"BLOCK_SIZE": block_size, "SEQS_PAD": padded, **launch_options(device.index)}
    name_groups_kernel[(seqs,)](names, *tables, *numbers, num_warps=_warps(padded), **same)
    find_shared_kernel[(seqs,)](
        groups, names, *tables, *numbers, PAGES=_pages(padded), num_warps=4, **same
    )
    return groups


def _key_page(block_size: int, sharing: Sharing) -> int:
    """The page that completes the fewest keys worth sharing."""
    return -(-sharing.keys // block_size) - 1


def _pages(seqs: int) -> int:
    return max(1, _COMPARED // max(seqs, 16))


def _warps(seqs: int) -> int:
    return max(1, min(4, seqs // 128))


def find_shared_torch(batch: AttentionBatch, block_size: int, sharing: Sharing) -> Tensor:
    """The same by hash maps: what the kernels are judged by."""
    seqs, first_page = batch.num_decodes, _key_page(block_size, sharing)
    tables = batch.block_tables[batch.rows.long()].tolist()
    full = [
        max(context - 1, 0) // block_size if length == 1 else 0
        for context, length in zip(
            batch.context_lens.tolist(), batch.query_starts.diff().tolist(), strict=True
        )
    ]
    holders = Counter[tuple[int, int]]()  # of a block at a page
    for seq in range(seqs):
        holders.update((page, tables[seq][page]) for page in _depths(first_page, full[seq]))
    named: dict[tuple[int, int], list[int]] = {}
    for seq in range(seqs):
        names = [(page, tables[seq][page]) for page in _depths(first_page, full[seq])]
        names = [name for name in names if holders[name] >= sharing.rows]
        if names:
            best = max(names, key=lambda name: (holders[name] - 1) * (name[0] + 1))
            named.setdefault(best, []).append(seq)
    groups = torch.zeros(seqs, 4, dtype=torch.int32)
    for members in named.values():
        common = 0
        most = min(full[seq] for seq in members)
        while common < most and len({tables[seq][common] for seq in members}) == 1:
            common += 1
        if len(members) >= sharing.rows and common > first_page:
            for rank, seq in enumerate(members):
                found = Group(common * block_size, members[0], rank, len(members))
                groups[seq] = torch.tensor(found, dtype=torch.int32)
    return groups


def _depths(page: int, pages: int) -> Iterator[int]:
    while page < pages:
        yield page
        page = 2 * page + 1


def variants() -> list[Variant]:
    tables = ("block_tables", "rows", "query_starts", "context_lens")
    numbers = {**dict.fromkeys(("seqs", "min_rows", "key_page"), "i32"), "stride_bt": "i64"}
    found = []
    for seqs in SEQ_CLASSES:
        same = {"BLOCK_SIZE": 16, "SEQS_PAD": seqs, "PDL": False}
        for kernel, tensors, more, warps in (
            (name_groups_kernel, ("names", *tables), {}, _warps(seqs)),
            (find_shared_kernel, ("groups", "names", *tables), {"PAGES": _pages(seqs)}, 4),
        ):
            signature = {**dict.fromkeys(tensors, "*i32"), **numbers}
            name = f"{kernel.__name__.removesuffix('_kernel')} seqs {seqs}"
            found.append(Variant(name, kernel, signature, same | more, tensors, warps))
    return found

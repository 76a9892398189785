"""Shared leading pages: found, cut, read once and joined, against the oracle and by the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo_kernels import attention_plan, paged_decode
from octavo_kernels.ops import AttentionBatch
from octavo_kernels.shared_prefix import find_shared_torch, find_shared_triton
from octavo_kernels.tiles import Parts, Sharing

from .paged_batch import PagedBatch
from .shared_batch import Groups, make_shared_batch
from .tables import DEVICES, assert_close, table

DEVICE = DEVICES["triton"]
SMALL = Sharing(1, mixed_seqs=1, rows=2, keys=16, saved_keys=1, min_keys=32, multiple=16)
# Chunks that are full, that are not, and several of them: in float32 a tile is 16 rows.
CASES: dict[str, tuple[Groups, list[int]]] = {
    "five of different lengths": ([(3, [1, 5, 16, 17, 40])], []),
    "two groups and loners": ([(5, [2, 30, 7]), (2, [9, 1])], [1, 16, 70, 33]),
    "not a multiple of a tile": ([(7, [3, 3, 20])], [5]),
    "one token of their own": ([(4, [1, 1, 1, 1])], []),
    "many rows": ([(4, [1 + i % 7 for i in range(19)])], [3]),
}
SHAPES = {  # heads, kv heads, head size, dtype
    "group 1 head 64": (2, 2, 64, torch.float32),
    "group 4 head 128": (8, 2, 128, torch.float16),
    "group 5 head 80": (5, 1, 80, torch.float32),
    "group 8 head 64": (8, 1, 64, torch.float32),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing from two rows and a page on, shared keys in parts of 32, own ones of 16 and more."""
    monkeypatch.setattr(attention_plan, "SHARING", SMALL)
    monkeypatch.setattr(attention_plan, "PARTS", Parts(4, min_keys=16, multiple=16))
    monkeypatch.setattr(attention_plan, "multiprocessors", lambda _: 6)


def as_attention_batch(batch: PagedBatch) -> AttentionBatch:
    return AttentionBatch(
        batch.block_tables, batch.rows, batch.query_starts, batch.context_lens,
        batch.num_decodes, batch.max_query_len, batch.max_context_len,
    )  # fmt: skip


def planned(batch: PagedBatch) -> AttentionBatch:
    return table("triton").plan_attention(
        as_attention_batch(batch), heads=batch.query.shape[1], key_cache=batch.key_cache
    )


def own_begins(plan: Tensor) -> dict[int, int]:
    """First key that each sequence's own parts read."""
    begins: dict[int, int] = {}
    for record in plan.tolist():
        if record[0] >= 0:
            begins[record[0]] = min(record[3], begins.get(record[0], record[3]))
    return begins


def check(batch: PagedBatch, wanted: list[tuple[int, int]]) -> None:
    """The result, and that shared keys are in no sequence's own parts."""
    plan = planned(batch)
    assert plan.plan is not None
    begins = own_begins(plan.plan)
    assert [begins[seq] for seq in range(len(wanted))] == [keys for _, keys in wanted]
    used = int(batch.query_starts[-1])
    actual = table("triton").paged_attention(
        batch.query, batch.key_cache, batch.value_cache, plan, scale=batch.scale
    )
    assert_close(actual[:used], batch.expected()[:used], batch.query.dtype)
    assert not any(each.any() for kept in paged_decode._counters.values() for each in kept)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_oracle(shape: str, case: str) -> None:
    heads, kv_heads, head_size, dtype = SHAPES[shape]
    groups, loners = CASES[case]
    batch, wanted = make_shared_batch(
        groups, loners, heads=heads, kv_heads=kv_heads, head_size=head_size, dtype=dtype,
        device=DEVICE,
    )  # fmt: skip
    check(batch, wanted)


@pytest.mark.parametrize("case", CASES)
def test_one_wave(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Fewer programs than items: nothing is cut, and programs take several."""
    monkeypatch.setattr(attention_plan, "PARTS", Parts())
    monkeypatch.setattr(attention_plan, "multiprocessors", lambda _: 1)
    groups, loners = CASES[case]
    batch, wanted = make_shared_batch(
        groups, loners, heads=8, kv_heads=2, head_size=64, device=DEVICE
    )
    check(batch, wanted)


@pytest.mark.parametrize("seed", range(2))
def test_padded_rows_and_prompts_beside(seed: int) -> None:
    """A graph's padding, and prompts in the same step (one of them repeats no pages)."""
    for more in ({"padded_rows": 3}, {"prompts": (20, 2), "padded_rows": 1}):
        batch, wanted = make_shared_batch(
            [(3, [2, 9, 4])], [40], heads=4, kv_heads=1, head_size=64, device=DEVICE, seed=seed,
            **more,
        )  # fmt: skip
        batch.num_decodes = len(batch.context_lens)
        batch.max_context_len = 512
        check(batch, wanted)


@pytest.mark.parametrize("block_size", [8, 32])
def test_other_pages(block_size: int) -> None:
    batch, wanted = make_shared_batch(
        [(5, [3, 8, 1])], [9], heads=3, kv_heads=1, head_size=64, block_size=block_size,
        device=DEVICE,
    )  # fmt: skip
    check(batch, wanted)


def test_sliding_window_reads_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan serves layers with a window, whose sequences share nothing."""
    batch, _ = make_shared_batch(
        [(3, [4, 4, 4])], heads=4, kv_heads=1, head_size=64, device=DEVICE, window=20
    )
    monkeypatch.setattr(PagedBatch, "planner", staticmethod(table("triton").plan_attention))
    # Keys before its window are NaN: whoever read the shared ones would notice.
    assert_close(batch.attend(table("triton").paged_attention), batch.expected(), torch.float32)


def test_the_step_s_own_page_is_not_shared() -> None:
    """Sequences of equal tables to the end: the page with this step's token stays their own."""
    batch, _ = make_shared_batch(
        [(3, [16, 16, 16])], heads=1, kv_heads=1, head_size=64, device=DEVICE
    )
    rows = batch.rows.long()
    batch.block_tables[rows, 3] = batch.block_tables[rows[0], 3]
    check(batch, [(0, 48)] * 3)


def test_one_plan_for_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too little to share is left alone: too few sequences, too few keys, too few saved."""
    batch, wanted = make_shared_batch(
        [(4, [1, 2, 3, 4]), (2, [5, 6])], [7], heads=2, kv_heads=1, head_size=64, device=DEVICE
    )
    for sharing, shared in (
        (replace(SMALL, rows=4, keys=16, saved_keys=1), (64, 0)),
        (replace(SMALL, rows=2, keys=33, saved_keys=1), (64, 0)),
        (replace(SMALL, rows=2, keys=65, saved_keys=1), (0, 0)),
        (replace(SMALL, rows=2, keys=16, saved_keys=224), (64, 32)),  # 3 x 64 + 32
        (replace(SMALL, rows=2, keys=16, saved_keys=225), (0, 0)),
    ):
        monkeypatch.setattr(attention_plan, "SHARING", sharing)
        check(batch, [(group, shared[group] if group >= 0 else 0) for group, _ in wanted])
    monkeypatch.setattr(attention_plan, "SHARING", replace(SMALL, seqs=8))
    assert planned(batch).shared is None
    check(batch, [(-1, 0)] * len(wanted))


def test_small_steps_do_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch more a layer is for steps that may gain by it: the bounds alone decide."""
    monkeypatch.setattr(attention_plan, "SHARING", Sharing())
    key_cache = torch.empty(1, 1, 16, 16, device=DEVICE)
    for rows, query_len, context, looks in (
        (15, 1, 4096, False), (16, 1, 4096, True), (16, 1, 256, False),
        (64, 2, 4096, False), (65, 2, 4096, True),
    ):  # fmt: skip
        numbers = torch.zeros(rows + 1, dtype=torch.int32, device=DEVICE)
        tables = torch.zeros(rows, context // 16, dtype=torch.int32, device=DEVICE)
        batch = AttentionBatch(tables, numbers[1:], numbers, numbers[1:], rows, query_len, context)
        plan = table("triton").plan_attention(batch, heads=1, key_cache=key_cache)
        assert (plan.shared is not None) == looks
        assert plan.plan is not None


def test_found_as_by_hash_maps() -> None:
    """More pages than a program compares at a time, a group that parts before its name, one that
    parts early and one that ends early beside those who share much."""
    contexts = [16 * 700 + 1] * 7 + [16 * 650 + 3, 16 * 20, 33, 0]
    tables = torch.full((13, 702), -7, dtype=torch.int32)
    tables[:11] = torch.arange(702)
    tables[1, 640:] += 1000  # 0, 1, 2 and 7 share 640 pages
    tables[3:6] += 5000
    tables[4, 0] += 1  # as 3 and 5 wherever a name is looked for, but parts at once
    tables[6, 18:] += 9000
    rows = torch.tensor([3, 0, 6, 7, 1, 4, 2, 5, 8, 9, 10], dtype=torch.int32)
    batch = AttentionBatch(
        tables.to(DEVICE), rows.to(DEVICE),
        torch.tensor([*range(10), 9, 10], dtype=torch.int32, device=DEVICE),
        torch.tensor(contexts, dtype=torch.int32, device=DEVICE)[rows.long()], 11, 1, 1 << 15,
    )  # fmt: skip
    for sharing, sharers in (
        (Sharing(rows=2, keys=16), {0: 640, 1: 640, 2: 640, 7: 640, 6: 18, 8: 18}),
        (Sharing(rows=5, keys=16), dict.fromkeys((0, 1, 2, 6, 7, 8), 18)),
        (Sharing(rows=7, keys=48), {}),
        (Sharing(), {0: 640, 1: 640, 2: 640, 7: 640}),
    ):
        found = find_shared_triton(batch, 16, sharing).cpu()
        assert torch.equal(found, find_shared_torch(batch, 16, sharing))
        shared = {int(row): int(keys) // 16 for row, keys in zip(rows, found[:, 0], strict=True)}
        assert {row: pages for row, pages in shared.items() if pages} == sharers


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 4), st.lists(st.integers(1, 20), min_size=2, max_size=5)),
        max_size=2,
    ),
    loners=st.lists(st.integers(1, 40), max_size=2),
    group=st.sampled_from([1, 3, 4]),
    kv_heads=st.integers(1, 2),
    padded_rows=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_any_batch(
    groups: Groups, loners: list[int], group: int, kv_heads: int, padded_rows: int, seed: int
) -> None:
    batch, wanted = make_shared_batch(
        groups, loners, heads=group * kv_heads, kv_heads=kv_heads, head_size=16,
        padded_rows=padded_rows, seed=seed, device=DEVICE,
    )  # fmt: skip
    if wanted:
        check(batch, wanted)

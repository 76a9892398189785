"""Attention, rotary_cache and cache_write on a real GPU: bfloat16, every tile shape, graphs.

    PYTHONPATH=server:kernels:operator:. python3 -m pytest -c /dev/null --rootdir . \
        --import-mode=importlib -q tests/gpu/test_attention_kernels.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():  # before Triton is imported: tests/kernels may interpret it
    pytest.skip("no CUDA device", allow_module_level=True)

# ruff: noqa: E402
from tests.kernels import oracle
from tests.kernels.paged_batch import PagedBatch, make_batch
from tests.kernels.shared_batch import make_shared_batch
from tests.kernels.tables import TOLERANCE, assert_close

from octavo_kernels import attention_plan, language, paged_decode
from octavo_kernels.ops import AttentionBatch, Ops, select_ops
from octavo_kernels.tiles import Parts, Sharing

# Few, because each costs several compilations; every tile shape is among them.
SHAPES = [
    (torch.bfloat16, 1, 64),
    (torch.bfloat16, 3, 64),
    (torch.bfloat16, 5, 80),
    (torch.bfloat16, 8, 128),
    (torch.bfloat16, 3, 256),
    (torch.float16, 1, 128),
    (torch.float16, 8, 80),
    (torch.float32, 3, 64),
    (torch.float32, 5, 80),
    (torch.float32, 8, 256),
]
MIXED = ([1, 0, 5, 40, 1, 1], [200, 4, 70, 40, 1, 65])
DECODE = ([1] * 6, [1, 15, 16, 17, 300, 64])
PREFILL = ([130, 64], [130, 200])


@pytest.fixture(scope="module")
def ops() -> Ops:
    assert not language.INTERPRETED, "TRITON_INTERPRET is set"
    return select_ops("cuda")


def check(ops: Ops, batch: PagedBatch) -> None:
    used = int(batch.query_starts[-1])
    actual = batch.attend(ops.paged_attention)
    host = PagedBatch(*(tensor.cpu() for tensor in batch.tensors()), *batch.bounds())
    assert_close(actual[:used], host.expected()[:used], batch.query.dtype)


@pytest.mark.parametrize(("dtype", "group", "head_size"), SHAPES, ids=str)
@pytest.mark.parametrize("min_keys", [16, 256])
def test_equals_oracle(
    ops: Ops,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    group: int,
    head_size: int,
    min_keys: int,
) -> None:
    """16: even these short contexts are cut into parts."""
    monkeypatch.setattr(attention_plan, "PARTS", Parts(min_keys=min_keys))
    for query_lens, contexts in (DECODE, MIXED, PREFILL):
        for window in (0, 20):
            batch = make_batch(
                query_lens, contexts, heads=2 * group, kv_heads=2, head_size=head_size,
                dtype=dtype, device="cuda", window=window,
            )  # fmt: skip
            check(ops, batch)
    torch.cuda.synchronize()
    assert not any(each.any() for kept in paged_decode._counters.values() for each in kept)


def test_past_2_to_the_31(ops: Ops) -> None:
    blocks = (1 << 31) // (16 * 64) + 8
    cache = torch.empty(blocks, 1, 16, 64, dtype=torch.bfloat16, device="cuda")
    small = make_batch(
        [1, 2], [18, 40], heads=1, kv_heads=1, head_size=64, dtype=torch.bfloat16, device="cuda"
    )
    first = blocks - small.key_cache.shape[0]
    cache[first:] = small.key_cache
    small.value_cache = small.key_cache
    tables = small.block_tables + first
    large = replace(small, key_cache=cache, value_cache=cache, block_tables=tables)
    assert torch.equal(large.attend(ops.paged_attention), small.attend(ops.paged_attention))
    key = torch.ones(1, 1, 64, dtype=torch.bfloat16, device="cuda")
    ops.cache_write(key, key, cache, cache, torch.tensor([blocks * 16 - 1], device="cuda"))
    assert (cache[-1, 0, -1] == 1).all()


def test_one_graph_serves_every_context(ops: Ops) -> None:
    """Captured with bounds far above its batch, replayed over changed contexts and rows; a hundred
    replays in a row leave the counters at zero."""
    batch = make_batch(
        [1] * 8, [900, 3, 17, 500, 64, 2000, 1, 300], heads=8, kv_heads=2, head_size=128,
        dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    batch.max_context_len = 32_768
    batch.attend(ops.paged_attention)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = batch.attend(ops.paged_attention)
    order = torch.tensor([5, 1, 7, 3, 4, 0, 6, 2], device="cuda")
    for permuted in (False, True):
        if permuted:
            batch.rows.copy_(batch.rows[order])
            batch.context_lens.copy_(batch.context_lens[order])
        for _ in range(100):
            graph.replay()
        torch.cuda.synchronize()
        host = PagedBatch(*(tensor.cpu() for tensor in batch.tensors()), *batch.bounds())
        assert_close(out, host.expected(), torch.bfloat16)
    batch.context_lens[4:] = 0  # padded rows
    graph.replay()
    kept = replace(
        batch, query=batch.query[:4], rows=batch.rows[:4], query_starts=batch.query_starts[:5],
        context_lens=batch.context_lens[:4], num_decodes=4,
    )  # fmt: skip
    host = PagedBatch(*(tensor.cpu() for tensor in kept.tensors()), *kept.bounds())
    assert_close(out[:4], host.expected(), torch.bfloat16)


@pytest.mark.parametrize(("dtype", "group", "head_size"), SHAPES, ids=str)
def test_one_graph_shares_or_not(
    ops: Ops, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, group: int, head_size: int
) -> None:
    """Planned and launched in one graph, replayed while two groups share pages, in another order,
    and when every row has pages of its own; loners and padding beside."""
    monkeypatch.setattr(attention_plan, "SHARING", Sharing(saved_keys=256, min_keys=64))
    monkeypatch.setattr(PagedBatch, "planner", staticmethod(ops.plan_attention))
    batch, wanted = make_shared_batch(
        [(17, [1, 5, 16, 17, 90, 3] * 2), (22, [2, 30, 7, 1])], [1, 300, 20], padded_rows=3,
        heads=2 * group, kv_heads=2, head_size=head_size, dtype=dtype, device="cuda",
    )  # fmt: skip
    used = len(wanted)
    batch.num_decodes, batch.max_context_len = used + 3, 4096
    batch.attend(ops.paged_attention)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = batch.attend(ops.paged_attention)

    def replay() -> None:
        for _ in range(20):
            graph.replay()
        torch.cuda.synchronize()
        host = PagedBatch(*(tensor.cpu() for tensor in batch.tensors()), *batch.bounds())
        assert_close(out[:used], host.expected()[:used], dtype)

    replay()
    order = torch.randperm(used, device="cuda")
    batch.rows[:used] = batch.rows[order]
    batch.context_lens[:used] = batch.context_lens[order]
    replay()
    # A first page of its own for every row, the same keys in it: nothing is shared any more.
    rows = batch.rows[:used].long()
    free = batch.key_cache[:, 0, 0, 0].isnan().nonzero().squeeze(1)[:used]
    for cache in (batch.key_cache, batch.value_cache):
        cache[free] = cache[batch.block_tables[rows, 0].long()]
    batch.block_tables[rows, 0] = free.int()
    replay()


def test_sharing_changes_no_result(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that counts: 128 rows behind 2,048 keys, 32 query heads on 8 kv heads of 128."""
    pages = torch.randperm(128 * 8 + 128, device="cuda", dtype=torch.int32)
    tables = torch.cat([pages[:128].expand(128, 128), pages[128:].view(128, 8)], 1)
    caches = [
        torch.randn(pages.numel(), 8, 16, 128, device="cuda", dtype=torch.bfloat16)
        for _ in range(2)
    ]
    rows = torch.arange(129, dtype=torch.int32, device="cuda")
    contexts = 2048 + 1 + rows[:128]
    batch = AttentionBatch(tables, rows[:128], rows, contexts, 128, 1, 4096)
    query = torch.randn(128, 32, 128, device="cuda", dtype=torch.bfloat16)
    found = []
    for seqs in (16, 1000):
        monkeypatch.setattr(attention_plan, "SHARING", Sharing(seqs=seqs))
        plan = ops.plan_attention(batch, heads=32, key_cache=caches[0])
        assert (plan.shared is not None) == (seqs == 16)
        assert plan.shared is None or int(plan.shared.items[0, 0]) > 0
        found.append(ops.paged_attention(query, *caches, plan, scale=128**-0.5))
    assert_close(found[0], found[1].cpu(), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("tokens", [3, 200])
def test_rotary_cache(ops: Ops, dtype: torch.dtype, norm: bool, tokens: int) -> None:
    torch.manual_seed(0)
    for heads, kv_heads, size, rotary_size in ((9, 3, 64, 64), (5, 1, 80, 32), (16, 8, 128, 128)):
        qkv = torch.randn(tokens, heads + 2 * kv_heads, size).to(dtype)
        parts = [heads, kv_heads, kv_heads]
        caches = [torch.zeros(16, kv_heads, 16, size, dtype=dtype) for _ in range(2)]
        cos_sin, positions = torch.randn(50, rotary_size), torch.randint(0, 50, (tokens,))
        slots = torch.randperm(256)[:tokens]
        slots[1] = -1
        query, key, value = qkv.split(parts, 1)
        weights = [torch.randn(size).to(dtype) for _ in range(2)] if norm else []
        wanted = [query, key]
        for i, weight in enumerate(weights):
            wanted[i] = oracle.rms_norm(wanted[i], weight, 1e-6).to(dtype)
        rotated = [oracle.rotary(x, positions, cos_sin) for x in wanted]
        on_device = [cache.cuda() for cache in caches]
        oracle.cache_write(rotated[1].to(dtype), value, *caches, slots)
        moved = qkv.cuda()
        ops.rotary_cache(
            *moved.split(parts, 1), *on_device, slots.cuda(), positions.cuda(), cos_sin.cuda(),
            *([weight.cuda() for weight in weights] or [None, None]), 1e-6,
        )  # fmt: skip
        # Two roundings: the norm's last bit is multiplied by up to |cos| + |sin| of this test.
        slack = 4 if norm else 1
        for actual, expected in ((moved[:, :heads], rotated[0]), (on_device[0], caches[0])):
            error = (actual.float().cpu() - expected.float()).abs()
            assert (error / expected.float().abs().clamp(min=1)).max() <= slack * TOLERANCE[dtype]
        assert torch.equal(on_device[1].cpu(), caches[1])

"""What surrounds attention in a step, on a real GPU: inputs, plan, rotary, cache writes."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():  # before Triton is imported: tests/kernels may interpret it
    pytest.skip("no CUDA device", allow_module_level=True)

# ruff: noqa: E402
from tests.kernels import oracle
from tests.kernels.paged_batch import PagedBatch, make_batch
from tests.kernels.tables import assert_close
from tests.kernels.test_step_inputs import CASES, Device

from octavo_kernels import attention_plan
from octavo_kernels.ops import Ops, select_ops
from octavo_kernels.tiles import Parts

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DECODE = ([1] * 6, [1, 15, 16, 17, 300, 64])
MIXED = ([1, 0, 5, 40, 1, 1], [200, 4, 70, 40, 1, 65])


@pytest.fixture(scope="module")
def ops() -> Ops:
    return select_ops("cuda")


@pytest.mark.parametrize("case", CASES)
def test_step_inputs_are_those_of_the_cpu(case: str) -> None:
    seqs, seq_cap, token_cap = CASES[case]
    made = []
    for name in ("triton", "torch"):
        device = Device(name, seqs, 80)
        device.run(name, seqs, seq_cap, token_cap)
        made.append([it.cpu() for it in (*device.buffers, device.tables, *device.state)])
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(*made, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("min_keys", [16, 256])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_attention_by_the_steps_plan(
    ops: Ops, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, min_keys: int, group: int
) -> None:
    """As in a step: cut once, read by every layer; all around is NaN."""
    monkeypatch.setattr(attention_plan, "PARTS", Parts(min_keys=min_keys))
    monkeypatch.setattr(PagedBatch, "planner", staticmethod(ops.plan_attention))
    for query_lens, contexts in (DECODE, MIXED):
        batch = make_batch(
            query_lens, contexts, heads=2 * group, kv_heads=2, head_size=64, dtype=dtype,
            device="cuda",
        )  # fmt: skip
        used = int(batch.query_starts[-1])
        actual = batch.attend(ops.paged_attention)
        host = PagedBatch(*(tensor.cpu() for tensor in batch.tensors()), *batch.bounds())
        assert_close(actual[:used], host.expected()[:used], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(ops: Ops, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for heads, kv_heads, size, rotary_size in ((9, 3, 64, 64), (5, 1, 80, 32), (16, 8, 128, 128)):
        qkv = torch.randn(7, heads + 2 * kv_heads, size).to(dtype)
        cos_sin, positions = torch.randn(50, rotary_size), torch.tensor([0, 49, 7, 7, 3, 1, 30])
        moved = qkv.cuda()
        query, key, value = moved.split([heads, kv_heads, kv_heads], 1)
        ops.rotary(query, key, positions.cuda(), cos_sin.cuda())
        wanted = oracle.rotary(qkv[:, : heads + kv_heads], positions, cos_sin)
        assert_close(query, wanted[:, :heads], dtype)
        assert_close(key, wanted[:, heads:], dtype)
        assert torch.equal(value.cpu(), qkv[:, heads + kv_heads :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cache_write_leaves_every_other_slot_as_it_was(ops: Ops, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for kv_heads, size in ((3, 80), (8, 128), (1, 64)):
        qkv = torch.randn(9, 4 * kv_heads, size).to(dtype)
        caches = [torch.full((4, kv_heads, 16, size), float("nan"), dtype=dtype) for _ in range(2)]
        on_device = [cache.cuda() for cache in caches]
        slots = torch.tensor([63, 0, -1, 17, 31, 32, 5, -1, 48])
        key, value = qkv[:, kv_heads : 2 * kv_heads], qkv[:, 2 * kv_heads : 3 * kv_heads]
        moved = qkv.cuda()
        ops.cache_write(
            moved[:, kv_heads : 2 * kv_heads], moved[:, 2 * kv_heads : 3 * kv_heads],
            *on_device, slots.cuda(),
        )  # fmt: skip
        oracle.cache_write(key, value, *caches, slots)
        for actual, wanted in zip(on_device, caches, strict=True):
            assert torch.equal(actual.cpu().isnan(), wanted.isnan())
            assert torch.equal(actual.cpu().nan_to_num(), wanted.nan_to_num())

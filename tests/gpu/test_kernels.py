"""The compiled Triton kernels against the oracle on a real GPU, bfloat16 included.

tests/kernels covers odd shapes in the interpreter; this adds what only hardware can show: bfloat16,
every tile shape, launches without a host sync, and graph capture.

    PYTHONPATH=server:kernels:operator:. python3 -m pytest -c /dev/null --rootdir . \
        --import-mode=importlib -q tests/gpu/test_kernels.py
"""

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

from octavo_kernels import language, paged_decode, sampling
from octavo_kernels.ops import Ops, select_ops

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
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
    table = select_ops("cuda")
    assert table.name == "triton"
    return table


def check_attention(ops: Ops, batch: PagedBatch) -> None:
    used = int(batch.query_starts[-1])
    actual = batch.attend(ops.paged_attention)
    host = PagedBatch(
        *(tensor.cpu() for tensor in batch.tensors()),
        batch.max_query_len, batch.max_context_len, batch.window,
    )  # fmt: skip
    assert_close(actual[:used], host.expected()[:used], batch.query.dtype)


@pytest.mark.parametrize(("dtype", "group", "head_size"), SHAPES, ids=str)
@pytest.mark.parametrize("splits", [1, 4])
def test_paged_attention(
    ops: Ops,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    group: int,
    head_size: int,
    splits: int,
) -> None:
    monkeypatch.setattr(paged_decode, "choose_splits", lambda *_: splits)
    for query_lens, contexts in (DECODE, MIXED) if splits > 1 else (DECODE, MIXED, PREFILL):
        for window in (0, 20):
            batch = make_batch(
                query_lens, contexts, heads=2 * group, kv_heads=2, head_size=head_size,
                dtype=dtype, device="cuda", window=window,
            )  # fmt: skip
            check_attention(ops, batch)


def test_paged_attention_past_2_to_the_31(ops: Ops) -> None:
    blocks = (1 << 31) // (16 * 64) + 8
    cache = torch.empty(blocks, 1, 16, 64, dtype=torch.bfloat16, device="cuda")
    small = make_batch(
        [1, 2], [18, 40], heads=1, kv_heads=1, head_size=64, dtype=torch.bfloat16, device="cuda"
    )
    first = blocks - small.key_cache.shape[0]
    cache[first:] = small.key_cache
    small.value_cache = small.key_cache
    large = PagedBatch(
        small.query, cache, cache, small.block_tables + first, small.query_starts,
        small.context_lens, 2, 40, 0,
    )  # fmt: skip
    assert torch.equal(large.attend(ops.paged_attention), small.attend(ops.paged_attention))
    key = torch.ones(1, 1, 64, dtype=torch.bfloat16, device="cuda")
    ops.cache_write(key, key, cache, cache, torch.tensor([blocks * 16 - 1], device="cuda"))
    assert (cache[-1, 0, -1] == 1).all()


def test_no_op_waits_for_the_device(ops: Ops) -> None:
    batch = make_batch(*DECODE, heads=9, kv_heads=3, head_size=64, dtype=torch.bfloat16,
                       device="cuda")  # fmt: skip
    x = torch.randn(6, 576, dtype=torch.bfloat16, device="cuda")
    weight, slots = torch.ones_like(x[0]), torch.arange(6, device="cuda")
    logits = torch.randn(6, 49_152, device="cuda")
    filters = [torch.full((6,), value, device="cuda") for value in (0.8, 0.9, 0.05)]
    top_k = torch.full((6,), 40, dtype=torch.int32, device="cuda")
    key = torch.randn(6, 3, 64, dtype=torch.bfloat16, device="cuda")
    cos_sin = torch.randn(512, 64, device="cuda")

    def step() -> torch.Tensor:
        ops.rms_norm(x, weight, 1e-5, x)
        ops.layer_norm(x, weight, weight, 1e-5)
        ops.rotary(batch.query, key, slots, cos_sin)
        ops.cache_write(key, key, batch.key_cache, batch.value_cache, slots)
        batch.attend(ops.paged_attention)
        ops.gelu(ops.silu_mul(x))
        return ops.sample(logits, filters[0], top_k, filters[1], filters[2], slots, slots)

    first = step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(ops: Ops, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for width in (64, 80, 576, 4096, 8192):
        x, residual, weight, bias = (
            torch.randn(*shape, device="cuda").to(dtype)
            for shape in ((7, width), (7, width), (width,), (width,))
        )
        total = (residual.float() + x.float()).to(dtype)
        for with_residual in (False, True):
            source = total if with_residual else x
            again = residual.clone() if with_residual else None
            wanted = oracle.rms_norm(source.cpu(), weight.cpu(), 1e-5)
            assert_close(ops.rms_norm(x, weight, 1e-5, again), wanted, dtype)
            assert again is None or torch.equal(again, total)
            again = residual.clone() if with_residual else None
            wanted = oracle.layer_norm(source.cpu(), weight.cpu(), bias.cpu(), 1e-5)
            assert_close(ops.layer_norm(x, weight, bias, 1e-5, again), wanted, dtype)
            assert again is None or torch.equal(again, total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_and_activations(ops: Ops, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for heads, kv_heads, head_size, rotary_size in (
        (9, 3, 64, 64),
        (5, 1, 80, 32),
        (16, 8, 128, 128),
    ):
        qkv = torch.randn(5, heads + 2 * kv_heads, head_size, device="cuda").to(dtype)
        before, cos_sin = qkv.cpu().clone(), torch.randn(50, rotary_size)
        positions = torch.tensor([0, 49, 7, 7, 3])
        both = qkv[:, : heads + kv_heads]
        ops.rotary(both[:, :heads], both[:, heads:], positions.cuda(), cos_sin.cuda())
        assert_close(both, oracle.rotary(before[:, : heads + kv_heads], positions, cos_sin), dtype)
    x = (torch.randn(5, 3072, device="cuda") * 4).to(dtype)
    assert_close(ops.silu_mul(x), oracle.silu_mul(x.cpu()), dtype)
    assert_close(ops.gelu(x), oracle.gelu(x.cpu()), dtype)


def test_sampling_draws_what_the_cpu_draws(ops: Ops) -> None:
    """Nearly always: a logarithm's last bit may decide between two ids."""
    torch.manual_seed(0)
    rows = 256
    logits = torch.randn(rows, 50_257) * 3
    columns = [
        torch.tensor([[0.0, 0.7, 1.0, 1.5][i % 4] for i in range(rows)]),
        torch.tensor([[0, 50, 1, 5000][i // 4 % 4] for i in range(rows)], dtype=torch.int32),
        torch.tensor([[1.0, 0.9, 0.3][i % 3] for i in range(rows)]),
        torch.tensor([[0.0, 0.05][i // 16 % 2] for i in range(rows)]),
        torch.arange(rows) * 7919 - 1000,
        torch.arange(rows),
    ]
    wanted = sampling.sample_torch(logits.clone(), *columns)
    actual = ops.sample(logits.cuda(), *(column.cuda() for column in columns)).cpu()
    assert (actual != wanted).sum() <= 2
    greedy = columns[0] == 0
    assert torch.equal(actual[greedy], wanted[greedy])


def test_linear(ops: Ops) -> None:
    x, weight, bias = torch.randn(7, 64), torch.randn(96, 64) / 8, torch.randn(96)
    actual = ops.linear(x.cuda(), ops.prepare_linear(weight.cuda()), bias.cuda())
    assert_close(actual, x @ weight.T + bias, torch.float16)  # TF32 may be on

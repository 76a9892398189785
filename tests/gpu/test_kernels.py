"""The compiled Triton kernels against the oracle on a real GPU, bfloat16 included.

Attention's are in test_attention_kernels.py.

tests/kernels covers odd shapes in the interpreter; this adds what only hardware can show: bfloat16,
launches that overlap their predecessors, launches without a host sync, and graph capture.

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
from tests.kernels.tables import assert_close

from octavo_kernels import language, linear_add, rms_norm, sampling, skinny_table
from octavo_kernels.ops import Ops, SamplingRows, select_ops
from octavo_kernels.skinny_linear import Skinny

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FEW = Skinny("few", 8, 512, 4, 3, 1, 2)
DOT = Skinny("dot", 64, 128, 4, 4, 1, 2)
SPLIT = Skinny("dot", 32, 128, 4, 4, 4, 2)
HELD = FEW._replace(held=2)
FUSED = Skinny("dot", 32, 128, 4, 3, 2, 0, held=2, fused=1)
WIDE = Skinny("dot", 128, 64, 4, 4, 2, 2, tile_rows=128)
WAYS = Skinny("dot", 16, 256, 4, 2, 3, 0, held=2, ways=4)


@pytest.fixture(scope="module")
def ops() -> Ops:
    assert not language.INTERPRETED, "TRITON_INTERPRET is set"
    table = select_ops("cuda")
    assert table.name == "triton"
    return table


def sampling_rows(count: int, **values: torch.Tensor) -> SamplingRows:
    """Greedy rows, but for the columns given; one row more than `count`."""
    state = SamplingRows(
        temperature=torch.zeros(count + 1),
        top_k=torch.zeros(count + 1, dtype=torch.int32),
        top_p=torch.ones(count + 1),
        min_p=torch.zeros(count + 1),
        seeds=torch.zeros(count + 1, dtype=torch.int64),
        last_tokens=torch.zeros(count + 1, dtype=torch.int64),
    )
    for name, column in values.items():
        getattr(state, name)[:count] = column
    return state


def on_gpu(state: SamplingRows) -> SamplingRows:
    return SamplingRows(*(column.cuda() for column in state))


@pytest.mark.parametrize("rows", [1, 16])
def test_no_op_waits_for_the_device(ops: Ops, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A step's launches, eager and in a graph that is replayed ten times: the same ids."""
    monkeypatch.setattr(skinny_table, "choose", lambda *_: FEW if rows == 1 else SPLIT)
    torch.manual_seed(0)
    dtype, width, vocab = torch.bfloat16, 1024, 50_257
    table = (torch.randn(vocab, width, device="cuda")).to(dtype)
    norm = torch.ones(width, dtype=dtype, device="cuda")
    up, down = (
        (torch.randn(*shape, device="cuda") / 30).to(dtype)
        for shape in ((4 * width, width), (width, 2 * width))
    )
    up, down, head = (ops.prepare_linear(weight) for weight in (up, down, table))
    state = on_gpu(sampling_rows(rows, temperature=torch.full((rows,), 0.7)))
    index = torch.arange(rows, dtype=torch.int32, device="cuda")
    ids = torch.arange(rows, device="cuda") * 7

    def step() -> torch.Tensor:
        residual = ops.embed(ids, table, ids, None)
        for _ in range(4):
            inner = ops.norm_linear(residual, norm, None, 1e-5, up, None, "silu_mul")
            ops.linear_add(inner, down, None, residual)
        ops.layer_norm(ops.rms_norm(ops.gelu(inner), inner[0], 1e-5), inner[0], inner[0], 1e-5)
        logits = ops.norm_linear(residual, norm, norm, 1e-5, head)
        return ops.sample(logits, index, ids, state)

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
    for _ in range(10):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, first)
    assert torch.equal(state.last_tokens[:rows], first)


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
        wide = torch.randn(7, width, device="cuda") * 3
        slim = rms_norm.rms_norm_triton(wide, weight, 1e-5, out_dtype=dtype)
        assert_close(slim, oracle.rms_norm(wide.cpu(), weight.cpu(), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(ops: Ops, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(5, 3072, device="cuda") * 4).to(dtype)
    assert_close(ops.silu_mul(x), oracle.silu_mul(x.cpu()), dtype)
    assert_close(ops.gelu(x), oracle.gelu(x.cpu()), dtype)


def test_embed(ops: Ops) -> None:
    table, places = (torch.randn(n, 1280, device="cuda").half() for n in (999, 50))
    ids, positions = torch.tensor([998, 0, 7], device="cuda"), torch.tensor([0, 49, 3]).cuda()
    actual = ops.embed(ids, table, positions, places)
    assert torch.equal(actual, table[ids].float() + places[positions].float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aligned", [True, False])
def test_sampling_draws_what_the_cpu_draws(ops: Ops, dtype: torch.dtype, aligned: bool) -> None:
    """Nearly always: a logarithm's last bit may decide between two ids."""
    torch.manual_seed(0)
    count = 256
    logits = (torch.randn(count, 49_152 if aligned else 50_257) * 3).to(dtype)
    state = sampling_rows(
        count,
        temperature=torch.tensor([[0.0, 0.7, 1.0, 1.5][i % 4] for i in range(count)]),
        top_k=torch.tensor([[0, 50, 1, 5000][i // 4 % 4] for i in range(count)]).int(),
        top_p=torch.tensor([[1.0, 0.9, 0.3][i % 3] for i in range(count)]),
        min_p=torch.tensor([[0.0, 0.05][i // 16 % 2] for i in range(count)]),
        seeds=torch.arange(count) * 7919 - 1000,
    )
    rows = torch.arange(count, dtype=torch.int32)
    places = torch.arange(count)
    mine = on_gpu(state)
    actual = ops.sample(logits.cuda(), rows.cuda(), places.int().cuda(), mine).cpu()
    wanted = sampling.sample_torch(logits, rows, places, state)
    assert (actual != wanted).sum() <= 2
    greedy = state.temperature[:count] == 0
    assert torch.equal(actual[greedy], wanted[greedy])
    assert torch.equal(mine.last_tokens[:count].cpu(), actual)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_from_flat_logits(ops: Ops, dtype: torch.dtype) -> None:
    """Nuclei of most of the vocabulary, in a batch and alone, replayed: the same ids as on a CPU,
    but for a sum's or a logarithm's last bit."""
    torch.manual_seed(0)
    count, vocab = 96, 151_936
    logits = (torch.randn(count, vocab) * 0.3).to(dtype)
    state = sampling_rows(
        count,
        temperature=torch.tensor([[0.6, 1.0, 1.5][i % 3] for i in range(count)]),
        top_p=torch.tensor([[0.95, 0.5, 0.1, 0.999999][i // 3 % 4] for i in range(count)]),
        min_p=torch.tensor([[0.0, 0.3][i // 12 % 2] for i in range(count)]),
        seeds=torch.arange(count) * 31 + 5,
    )
    rows, places = torch.arange(count, dtype=torch.int32), torch.arange(count)
    wanted = sampling.sample_torch(logits, rows, places, state)
    mine, many = on_gpu(state), logits.cuda()
    rows, places = rows.cuda(), places.cuda()
    actual = ops.sample(many, rows, places, mine)
    assert (actual.cpu() != wanted).sum() <= 2
    assert torch.equal(mine.last_tokens[:count], actual)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.sample(many, rows, places, mine)
    for _ in range(20):
        graph.replay()
        assert torch.equal(captured, actual)
    alone = [
        int(ops.sample(many[i : i + 1], rows[i : i + 1], places[i : i + 1], mine))
        for i in range(0, count, 5)
    ]
    assert (actual[::5].cpu() != torch.tensor(alone)).sum() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [None, FEW, HELD, DOT, SPLIT, FUSED, WAYS, WIDE], ids=str)
@pytest.mark.parametrize("activation", [None, "silu_mul", "gelu"])
def test_products(
    ops: Ops,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    config: Skinny | None,
    activation: str | None,
) -> None:
    """norm_linear and linear_add in each of their forms; outputs are no multiple of a tile.

    The normed residual is rounded to dtype in front of the product, here as there.
    """
    monkeypatch.setattr(skinny_table, "choose", lambda *_: config)
    torch.manual_seed(0)
    outs, ins = 1000, 1056

    def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device="cuda") * scale).to(dtype)

    activated = getattr(oracle, activation) if activation else torch.Tensor.float
    weight, bias = randn(outs, ins, scale=0.03), randn(outs)
    norm_weight, norm_bias = randn(ins), randn(ins)
    few = config is not None and config.kind == "few"
    for rows in (1, 2, 3, 4) if few else (65, 200, 256) if config is WIDE else (1, 7, 16, 33, 64):
        residual = torch.randn(rows, ins, device="cuda") * 3 + 1
        normed = oracle.rms_norm(residual.cpu(), norm_weight.cpu(), 1e-5).to(dtype).float()
        wanted = activated(normed @ weight.cpu().float().T)
        actual = ops.norm_linear(residual, norm_weight, None, 1e-5, weight, None, activation)
        assert_close(actual, wanted, dtype)
        normed = oracle.layer_norm(residual.cpu(), norm_weight.cpu(), norm_bias.cpu(), 1e-5)
        wanted = activated(normed.to(dtype).float() @ weight.cpu().float().T + bias.cpu().float())
        actual = ops.norm_linear(residual, norm_weight, norm_bias, 1e-5, weight, bias, activation)
        assert_close(actual, wanted, dtype)
        x = randn(rows, ins)
        product = x.cpu().float() @ weight.cpu().float().T
        stream = torch.randn(rows, outs, device="cuda")
        wanted = stream.cpu() + product + bias.cpu().float()
        ops.linear_add(x, weight, bias, stream)
        assert_close(stream, wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cublas_adds_to_a_float32_residual(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for rows in (1, 100, 300):
        x = torch.randn(rows, 512, device="cuda").to(dtype)
        weight = (torch.randn(384, 512, device="cuda") / 20).to(dtype)
        residual = torch.randn(rows, 384, device="cuda")
        wanted = residual + x.float() @ weight.float().T
        linear_add.accumulate_cublas(residual, x, weight)
        torch.testing.assert_close(residual, wanted, atol=1e-3, rtol=1e-3)


def test_linear(ops: Ops) -> None:
    x, weight, bias = torch.randn(7, 64), torch.randn(96, 64) / 8, torch.randn(96)
    actual = ops.linear(x.cuda(), ops.prepare_linear(weight.cuda()), bias.cuda())
    assert_close(actual, x @ weight.T + bias, torch.float16)  # TF32 may be on

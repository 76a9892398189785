"""Every kernel once, at a shape that fits nothing: what compute-sanitizer watches.

    python tests/gpu/one_launch_each.py              # prints the kernels it launched
    python tests/gpu/one_launch_each.py --plant      # one key is written past the cache's end

Odd head sizes, three heads to a key, ragged contexts in NaN pages, a vocabulary and widths that no
tile divides. Run by test_sanitizer.py. PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor memory of
its own: inside a block of torch's cache an overrun would hit a neighbour and go unseen. Without a
GPU it runs in Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("server", "kernels"))]

# ruff: noqa: E402
import torch
from tests.kernels.paged_batch import PagedBatch, make_batch
from tests.kernels.peers_alone import PeersAlone
from tests.kernels.shared_batch import make_shared_batch
from tests.kernels.test_step_inputs import BLOCK_SIZE, CASES, Device, pack

import octavo_kernels
from octavo_kernels import attention_plan, linear_add, skinny_table
from octavo_kernels.ops import Ops, SamplingRows, _triton_ops
from octavo_kernels.peer_sum import sum_blocks, sum_words
from octavo_kernels.skinny_linear import Skinny
from octavo_kernels.tiles import Parts, Sharing

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPE = torch.bfloat16 if ON_GPU else torch.float16  # the interpreter has no bfloat16 products
ENTRY = "_kernel"
"""How the name of a kernel that is launched ends; what it calls is named otherwise."""

HEADS, KV_HEADS, HEAD_SIZE, ROTARY = 9, 3, 80, 32
# The interpreter only shows that the script works: as little as reaches every kernel.
OUTS, INS = (1002, 1064) if ON_GPU else (22, 264)
VOCAB = 50_257 if ON_GPU else 1003
DECODE = ([1] * 5, [1, 15, 17, 300 if ON_GPU else 40, 67])
MIXED = ([1, 0, 5, 41, 1], [200, 4, 70, 41, 65]) if ON_GPU else ([1, 0, 5], [40, 4, 20])
PRODUCTS = [
    (Skinny("few", 8, 512, 4, 3, 1, 2), 3),
    (Skinny("few", 8, 512, 4, 3, 1, 2, held=2), 1),
    (Skinny("dot", 64, 128, 4, 4, 1, 2), 7),
    (Skinny("dot", 32, 128, 4, 4, 4, 2), 17),
    (Skinny("dot", 32, 128, 4, 3, 2, 0, held=2, fused=1), 33),
    (Skinny("dot", 16, 256, 4, 2, 3, 0, held=2, ways=4), 7),
    (Skinny("dot", 64, 64, 4, 3, 2, 2, tile_rows=128), 150),
]


def randn(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return (torch.randn(*shape) / 8).to(DEVICE, dtype)


def ints(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def norms_and_activations(ops: Ops) -> None:
    for width in (80, 1002):
        x, residual = randn(7, width), randn(7, width)
        ops.rms_norm(x, randn(width), 1e-5, residual)
        ops.layer_norm(x, randn(width), randn(width), 1e-5, residual)
        ops.silu_mul(randn(7, 2 * width))
        ops.gelu(x)
    ops.embed(ints(998, 0, 7), randn(999, 1002), ints(0, 49, 3), randn(50, 1002))
    linear_add.add_triton(randn(7, OUTS, dtype=torch.float32), randn(7, OUTS))


def rotary_and_cache(ops: Ops) -> None:
    tokens = 5
    positions, slots = ints(0, 49, 7, 7, 3), ints(0, 47, -1, 16, 31)
    cos_sin = randn(50, ROTARY, dtype=torch.float32)
    caches = [randn(3, KV_HEADS, 16, HEAD_SIZE) for _ in range(2)]

    def parts() -> tuple[torch.Tensor, ...]:
        qkv = randn(tokens, HEADS + 2 * KV_HEADS, HEAD_SIZE)
        return qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)

    query, key, value = parts()
    ops.rotary(query, key, positions, cos_sin)
    ops.cache_write(key, value, *caches, slots)
    norms = randn(HEAD_SIZE), randn(HEAD_SIZE)
    ops.rotary_cache(*parts(), *caches, slots, positions, cos_sin, *norms, 1e-6)
    ops.rotary_cache(*parts(), *caches, slots, positions, cos_sin)


def attention(ops: Ops) -> None:
    """Contexts cut into parts, in the kernels and by the step's plan; with a window and without."""
    planner = staticmethod(ops.plan_attention)
    with mock.patch.object(attention_plan, "PARTS", Parts(min_keys=16)):
        for query_lens, contexts in (DECODE, MIXED):
            for window in (0, 20):
                batch = make_batch(
                    query_lens, contexts, heads=HEADS, kv_heads=KV_HEADS, head_size=HEAD_SIZE,
                    dtype=DTYPE, device=DEVICE, window=window,
                )  # fmt: skip
                for planned in (None, planner):
                    with mock.patch.object(PagedBatch, "planner", planned):
                        found = batch.attend(ops.paged_attention)
                    assert not found.isnan().any(), "attention read what it must not"


def shared_prefixes(ops: Ops) -> None:
    """Two groups that begin with the same pages, a loner beside them."""
    sharing = Sharing(1, mixed_seqs=1, rows=2, keys=16, saved_keys=1, min_keys=32, multiple=16)
    with (
        mock.patch.object(attention_plan, "PARTS", Parts(min_keys=16)),
        mock.patch.object(attention_plan, "SHARING", sharing),
    ):
        batch, _ = make_shared_batch(
            [(3, [1, 17, 5]), (2, [33, 2])], [50], heads=HEADS, kv_heads=KV_HEADS,
            head_size=HEAD_SIZE, dtype=DTYPE, device=DEVICE,
        )  # fmt: skip
        with mock.patch.object(PagedBatch, "planner", staticmethod(ops.plan_attention)):
            found = batch.attend(ops.paged_attention)
        assert not found.isnan().any(), "attention read what it must not"


def products(ops: Ops) -> None:
    weight, bias = randn(OUTS, INS), randn(OUTS)
    norm_weight, norm_bias = randn(INS), randn(INS)
    for config, rows in PRODUCTS:
        with mock.patch.object(skinny_table, "choose", lambda *_, found=config: found):
            residual = randn(rows, INS, dtype=torch.float32)
            ops.norm_linear(residual, norm_weight, None, 1e-5, weight, None, "silu_mul")
            ops.norm_linear(residual, norm_weight, norm_bias, 1e-5, weight, bias, "gelu")
            stream = randn(rows, OUTS, dtype=torch.float32)
            ops.linear_add(randn(rows, INS), weight, bias, stream)


def sampling(ops: Ops) -> None:
    rows = 5
    state = SamplingRows(
        temperature=torch.tensor([0.0, 0.7, 1.0, 1.5, 0.7, 0.0], device=DEVICE),
        top_k=ints(0, 50, 0, 5000, 1, 0, dtype=torch.int32),
        top_p=torch.tensor([1.0, 0.9, 0.3, 1.0, 0.9, 1.0], device=DEVICE),
        min_p=torch.tensor([0.0, 0.0, 0.05, 0.0, 0.05, 0.0], device=DEVICE),
        seeds=ints(1, 2, 3, 4, 5, 6),
        last_tokens=ints(0, 0, 0, 0, 0, 0),
    )
    index = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    drawn = ops.sample(randn(rows, VOCAB), index, index.long(), state)
    assert ((drawn >= 0) & (drawn < VOCAB)).all()
    # Slices of a vocabulary are drawn from where no row has a filter.
    plain = state._replace(
        top_k=torch.zeros_like(state.top_k),
        top_p=torch.ones_like(state.top_p),
        min_p=torch.zeros_like(state.min_p),
    )
    halves = randn(rows, VOCAB).split([VOCAB // 2, VOCAB - VOCAB // 2], dim=1)
    candidates = torch.stack(
        [
            ops.best_of_slice(half, index, index.long(), plain, first_id)
            for half, first_id in zip(halves, (0, VOCAB // 2), strict=True)
        ]
    )
    drawn = ops.best_of_all(candidates, index, plain)
    assert ((drawn >= 0) & (drawn < VOCAB)).all()


def step_inputs(ops: Ops) -> None:
    seqs, seq_cap, token_cap = CASES["mixed"]
    device = Device("triton", seqs, token_cap + 1)
    ops.step_inputs(
        pack(seqs).to(DEVICE), device.buffers, device.tables, device.state,
        block_size=BLOCK_SIZE, seq_cap=seq_cap, token_cap=token_cap,
    )  # fmt: skip


def sums_of_ranks(_: Ops) -> None:
    """One rank of two; what the other one sends is there already."""
    alone = PeersAlone(0, 2, DEVICE)
    parts = [randn(1002) for _ in range(2)]
    for kind, launch in (("words", sum_words), ("blocks", sum_blocks)):
        alone.send(kind, parts)
        launch(alone.peers, parts[0], torch.zeros(1002, device=DEVICE), True)


LAUNCHES: list[Callable[[Ops], None]] = [
    norms_and_activations, rotary_and_cache, attention, shared_prefixes, products, sampling,
    step_inputs, sums_of_ranks,
]  # fmt: skip


def plant(ops: Ops) -> None:
    """A key written into the first slot behind the cache. For compute-sanitizer only: without it
    the memory of something else may be overwritten.
    """
    caches = [randn(3, KV_HEADS, 16, HEAD_SIZE) for _ in range(2)]
    key = randn(1, KV_HEADS, HEAD_SIZE)
    ops.cache_write(key, key, *caches, ints(3 * 16))


def kernels() -> dict[str, Any]:
    """Every kernel of the package that is launched, by name."""
    names = [module.name for module in pkgutil.iter_modules(octavo_kernels.__path__)]
    modules = [importlib.import_module(f"octavo_kernels.{name}") for name in names]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.endswith(ENTRY) and hasattr(value, "run")
    }


def main() -> None:
    ops = _triton_ops(interpreted=not ON_GPU)
    torch.manual_seed(0)
    if sys.argv[1:] == ["--plant"]:
        plant(ops)
        torch.cuda.synchronize()
        return
    every = kernels()
    launched: set[str] = set()
    for name, kernel in every.items():

        def run(*args: Any, name: str = name, original: Any = kernel.run, **options: Any) -> Any:
            launched.add(name)
            return original(*args, **options)

        kernel.run = run
    for launch in LAUNCHES:
        launch(ops)
        if ON_GPU:
            torch.cuda.synchronize()  # a fault belongs to these
    if missing := sorted(set(every) - launched):
        sys.exit(f"never launched: {', '.join(missing)}")
    print(f"launched {len(launched)} kernels: {', '.join(sorted(launched))}")


if __name__ == "__main__":
    main()

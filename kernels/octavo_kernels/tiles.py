"""How attention work is cut for the GPU: a pure function of numbers the host knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .language import Variant, next_power_of_2

# Above this many query tokens per sequence a batch counts as prefill and gets tall tiles.
_SHORT_QUERY = 8


@dataclass(frozen=True, slots=True)
class Tiles:
    constants: dict[str, int | bool]  # the kernels' tl.constexpr sizes
    warps: int
    stages: int


def choose_tiles(
    max_query_len: int, group: int, head_size: int, element_bytes: int, has_window: bool
) -> Tiles:
    """Tile sizes for `group` query heads per kv head of head_size.

    Shared memory holds a query tile and `stages` key and value tiles; the widest combination here
    stays under the 163 KiB of sm_80 (tests/kernels/test_compile.py compiles them all).
    """
    head_pad = max(16, next_power_of_2(head_size))
    block_m = max(16, next_power_of_2(group))  # tl.dot wants 16 rows
    tile, warps, stages = 32, 4, 3
    row_bytes = head_pad * element_bytes
    if element_bytes == 4:
        # Exact float32 products run on the plain cores and unroll into registers: taller or wider
        # tiles spill kilobytes a thread (17 KiB at 64 x 32), also on sm_90.
        tile, stages = 16, 2
    elif max_query_len > _SHORT_QUERY:
        block_m = max(block_m, 64)
        tile = 64 if row_bytes <= 256 else 32
    if row_bytes >= 512:
        stages = 2
    if block_m * head_pad > 64 * 128:
        warps = 8  # the float32 accumulator no longer fits in four warps' registers
    return Tiles(
        constants={
            "HEAD_PAD": head_pad,
            "GROUP": group,
            "BLOCK_Q": block_m // group,
            "BLOCK_M": block_m,
            "TILE": tile,
            "HAS_WINDOW": has_window,
            "FULL_PRECISION": element_bytes == 4,
        },
        warps=warps,
        stages=stages,
    )


_ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# dtype, head size, query heads per kv head, sliding window: few, but each tile shape is among them.
_SHAPES = (
    ("bf16", 64, 3, False),
    ("bf16", 64, 1, True),
    ("bf16", 80, 5, False),
    ("bf16", 128, 8, False),
    ("bf16", 256, 8, True),
    ("fp16", 128, 1, False),
    ("fp16", 256, 3, False),
    ("fp32", 64, 3, False),
    ("fp32", 80, 5, True),
    ("fp32", 128, 8, False),
    ("fp32", 256, 1, False),
)


def attention_variants(
    name: str, kernel: Any, query_lens: dict[str, int], outputs: dict[str, str], **constants: int
) -> list[Variant]:
    """Variants of a kernel that takes `outputs` (name -> type, "{}" for query's) and then query,
    caches and tables; `query_lens`: label -> max_query_len."""
    found = []
    for dtype, head_size, group, has_window in _SHAPES:
        for label, query_len in query_lens.items():
            tiles = choose_tiles(query_len, group, head_size, _ELEMENT_BYTES[dtype], has_window)
            tensors = {key: kind.format(dtype) for key, kind in outputs.items()}
            tensors |= dict.fromkeys(("query", "key_cache", "value_cache"), f"*{dtype}")
            tables = dict.fromkeys(("block_tables", "query_starts", "context_lens"), "*i32")
            numbers = {"seqs": "i32", "scale_log2": "fp32", "window": "i32"}
            strides = [key for key in kernel.arg_names if key.startswith("stride_")]
            found.append(
                Variant(
                    name=f"{name} {label} {dtype} head {head_size} group {group}"
                    + " window" * has_window,
                    kernel=kernel,
                    signature={**tensors, **tables, **numbers, **dict.fromkeys(strides, "i64")},
                    constants={
                        "BLOCK_SIZE": 16, "HEAD_SIZE": head_size, **tiles.constants, **constants
                    },
                    divisible=(*tensors, *tables, *strides),
                    warps=tiles.warps,
                    stages=tiles.stages,
                )
            )  # fmt: skip
    return found

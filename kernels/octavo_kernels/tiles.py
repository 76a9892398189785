"""How attention work is cut for the GPU: a pure function of numbers the host knows."""

from __future__ import annotations

from dataclasses import dataclass

from .language import next_power_of_2

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
    if max_query_len > _SHORT_QUERY:
        block_m = max(block_m, 64)
        tile = 64 if row_bytes <= 256 else 32
    if row_bytes >= 512:
        stages = 2
    if row_bytes >= 1024:  # float32, head size 256
        tile, stages = 16, 2
        block_m = max(16, next_power_of_2(group))
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

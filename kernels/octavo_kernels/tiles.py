"""How attention work is cut for the GPU: pure functions of numbers the host knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .language import Variant, next_power_of_2


@dataclass(frozen=True, slots=True)
class Tiles:
    block_m: int  # rows of a query tile: tokens x query heads of one kv head
    tile: int  # keys of a tile
    warps: int
    stages: int
    # Decode with one query head per kv head: products on the plain cores, straight from memory.
    plain: bool = False
    # Decode: a tile's pages are looked up while the tile before it is computed.
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """How decode cuts keys into parts; the number of parts is decided on the device."""

    # Programs with work per multiprocessor: several waves even out their ends.
    programs: int = 8
    # Keys that make a part worth its join.
    min_keys: int = 256
    # Planned parts are whole tiles.
    multiple: int = 64


def decode_tiles(group: int, head_size: int, element_bytes: int) -> Tiles:
    """Tile sizes of the decode kernel for `group` query heads per kv head."""
    block_m = max(16, next_power_of_2(group))  # tl.dot wants 16 rows
    row_bytes = max(16, next_power_of_2(head_size)) * element_bytes
    if element_bytes == 4:
        # Exact float32 products run on the plain cores and unroll into registers.
        return Tiles(block_m, 16, 4, 2)
    if row_bytes >= 512:
        return Tiles(block_m, 32, 4, 2)
    return Tiles(block_m, 64 if row_bytes <= 128 else 32, 4, 4)


def prefill_tiles(
    group: int, head_size: int, element_bytes: int, max_query_len: int = 1 << 20
) -> Tiles:
    """Tile sizes of the prefill kernel.

    Shared memory holds a query tile and `stages` key and value tiles; the widest combination here
    stays under the 163 KiB of sm_80 (tests/kernels/test_compile.py compiles them all).
    """
    head_pad = max(16, next_power_of_2(head_size))
    if element_bytes == 4:
        # Taller or wider tiles spill kilobytes a thread (17 KiB at 64 x 32), also on sm_90.
        return Tiles(max(16, next_power_of_2(group)), 16, 8 if head_pad >= 256 else 4, 2)
    rows = next_power_of_2(min(max_query_len, 128) * group)
    if rows <= 64:  # short queries: a taller tile would be padding
        return Tiles(max(16, next_power_of_2(group), rows), 64 if head_pad <= 128 else 32, 4, 2)
    block_m = max(128, next_power_of_2(group))
    if head_pad >= 256:  # 128 rows spill on sm_80
        return Tiles(max(64, next_power_of_2(group)), 32, 8, 2)
    return Tiles(block_m, 64, 8, 3)


def sizes(
    tiles: Tiles, group: int, head_size: int, block_size: int, element_bytes: int, window: int
) -> dict[str, Any]:
    """The tl.constexpr arguments that both kernels take."""
    return {
        "BLOCK_SIZE": block_size,
        "HEAD_SIZE": head_size,
        "HEAD_PAD": max(16, next_power_of_2(head_size)),
        "GROUP": group,
        "BLOCK_M": tiles.block_m,
        "TILE": tiles.tile,
        "HAS_WINDOW": window > 0,
        "FULL_PRECISION": element_bytes == 4,
    }


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
    name: str, kernel: Any, choose: Any, tensors: dict[str, str], more: dict[str, Any]
) -> list[Variant]:
    """Variants of an attention kernel; `choose` is one of the two functions above, `tensors` has
    the types of the tensors that the other kernel lacks, `more` its own tl.constexpr arguments."""
    found = []
    for dtype, head_size, group, has_window in _SHAPES:
        width = _ELEMENT_BYTES[dtype]
        tiles = choose(group, head_size, width)
        pointers = dict.fromkeys(("out", "query", "key_cache", "value_cache"), f"*{dtype}")
        pointers |= dict.fromkeys(
            ("block_tables", "rows", "query_starts", "context_lens"), "*i32"
        ) | tensors  # fmt: skip
        constants = sizes(tiles, group, head_size, 16, width, int(has_window)) | more
        strides = [key for key in kernel.arg_names if key.startswith("stride_")]
        numbers = [key for key in kernel.arg_names if key not in {*pointers, *constants, *strides}]
        found.append(
            Variant(
                name=f"{name} {dtype} head {head_size} group {group}" + " window" * has_window,
                kernel=kernel,
                signature={
                    **pointers,
                    **{key: "fp32" if key == "scale_log2" else "i32" for key in numbers},
                    **dict.fromkeys(strides, "i64"),
                },
                constants=constants,
                divisible=(*pointers, *strides),
                warps=tiles.warps,
                stages=tiles.stages,
            )
        )
    return found

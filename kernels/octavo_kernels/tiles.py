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

    # Programs with work per multiprocessor: as many as run at once (H100: 2 to 8 within 2%).
    programs: int = 4
    # Of this many sequences and more, whose contexts are uneven as a rule: 64 x 200 to 1,900 tokens
    # take 103 us instead of 109; 32 x 600 would take 41 instead of 36.
    many_seqs: int = 48
    many_programs: int = 6
    # Keys that make a part worth its join.
    min_keys: int = 128
    # Planned parts are whole tiles.
    multiple: int = 64


@dataclass(frozen=True, slots=True)
class Sharing:
    """When decode reads keys that sequences share once for all of them, and how it cuts them."""

    # Steps of fewer sequences never look: a launch more, though empty, is about 1 us a layer.
    seqs: int = 16
    # Likewise steps with prompts in them, whose graphs provide for 64 sequences as a rule: nothing
    # for the one prompt whose first token somebody waits for.
    mixed_seqs: int = 65
    # A group saves all readings but one; below these it saves less than its parts' join costs.
    rows: int = 4
    keys: int = 256
    # Keys that the batch need not read again, together: at 4 KiB each (8 kv heads of 128) out of
    # the L2 cache they take about 6 us, as long as the kernel takes to read few keys once.
    saved_keys: int = 8192
    # Keys that make a part worth its join, as in Parts.
    min_keys: int = 128
    # Parts are whole tiles.
    multiple: int = 64


# Contexts up to here count as short.
SHORT_CONTEXT = 4096
# Sequences up to here leave most of the device idle: their time is latency, not bytes.
FEW_SEQUENCES = 4
# From here on reading keys and values is bound by memory at any context.
MANY_SEQUENCES = 48


def decode_tiles(
    group: int,
    head_size: int,
    element_bytes: int,
    num_decodes: int = 1 << 20,
    max_context_len: int = 1 << 20,
) -> Tiles:
    """Tile sizes of the decode kernel for `group` query heads per kv head.

    As swept on an H100 (`benchmarks/kernels/paged_decode.py`), bf16, head 128, us for
    1 x 600 tokens / 1 x 32k / 32 x 600 / 256 x 640: tiles of 128 keys 7 / 86 / 48 / 253, of 64
    9 / 62 / 36 / 229, of 32 by single warps 12 / 55 / 36 / 228.
    """
    block_m = max(16, next_power_of_2(group))  # tl.dot wants 16 rows
    row_bytes = max(16, next_power_of_2(head_size)) * element_bytes
    if element_bytes == 4:
        # Exact float32 products run on the plain cores and unroll into registers.
        return Tiles(block_m, 16, 4, 2)
    if row_bytes >= 512:
        return Tiles(block_m, 32, 4, 2)
    if group == 1 and row_bytes <= 128:
        return Tiles(block_m, 32, 2, 1, plain=True)
    if group <= 2 and num_decodes >= MANY_SEQUENCES:
        return Tiles(block_m, 64, 4, 2)  # 256 x 662: 234 us, 238 by 2 warps; groups of 8 are slower
    if num_decodes > FEW_SEQUENCES:
        return Tiles(block_m, 64, 2, 2)
    if max_context_len > SHORT_CONTEXT:
        return Tiles(block_m, 32, 1, 4)
    return Tiles(block_m, 128, 4, 1)


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
    if head_pad >= 256:  # 128 rows spill on sm_80
        return Tiles(max(64, next_power_of_2(group)), 32, 8, 2)
    if group == 1 and head_pad <= 64:  # 50 prompts of 16 tokens: 13 us, 32 at 128 rows
        return Tiles(64, 64, 4, 2)
    if head_size < 128:  # the taller tile spills on sm_80 where it is padded
        return Tiles(max(128, next_power_of_2(group)), 64, 8, 3)
    if max_query_len <= SHORT_CONTEXT // 4:
        return Tiles(max(128, next_power_of_2(group)), 32, 4, 3)  # 16 x 512: 171 us
    return Tiles(max(256, next_power_of_2(group)), 64, 8, 3)  # 8k: 1,282 us, 1,471 at 128 rows


def shared_tiles(group: int, head_size: int, element_bytes: int, num_decodes: int) -> Tiles:
    """Tile sizes of the kernel for shared keys; `block_m // group` sequences share a tile.

    Taller tiles read the keys less often; 128 rows of 8 warps fill a multiprocessor, 64 of 4 half.
    """
    widest = next_power_of_2(group)
    if element_bytes == 4:
        return Tiles(max(16, widest), 16, 4, 2)  # as in decode_tiles
    if max(16, next_power_of_2(head_size)) >= 256:
        return Tiles(max(64, widest), 32, 8, 2)  # by 4 warps it spills
    if num_decodes * group <= 64:
        return Tiles(max(64, widest), 64, 4, 3)
    return Tiles(max(128, widest), 64, 8, 3)


# Sequences that a program looks at to find its own: classes, because each is compiled.
SEQ_CLASSES = (16, 128, 512)


def seqs_pad(seqs: int) -> int:
    return next((size for size in SEQ_CLASSES if size >= seqs), next_power_of_2(seqs))


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
        # One of them has no window, and finds its tensors otherwise.
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        pointers = {key: value for key, value in pointers.items() if key in kernel.arg_names}
        strides = [key for key in kernel.arg_names if key.startswith("stride_")]
        numbers = [key for key in kernel.arg_names if key not in {*pointers, *constants, *strides}]
        found.append(
            Variant(
                name=f"{name} {dtype} head {head_size} group {group}"
                + " window" * ("HAS_WINDOW" in constants and has_window),
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

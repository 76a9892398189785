"""paged_attention against the oracle: torch on CPU, Triton in the interpreter (or on a GPU)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from octavo_kernels import attention_plan, paged_decode
from octavo_kernels.ops import PagedAttention
from octavo_kernels.tiles import Parts, Tiles

from .paged_batch import PagedBatch, make_batch
from .tables import DEVICES, assert_close, table

# heads, kv heads, head size, block size, dtype: groups of 1, 3, 5, 8; every head size.
SHAPES = {
    "group 1 head 64": (2, 2, 64, 16, torch.float32),
    "group 1 head 64, half": (2, 2, 64, 16, torch.float16),
    "group 3 head 64": (9, 3, 64, 16, torch.float16),
    "group 5 head 80": (5, 1, 80, 16, torch.float32),
    "group 8 head 128": (16, 2, 128, 32, torch.float16),
    "group 3 head 256": (3, 1, 256, 16, torch.float32),
    "block size 8": (5, 1, 64, 8, torch.float16),
}
# query lengths, context lengths: around the edges of pages (16) and of key tiles (16, 32, 64).
BATCHES = {
    "decode": ([1] * 7, [1, 15, 16, 17, 33, 64, 65]),
    "mixed": ([1, 0, 5, 17, 1, 2], [70, 4, 5, 33, 16, 49]),
    "prefill": ([16, 0, 35], [16, 0, 35]),
}
OPS = ("torch", "triton", "triton split", "triton planned split")


@pytest.fixture(params=OPS)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the table; "triton split" cuts keys into about 12 parts of 16 or more."""
    name: str = request.param
    if "split" in name:
        monkeypatch.setattr(attention_plan, "PARTS", Parts(12, min_keys=16, multiple=16))
        monkeypatch.setattr(attention_plan, "multiprocessors", lambda _: 1)
    if "planned" in name:
        monkeypatch.setattr(PagedBatch, "planner", staticmethod(table("triton").plan_attention))
    return name.split()[0]


def op_of(where: str) -> PagedAttention:
    return table(where).paged_attention


def check(where: str, batch: PagedBatch) -> None:
    used = int(batch.query_starts[-1])
    actual = batch.attend(op_of(where))
    assert actual.shape == batch.query.shape
    assert actual.dtype == batch.query.dtype
    assert_close(actual[:used], batch.expected()[:used], batch.query.dtype)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_oracle(where: str, shape: str, kind: str) -> None:
    heads, kv_heads, head_size, block_size, dtype = SHAPES[shape]
    query_lens, contexts = BATCHES[kind]
    if kind == "prefill" and where == "triton" and shape != "block size 8":
        query_lens, contexts = [17], [17]  # the interpreter is slow, the loop is the same
    batch = make_batch(
        query_lens, contexts, heads=heads, kv_heads=kv_heads, head_size=head_size,
        block_size=block_size, dtype=dtype, device=DEVICES[where],
    )  # fmt: skip
    check(where, batch)


@pytest.mark.parametrize("window", [1, 16, 20, 100])
@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_sliding_window(where: str, kind: str, window: int) -> None:
    query_lens, contexts = BATCHES[kind]
    batch = make_batch(
        query_lens, contexts, heads=3, kv_heads=1, head_size=64, window=window,
        device=DEVICES[where],
    )  # fmt: skip
    check(where, batch)


def test_padded_tail(where: str) -> None:
    """Rows without queries at the end, and query tokens that belong to no row."""
    batch = make_batch(
        [1, 1, 0, 0], [18, 3, 0, 0], heads=3, kv_heads=3, head_size=64, padding_tokens=2,
        device=DEVICES[where],
    )  # fmt: skip
    check(where, batch)


def test_nothing_to_do(where: str) -> None:
    batch = make_batch([], [], heads=3, kv_heads=3, head_size=64, device=DEVICES[where])
    assert batch.attend(op_of(where)).shape == (0, 3, 64)


def test_bounds_may_be_loose(where: str) -> None:
    """Captured graphs launch with bounds far above the batch's own."""
    batch = make_batch([1, 3], [20, 5], heads=3, kv_heads=1, head_size=64, device=DEVICES[where])
    batch.max_query_len, batch.max_context_len, batch.num_decodes = 40, 4096, 2
    check(where, batch)


def test_decodes_between_others(where: str) -> None:
    """Only the first num_decodes can be decodes; not each of them is one."""
    batch = make_batch(
        [3, 1, 0, 1, 2, 7], [30, 20, 0, 65, 2, 9], heads=6, kv_heads=2, head_size=64,
        device=DEVICES[where],
    )  # fmt: skip
    assert batch.num_decodes == 4
    check(where, batch)


def test_uneven_contexts(where: str) -> None:
    """One long row beside short ones: some are cut into parts, some are not, again and again (the
    counters must be zero after each launch)."""
    batch = make_batch(
        [1] * 20, [1, 300, 2, 17] * 5, heads=4, kv_heads=2, head_size=32, device=DEVICES[where]
    )
    check(where, batch)
    check(where, batch)
    assert not any(each.any() for kept in paged_decode._counters.values() for each in kept)


def test_padded_rows_of_a_graph(where: str) -> None:
    """Rows of one query token and no context at all: their output is whatever was there."""
    batch = make_batch(
        [1, 1, 1], [40, 1, 17], heads=3, kv_heads=1, head_size=64, device=DEVICES[where]
    )
    batch.context_lens[1] = 0
    if where == "torch":
        pytest.skip("no graphs on CPU, no padded rows")
    out = torch.full_like(batch.query, 7.0)
    batch.attend(op_of(where), out=out)
    assert (out[1] == 7).all()
    batch.context_lens[1] = 1
    assert_close(out[::2], batch.expected()[::2], torch.float32)


def test_out_is_filled_and_returned(where: str) -> None:
    batch = make_batch([1, 2], [20, 5], heads=3, kv_heads=1, head_size=64, device=DEVICES[where])
    out = torch.full((3, 2, 3, 64), 7.0, device=DEVICES[where])[:, 1]  # strided
    assert batch.attend(op_of(where), out=out) is out
    assert_close(out, batch.expected(), torch.float32)


def test_row_does_not_depend_on_its_batch() -> None:
    """Bit for bit where nothing is cut: alone, or beside longer and shorter rows."""
    op = table("triton").paged_attention
    batch = make_batch(
        [1, 1, 1], [40, 7, 20], heads=3, kv_heads=1, head_size=64, device=DEVICES["triton"]
    )
    together = batch.attend(op)
    for row in range(3):
        alone = replace(
            batch, query=batch.query[row : row + 1], rows=batch.rows[row : row + 1],
            query_starts=batch.query_starts[:2], context_lens=batch.context_lens[row : row + 1],
            num_decodes=1,
        )  # fmt: skip
        assert torch.equal(alone.attend(op)[0], together[row])


@pytest.mark.parametrize("query_lens", [[1] * 40, [70, 1, 1, 300]], ids=["decode", "prefill"])
def test_torch_groups_and_tiles(monkeypatch: pytest.MonkeyPatch, query_lens: list[int]) -> None:
    """The CPU path's cuts: lengths far apart, a small gather limit, several query tiles."""
    from octavo_kernels import paged_attention

    monkeypatch.setattr(paged_attention, "_GROUP_ELEMENTS", 4096)
    monkeypatch.setattr(paged_attention, "_TILE_TOKENS", 32)
    contexts = [length + 13 * i for i, length in enumerate(query_lens)]
    for window in (0, 50):
        batch = make_batch(query_lens, contexts, heads=2, kv_heads=1, head_size=32, window=window)
        check("torch", batch)


@pytest.mark.xdist_group("large memory")
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_offsets_past_2_to_the_31(name: str) -> None:
    """A cache of 2^31 + elements, of which only the pages in use are ever touched."""
    block_size, head_size = 16, 64
    blocks = (1 << 31) // (block_size * head_size) + 8
    cache = torch.empty(blocks, 1, block_size, head_size, dtype=torch.float16, device=DEVICES[name])
    small = make_batch(
        [1, 2], [18, 40], heads=1, kv_heads=1, head_size=head_size, dtype=torch.float16,
        device=DEVICES[name],
    )  # fmt: skip
    first = blocks - small.key_cache.shape[0]
    assert first * block_size * head_size >= 1 << 31
    cache[first:] = small.key_cache
    large = replace(
        small, key_cache=cache, value_cache=cache, block_tables=small.block_tables + first
    )
    small.value_cache = small.key_cache
    assert_close(large.attend(table(name).paged_attention), small.expected(), torch.float16)
    # The same cache serves cache_write: one allocation, one place.
    key = torch.ones(2, 1, head_size, dtype=torch.float16, device=DEVICES[name])
    slots = torch.tensor([blocks * block_size - 1, -1], device=DEVICES[name])
    table(name).cache_write(key, key, cache, cache, slots)
    assert (cache[blocks - 1, 0, block_size - 1] == 1).all()


@pytest.mark.parametrize(
    "tiles", [Tiles(16, 16, 4, 2, plain=True), Tiles(16, 32, 4, 2, ahead=True)]
)
@pytest.mark.parametrize("planned", [False, True])
def test_other_tiles(monkeypatch: pytest.MonkeyPatch, tiles: Tiles, planned: bool) -> None:
    """The ways of the key loop that no default takes, cut into parts and whole."""
    monkeypatch.setattr(paged_decode, "decode_tiles", lambda *_: tiles)
    for min_keys in (16, 256):
        monkeypatch.setattr(attention_plan, "PARTS", Parts(2, min_keys, multiple=16))
        if planned:
            planner = staticmethod(table("triton").plan_attention)
            monkeypatch.setattr(PagedBatch, "planner", planner)
        batch = make_batch(
            [1, 0, 1, 1, 3], [100, 4, 1, 33, 20], heads=2, kv_heads=2, head_size=48,
            device=DEVICES["triton"],
        )  # fmt: skip
        check("triton", batch)

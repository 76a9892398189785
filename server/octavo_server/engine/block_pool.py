"""Pages of the KV cache: who holds them, and which hold a prefix that somebody may want again.

The prefix cache is a hash chain, not a tree: a full block's key is a digest of its parent's key and
its own token ids, so the longest cached prefix is found by walking the request's own hashes
(automatic prefix caching, as described for PagedAttention engines; Kwon et al., SOSP 2023).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

NULL_BLOCK = 0
"""Never lent: padding and unused table entries point here, so a stray read or write hits nobody."""

KEY_BYTES = 16
"""Of a block's digest: nobody finds two prefixes with the same one."""


class BlockPool:
    """`num_blocks` pages, page 0 reserved. `free + used == num_blocks - 1` always.

    A page with no holder stays findable by its hash until it is lent again; the least recently
    released goes first, pages without a hash before all others.
    """

    def __init__(self, num_blocks: int, *, enable_caching: bool = True) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs the null block and one more, got {num_blocks} blocks")
        self.num_blocks = num_blocks
        self._enable_caching = enable_caching
        self._references = [0] * num_blocks
        self.num_shared = 0
        """Pages with more than one holder."""
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # NOTE: an OrderedDict is a linked list with O(1) removal from the middle; a plain dict's
        # next(iter()) walks over the holes that removals leave.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the pages that somebody holds, 0 to 1."""
        return 1.0 - self.num_free / (self.num_blocks - 1)

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Pages of the longest cached prefix of this hash chain; none of them is acquired yet."""
        found: list[int] = []
        if self._enable_caching:
            for key in hashes:
                block = self._block_of.get(key)
                if block is None:
                    break
                found.append(block)
        return found

    def count_unheld(self, blocks: Iterable[int]) -> int:
        """How many of these pages acquiring would take from the free ones."""
        return sum(not self._references[block] for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Hold pages that `find` returned, with whoever else holds them."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1
            self.num_shared += self._references[block] == 2

    def allocate(self, count: int) -> list[int]:
        """Lend `count` pages to one holder, forgetting what they cached. The caller checked
        `num_free`.
        """
        assert count <= len(self._free), "allocate() beyond num_free"
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give pages back, the last first: a prefix's tail is evicted before its stem."""
        for block in reversed(blocks):
            self._references[block] -= 1
            self.num_shared -= self._references[block] == 1
            assert self._references[block] >= 0, f"block {block} released more often than held"
            if not self._references[block]:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def publish(self, block: int, key: bytes) -> bool:
        """Make a held page findable; False when another page already serves this hash."""
        if not self._enable_caching or key in self._block_of or self._hash_of[block] is not None:
            return False
        self._block_of[key] = block
        self._hash_of[block] = key
        return True

    def withdraw(self, block: int) -> None:
        """Undo `publish`: the step that was to fill the page failed."""
        self._forget(block)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Assert that these holders' pages, and nothing else, are counted. For tests and idle
        moments.
        """
        expected = [0] * self.num_blocks
        for blocks in held:
            for block in blocks:
                expected[block] += 1
        assert expected == self._references, "reference counts disagree with the holders"
        assert self.num_shared == sum(count > 1 for count in expected)
        assert expected[NULL_BLOCK] == 0, "the null block was lent"
        for block in range(1, self.num_blocks):
            assert (block in self._free) == (not self._references[block]), f"block {block}"
        for key, block in self._block_of.items():
            assert self._hash_of[block] == key, f"hash index and block {block} disagree"

    def _forget(self, block: int) -> None:
        key = self._hash_of[block]
        if key is not None:
            del self._block_of[key]
            self._hash_of[block] = None


def extend_hashes(
    hashes: list[bytes], token_ids: Sequence[int], block_size: int, salt: str | None
) -> None:
    """Append the keys of `token_ids`' full blocks that `hashes` does not hold yet.

    Digests, not Python's hash: one tenant must not be able to construct another's prefix.
    """
    for index in range(len(hashes), len(token_ids) // block_size):
        parent = hashes[-1] if hashes else _root(salt)
        digest = hashlib.blake2b(parent, digest_size=KEY_BYTES)
        digest.update(
            array("q", token_ids[index * block_size : (index + 1) * block_size]).tobytes()
        )
        hashes.append(digest.digest())


def _root(salt: str | None) -> bytes:
    """What the first block has for a parent: longer than a key, so that no salt stands for one."""
    return hashlib.blake2b((salt or "").encode(), digest_size=2 * KEY_BYTES).digest()

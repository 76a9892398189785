import pytest

from octavo_server.engine.block_pool import BlockPool, extend_hashes


def keys(token_ids: list[int], salt: str | None = None, block_size: int = 2) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, block_size, salt)
    return hashes


def test_chain_depends_on_everything_before_it_and_on_the_salt() -> None:
    assert len(keys([1, 2, 3, 4, 5])) == 2
    assert keys([1, 2, 3, 4])[1] != keys([9, 2, 3, 4])[1]
    assert keys([1, 2, 3, 4])[0] == keys([1, 2, 9, 9])[0]
    assert keys([1, 2], salt="tenant")[0] != keys([1, 2])[0]


def test_a_salt_that_is_a_digest_stands_for_no_prefix() -> None:
    """Who knows a key of another tenant's could else ask for what comes after it."""
    first = 0
    while True:  # one of some ten thousand digests is text
        try:
            salt = keys([first, 2])[0].decode()
            break
        except UnicodeDecodeError:
            first += 1
    assert keys([3, 4], salt=salt)[0] != keys([first, 2, 3, 4])[1]


def test_extending_hashes_equals_hashing_at_once() -> None:
    grown: list[bytes] = []
    for length in range(9):
        extend_hashes(grown, list(range(length)), 2, None)
    assert grown == keys(list(range(8)))


def test_released_pages_stay_findable_until_they_are_lent_again() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    for block, key in zip(blocks, keys([1, 2, 3, 4]), strict=True):
        assert pool.publish(block, key)
    pool.release(blocks)
    assert pool.num_free == 3
    assert pool.find(keys([1, 2, 3, 4])) == blocks
    pool.acquire(pool.find(keys([1, 2])))
    assert pool.num_free == 2
    pool.check_integrity([blocks[:1]])


def test_evicts_unhashed_pages_first_then_tails_then_stems() -> None:
    pool = BlockPool(4)
    stem, tail, unhashed = pool.allocate(3)
    chain = keys([1, 2, 3, 4])
    pool.publish(stem, chain[0])
    pool.publish(tail, chain[1])
    pool.release([stem, tail, unhashed])
    assert pool.allocate(1) == [unhashed]
    assert pool.find(chain) == [stem, tail]
    assert pool.allocate(1) == [tail]
    assert pool.find(chain) == [stem]
    assert pool.allocate(1) == [stem]
    assert pool.find(chain) == []


def test_shared_pages_are_free_only_after_the_last_holder() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.publish(block, keys([1, 2])[0])
    pool.acquire([block])
    pool.release([block])
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="released more often"):
        pool.release([block])


def test_the_first_page_to_publish_a_hash_keeps_it() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    key = keys([1, 2])[0]
    assert pool.publish(first, key) and not pool.publish(second, key)
    assert pool.find([key]) == [first]
    pool.withdraw(first)
    assert pool.find([key]) == []


def test_caching_can_be_off() -> None:
    pool = BlockPool(3, enable_caching=False)
    (block,) = pool.allocate(1)
    key = keys([1, 2])[0]
    assert not pool.publish(block, key)
    assert pool.find([key]) == []


def test_usage_counts_held_pages() -> None:
    pool = BlockPool(5)
    assert pool.usage == 0.0
    pool.allocate(2)
    assert pool.usage == 0.5
    assert pool.count_unheld([1, 2, 3]) == 1

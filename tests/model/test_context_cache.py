from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.context_cache import ContextCache, UserContext, batched
from model.errors import ModelError


def _context(tokens: int, seed: int = 0) -> UserContext:
    generator = torch.Generator().manual_seed(seed)
    return UserContext(tuple(torch.randn(tokens, 2, 4, generator=generator) for _ in range(2)))


def test_cache_hands_out_what_was_put_for_the_same_digest_only() -> None:
    cache, context = ContextCache(10**6), _context(3)
    assert cache.get("anna", b"1") is None
    cache.put("anna", b"1", context)
    assert cache.get("anna", b"1") is context
    assert cache.get("anna", b"2") is None, "the history has changed"
    assert cache.get("berta", b"1") is None
    assert (cache.hits, cache.misses, len(cache)) == (1, 3, 1)


def test_cache_keeps_one_context_per_user() -> None:
    cache = ContextCache(10**6)
    cache.put("anna", b"1", _context(3))
    cache.put("anna", b"2", _context(4))
    assert cache.get("anna", b"1") is None
    assert cache.get("anna", b"2") is not None
    assert cache.size_bytes == _context(4).size_bytes


def test_cache_drops_the_user_who_came_least_recently() -> None:
    size = _context(3).size_bytes
    cache = ContextCache(2 * size)
    for name in ("anna", "berta"):
        cache.put(name, b"1", _context(3))
    cache.get("anna", b"1")
    cache.put("clara", b"1", _context(3))
    assert cache.get("berta", b"1") is None
    assert cache.get("anna", b"1") is not None
    assert cache.get("clara", b"1") is not None


def test_cache_does_not_keep_what_is_larger_than_itself() -> None:
    cache = ContextCache(_context(3).size_bytes)
    cache.put("anna", b"1", _context(3))
    cache.put("anna", b"2", _context(300))
    assert (len(cache), cache.size_bytes) == (0, 0), "nor the same user's older one"
    with pytest.raises(ModelError, match="cache_bytes"):
        ContextCache(-1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40), st.booleans())), st.integers(0, 12_000))
def test_cache_never_holds_more_than_its_bound_and_counts_its_bytes(
    moves: list[tuple[str, int, bool]], bound: int
) -> None:
    cache = ContextCache(bound)
    for name, tokens, reads in moves:
        if reads:
            cache.get(name, b"%d" % tokens)
        else:
            cache.put(name, b"%d" % tokens, _context(tokens))
        assert cache.size_bytes <= bound
        assert cache.size_bytes == sum(context.size_bytes for _, context in cache._kept.values())


def test_cache_from_several_threads_keeps_its_count_and_its_contexts() -> None:
    cache = ContextCache(20 * _context(5).size_bytes)

    def work(seed: int) -> None:
        for step in range(300):
            name, tokens = f"u{(seed * 7 + step) % 40}", 1 + (seed + step) % 9
            found = cache.get(name, b"%d" % tokens)
            assert found is None or found.tokens == tokens
            cache.put(name, b"%d" % tokens, _context(tokens))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.hits + cache.misses == 8 * 300
    assert cache.size_bytes == sum(context.size_bytes for _, context in cache._kept.values()) <= cache.max_bytes


def test_batched_contexts_are_padded_with_zeros() -> None:
    short, long = _context(2, 1), _context(5, 2)
    chunks = batched([short, long])
    assert [chunk.shape for chunk in chunks] == [(2, 5, 2, 4)] * 2
    for chunk, one, other in zip(chunks, short.chunks, long.chunks, strict=True):
        assert torch.equal(chunk[0, :2], one)
        assert not chunk[0, 2:].any()
        assert torch.equal(chunk[1], other)
    assert batched([long])[0].data_ptr() == long.chunks[0].data_ptr()


def test_row_of_a_batch_does_not_keep_the_batch() -> None:
    whole = torch.randn(100, 8, 2, 4)
    row = UserContext.row([whole], 3, 5)
    assert torch.equal(row.chunks[0], whole[3, :5])
    assert row.chunks[0].untyped_storage().nbytes() == 5 * 2 * 4 * 4

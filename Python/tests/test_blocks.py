"""`VisibleBlocks` in calls with and without a cache."""

from __future__ import annotations

import numpy
import pytest
import reference
from reference import GATES, error, normal

import int_flash_attention as intfa

Q, K, V = (6, 300, 64), (2, 300, 64), (2, 300, 32)


def visible(seed, rows, columns):
    seen = numpy.random.default_rng(seed).uniform(size=(rows, columns)) < 0.4
    seen[1] = False
    return seen


def as_mask(seen, rows, keys, query_length, key_length):
    """The same places as a mask of queries and keys."""
    return seen.repeat(query_length, 0).repeat(key_length, 1)[:rows, :keys]


@pytest.mark.parametrize("precision", ["int8", "int4", "bfloat16", "float32"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_one_call(precision, is_causal):
    q, k, v = normal(1, (2, 6, 200, 64), (2, 2, 300, 64), (2, 2, 300, 32))
    seen = visible(2, 4, 5)
    mask = as_mask(seen, 200, 300, 50, 64)
    blocks = intfa.VisibleBlocks(seen, 50, 64)
    output, lse = intfa.attention(
        q, k, v, is_causal=is_causal, blocks=blocks, precision=precision, return_lse=True
    )
    right = 0 if is_causal else None
    expected, sums = reference.attention(q, k, v, right=right, mask=mask)
    assert error(output, expected) <= 1.25 * GATES[precision]
    finite = numpy.isfinite(sums)
    assert numpy.array_equal(numpy.isfinite(lse), finite)
    assert not finite[:, :, 50:100].any()
    assert not output[:, :, 50:100].any()
    masked = intfa.attention(q, k, v, is_causal=is_causal, attn_mask=mask, precision=precision)
    assert error(output, masked) <= GATES["float32"]


@pytest.mark.parametrize("precision", ["int8", "int4KeyValue", "bfloat16", "float32"])
def test_caches_in_one_piece_and_in_chunks(precision):
    q, k, v = normal(3, Q, K, V)
    seen = visible(4, 9, 8)  # more blocks than there are tokens
    blocks = intfa.VisibleBlocks(seen, 40, 64)
    cache = intfa.KVCache(2, 64, 320, value_dim=32, precision=precision)
    cache.append(k, v)
    output = cache.attention(q, blocks=blocks)
    mask = as_mask(seen, 300, 300, 40, 64)
    assert error(output, cache.attention(q, attn_mask=mask)) <= GATES["float32"]
    assert not output[:, 40:80].any()
    chunks, parts = intfa.KVCache(2, 64, 320, value_dim=32, precision=precision), []
    for begin, end in [(0, 64), (64, 192), (192, 300)]:
        chunks.append(k[:, begin:end], v[:, begin:end])
        parts.append(chunks.attention(q[:, begin:end], blocks=blocks))
    # The last chunk of four bits is the same in both.
    same = slice(None) if precision != "int4KeyValue" else slice(192, None)
    assert numpy.array_equal(numpy.concatenate(parts, 1)[:, same], output[:, same])


def test_many_sequences():
    pool = intfa.KVPool(2, 64, 1024, value_dim=32)
    blocks = intfa.VisibleBlocks(visible(5, 6, 6), 50, 64)
    caches, queries, outputs, offsets = [], [], [], [0]
    for seed, (length, n) in enumerate([(70, 70), (200, 1), (129, 3)]):
        q, k, v = normal(seed, (6, n, 64), (2, length, 64), (2, length, 32))
        caches.append(intfa.KVCache(pool=pool))
        caches[-1].append(k, v)
        queries.append(q)
        outputs.append(caches[-1].attention(q, blocks=blocks))
        offsets.append(offsets[-1] + n)
    packed = pool.attention(numpy.concatenate(queries, 1), caches, offsets, blocks=blocks)
    assert numpy.array_equal(packed, numpy.concatenate(outputs, 1))


def test_refusals():
    q, k, v = normal(6, Q, K, V)
    seen = numpy.ones((6, 5), bool)
    with pytest.raises(intfa.UnsupportedElementTypeError, match="visible is int64"):
        intfa.VisibleBlocks(seen.astype("int64"), 50, 64)
    with pytest.raises(intfa.ShapeMismatchError, match="visible has shape"):
        intfa.VisibleBlocks(seen[0], 50, 64)
    for lengths in [(0, 64), (50, -1), (50, 2**40)]:
        with pytest.raises(intfa.InvalidArgumentError, match="blocks: "):
            intfa.attention(q, k, v, blocks=intfa.VisibleBlocks(seen, *lengths))
    with pytest.raises(intfa.ShapeMismatchError, match="6 blocks of 50"):
        intfa.attention(q, k, v, blocks=intfa.VisibleBlocks(seen[:5], 50, 64))
    with pytest.raises(intfa.InvalidArgumentError, match="key blocks"):
        intfa.attention(q, k, v, blocks=intfa.VisibleBlocks(numpy.ones((6, 6), bool), 50, 64))
    with pytest.raises(intfa.InvalidArgumentError, match="blocks is a ndarray"):
        intfa.attention(q, k, v, blocks=seen)
    cache = intfa.KVCache(2, 64, 512, value_dim=32)
    cache.append(k, v)
    with pytest.raises(intfa.ShapeMismatchError, match="6 blocks of 50"):
        cache.attention(q, blocks=intfa.VisibleBlocks(seen[:5], 50, 64))
    with pytest.raises(intfa.InvalidArgumentError, match="queryBlockLength is 0"):
        cache.attention(q, blocks=intfa.VisibleBlocks(seen, 0, 64))

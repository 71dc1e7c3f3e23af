"""`KVCache` and `KVPool` on NumPy arrays."""

from __future__ import annotations

import concurrent.futures
import gc

import numpy
import pytest
import reference
from reference import GATES, error, normal

import int_flash_attention as intfa

PRECISIONS = ["int8", "int4", "int4KeyValue", "bfloat16", "float32"]
Q, K, V = (6, 300, 64), (2, 300, 64), (2, 300, 32)


def make(precision="int8", capacity=512, **options):
    return intfa.KVCache(2, 64, capacity, value_dim=32, precision=precision, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("window", [None, (50, 0)])
def test_bounds(precision, window):
    q, k, v = normal(1, Q, K, V)
    cache = make(precision)
    cache.append(k, v)
    assert len(cache) == 300
    output, lse = cache.attention(q, window=window, return_lse=True)
    expected, sums = reference.attention(q[None], k[None], v[None], left=window and 50, right=0)
    assert error(output, expected[0]) <= 1.25 * GATES[precision]
    assert abs(lse - sums[0]).max() <= 20 * GATES[precision]


def test_chunks_and_tokens_give_the_same_bits():
    q, k, v = normal(2, Q, K, V)
    whole = make()
    whole.append(k, v)
    expected = whole.attention(q)
    cache, rows, begin = make(), [], 0
    for n in [100, 1, 1, 1, 97, *[1] * 100]:
        part = slice(begin, begin + n)
        cache.append(k[:, part], v[:, part])
        rows.append(cache.attention(q[:, part]))
        begin += n
    assert begin == 300
    assert numpy.array_equal(numpy.concatenate(rows, 1), expected)


def test_many_sequences_in_a_call():
    pool = intfa.KVPool(2, 64, 2048, value_dim=32)
    assert pool.capacity == 2048
    caches, outputs, queries, offsets = [], [], [], [0]
    for seed, (length, n) in enumerate([(70, 70), (200, 1), (129, 3)]):
        q, k, v = normal(seed, (6, n, 64), (2, length, 64), (2, length, 32))
        cache = intfa.KVCache(pool=pool)
        cache.append(k, v)
        caches.append(cache)
        outputs.append(cache.attention(q))
        queries.append(q)
        offsets.append(offsets[-1] + n)
    packed = numpy.concatenate(queries, 1)
    assert numpy.array_equal(pool.attention(packed, caches, offsets), numpy.concatenate(outputs, 1))


def test_forks_truncation_and_pages():
    q, k, v = normal(3, Q, K, V)
    cache = make(capacity=640)
    pool = cache.pool
    free = pool.free_pages
    cache.append(k[:, :150], v[:, :150])
    fork = cache.fork()
    fork.append(k[:, 150:160], v[:, 150:160])
    assert (len(cache), len(fork)) == (150, 160)
    straight = make()
    straight.append(k[:, :160], v[:, :160])
    assert numpy.array_equal(fork.attention(q[:, :1]), straight.attention(q[:, :1]))
    fork.truncate(150)
    assert numpy.array_equal(fork.attention(q[:, :1]), cache.attention(q[:, :1]))
    with pytest.raises(intfa.InvalidArgumentError):
        fork.truncate(151)
    del fork, cache
    gc.collect()
    assert pool.free_pages == free


def test_a_full_pool():
    _, k, v = normal(4, Q, K, V)
    cache = make(capacity=256)
    cache.append(k[:, :200], v[:, :200])
    with pytest.raises(intfa.OutOfPagesError):
        cache.append(k[:, 200:], v[:, 200:])
    assert len(cache) == 200


def test_memory_outlives_the_pool_object():
    q, k, v = normal(5, Q, K, V)
    cache = make()
    cache.append(k, v)
    expected = cache.attention(q)
    fork = cache.fork()
    del cache
    gc.collect()
    assert numpy.array_equal(fork.attention(q), expected)


def test_bytes():
    assert make("int8").pool.bytes_per_token < make("bfloat16").pool.bytes_per_token


def test_refusals():
    _, k, v = normal(6, Q, K, V)
    with pytest.raises(TypeError):
        intfa.KVCache(2, 64)
    with pytest.raises(TypeError):
        intfa.KVCache(2, 64, 512, size=3)
    pool = intfa.KVPool(2, 64, 512)
    with pytest.raises(TypeError):
        intfa.KVCache(2, 64, 512, pool=pool)
    with pytest.raises(intfa.UnsupportedError):
        make("int8Paper")
    with pytest.raises(intfa.InvalidArgumentError):
        make(page_length=65)
    cache = make()
    with pytest.raises(intfa.ShapeMismatchError):
        cache.append(k[:1], v)
    with pytest.raises(intfa.ShapeMismatchError):
        cache.attention(numpy.ones((6, 1, 32), "float32"))
    with pytest.raises(intfa.ShapeMismatchError):
        cache.attention(numpy.ones((1, 6, 1, 64), "float32"))
    with pytest.raises(intfa.InvalidArgumentError):
        pool.attention(numpy.ones((6, 1, 64), "float32"), [intfa.KVCache(pool=pool)], [0])
    with pytest.raises(intfa.InvalidArgumentError):
        pool.attention(numpy.ones((6, 1, 64), "float32"), [cache])
    with pytest.raises(intfa.NonFiniteInputError):
        cache.append(k * numpy.nan, v)
    assert len(cache) == 0


def test_several_threads_on_one_cache_and_on_forks():
    q, k, v = normal(7, Q, K, V)
    cache = make(capacity=4096)
    cache.append(k[:, :200], v[:, :200])
    expected = cache.attention(q[:, :8])

    def work(i):
        target = cache if i % 2 else cache.fork()
        if not i % 2:
            target.append(k[:, 200:210], v[:, 200:210])
            target.truncate(200)
        return target.attention(q[:, :8])

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for output in pool.map(work, range(48)):
            assert numpy.array_equal(output, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_masks_slopes_and_sinks(precision):
    q, k, v = normal(11, (6, 40, 64), K, V)
    rng = numpy.random.default_rng(12)
    mask = rng.uniform(size=(6, 40, 300)) < 0.7
    slopes = (0.5 ** numpy.arange(1, 7)).astype("float32")
    sinks = rng.normal(size=6).astype("float32")
    cache = make(precision)
    cache.append(k, v)
    output = cache.attention(q, attn_mask=mask, alibi_slopes=slopes, sinks=sinks)
    expected = intfa.attention(
        q,
        k,
        v,
        is_causal=True,
        attn_mask=mask,
        alibi_slopes=slopes,
        sinks=sinks,
        precision="float32",
    )
    assert error(output, expected) <= 1.5 * GATES[precision]
    with pytest.raises(intfa.ShapeMismatchError, match="mask"):
        cache.attention(q, attn_mask=mask[..., :299])

"""`RotaryEmbedding` by itself and in caches."""

from __future__ import annotations

import gc

import numpy
import pytest
from reference import normal

import int_flash_attention as intfa

Q, K, V = (6, 200, 64), (2, 200, 64), (2, 200, 32)


def angles(rotary_dim, positions, base):
    pairs = numpy.arange(rotary_dim // 2)
    return numpy.arange(positions)[:, None] * base ** (-2 * pairs / rotary_dim)


def turned(x, rotary_dim, base, interleaved, first):
    """The formula in double precision."""
    phi = angles(rotary_dim, first + x.shape[-2], base)[first:]
    result = x.astype("float64")
    half = rotary_dim // 2
    a = slice(0, rotary_dim, 2) if interleaved else slice(0, half)
    b = slice(1, rotary_dim, 2) if interleaved else slice(half, rotary_dim)
    x, y = result[..., a].copy(), result[..., b].copy()
    result[..., a] = x * numpy.cos(phi) - y * numpy.sin(phi)
    result[..., b] = y * numpy.cos(phi) + x * numpy.sin(phi)
    return result


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 48, 64])
def test_formula(rotary_dim, interleaved):
    x = normal(1, (2, 3, 50, 64))[0]
    rotary = intfa.RotaryEmbedding(rotary_dim, 80, base=500, interleaved=interleaved)
    expected = turned(x, rotary_dim, 500, interleaved, 20)
    assert abs(rotary.apply(x, 20) - expected).max() < 1e-5
    half = rotary.apply(x[0].astype("float16"), first_position=20)
    assert half.dtype == "float32"
    assert abs(half - expected[0]).max() < 1e-2
    backwards = x[:, :, ::-1][..., ::-1]
    assert numpy.array_equal(rotary.apply(backwards), rotary.apply(backwards.copy()))


def test_tables():
    x = normal(2, K)[0]
    phi = angles(64, 200, 10_000)
    tables = numpy.cos(phi).astype("float32"), numpy.sin(phi).astype("float32")
    usual = intfa.RotaryEmbedding(64, 200)
    assert abs(intfa.RotaryEmbedding.from_tables(*tables).apply(x) - usual.apply(x)).max() < 1e-5
    wide = numpy.repeat(tables[0], 2, 1), numpy.repeat(tables[1], 2, 1)
    strided = intfa.RotaryEmbedding.from_tables(wide[0][:, ::2], wide[1][:, ::2])
    assert numpy.array_equal(strided.apply(x), intfa.RotaryEmbedding.from_tables(*tables).apply(x))


@pytest.mark.parametrize("precision", ["int8", "int4", "bfloat16", "float32"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_caches_give_the_bits_of_turned_rows(precision, interleaved):
    q, k, v = normal(3, Q, K, V)
    rotary = intfa.RotaryEmbedding(48, 300, interleaved=interleaved)
    make = {"kv_heads": 2, "head_dim": 64, "capacity": 256, "value_dim": 32, "precision": precision}
    beforehand = intfa.KVCache(**make)
    beforehand.append(rotary.apply(k, 30), v)
    expected = beforehand.attention(rotary.apply(q, 30))
    cache = intfa.KVCache(**make)
    cache.first_position = 30
    assert cache.first_position == 30
    for begin, end in [(0, 64), (64, 65), (65, 200)]:
        cache.append(k[:, begin:end], v[:, begin:end], rotary=rotary)
    assert numpy.array_equal(cache.attention(q, rotary=rotary), expected)
    assert numpy.array_equal(cache.fork().attention(q[:, -3:], rotary=rotary), expected[:, -3:])
    assert not numpy.array_equal(cache.attention(q), expected)
    packed = numpy.concatenate([q[:, -3:], q[:, -1:]], 1)
    both = cache.pool.attention(packed, [cache, cache], [0, 3, 4], rotary=rotary)
    assert numpy.array_equal(both, numpy.concatenate([expected[:, -3:], expected[:, -1:]], 1))


def test_an_embedding_may_go():
    q, k, v = normal(4, Q, K, V)
    cache = intfa.KVCache(2, 64, 256, value_dim=32)
    cache.append(k, v, rotary=intfa.RotaryEmbedding(64, 200))
    gc.collect()
    expected = intfa.RotaryEmbedding(64, 200).apply(q)
    assert numpy.array_equal(
        cache.attention(q, rotary=intfa.RotaryEmbedding(64, 200)), cache.attention(expected)
    )


def test_copied_keys_are_turned_too():
    q, k, v = normal(5, Q, K, V)
    rotary = intfa.RotaryEmbedding(64, 200)
    cache, other = (intfa.KVCache(2, 64, 256, value_dim=32) for _ in range(2))
    cache.append(k, v, rotary=rotary)
    with pytest.warns(intfa.CopyWarning):
        other.append(k[..., ::-1].copy()[..., ::-1], v, rotary=rotary)
    assert numpy.array_equal(cache.attention(q), other.attention(q))


def test_refusals():
    for arguments in [(3, 10), (0, 10), (258, 10), (-2, 10), (4, 0), (4, 2**40)]:
        with pytest.raises(intfa.InvalidArgumentError):
            intfa.RotaryEmbedding(*arguments)
    for base in [0, -1, numpy.inf, numpy.nan]:
        with pytest.raises(intfa.InvalidArgumentError, match="base"):
            intfa.RotaryEmbedding(4, 10, base=base)
    table = numpy.ones((10, 2), "float32")
    with pytest.raises(intfa.ShapeMismatchError):
        intfa.RotaryEmbedding.from_tables(table, table[:9])
    with pytest.raises(intfa.NonFiniteInputError):
        intfa.RotaryEmbedding.from_tables(table, table * numpy.nan)
    with pytest.raises(intfa.UnsupportedElementTypeError):
        intfa.RotaryEmbedding.from_tables(table, table.astype("int8"))
    rotary = intfa.RotaryEmbedding(64, 10)
    _, k, v = normal(6, Q, K, V)
    with pytest.raises(intfa.InvalidArgumentError, match="11 positions"):
        rotary.apply(k[:, :11])
    with pytest.raises(intfa.InvalidArgumentError, match="positions from -1"):
        rotary.apply(k[:, :1], -1)
    with pytest.raises(intfa.ShapeMismatchError, match="64 channels"):
        rotary.apply(k[:, :10, :62])
    cache = intfa.KVCache(2, 64, 256, value_dim=32)
    with pytest.raises(intfa.InvalidArgumentError, match="positions"):
        cache.append(k, v, rotary=rotary)
    with pytest.raises(intfa.InvalidArgumentError, match="rotary is a int"):
        cache.append(k, v, rotary=64)
    assert len(cache) == 0
    with pytest.raises(intfa.InvalidArgumentError, match="position is -1"):
        cache.first_position = -1
    cache.append(k, v)
    with pytest.raises(intfa.InvalidArgumentError, match="positions"):
        cache.attention(numpy.ones((2, 1, 64), "float32"), rotary=rotary)

"""`KVCache.save` and `KVPool.load`."""

from __future__ import annotations

import gc

import numpy
import pytest
from reference import normal

import int_flash_attention as intfa

PRECISIONS = ["int8", "int4", "int4KeyValue", "bfloat16", "float32"]
Q, K, V = (6, 300, 64), (2, 300, 64), (2, 300, 32)


def make(precision="int8", capacity=512, **options):
    return intfa.KVPool(2, 64, capacity, value_dim=32, precision=precision, **options)


def saved(folder, seed):
    """A cache of 300 tokens, and the file that it was saved to."""
    _, k, v = normal(seed, Q, K, V)
    path = folder / "cache.safetensors"
    cache = intfa.KVCache(pool=make())
    cache.append(k, v)
    cache.save(path)
    return cache, path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [0, 40, 200])
def test_loaded_caches_go_on_with_the_same_bits(tmp_path, precision, count):
    q, k, v = normal(1, Q, K, V)
    cache = intfa.KVCache(pool=make(precision))
    cache.append(k[:, :count], v[:, :count])
    cache.first_position = 5
    cache.save(tmp_path / "cache.safetensors")
    loaded = make(precision, page_length=128).load(str(tmp_path / "cache.safetensors"))
    assert (len(loaded), loaded.first_position) == (count, 5)
    loaded.save(tmp_path / "again.safetensors")
    files = [(tmp_path / name).read_bytes() for name in ("cache.safetensors", "again.safetensors")]
    assert files[0] == files[1]
    for target in (cache, loaded):
        target.append(k[:, count:], v[:, count:])
    assert numpy.array_equal(cache.attention(q), loaded.attention(q))


def test_pools_keep_their_pages(tmp_path):
    _, path = saved(tmp_path, 2)
    small = make(capacity=256)
    with pytest.raises(intfa.OutOfPagesError):
        small.load(path)
    assert small.free_pages == 4
    pool = make()
    loaded = pool.load(path)
    assert pool.free_pages == 3
    del loaded
    gc.collect()
    assert pool.free_pages == 8


def test_refusals(tmp_path):
    cache, path = saved(tmp_path, 3)
    for other in (make("int4"), intfa.KVPool(2, 64, 512), intfa.KVPool(1, 64, 512, value_dim=32)):
        with pytest.raises(intfa.ShapeMismatchError, match="the snapshot has"):
            other.load(path)
    with pytest.raises(intfa.FileFailureError, match="nowhere"):
        make().load(tmp_path / "nowhere")
    with pytest.raises(OSError, match="cannot write"):
        cache.save(tmp_path / "nowhere" / "cache.safetensors")
    with pytest.raises(intfa.InvalidArgumentError, match="zero"):
        cache.save(f"{path}\0.safetensors")
    with pytest.raises(intfa.InvalidArgumentError, match="not UTF-8"):
        make().load(b"/tmp/\xff".decode(errors="surrogateescape"))
    with pytest.raises(TypeError):
        cache.save(5)
    contents = path.read_bytes()
    for length in range(0, len(contents), 9973):
        path.write_bytes(contents[:length])
        with pytest.raises(intfa.MalformedFileError):
            make().load(path)
    path.write_bytes(contents.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(ValueError, match="version"):
        make().load(path)

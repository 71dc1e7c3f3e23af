"""`attention` on NumPy arrays; nothing here needs PyTorch."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
import warnings

import numpy
import pytest
import reference
from reference import GATES, error, normal

import int_flash_attention as intfa

SHAPES = ((2, 6, 70, 64), (2, 2, 193, 64), (2, 2, 193, 32))


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("causal", [False, True])
def test_bounds(precision, causal):
    q, k, v = normal(1, *SHAPES)
    output, lse = intfa.attention(q, k, v, precision=precision, is_causal=causal, return_lse=True)
    expected, sums = reference.attention(q, k, v, right=0 if causal else None)
    assert output.shape == expected.shape
    assert output.dtype == numpy.float32
    assert error(output, expected) <= GATES[precision]
    assert lse.dtype == numpy.float32
    assert abs(lse - sums).max() <= 20 * GATES[precision]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types(dtype):
    q, k, v = normal(2, *SHAPES, dtype=dtype)
    output = intfa.attention(q, k, v, precision="float32")
    assert output.dtype == q.dtype
    bound = 1e-5 if dtype == "float32" else 1e-3
    assert error(output, reference.attention(q, k, v)[0]) <= bound


def test_bfloat16_arrays():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in normal(2, *SHAPES))
    output = intfa.attention(q, k, v, precision="float32")
    assert output.dtype == q.dtype
    assert error(output, reference.attention(q, k, v)[0]) <= 4e-3


def test_three_dimensions_are_a_batch_of_one():
    q, k, v = normal(3, *SHAPES)
    output, lse = intfa.attention(q[0], k[0], v[0], return_lse=True)
    whole, sums = intfa.attention(q[:1], k[:1], v[:1], return_lse=True)
    assert numpy.array_equal(output, whole[0])
    assert numpy.array_equal(lse, sums[0])


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.3},
        {"softcap": 3.0},
        {"window": (17, 5)},
        {"window": (None, 5)},
        {"window": (40, None)},
        {"window": (9, None), "is_causal": True},
    ],
    ids=str,
)
def test_options(options):
    q, k, v = normal(4, *SHAPES)
    output = intfa.attention(q, k, v, precision="float32", **options)
    left, right = options.get("window", (None, None))
    if options.get("is_causal"):
        right = 0
    expected, _ = reference.attention(
        q, k, v, left=left, right=right, scale=options.get("scale"), softcap=options.get("softcap")
    )
    assert error(output, expected) <= 1e-5


@pytest.mark.parametrize(
    "shape", [(), (193,), (70, 193), (6, 1, 1), (2, 1, 70, 193), (2, 6, 70, 193)], ids=str
)
@pytest.mark.parametrize("kind", ["bool", "float32", "float16"])
def test_masks(shape, kind):
    q, k, v = normal(5, *SHAPES)
    generator = numpy.random.default_rng(5)
    if kind == "bool":
        mask = generator.random(shape) < 0.7
        mask = mask if isinstance(mask, numpy.ndarray) else numpy.asarray(mask)
    else:
        mask = numpy.asarray(generator.normal(size=shape)).astype(kind)
    expected, _ = reference.attention(q, k, v, mask=mask)
    output = intfa.attention(q, k, v, precision="float32", attn_mask=mask)
    assert error(output, expected) <= 1e-5


def test_mask_that_hides():
    q, k, v = normal(6, *SHAPES)
    mask = numpy.zeros((70, 193), "float32")
    mask[:, 100:] = -numpy.inf
    mask[3] = -numpy.inf
    output, lse = intfa.attention(q, k, v, precision="float32", attn_mask=mask, return_lse=True)
    expected, sums = reference.attention(q, k, v, mask=mask)
    assert error(output, expected) <= 1e-5
    assert (output[:, :, 3] == 0).all()
    assert (lse[:, :, 3] == -numpy.inf).all()
    assert numpy.array_equal(numpy.isneginf(lse), numpy.isneginf(sums))


def test_slopes_and_sinks():
    q, k, v = normal(7, *SHAPES)
    slopes = numpy.linspace(0.01, 0.2, 6, dtype="float32")
    sinks = numpy.linspace(-1, 3, 12, dtype="float32").reshape(2, 6)
    output, lse = intfa.attention(
        q, k, v, precision="float32", alibi_slopes=slopes, sinks=sinks, return_lse=True
    )
    expected, sums = reference.attention(q, k, v, slopes=slopes, sinks=sinks)
    assert error(output, expected) <= 1e-5
    assert abs(lse - sums).max() <= 1e-4


# MARK: Alignment and rows without keys


def test_causal_is_aligned_at_the_end():
    # A key that only the last query may see carries the answer.
    q = numpy.ones((1, 3, 8), "float32")
    k = numpy.zeros((1, 5, 8), "float32")
    k[0, 4] = 20
    v = numpy.arange(5, dtype="float32")[None, :, None] * numpy.ones(8, "float32")
    output = intfa.attention(q, k, v, is_causal=True, precision="float32")
    assert numpy.allclose(output[0, :, 0], [1.0, 1.5, 4.0], atol=1e-4)


def test_more_queries_than_keys():
    q, k, v = normal(8, (1, 2, 5, 16), (1, 2, 3, 16), (1, 2, 3, 16))
    output, lse = intfa.attention(q, k, v, is_causal=True, precision="float32", return_lse=True)
    expected, sums = reference.attention(q, k, v, right=0)
    assert error(output, expected) <= 1e-5
    assert (output[:, :, :2] == 0).all()
    assert (lse[:, :, :2] == -numpy.inf).all()
    assert numpy.allclose(lse[:, :, 2:], sums[:, :, 2:], atol=1e-5)


@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_sizes_of_zero(empty):
    batch, queries, keys = (0 if empty == name else 4 for name in ("batch", "queries", "keys"))
    q = numpy.ones((batch, 4, queries, 16), "float32")
    k = numpy.ones((batch, 2, keys, 16), "float32")
    output, lse = intfa.attention(q, k, k, return_lse=True)
    assert output.shape == q.shape
    assert lse.shape == q.shape[:-1]
    if empty == "keys":
        assert (output == 0).all()
        assert (lse == -numpy.inf).all()


# MARK: Layouts


def test_layouts_are_read_where_they_lie():
    q, k, v = normal(9, *SHAPES)
    expected = intfa.attention(q, k, v)
    strided = [
        numpy.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v)
    ]
    assert not strided[0].flags.c_contiguous
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numpy.array_equal(intfa.attention(*strided), expected)
    padded = [numpy.zeros((*x.shape[:-1], x.shape[-1] + 8), x.dtype) for x in (q, k, v)]
    for wide, x in zip(padded, (q, k, v)):
        wide[..., : x.shape[-1]] = x
    views = [wide[..., : x.shape[-1]] for wide, x in zip(padded, (q, k, v))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numpy.array_equal(intfa.attention(*views), expected)


def test_negative_strides():
    q, k, v = normal(10, *SHAPES)
    expected = intfa.attention(q, k, v)
    flipped = [numpy.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1] for x in (q, k, v)]
    assert flipped[0].strides[2] < 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numpy.array_equal(intfa.attention(*flipped), expected)


def test_broadcast_and_read_only():
    q, k, v = normal(11, *SHAPES)
    k = numpy.broadcast_to(k[:1], k.shape)
    assert k.strides[0] == 0
    assert not k.flags.writeable
    assert numpy.array_equal(intfa.attention(q, k, v), intfa.attention(q, k.copy(), v))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_copies_are_announced(which):
    operands = normal(12, *SHAPES)
    expected = intfa.attention(*operands)
    x = operands[which]
    operands[which] = numpy.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    with pytest.warns(intfa.CopyWarning, match="qkv"[which]) as caught:
        output = intfa.attention(*operands)
    assert caught[0].filename == __file__
    assert numpy.array_equal(output, expected)


def test_reversed_dimension_is_copied():
    q, k, v = normal(13, *SHAPES)
    with pytest.warns(intfa.CopyWarning, match="stride -1"):
        output = intfa.attention(q[..., ::-1], k[..., ::-1].copy(), v)
    assert error(output, reference.attention(q, k, v)[0]) <= GATES["int8"]


# MARK: Refusals


def test_unknown_arguments():
    q, k, v = normal(14, *SHAPES)
    with pytest.raises(TypeError, match="causal"):
        intfa.attention(q, k, v, causal=True)
    with pytest.raises(TypeError):
        intfa.attention(q, k, v, 0.5)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (intfa.UnsupportedElementTypeError, {"q": numpy.ones((1, 1, 2, 8))}),
        (intfa.UnsupportedElementTypeError, {"q": [[[[1.0] * 8]]]}),
        (intfa.UnsupportedElementTypeError, {"q": numpy.ones((1, 1, 2, 8), ">f4")}),
        (intfa.ShapeMismatchError, {"q": numpy.ones((2, 8), "float32")}),
        (intfa.ShapeMismatchError, {"q": numpy.ones((1, 1, 2, 9), "float32")}),
        (intfa.ShapeMismatchError, {"q": numpy.ones((1, 2, 8), "float32")}),
        (intfa.AttentionError, {"k": numpy.ones((1, 3, 2, 8), "float32")}),
        (intfa.ShapeMismatchError, {"q": numpy.ones((1, 2, 2, 8), "float32"), "enable_gqa": False}),
        (intfa.NonFiniteInputError, {"v": numpy.full((1, 1, 2, 8), numpy.nan, "float32")}),
        (intfa.ValueOutOfRangeError, {"q": numpy.full((1, 1, 2, 8), 1e30, "float32")}),
        (intfa.InvalidArgumentError, {"precision": "int7"}),
        (intfa.InvalidArgumentError, {"precision": None}),
        (intfa.UnsupportedError, {"precision": "int4QueryKey"}),
        (intfa.InvalidArgumentError, {"scale": float("nan")}),
        (intfa.InvalidArgumentError, {"softcap": -1.0}),
        (intfa.InvalidArgumentError, {"window": (-1, 0)}),
        (intfa.InvalidArgumentError, {"window": 3}),
        (intfa.InvalidArgumentError, {"window": (3, 3), "is_causal": True}),
        (intfa.ShapeMismatchError, {"attn_mask": numpy.ones((3, 2), bool)}),
        (intfa.UnsupportedElementTypeError, {"attn_mask": numpy.ones((2, 2), "int64")}),
        (intfa.InvalidArgumentError, {"threads": 0}),
    ],
    ids=lambda x: str(x)[:60].replace("\n", " ") if isinstance(x, dict) else "",
)
def test_refusals(kind, change):
    arguments = {name: numpy.ones((1, 1, 2, 8), "float32") for name in "qkv"}
    arguments.update(change)
    with pytest.raises(kind) as caught:
        intfa.attention(**arguments)
    assert isinstance(caught.value, intfa.AttentionError)
    assert str(caught.value)


def test_errors_are_builtin_ones_too():
    assert issubclass(intfa.InvalidArgumentError, ValueError)
    assert issubclass(intfa.UnsupportedElementTypeError, TypeError)
    assert issubclass(intfa.OutOfMemoryError, MemoryError)
    assert issubclass(intfa.UnsupportedError, NotImplementedError)


# MARK: Threads


def test_thread_counts_give_the_same_bits():
    q, k, v = normal(15, *SHAPES)
    outputs = [intfa.attention(q, k, v, threads=threads) for threads in (None, 1, 2)]
    assert all(numpy.array_equal(output, outputs[0]) for output in outputs)


def test_several_threads_at_once():
    inputs = [normal(seed, *SHAPES) for seed in range(8)]
    alone = [intfa.attention(*x) for x in inputs]

    def work(i):
        return i % 8, intfa.attention(*inputs[i % 8])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, output in pool.map(work, range(64)):
            assert numpy.array_equal(output, alone[i])


def test_errors_of_threads_do_not_mix():
    q, k, v = normal(16, *SHAPES)

    def work(i):
        wrong = {"softcap": -1.0} if i % 2 else {"precision": "int7"}
        with pytest.raises(intfa.AttentionError) as caught:
            intfa.attention(q, k, v, **wrong)
        return i, str(caught.value)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, message in pool.map(work, range(64)):
            assert ("softcap" if i % 2 else "int7") in message


def test_the_lock_of_the_interpreter_is_released():
    q, k, v = normal(17, (1, 8, 2048, 64), (1, 8, 2048, 64), (1, 8, 2048, 64))
    intfa.attention(q, k, v, precision="float32", threads=1)
    done = threading.Event()
    counts = []

    def count():
        n = 0
        while not done.is_set():
            n += 1
            time.sleep(0)
        counts.append(n)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # nobody is made to let go
    try:
        other = threading.Thread(target=count)
        other.start()
        intfa.attention(q, k, v, precision="float32", threads=1)
        done.set()
        other.join()
    finally:
        sys.setswitchinterval(interval)
    assert counts[0] > 100


# MARK: Merging and information


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_merge(precision):
    q, k, v = normal(18, *SHAPES)
    parts = [
        intfa.attention(q, k[:, :, s], v[:, :, s], precision=precision, return_lse=True)
        for s in (slice(0, 64), slice(64, 150), slice(150, 193))
    ]
    output, lse = intfa.merge([part[0] for part in parts], [part[1] for part in parts])
    expected, sums = reference.attention(q, k, v)
    assert error(output, expected) <= GATES[precision]
    assert abs(lse - sums).max() <= 20 * GATES[precision]


def test_merge_of_rows_without_keys():
    output = numpy.full((1, 2, 3, 4), 7, "float32")
    lse = numpy.full((1, 2, 3), -numpy.inf, "float32")
    one = numpy.ones((1, 2, 3, 4), "float32")
    merged, sums = intfa.merge([output, one], [lse, numpy.zeros((1, 2, 3), "float32")])
    assert (merged == 1).all()
    assert (sums == 0).all()


def test_merge_refusals():
    one = numpy.ones((1, 2, 3, 4), "float32")
    lse = numpy.zeros((1, 2, 3), "float32")
    with pytest.raises(intfa.ShapeMismatchError):
        intfa.merge([], [])
    with pytest.raises(intfa.ShapeMismatchError):
        intfa.merge([one, one], [lse])
    with pytest.raises(intfa.ShapeMismatchError):
        intfa.merge([one], [lse[:, :1]])
    with pytest.raises(intfa.NonFiniteInputError):
        intfa.merge([one], [lse + numpy.nan])
    with pytest.raises(intfa.UnsupportedElementTypeError):
        intfa.merge([one], [lse.astype("float16")])


def test_information():
    found = intfa.info()
    assert found.version == intfa.__version__
    assert found.instruction_set in found.instruction_sets
    assert set(GATES) <= set(found.precisions)
    assert 1 <= found.threads <= found.processors


def test_no_adapter_is_imported_unasked():
    import subprocess

    code = (
        "import sys, int_flash_attention; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

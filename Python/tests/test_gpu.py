"""Arrays in the memory of a GPU, those of a stand-in for CuPy. ``.ci/python`` runs this on the simulator."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import pathlib
import subprocess
import sys

import numpy
import pytest
import reference
from reference import GATES, error, normal
from simulator import CuPyArray, ForeignArray, put

import int_flash_attention as intfa
from int_flash_attention import _gpu

SHAPES = ((2, 6, 70, 64), (2, 2, 93, 64), (2, 2, 93, 64))


def arrays(driver, *shapes, dtype="float32", seed=1):
    host = normal(seed, *(shapes or SHAPES), dtype=dtype)
    return host, [put(driver, x) for x in host]


def test_there_is_a_driver(driver):
    assert driver.stream


@pytest.mark.parametrize("precision", ["int8", "int8Paper", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bounds(driver, precision, dtype):
    host, (q, k, v) = arrays(driver, dtype=dtype)
    output, lse = intfa.attention(q, k, v, precision=precision, is_causal=True, return_lse=True)
    driver.synchronize()
    expected, sums = reference.attention(*host, right=0)
    assert isinstance(output, CuPyArray)
    assert output.shape == expected.shape
    assert output.dtype == dtype
    bound = GATES[precision] + (0 if dtype == "float32" else 1e-3)
    assert error(output.get(), expected) <= bound
    assert lse.dtype == numpy.float32
    assert abs(lse.get() - sums).max() <= 20 * bound


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {}),
        ({"scale": 0.1}, {"scale": 0.1}),
        ({"window": (16, 3)}, {"left": 16, "right": 3}),
        ({"window": (20, None), "is_causal": True}, {"left": 20, "right": 0}),
    ],
)
def test_options(driver, arguments, expected):
    host, (q, k, v) = arrays(driver)
    output = intfa.attention(q, k, v, **arguments)
    driver.synchronize()
    assert error(output.get(), reference.attention(*host, **expected)[0]) <= GATES["int8"]


def test_shapes_and_strides(driver):
    host = normal(3, (2, 70, 6, 64), (2, 93, 2, 64), (2, 93, 2, 64))
    views = [x.transpose(0, 2, 1, 3) for x in host]
    output = intfa.attention(*(put(driver, x) for x in views))
    driver.synchronize()
    dense = [numpy.ascontiguousarray(x) for x in views]
    same = intfa.attention(*(put(driver, x) for x in dense))
    alone = intfa.attention(*(put(driver, x[0]) for x in dense))
    driver.synchronize()
    assert numpy.array_equal(output.get(), same.get())
    assert numpy.array_equal(alone.get(), same.get()[0])


def test_nothing_waits_and_plans_are_kept(driver):
    _, (q, k, v) = arrays(driver)
    first = intfa.attention(q, k, v)
    driver.synchronize()
    expected = first.get()
    before = _gpu._plan.cache_info()
    second = intfa.attention(q, k, v)
    # The simulator runs nothing before somebody waits, and fresh memory is not a number.
    assert not numpy.array_equal(second.get(), expected)
    third = intfa.attention(q, k, v)
    driver.synchronize()
    assert numpy.array_equal(second.get(), expected)
    assert numpy.array_equal(third.get(), expected)
    after = _gpu._plan.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 0)


def test_work_is_in_the_current_stream(driver):
    _, (q, k, v) = arrays(driver)
    context = driver.make("cuCtxCreate_v2", 0, 0)
    other = driver.make("cuStreamCreate", 1)
    assert driver.make("cuCtxPopCurrent_v2") == context
    own, driver.stream = driver.stream, other
    with pytest.raises(intfa.DeviceFailureError):  # a stream of another context
        intfa.attention(q, k, v)
    driver.stream = 0
    output = intfa.attention(q, k, v)
    driver.synchronize()
    assert numpy.isfinite(output.get()).all()
    driver.stream = own


def test_foreign_keys(driver):
    host = normal(4, *SHAPES)
    q = put(driver, host[0])
    output = intfa.attention(q, *(put(driver, x, ForeignArray) for x in host[1:]))
    driver.synchronize()
    assert error(output.get(), reference.attention(*host)[0]) <= GATES["int8"]


def test_no_keys_and_no_queries(driver):
    _, (q, k, v) = arrays(driver, (1, 2, 5, 64), (1, 2, 0, 64), (1, 2, 0, 64))
    output, lse = intfa.attention(q, k, v, return_lse=True)
    driver.synchronize()
    assert (output.get() == 0).all()
    assert numpy.isneginf(lse.get()).all()
    _, (q, k, v) = arrays(driver, (1, 2, 0, 64), (1, 2, 9, 64), (1, 2, 9, 64))
    assert intfa.attention(q, k, v).shape == (1, 2, 0, 64)


def test_threads(driver):
    _, (q, k, v) = arrays(driver)

    def call(causal):
        return intfa.attention(q, k, v, is_causal=causal)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(call, [True, False] * 8))
    driver.synchronize()
    found = [x.get() for x in outputs]
    assert numpy.isfinite(found[0]).all()
    assert all(numpy.array_equal(x, found[i % 2]) for i, x in enumerate(found))


@pytest.mark.parametrize("name", ["attn_mask", "alibi_slopes", "sinks", "threads"])
def test_what_is_not_computed_on_a_gpu(driver, name):
    _, (q, k, v) = arrays(driver)
    with pytest.raises(
        intfa.UnsupportedError, match=f"{name} is given, but the tensors are on a GPU"
    ):
        intfa.attention(q, k, v, **{name: 1})


def refused(driver):
    host, (q, k, v) = arrays(driver)
    step = ForeignArray(driver, k.shape, k.dtype, tuple(2 * x for x in host[1].strides))
    masked = put(driver, host[1], type("Masked", (ForeignArray,), {}))
    interface = {**masked.__cuda_array_interface__, "mask": k}
    type(masked).__cuda_array_interface__ = interface
    ahead = put(driver, host[1], type("Ahead", (ForeignArray,), {}))
    type(ahead).__cuda_array_interface__ = {**ahead.__cuda_array_interface__, "stream": 77}
    absent = ForeignArray(driver, k.shape, k.dtype, address=host[1].ctypes.data)
    elsewhere = put(driver, host[1])
    elsewhere.device = type("Device", (), {"id": 3})()
    return (
        (intfa.UnsupportedError, "int8, int8Paper, bfloat16", (q, k, v), {"precision": "int4"}),
        (intfa.UnsupportedError, "softcap is 20", (q, k, v), {"softcap": 20.0}),
        (intfa.InvalidArgumentError, "precision", (q, k, v), {"precision": "int7"}),
        (intfa.InvalidArgumentError, "k is on the CPU, but q is on GPU 0", (q, host[1], v), {}),
        (intfa.InvalidArgumentError, "k is on GPU 0, but q is on the CPU", (host[0], k, v), {}),
        (intfa.InvalidArgumentError, "k is on GPU 3, but q is on GPU 0", (q, elsewhere, v), {}),
        (intfa.InvalidArgumentError, "a GPU, but q is on the CPU", (host[0], absent, v), {}),
        (intfa.InvalidArgumentError, "k has stride 2", (q, step, v), {}),
        (intfa.InvalidArgumentError, "k is ready in stream 77", (q, ahead, v), {}),
        (
            intfa.InvalidArgumentError,
            "key is at address 0x.* not in the memory",
            (q, absent, v),
            {},
        ),
        (intfa.UnsupportedError, "k is a masked array", (q, masked, v), {}),
        (intfa.UnsupportedError, "q is a ForeignArray; results on a GPU", (absent, k, v), {}),
        (intfa.ShapeMismatchError, "v", (q, k, put(driver, host[2][:, :1])), {}),
        (
            intfa.UnsupportedElementTypeError,
            "float64",
            (q, k, put(driver, host[2].astype("float64"))),
            {},
        ),
        (
            intfa.UnsupportedElementTypeError,
            "int8",
            (q, k, put(driver, host[2].astype("int8"))),
            {},
        ),
    )


def test_errors(driver):
    for kind, message, operands, arguments in refused(driver):
        with pytest.raises(kind, match=message):
            intfa.attention(*operands, **arguments)


def test_merge_and_caches_are_on_the_cpu(driver):
    _, (q, k, v) = arrays(driver)
    output, lse = intfa.attention(q, k, v, return_lse=True)
    with pytest.raises(intfa.UnsupportedElementTypeError, match="on the CPU"):
        intfa.merge([output], [lse])
    cache = intfa.KVCache(kv_heads=2, head_dim=64, capacity=100)
    with pytest.raises(intfa.UnsupportedElementTypeError, match="on the CPU"):
        cache.append(k, v)


def test_a_thread_without_context(driver):
    _, (q, k, v) = arrays(driver)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        output = pool.submit(intfa.attention, q, k, v).result()
    driver.synchronize()
    assert numpy.isfinite(output.get()).all()
    current = ctypes.c_void_p()
    driver.call("cuCtxGetCurrent", ctypes.byref(current))
    assert current.value == driver.context


PROGRAM = """
import numpy, pytest, simulator
import int_flash_attention as intfa

driver = simulator.Driver()
simulator.install_cupy(driver, pytest.MonkeyPatch())
try:
    intfa.attention(*(simulator.put(driver, numpy.ones((2, 9, 64), "float32")) for _ in range(3)))
    print("computed")
except intfa.UnavailableError as error:
    print(error)
"""


def test_the_compiler_is_found_where_pip_puts_it(driver, tmp_path):
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = [pathlib.Path(x) for x in folders if (pathlib.Path(x) / "libnvrtc.so.12").exists()]
    if not found:
        pytest.skip("NVRTC is where the system looks")
    (tmp_path / "libcuda.so.1").symlink_to(found[0] / "libcuda.so.1")
    tests, packages = pathlib.Path(__file__).parent, pathlib.Path(intfa.__file__).parents[1]

    def run():
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(tmp_path),
            "PYTHONPATH": f"{tmp_path}:{tests}:{packages}",
        }
        return subprocess.check_output([sys.executable, "-c", PROGRAM], env=environment, text=True)

    assert "libnvrtc" in run()
    target = tmp_path / "nvidia/cuda_nvrtc/lib"
    target.mkdir(parents=True)
    (target / "libnvrtc.so.12").symlink_to(found[0] / "libnvrtc.so.12")
    assert run() == "computed\n"

"""The driver of the GPU at hand, in CI the simulator, and a stand-in for CuPy on it.

There is no CuPy without a GPU. The stand-in has what this package uses of it: arrays with
``__cuda_array_interface__``, a pool that hands memory out again at once, and a current stream.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types
import weakref

import numpy
import pytest

import int_flash_attention._abi as abi


def has_gpu():
    count = ctypes.c_int32()
    found = abi.library.intfa_get_device_count(ctypes.byref(count)) == 0
    if not found and os.environ.get("INTFA_TEST_GPU"):
        pytest.fail(f"INTFA_TEST_GPU is set, but: {abi.library.intfa_last_error().decode()}")
    return found


class Driver:
    """libcuda as another library of the process calls it."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.context = self.make("cuDevicePrimaryCtxRetain", 0)
        self.stream = 0
        self.pool = {}

    def call(self, name, *arguments):
        assert getattr(self.library, name)(*arguments) == 0, name

    def make(self, name, *arguments):
        result = ctypes.c_void_p()
        self.call(name, ctypes.byref(result), *arguments)
        return result.value

    def allocate(self, size):
        free = self.pool.setdefault(size, [])
        if free:
            return free.pop()
        self.call("cuCtxPushCurrent_v2", ctypes.c_void_p(self.context))
        try:
            return self.make("cuMemAlloc_v2", ctypes.c_size_t(max(size, 1)))
        finally:
            self.make("cuCtxPopCurrent_v2")

    def give_back(self, size, address):
        self.pool[size].append(address)

    def upload(self, address, values):
        values = numpy.ascontiguousarray(values)
        self.call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_size_t(values.nbytes),
        )

    def download(self, address, values):
        self.call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(values.nbytes),
        )

    def synchronize(self):
        self.call("cuStreamSynchronize", ctypes.c_void_p(self.stream))


class Device:
    id = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class ForeignArray:
    """An array of a library that this package does not know."""

    def __init__(self, driver, shape, dtype, strides=None, address=None):
        self.driver, self.shape, self.dtype = driver, tuple(shape), numpy.dtype(dtype)
        self.strides, self.size = strides, int(numpy.prod(shape)) * self.dtype.itemsize
        self.address = driver.allocate(self.size) if address is None else address
        if address is None:
            weakref.finalize(self, driver.give_back, self.size, self.address)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.strides,
            "version": 3,
        }

    def get(self):
        """The elements of a row-major array, as they are now."""
        values = numpy.empty(self.shape, self.dtype)
        self.driver.download(self.address, values)
        return values


class CuPyArray(ForeignArray):
    device = Device()

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.address)

    @property
    def __cuda_array_interface__(self):
        # As CuPy: the default stream is 1 here, and 0 where it is a handle.
        return {**super().__cuda_array_interface__, "stream": self.driver.stream or 1}


def put(driver, values, kind=CuPyArray):
    """An array on the device with the elements and the strides of one on the host."""
    order = sorted(range(values.ndim), key=lambda axis: -values.strides[axis])
    array = kind(driver, values.shape, values.dtype, values.strides)
    driver.upload(array.address, values.transpose(order))
    return array


def install_cupy(driver, monkeypatch):
    cupy = types.ModuleType("cupy")
    cupy.ndarray = CuPyArray
    cupy.empty = lambda shape, dtype: CuPyArray(driver, shape, dtype)
    cupy.cuda = types.SimpleNamespace(
        get_current_stream=lambda device: types.SimpleNamespace(ptr=driver.stream)
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)

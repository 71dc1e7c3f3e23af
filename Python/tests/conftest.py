"""What tests on a GPU begin with."""

from __future__ import annotations

import ctypes

import pytest
import simulator


@pytest.fixture
def driver(monkeypatch):
    """The driver, with its context current, a stream, and the stand-in for CuPy."""
    if not simulator.has_gpu():
        pytest.skip("there is no GPU, and no simulated one")
    found = simulator.Driver()
    found.call("cuCtxPushCurrent_v2", ctypes.c_void_p(found.context))
    found.stream = found.make("cuStreamCreate", 1)
    simulator.install_cupy(found, monkeypatch)
    yield found
    found.synchronize()
    found.make("cuCtxPopCurrent_v2")

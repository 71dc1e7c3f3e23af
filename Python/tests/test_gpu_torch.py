"""PyTorch tensors in the memory of a GPU: stand-ins, as PyTorch has no such tensors without one.

A stand-in is a tensor of the host over memory of the simulator, which is the host's too, that says it
is on a GPU. So this shows what happens between PyTorch's interface and the kernels, not PyTorch itself.
``.ci/python`` runs it on the simulator.
"""

from __future__ import annotations

import ctypes
import types
import weakref

import pytest
import simulator
import torch
from test_torch import SHAPES, error, normal
from torch.nn.attention.bias import causal_upper_left

import int_flash_attention as intfa
from int_flash_attention import torch as ours
from int_flash_attention._gpu import gpu_of
from int_flash_attention._tensors import operand

GATE = 0.014  # of int8


class OnGPU(torch.Tensor):
    driver = None

    @property
    def device(self):
        return torch.device("cuda", 0)

    def new_empty(self, shape, dtype=None):
        return on_gpu(OnGPU.driver, shape, dtype or self.dtype)

    @classmethod
    def __torch_function__(cls, function, kinds, arguments=(), named=None):
        if function is torch.ops.int_flash_attention.attention:
            return ours._attend(*arguments)  # PyTorch would take off what says that it is on a GPU
        return super().__torch_function__(function, kinds, arguments, named or {})


def on_gpu(driver, shape, dtype):
    count = torch.Size(shape).numel()
    size = count * dtype.itemsize
    address = driver.allocate(size)
    memory = (ctypes.c_char * max(size, 1)).from_address(address)
    tensor = torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)
    weakref.finalize(memory, driver.give_back, size, address)
    return tensor.as_subclass(OnGPU)


def put(tensor):
    found = on_gpu(OnGPU.driver, tensor.shape, tensor.dtype)
    found.copy_(tensor)
    return found


@pytest.fixture
def gpu(driver, monkeypatch):
    own = torch.empty

    def empty(*arguments, dtype=None, device=None, **named):
        if device is not None and torch.device(device).type == "cuda":
            return on_gpu(driver, arguments[0], dtype)
        return own(*arguments, dtype=dtype, device=device, **named)

    def current_stream(device):
        assert device == 0
        return types.SimpleNamespace(cuda_stream=driver.stream)

    monkeypatch.setattr(OnGPU, "driver", driver)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    return driver


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention(gpu, dtype):
    q, k, v = normal(1, *SHAPES, dtype=dtype)
    output, lse = intfa.attention(put(q), put(k), put(v), is_causal=True, return_lse=True)
    gpu.synchronize()
    expected, sums = intfa.attention(q, k, v, is_causal=True, return_lse=True, precision="float32")
    assert isinstance(output, OnGPU)
    assert output.dtype == dtype
    assert output.shape == expected.shape
    assert error(output, expected) <= GATE
    assert float((lse - sums).abs().max()) <= 0.05


def test_strides(gpu):
    q, k, v = normal(2, (2, 70, 6, 64), (2, 90, 6, 64), (2, 90, 6, 64))
    swapped = intfa.attention(*(put(x).transpose(1, 2) for x in (q, k, v)))
    gpu.synchronize()  # copies of stand-ins are the host's: not in the order of the stream
    dense = intfa.attention(*(put(x.transpose(1, 2).contiguous()) for x in (q, k, v)))
    gpu.synchronize()
    assert torch.equal(swapped, dense)


@pytest.mark.parametrize("lengths", [(70, 70), (70, 193), (193, 70)])
@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention(gpu, lengths, causal):
    shapes = [(2, 6, lengths[0], 64), (2, 2, lengths[1], 64), (2, 2, lengths[1], 64)]
    q, k, v = normal(3, *shapes)
    output = ours.scaled_dot_product_attention(
        put(q), put(k), put(v), is_causal=causal, enable_gqa=True
    )
    gpu.synchronize()
    mask = causal_upper_left(*lengths) if causal else None
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    assert output.shape == expected.shape
    assert error(output, expected) <= GATE


def test_the_operator_is_there_for_gpus():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("int_flash_attention::attention", "CUDA")
    assert has("int_flash_attention::attention", "CPU")


def test_transformers(gpu):
    transformers = pytest.importorskip("int_flash_attention.transformers")
    q, k, v = normal(4, *SHAPES)
    module = types.SimpleNamespace(is_causal=True)
    output, _ = transformers.attention_forward(module, put(q), put(k), put(v), None)
    gpu.synchronize()
    expected = intfa.attention(q, k, v, is_causal=True, precision="float32")
    assert output.shape == (2, 70, 6, 32)
    assert error(output, expected.transpose(1, 2)) <= GATE
    mask = torch.ones(2, 1, 70, 193, dtype=torch.bool)
    with pytest.raises(intfa.UnsupportedError, match="attn_mask is given, but the tensors are on"):
        transformers.attention_forward(module, put(q), put(k), put(v), mask)


def test_errors(gpu):
    q, k, v = normal(5, *SHAPES)
    cupy = simulator.put(gpu, k.numpy())
    gpu.stream, own = 0, gpu.stream
    ready_elsewhere = operand(cupy, "k", on_gpu=True)
    gpu.stream = own
    with pytest.raises(intfa.InvalidArgumentError, match="k is ready in stream 0, but q in stream"):
        gpu_of(put(q), q=operand(put(q), "q", on_gpu=True), k=ready_elsewhere)
    with pytest.raises(intfa.InvalidArgumentError, match="k is on the CPU, but q is on GPU 0"):
        intfa.attention(put(q), k, v)
    with pytest.raises(intfa.InvalidArgumentError, match="query is on GPU 0"):
        ours.scaled_dot_product_attention(put(q), k, v)
    with pytest.raises(intfa.UnsupportedError, match="attn_mask is given, but the tensors"):
        ours.scaled_dot_product_attention(put(q), put(k), put(v), torch.ones(70, 193).bool())
    with pytest.raises(intfa.UnsupportedError, match="softcap is 20"):
        ours.scaled_dot_product_attention(put(q), put(k), put(v), softcap=20.0)
    with pytest.raises(intfa.UnsupportedError, match="int8, int8Paper, bfloat16 and float16"):
        ours.scaled_dot_product_attention(put(q), put(k), put(v), precision="int4")
    with pytest.raises(intfa.InvalidArgumentError, match=r"outputs\[0\] is on device cuda:0"):
        intfa.merge([put(q)], [put(q[..., 0])])


def test_a_patch_falls_back(gpu):
    q, k, v = normal(6, *SHAPES)
    sdpa = torch.nn.functional
    with ours.patch("int4", fallback=True):
        output = sdpa.scaled_dot_product_attention(put(q), put(k), put(v))
    assert error(output, sdpa.scaled_dot_product_attention(q, k, v)) <= 1e-5

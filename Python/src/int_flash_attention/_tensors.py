"""Arrays and tensors as addresses, shapes and strides; without copies where possible."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple, Optional, Sequence

import numpy

from ._errors import (
    CopyWarning,
    GradientError,
    InvalidArgumentError,
    ShapeMismatchError,
    UnsupportedElementTypeError,
    UnsupportedError,
)

FLOATS = ("float32", "float16", "bfloat16")
MASKS = (*FLOATS, "bool")

#: A GPU that the array does not name.
SOME_DEVICE = -1


class Operand(NamedTuple):
    """What the library is told about a tensor."""

    address: int
    element_type: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    owner: Any
    """Keeps the memory alive while the library uses it."""
    device: Optional[int] = None
    """The number of the GPU; None is the CPU."""
    stream: Optional[int] = None
    """Of the GPU: where its elements are ready, if the array says so."""


def torch_module(value: Any) -> Any:
    """The module ``torch`` if the value is a tensor; it is never imported from here."""
    return _module(value, "torch", "Tensor")


def cupy_module(value: Any) -> Any:
    """The module ``cupy`` if the value is an array of it; it is never imported from here."""
    return _module(value, "cupy", "ndarray")


def _module(value: Any, name: str, kind: str) -> Any:
    module = sys.modules.get(name)
    found = getattr(module, kind, None)
    return module if found is not None and isinstance(value, found) else None


def operand(
    value: Any,
    name: str,
    *,
    types: Sequence[str] = FLOATS,
    unit_stride: bool = True,
    on_gpu: bool = False,
    stacklevel: int = 4,
) -> Operand:
    """Looks at an argument; copies it, with a :class:`CopyWarning`, only where its layout demands it."""
    if torch_module(value) is not None:
        if value.device.type not in (("cpu", "cuda") if on_gpu else ("cpu",)):
            raise InvalidArgumentError(
                f"{name} is on device {value.device}; it must be on the CPU"
                + " or a CUDA GPU" * on_gpu
            )
        return _from_torch(value, name, types, unit_stride, stacklevel)
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return _from_numpy(numpy.asarray(value), name, types, unit_stride, stacklevel)
    if on_gpu and hasattr(value, "__cuda_array_interface__"):
        return _from_cuda_array(value, name, types)
    raise UnsupportedElementTypeError(
        f"{name} is a {type(value).__name__}; it must be a NumPy array or a PyTorch tensor on the CPU"
        + ", or have __cuda_array_interface__" * on_gpu
    )


def empty(shape: Sequence[int], element_type: str, like: Any) -> Any:
    """A new array or tensor, of the library that ``like`` belongs to and on its device."""
    torch = torch_module(like)
    if torch is not None:
        return torch.empty(tuple(shape), dtype=getattr(torch, element_type), device=like.device)
    cupy = cupy_module(like)
    if cupy is not None:
        with like.device:
            return cupy.empty(tuple(shape), dtype=element_type)
    if element_type == "bfloat16":  # only arrays that have it already ask for it
        return numpy.empty(tuple(shape), dtype=like.dtype)
    return numpy.empty(tuple(shape), dtype=element_type)


def _refuse_type(name: str, found: str, types: Sequence[str]) -> None:
    if found not in types:
        raise UnsupportedElementTypeError(
            f"{name} is {found}; it must be {', '.join(types[:-1])} or {types[-1]}"
        )


def _say_copy(name: str, why: str, stacklevel: int) -> None:
    warnings.warn(f"{name} is copied: {why}", CopyWarning, stacklevel=stacklevel + 1)


def _row_major(shape: Sequence[int], step: int) -> tuple[int, ...]:
    steps = [step] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        steps[axis] = steps[axis + 1] * shape[axis + 1]
    return tuple(steps)


def _from_numpy(
    value: numpy.ndarray, name: str, types: Sequence[str], unit_stride: bool, stacklevel: int
) -> Operand:
    found = (
        value.dtype.name if value.dtype.isnative else f"{value.dtype.name} in foreign byte order"
    )
    _refuse_type(name, found, types)
    if value.size == 0:  # strides say nothing then
        value = numpy.empty(value.shape, value.dtype)
        return Operand(value.ctypes.data, found, value.shape, _row_major(value.shape, 1), value)
    size = value.itemsize
    why = None
    if not value.flags.aligned or any(step % size for step in value.strides):
        why = "its elements are not aligned"
    elif unit_stride and value.ndim and value.shape[-1] > 1 and value.strides[-1] != size:
        why = f"its last dimension has stride {value.strides[-1] // size}, not 1"
    if why is not None:
        _say_copy(name, why, stacklevel)
        value = numpy.ascontiguousarray(value)
    strides = tuple(step // size for step in value.strides)
    return Operand(value.ctypes.data, found, value.shape, strides, value)


def _from_torch(
    value: Any, name: str, types: Sequence[str], unit_stride: bool, stacklevel: int
) -> Operand:
    torch = sys.modules["torch"]
    if value.layout != torch.strided:
        raise InvalidArgumentError(f"{name} has layout {value.layout}; it must be strided")
    if value.requires_grad and torch.is_grad_enabled():
        raise GradientError(
            f"{name} requires gradients, but attention here has no backward pass; call it under "
            "torch.no_grad() or torch.inference_mode(), or detach() the tensor"
        )
    _refuse_type(name, str(value.dtype).replace("torch.", ""), types)
    value = value.detach()
    if value.is_neg():
        value = value.resolve_neg()
    strides = value.stride()
    if unit_stride and value.numel() and value.dim() and value.shape[-1] > 1 and strides[-1] != 1:
        _say_copy(name, f"its last dimension has stride {strides[-1]}, not 1", stacklevel)
        value = value.contiguous()
        strides = value.stride()
    return Operand(
        value.data_ptr(),
        str(value.dtype).replace("torch.", ""),
        tuple(value.shape),
        tuple(strides),
        value,
        *_torch_place(torch, value.device),
    )


def _torch_place(torch: Any, device: Any) -> tuple[Optional[int], Optional[int]]:
    """The number of a GPU and the current stream there."""
    if device.type != "cuda":
        return None, None
    return device.index, int(torch.cuda.current_stream(device.index).cuda_stream)


def _from_cuda_array(value: Any, name: str, types: Sequence[str]) -> Operand:
    interface = value.__cuda_array_interface__
    found = numpy.dtype(interface["typestr"])
    _refuse_type(
        name, found.name if found.isnative else f"{found.name} in foreign byte order", types
    )
    if interface.get("mask") is not None:
        raise UnsupportedError(f"{name} is a masked array; those are not computed")
    shape = tuple(interface["shape"])
    steps = interface.get("strides")
    if steps is None or 0 in shape:  # strides say nothing then
        steps = _row_major(shape, found.itemsize)
    if any(step % found.itemsize for step in steps):
        raise InvalidArgumentError(f"{name} has strides {tuple(steps)}, not whole elements")
    strides = tuple(step // found.itemsize for step in steps)
    if not shape:
        raise ShapeMismatchError(f"{name} has no dimensions")
    if shape[-1] > 1 and strides[-1] != 1:
        raise InvalidArgumentError(
            f"{name} has stride {strides[-1]} in its last dimension; it must be 1"
        )
    cupy = cupy_module(value)
    if cupy is not None:
        device = value.device.id
        stream = int(cupy.cuda.get_current_stream(device).ptr)
    else:
        device, stream = SOME_DEVICE, interface.get("stream")
        stream = 0 if stream == 1 else stream  # 1 is the default stream
    return Operand(interface["data"][0], found.name, shape, strides, value, device, stream)

"""NumPy arrays and PyTorch CPU tensors as addresses, shapes and strides; without copies where possible."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple, Sequence

import numpy

from ._errors import (
    CopyWarning,
    GradientError,
    InvalidArgumentError,
    UnsupportedElementTypeError,
)

FLOATS = ("float32", "float16", "bfloat16")
MASKS = (*FLOATS, "bool")


class Operand(NamedTuple):
    """What the library is told about a tensor."""

    address: int
    element_type: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    owner: Any
    """Keeps the memory alive while the library uses it."""


def torch_module(*values: Any) -> Any:
    """The module ``torch`` if one of the values is a tensor; it is never imported from here."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is not None and any(isinstance(value, tensor) for value in values):
        return torch
    return None


def operand(
    value: Any,
    name: str,
    *,
    types: Sequence[str] = FLOATS,
    unit_stride: bool = True,
    stacklevel: int = 4,
) -> Operand:
    """Looks at an argument; copies it, with a :class:`CopyWarning`, only where its layout demands it."""
    if torch_module(value) is not None:
        return _from_torch(value, name, types, unit_stride, stacklevel)
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return _from_numpy(numpy.asarray(value), name, types, unit_stride, stacklevel)
    raise UnsupportedElementTypeError(
        f"{name} is a {type(value).__name__}; it must be a NumPy array or a PyTorch tensor on the CPU"
    )


def empty(shape: Sequence[int], element_type: str, like: Any) -> Any:
    """A new array or tensor, of the library that ``like`` belongs to."""
    torch = torch_module(like)
    if torch is not None:
        return torch.empty(tuple(shape), dtype=getattr(torch, element_type), device="cpu")
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


def _from_numpy(
    value: numpy.ndarray, name: str, types: Sequence[str], unit_stride: bool, stacklevel: int
) -> Operand:
    found = (
        value.dtype.name if value.dtype.isnative else f"{value.dtype.name} in foreign byte order"
    )
    _refuse_type(name, found, types)
    if value.size == 0:  # strides say nothing then
        value = numpy.empty(value.shape, value.dtype)
        steps = [1] * value.ndim
        for axis in reversed(range(value.ndim - 1)):
            steps[axis] = steps[axis + 1] * value.shape[axis + 1]
        return Operand(value.ctypes.data, found, value.shape, tuple(steps), value)
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
    if value.device.type != "cpu":
        raise InvalidArgumentError(f"{name} is on device {value.device}; it must be on the CPU")
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
    element_type = str(value.dtype).replace("torch.", "")
    return Operand(value.data_ptr(), element_type, tuple(value.shape), tuple(strides), value)

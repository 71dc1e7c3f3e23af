"""Arrays in the memory of a GPU: the caller's stream and memory, and plans that are kept."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import weakref
from typing import Any, NamedTuple, Optional, Tuple

from . import _abi
from ._errors import InvalidArgumentError, UnsupportedError
from ._tensors import SOME_DEVICE, Operand, empty, torch_module


class GPU(NamedTuple):
    """Where a call is computed."""

    number: int
    stream: int
    """The caller's current one."""
    like: Any
    """An array there: memory comes from its library."""


def gpu_of(like: Any, **operands: Operand) -> Optional[GPU]:
    """The GPU that all operands are on, the first of which is that of ``like``; None is the CPU.

    Raises:
        InvalidArgumentError: they are on several devices or ready in several streams.
        UnsupportedError: no result can be made that is like the first.
    """
    (first_name, first), *others = operands.items()
    if first.device == SOME_DEVICE:
        raise UnsupportedError(
            f"{first_name} is a {type(like).__name__}; results on a GPU are PyTorch tensors or CuPy "
            f"arrays: pass torch.as_tensor({first_name}, device='cuda') or "
            f"cupy.asarray({first_name}), which copy nothing"
        )
    for name, other in others:
        unsaid = other.device == SOME_DEVICE and first.device is not None
        if other.device != first.device and not unsaid:
            raise InvalidArgumentError(
                f"{name} is on {_place(other)}, but {first_name} is on {_place(first)}; they must be on "
                "one device"
            )
        if other.stream not in (None, first.stream):
            raise InvalidArgumentError(
                f"{name} is ready in stream {other.stream}, but {first_name} in stream {first.stream}; "
                "synchronise, or make the one the other's current stream"
            )
    if first.device is None:
        return None
    return GPU(first.device, first.stream or 0, like)


def refuse(**arguments: Any) -> None:
    """Raises for what calls on a GPU do not take; None is not given.

    Raises:
        UnsupportedError: naming the argument.
    """
    for name, value in arguments.items():
        if value is not None:
            raise UnsupportedError(
                f"{name} is given, but the tensors are on a GPU, where it is not computed: full, causal "
                "and sliding-window attention is"
            )


def enqueue(
    gpu: GPU,
    query: Operand,
    key: Operand,
    value: Operand,
    output: Operand,
    *,
    lse: Optional[Operand],
    left: Optional[int],
    right: Optional[int],
    scale: Optional[float],
    softcap: Optional[float],
    precision: bytes,
) -> None:
    """Puts a call into the current stream of the GPU; nothing waits."""
    batch = query.shape[0] if len(query.shape) == 4 else 1
    (heads, queries, dimension), (kv_heads, keys) = query.shape[-3:], key.shape[-3:-1]
    plan = _plan(
        gpu.number,
        (batch, heads, kv_heads, queries, keys, dimension, value.shape[-1]),
        (left, right, scale, softcap),
        precision,
    )
    # Its library keeps the memory for work that is in the stream: it may be given back at once.
    workspace = empty((plan.workspace_size,), "uint8", gpu.like)
    operands = _abi.Operands(
        query=_abi.pointer(_abi.tensor(query)),
        key=_abi.pointer(_abi.tensor(key)),
        value=_abi.pointer(_abi.tensor(value)),
        output=_abi.pointer(_abi.tensor(output)),
        log_sum_exp=None if lse is None else _abi.pointer(_abi.tensor(lse)),
    )
    _abi.check(
        _abi.library.intfa_plan_enqueue(
            plan.handle, operands, _address(workspace), gpu.stream or None
        )
    )


class _Plan:
    """A plan of the library's for one GPU; it has no device memory."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self.handle = handle
        weakref.finalize(self, _abi.library.intfa_plan_destroy, handle)
        size = ctypes.c_int64()
        _abi.check(_abi.library.intfa_plan_get_workspace_size(handle, size))
        self.workspace_size = size.value


@functools.lru_cache(maxsize=256)
def _plan(
    gpu: int,
    sizes: Tuple[int, ...],
    options: Tuple[Optional[int], Optional[int], Optional[float], Optional[float]],
    precision: bytes,
) -> _Plan:
    _open_compiler()
    left, right, scale, softcap = options
    handle = ctypes.c_void_p()
    _abi.check(
        _abi.library.intfa_plan_create(
            _abi.Shape(0, *sizes),
            precision,
            _abi.options(left=left, right=right, scale=scale, softcap=softcap),
            _abi.Backend(name=b"cuda", device=gpu),
            handle,
        )
    )
    return _Plan(handle)


@functools.cache
def _open_compiler() -> None:
    """Opens NVRTC where pip puts it, if it is not where the system looks: then the library finds it."""
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"):
        try:
            ctypes.CDLL(name)
            return
        except OSError:
            pass
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages and packages.submodule_search_locations) or ():
        for path in pathlib.Path(folder).glob("*/lib/libnvrtc.so.1[0-9]"):
            ctypes.CDLL(str(path))
            return


def _address(workspace: Any) -> int:
    if torch_module(workspace) is not None:
        return int(workspace.data_ptr())
    return int(workspace.data.ptr)


def _place(operand: Operand) -> str:
    if operand.device is None:
        return "the CPU"
    return "a GPU" if operand.device == SOME_DEVICE else f"GPU {operand.device}"

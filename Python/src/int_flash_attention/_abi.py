"""The C interface in ctypes: structs, functions, and nothing else.

The structs follow ``Sources/CIntFlashAttention/include``; ``tests/test_abi.py`` compares sizes and
offsets with what a C compiler makes of those headers. Calls through ctypes release the GIL.
"""

from __future__ import annotations

import ctypes
import pathlib
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from typing import Any, Optional, Sequence

from . import _errors
from ._tensors import Operand


class Sized(ctypes.Structure):
    """A struct that begins with its size."""

    def __init__(self, *members: Any, **named: Any) -> None:
        super().__init__(ctypes.sizeof(type(self)), *members, **named)


class Tensor(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("element_type", c_int32),
        ("data", c_void_p),
        ("rank", c_int64),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
    ]


class Backend(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("device", c_int32),
        ("name", c_char_p),
        ("instruction_set", c_char_p),
        ("thread_count", POINTER(c_int32)),
    ]


class VisibleBlocks(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("query_block_length", c_int64),
        ("key_block_length", c_int64),
        ("query_block_count", c_int64),
        ("offsets", POINTER(c_int64)),
        ("visible", POINTER(c_int64)),
    ]


class Options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("mask", c_int32),
        ("softmax_scale", POINTER(c_float)),
        ("softcap", POINTER(c_float)),
        ("window_left", POINTER(c_int64)),
        ("window_right", POINTER(c_int64)),
        ("prefix", c_int64),
        ("blocks", POINTER(VisibleBlocks)),
    ]


class Operands(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("query", POINTER(Tensor)),
        ("key", POINTER(Tensor)),
        ("value", POINTER(Tensor)),
        ("output", POINTER(Tensor)),
        ("log_sum_exp", POINTER(Tensor)),
        ("mask", POINTER(Tensor)),
        ("alibi_slopes", POINTER(Tensor)),
        ("sinks", POINTER(Tensor)),
    ]


class Shape(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("batch_count", c_int64),
        ("query_head_count", c_int64),
        ("key_value_head_count", c_int64),
        ("query_length", c_int64),
        ("key_value_length", c_int64),
        ("head_dimension", c_int64),
        ("value_dimension", c_int64),
    ]


class KVPoolShape(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("key_value_head_count", c_int64),
        ("head_dimension", c_int64),
        ("value_dimension", c_int64),
        ("capacity", c_int64),
        ("page_length", c_int64),
    ]


class KVPoolInformation(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("thread_count", c_int32),
        ("page_count", c_int64),
        ("free_page_count", c_int64),
        ("page_length", c_int64),
        ("bytes_per_token", c_double),
        ("precision", c_char_p),
        ("backend", c_char_p),
        ("instruction_set", c_char_p),
    ]


class KVOperands(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("query", POINTER(Tensor)),
        ("output", POINTER(Tensor)),
        ("log_sum_exp", POINTER(Tensor)),
        ("caches", POINTER(c_void_p)),
        ("cache_count", c_int64),
        ("offsets", POINTER(c_int64)),
        ("mask", POINTER(Tensor)),
        ("alibi_slopes", POINTER(Tensor)),
        ("sinks", POINTER(Tensor)),
        ("rotary", c_void_p),
    ]


class RotaryAngles(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("style", c_int32),
        ("rotary_dimension", c_int64),
        ("position_count", c_int64),
        ("base", POINTER(c_double)),
        ("cosines", POINTER(Tensor)),
        ("sines", POINTER(Tensor)),
    ]


class Information(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("thread_count", c_int32),
        ("processor_count", c_int32),
        ("core_count", c_int32),
        ("instruction_sets", c_char_p),
        ("precisions", c_char_p),
    ]


#: The C name of each struct.
STRUCTS = {
    "intfa_tensor": Tensor,
    "intfa_backend": Backend,
    "intfa_visible_blocks": VisibleBlocks,
    "intfa_options": Options,
    "intfa_operands": Operands,
    "intfa_shape": Shape,
    "intfa_kv_pool_shape": KVPoolShape,
    "intfa_kv_pool_information": KVPoolInformation,
    "intfa_kv_operands": KVOperands,
    "intfa_rotary_angles": RotaryAngles,
    "intfa_information": Information,
}

#: intfa_element_type
ELEMENT_TYPES = {"float32": 1, "float16": 2, "bfloat16": 3, "bool": 7}

#: intfa_mask_kind
MASK_FULL, MASK_CAUSAL, MASK_SLIDING = 0, 1, 2

#: intfa_rotary_style
ROTARY_HALF_SPLIT, ROTARY_INTERLEAVED = 0, 1

#: intfa_status
_ERRORS: dict[int, type[_errors.AttentionError]] = {
    1: _errors.InvalidArgumentError,
    2: _errors.ShapeMismatchError,
    3: _errors.UnsupportedElementTypeError,
    4: _errors.UnsupportedError,
    5: _errors.NonFiniteInputError,
    6: _errors.ValueOutOfRangeError,
    7: _errors.OverlappingOutputError,
    8: _errors.UnavailableError,
    9: _errors.OutOfMemoryError,
    10: _errors.DeviceFailureError,
    11: _errors.OutOfPagesError,
    12: _errors.FileFailureError,
    13: _errors.MalformedFileError,
}

_PROTOTYPES: dict[str, Sequence[Any]] = {
    "intfa_get_information": [POINTER(Information)],
    "intfa_get_instruction_set": [POINTER(c_char_p)],
    "intfa_attention": [POINTER(Operands), c_char_p, POINTER(Options), POINTER(Backend)],
    "intfa_plan_create": [
        POINTER(Shape),
        c_char_p,
        POINTER(Options),
        POINTER(Backend),
        POINTER(c_void_p),
    ],
    "intfa_plan_get_workspace_size": [c_void_p, POINTER(c_int64)],
    "intfa_plan_enqueue": [c_void_p, POINTER(Operands), c_void_p, c_void_p],
    "intfa_merge": [
        POINTER(POINTER(Tensor)),
        POINTER(POINTER(Tensor)),
        c_int64,
        POINTER(Tensor),
        POINTER(Tensor),
    ],
    "intfa_kv_pool_create": [
        POINTER(KVPoolShape),
        c_char_p,
        POINTER(Backend),
        POINTER(c_void_p),
    ],
    "intfa_kv_pool_get_information": [c_void_p, POINTER(KVPoolInformation)],
    "intfa_kv_cache_create": [c_void_p, POINTER(c_void_p)],
    "intfa_kv_cache_append": [c_void_p, POINTER(Tensor), POINTER(Tensor)],
    "intfa_kv_cache_append_rotary": [c_void_p, POINTER(Tensor), POINTER(Tensor), c_void_p],
    "intfa_kv_cache_set_first_position": [c_void_p, c_int64],
    "intfa_kv_cache_get_first_position": [c_void_p, POINTER(c_int64)],
    "intfa_kv_cache_fork": [c_void_p, POINTER(c_void_p)],
    "intfa_kv_cache_truncate": [c_void_p, c_int64],
    "intfa_kv_cache_count": [c_void_p, POINTER(c_int64)],
    "intfa_kv_cache_run": [c_void_p, POINTER(KVOperands), POINTER(Options)],
    "intfa_kv_cache_save": [c_void_p, c_char_p],
    "intfa_kv_cache_load": [c_void_p, c_char_p, POINTER(c_void_p)],
    "intfa_rotary_create": [POINTER(RotaryAngles), POINTER(c_void_p)],
    "intfa_rotary_apply": [c_void_p, POINTER(Tensor), c_int64, POINTER(Tensor)],
}

LIBRARY_NAME = "libint_flash_attention.so"


def _load() -> ctypes.CDLL:
    path = pathlib.Path(__file__).parent / LIBRARY_NAME
    if not path.exists():
        raise ImportError(
            f"{path} is missing: this package was not built. In the repository, "
            "`pip install ./Python` builds it; it needs Swift 6.3"
        )
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _PROTOTYPES.items():
        function = getattr(loaded, name)
        function.restype = c_int32
        function.argtypes = arguments
    loaded.intfa_version.restype = c_char_p
    loaded.intfa_version.argtypes = []
    loaded.intfa_last_error.restype = c_char_p
    loaded.intfa_last_error.argtypes = []
    for name in (
        "intfa_plan_destroy",
        "intfa_kv_pool_destroy",
        "intfa_kv_cache_destroy",
        "intfa_rotary_destroy",
    ):
        function = getattr(loaded, name)
        function.restype = None
        function.argtypes = [c_void_p]
    return loaded


library = _load()


def check(status: int) -> None:
    """Raises what a status says.

    Raises:
        AttentionError: of the class that the status stands for, with the library's sentence.
    """
    if status != 0:
        message = library.intfa_last_error().decode("utf-8", "replace")
        raise _ERRORS.get(status, _errors.InternalError)(message)


def tensor(operand: Operand) -> Tensor:
    """An operand as the library takes it. A rank of 0 becomes 1."""
    shape, strides = operand.shape or (1,), operand.strides or (1,)
    extent = c_int64 * len(shape)
    return Tensor(
        element_type=ELEMENT_TYPES[operand.element_type],
        data=operand.address,
        rank=len(shape),
        shape=extent(*shape),
        strides=extent(*strides),
    )


def pointer(value: Optional[Any]) -> Any:
    """A pointer to a struct; None is NULL."""
    return None if value is None else ctypes.pointer(value)


def options(
    *,
    left: Optional[int],
    right: Optional[int],
    scale: Optional[float],
    softcap: Optional[float],
    blocks: Optional[VisibleBlocks] = None,
) -> Options:
    """Options with a window of keys around a query's own; None is unlimited, twice None is every key."""
    if left is None and right is None:
        kind = MASK_FULL
    elif left is None and right == 0:
        kind = MASK_CAUSAL
    else:
        kind = MASK_SLIDING
    sliding = kind == MASK_SLIDING
    return Options(
        mask=kind,
        softmax_scale=None if scale is None else pointer(c_float(scale)),
        softcap=None if softcap is None else pointer(c_float(softcap)),
        window_left=pointer(c_int64(left)) if sliding and left is not None else None,
        window_right=pointer(c_int64(right)) if sliding and right is not None else None,
        blocks=pointer(blocks),
    )


def backend(threads: Optional[int]) -> Optional[Backend]:
    """The CPU backend with a number of threads; None is the library's own choice."""
    if threads is None:
        return None
    return Backend(thread_count=pointer(c_int32(threads)))

"""Scaled dot-product attention with quantised operands on CPUs.

::

    import numpy, int_flash_attention as intfa

    q = numpy.random.default_rng(0).normal(size=(8, 256, 64)).astype("float32")
    k, v = q[:2] + 1, q[2:4]                     # two key/value heads for eight query heads
    o = intfa.attention(q, k, v, is_causal=True)

:func:`attention` is one call, :class:`KVCache` keeps keys and values quantised, :func:`merge` puts
parts together, :class:`RotaryEmbedding` turns rows by their positions, :class:`VisibleBlocks` says
which blocks are computed, :func:`info` what this machine has. Arrays may be on an NVIDIA GPU; that has
never run on a real one. Adapters, which need their libraries:
``int_flash_attention.torch`` and ``int_flash_attention.transformers``.
"""

from ._attention import attention, merge
from ._blocks import VisibleBlocks
from ._cache import KVCache, KVPool
from ._errors import (
    AttentionError,
    CopyWarning,
    DeviceFailureError,
    FileFailureError,
    GradientError,
    InternalError,
    InvalidArgumentError,
    MalformedFileError,
    NonFiniteInputError,
    OutOfMemoryError,
    OutOfPagesError,
    OverlappingOutputError,
    ShapeMismatchError,
    UnavailableError,
    UnsupportedElementTypeError,
    UnsupportedError,
    ValueOutOfRangeError,
)
from ._information import Information, info, version
from ._rotary import RotaryEmbedding

__version__ = version()

__all__ = [
    "AttentionError",
    "CopyWarning",
    "DeviceFailureError",
    "FileFailureError",
    "GradientError",
    "Information",
    "InternalError",
    "InvalidArgumentError",
    "KVCache",
    "KVPool",
    "MalformedFileError",
    "NonFiniteInputError",
    "OutOfMemoryError",
    "OutOfPagesError",
    "OverlappingOutputError",
    "RotaryEmbedding",
    "ShapeMismatchError",
    "UnavailableError",
    "UnsupportedElementTypeError",
    "UnsupportedError",
    "ValueOutOfRangeError",
    "VisibleBlocks",
    "attention",
    "info",
    "merge",
]

for _name in __all__:  # messages and documentation name what callers import
    globals()[_name].__module__ = __name__
del _name

"""Rotary position embedding."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Optional

from . import _abi
from ._errors import require_instance
from ._tensors import empty, operand


class RotaryEmbedding:
    """Rotary position embedding: pairs of channels turned by angles that grow with the position.

    ::

        rotary = RotaryEmbedding(rotary_dim=64, positions=8192, base=500_000)
        cache.append(k, v, rotary=rotary)                # k and q as the projections give them
        o = cache.attention(q, rotary=rotary)

    A cache turns the rows while it reads them, with the bits of :meth:`apply` beforehand. The angle of
    pair p at a position is position · base^(−2p / R); R is the number of rotary channels, the first ones
    of a head, and the others stay as they are. Objects may be used from several threads.

    Args:
        rotary_dim: R, even, 2 to 256; the head dimension for all channels.
        positions: how many are needed: the longest sequence.
        base: theta of the model.
        interleaved: whether channels 2p and 2p + 1 form a pair (GPT-J) in place of p and R/2 + p (Llama,
            GPT-NeoX, Phi, Qwen; what Transformers calls ``rotate_half``).

    Raises:
        AttentionError: a number out of range, or no memory.
    """

    def __init__(
        self, rotary_dim: int, positions: int, *, base: float = 10_000.0, interleaved: bool = False
    ) -> None:
        self._create(
            interleaved,
            rotary_dimension=rotary_dim,
            position_count=positions,
            base=_abi.pointer(ctypes.c_double(base)),
        )

    @classmethod
    def from_tables(cls, cosines: Any, sines: Any, *, interleaved: bool = False) -> RotaryEmbedding:
        """An embedding with angles or magnitudes of another kind: scaled, interpolated.

        Args:
            cosines: ``[positions, R/2]``, float32, float16 or bfloat16; copied.
            sines: the same for the sines.
            interleaved: as for the class.

        Raises:
            AttentionError: shapes or types that do not fit, NaN or infinity.
        """
        tables = [
            operand(table, name, unit_stride=False)
            for table, name in ((cosines, "cosines"), (sines, "sines"))
        ]
        embedding = cls.__new__(cls)
        embedding._create(
            interleaved,
            cosines=_abi.pointer(_abi.tensor(tables[0])),
            sines=_abi.pointer(_abi.tensor(tables[1])),
        )
        return embedding

    def _create(self, interleaved: bool, **members: Any) -> None:
        style = _abi.ROTARY_INTERLEAVED if interleaved else _abi.ROTARY_HALF_SPLIT
        handle = ctypes.c_void_p()
        _abi.check(
            _abi.library.intfa_rotary_create(_abi.RotaryAngles(style=style, **members), handle)
        )
        self._handle = handle
        weakref.finalize(self, _abi.library.intfa_rotary_destroy, handle)

    def apply(self, x: Any, first_position: int = 0) -> Any:
        """Queries or keys with their positions: a copy in float32, in which the rows are turned.

        Args:
            x: ``[H, N, D]`` or ``[B, H, N, D]``; float32, float16 or bfloat16.
            first_position: position of token 0; the others follow.

        Raises:
            AttentionError: positions that the embedding does not have, fewer channels than R.
        """
        rows = operand(x, "x", unit_stride=False)
        output = empty(rows.shape, "float32", x)
        _abi.check(
            _abi.library.intfa_rotary_apply(
                self._handle,
                _abi.tensor(rows),
                first_position,
                _abi.tensor(operand(output, "output")),
            )
        )
        return output


def rotary_handle(rotary: Optional[RotaryEmbedding]) -> Optional[ctypes.c_void_p]:
    """What the library knows an embedding by; None stays None.

    Raises:
        InvalidArgumentError: something else.
    """
    if rotary is None:
        return None
    require_instance(rotary, RotaryEmbedding, "rotary")
    return rotary._handle

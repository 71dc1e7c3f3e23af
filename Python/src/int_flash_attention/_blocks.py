"""Block-sparse attention."""

from __future__ import annotations

import ctypes
from typing import Any, Optional

import numpy

from . import _abi
from ._errors import ShapeMismatchError, UnsupportedElementTypeError, require_instance


class VisibleBlocks:
    """Block-sparse attention: which blocks of queries see which blocks of keys, for all heads.

    ::

        near = numpy.tri(16, dtype=bool) & ~numpy.tri(16, k=-3, dtype=bool)
        near[:, 0] = True                                # the first block and the last three
        blocks = VisibleBlocks(near, query_block_length=128, key_block_length=64)
        o = attention(q, k, v, blocks=blocks)

    What no query of a tile sees is not computed. In a call without a cache, query row i is in query
    block i // ``query_block_length``, and there are as many query blocks as the queries have; on a
    cache it is the position that counts, from the first token of a sequence, and blocks may be more.
    Objects may be used for many calls, from several threads.

    Args:
        visible: boolean ``[query blocks, key blocks]``, true where a block sees a block; copied. Keys
            beyond the last column are hidden.
        query_block_length: query rows of a block, at least 1.
        key_block_length: keys of a block, at least 1; fastest in multiples of 64.

    Raises:
        AttentionError: ``visible`` is not boolean or has not two dimensions. Lengths are checked by the
            calls.
    """

    def __init__(self, visible: Any, query_block_length: int, key_block_length: int) -> None:
        seen = numpy.asarray(visible)
        if seen.dtype != bool:
            raise UnsupportedElementTypeError(f"visible is {seen.dtype}; it must be boolean")
        if seen.ndim != 2:
            raise ShapeMismatchError(
                f"visible has shape {seen.shape}; it must be [query blocks, key blocks]"
            )
        self.query_block_length = query_block_length
        self.key_block_length = key_block_length
        rows, columns = numpy.nonzero(seen)
        offsets = numpy.searchsorted(rows, numpy.arange(len(seen) + 1))
        self.struct = _abi.VisibleBlocks(
            query_block_length=query_block_length,
            key_block_length=key_block_length,
            query_block_count=len(seen),
            offsets=(ctypes.c_int64 * len(offsets))(*offsets.tolist()),
            visible=(ctypes.c_int64 * len(columns))(*columns.tolist()),
        )


def block_struct(blocks: Optional[VisibleBlocks]) -> Optional[_abi.VisibleBlocks]:
    """Blocks as the library takes them; None stays None.

    Raises:
        InvalidArgumentError: something else.
    """
    if blocks is None:
        return None
    require_instance(blocks, VisibleBlocks, "blocks")
    return blocks.struct

"""One call of attention on caches."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Iterable, Iterator, Optional, Sequence

from . import _abi
from ._attention import Window, tensor_pointer
from ._blocks import VisibleBlocks, block_struct
from ._errors import InvalidArgumentError
from ._rotary import RotaryEmbedding, rotary_handle
from ._tensors import Operand

if TYPE_CHECKING:
    from ._cache import KVCache, KVPool


def run(
    pool: KVPool,
    query: Operand,
    caches: Sequence[KVCache],
    offsets: Iterable[int],
    output: Operand,
    *,
    lse: Optional[Operand] = None,
    scale: Optional[float] = None,
    sides: Window = (None, 0),
    softcap: Optional[float] = None,
    mask: Optional[Operand] = None,
    alibi_slopes: Optional[Operand] = None,
    sinks: Optional[Operand] = None,
    blocks: Optional[VisibleBlocks] = None,
    rotary: Optional[RotaryEmbedding] = None,
) -> None:
    """Calls the library."""
    numbers = list(offsets)
    if len(numbers) != len(caches) + 1:
        raise InvalidArgumentError(
            f"offsets are {len(numbers)}; for {len(caches)} caches they must be {len(caches) + 1}"
        )
    handles = (ctypes.c_void_p * len(caches))(*(cache._handle.value for cache in caches))
    operands = _abi.KVOperands(
        query=_abi.pointer(_abi.tensor(query)),
        output=_abi.pointer(_abi.tensor(output)),
        log_sum_exp=tensor_pointer(lse),
        caches=handles,
        cache_count=len(caches),
        offsets=(ctypes.c_int64 * len(numbers))(*numbers),
        mask=tensor_pointer(mask),
        alibi_slopes=tensor_pointer(alibi_slopes),
        sinks=tensor_pointer(sinks),
        rotary=rotary_handle(rotary),
    )
    left, right = sides
    options = _abi.options(
        left=left,
        right=right,
        scale=scale,
        softcap=softcap,
        blocks=block_struct(blocks),
    )
    with _locked(caches):
        _abi.check(_abi.library.intfa_kv_cache_run(pool._handle, operands, options))


@contextlib.contextmanager
def _locked(caches: Iterable[KVCache]) -> Iterator[None]:
    """Holds the locks of all caches, taken in one order so that two calls cannot wait for each other."""
    with contextlib.ExitStack() as held:
        for cache in sorted(set(caches), key=id):
            held.enter_context(cache._lock)
        yield

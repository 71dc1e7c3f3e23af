"""Keys and values that are quantised once, as they come, and attention to them."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from typing import Any, Iterable, Iterator, Optional, Sequence

from . import _abi
from ._attention import Window, name_bytes, optional, tensor_pointer, window_sides
from ._errors import InvalidArgumentError, ShapeMismatchError
from ._tensors import MASKS, Operand, empty, operand


class KVPool:
    """Memory for the keys and values of many sequences, in pages that sequences can share.

    Memory for the whole capacity is reserved at once, but on systems that commit pages when they are
    touched, Linux for one, taken as it fills. A pool may be used from several threads.

    Args:
        kv_heads: Hkv.
        head_dim: D, up to 256.
        capacity: tokens of all sequences together; rounded up to whole pages.
        value_dim: Dv; None is D.
        page_length: tokens per page, a multiple of 64.
        precision: ``int8``, ``int4``, ``int4KeyValue``, ``bfloat16`` or ``float32``.
        threads: how many threads may compute; None is one per physical core.

    Raises:
        AttentionError: sizes out of range, no cache for the precision, or no memory.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        value_dim: Optional[int] = None,
        page_length: int = 64,
        precision: str = "int8",
        threads: Optional[int] = None,
    ) -> None:
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.value_dim = head_dim if value_dim is None else value_dim
        self.precision = precision
        handle = ctypes.c_void_p()
        _abi.check(
            _abi.library.intfa_kv_pool_create(
                _abi.KVPoolShape(
                    key_value_head_count=kv_heads,
                    head_dimension=head_dim,
                    value_dimension=self.value_dim,
                    capacity=capacity,
                    page_length=page_length,
                ),
                name_bytes(precision),
                _abi.backend(threads),
                handle,
            )
        )
        self._handle = handle
        weakref.finalize(self, _abi.library.intfa_kv_pool_destroy, handle)
        found = self._information()
        self.page_length: int = found.page_length
        self.capacity: int = found.page_count * found.page_length
        self.bytes_per_token: float = found.bytes_per_token

    def _information(self) -> _abi.KVPoolInformation:
        found = _abi.KVPoolInformation()
        _abi.check(_abi.library.intfa_kv_pool_get_information(self._handle, found))
        return found

    @property
    def free_pages(self) -> int:
        """Pages that no sequence has."""
        return int(self._information().free_page_count)

    def attention(
        self,
        q: Any,
        caches: Sequence[KVCache],
        offsets: Optional[Sequence[int]] = None,
        *,
        scale: Optional[float] = None,
        is_causal: bool = True,
        window: Optional[Window] = None,
        softcap: Optional[float] = None,
        attn_mask: Optional[Any] = None,
        alibi_slopes: Optional[Any] = None,
        sinks: Optional[Any] = None,
        return_lse: bool = False,
    ) -> Any:
        """Attention of the last tokens of several sequences, prefill and decoding mixed.

        **Shapes.** q ``[Hq, T, D]``: the queries of all sequences, one after the other; sequence i has
        ``offsets[i]`` … ``offsets[i + 1] - 1``. The result is ``[Hq, T, Dv]``, the log-sum-exp
        ``[Hq, T]``. Types and copies as in :func:`attention`. The bits of a row do not depend on what
        else is in the call.

        Args:
            q: queries; their keys and values are in the caches already.
            caches: sequences of this pool.
            offsets: one more than there are caches, from 0 to T; None where each has one query.
            scale: multiplies the logits; None is 1/√D.
            is_causal: whether keys after a query's own are hidden.
            window: how many keys before and after its own a query sees; None is unlimited.
            softcap: caps logits at this value.
            attn_mask: boolean, or added to the logits; broadcasts to ``[Hq, T, L]``, where a row is a
                query, a column a token of its sequence, and L at least the tokens of the longest.
            alibi_slopes: ``[Hq]`` or ``[sequences, Hq]``: slope · distance is subtracted from the logits.
            sinks: ``[Hq]`` or ``[sequences, Hq]``: the logit of a token without value.
            return_lse: whether to return the log-sum-exp too.

        Raises:
            AttentionError: what is wrong is in the class and in the message.
        """
        query = operand(q, "q")
        if len(query.shape) != 3:
            raise ShapeMismatchError(
                f"q has shape {query.shape}; it must be [query heads, tokens, dimension]"
            )
        output = empty((*query.shape[:2], self.value_dim), query.element_type, q)
        lse = empty(query.shape[:2], "float32", q) if return_lse else None
        if offsets is None:
            offsets = range(len(caches) + 1)
        self.run(
            query,
            caches,
            offsets,
            operand(output, "output"),
            lse=None if lse is None else operand(lse, "log_sum_exp"),
            scale=scale,
            sides=window_sides(is_causal, window),
            softcap=softcap,
            mask=optional(attn_mask, "attn_mask", MASKS),
            alibi_slopes=optional(alibi_slopes, "alibi_slopes"),
            sinks=optional(sinks, "sinks"),
        )
        return output if lse is None else (output, lse)

    def run(
        self,
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
    ) -> None:
        """Calls the library; for the adapters."""
        numbers = list(offsets)
        if len(numbers) != len(caches) + 1:
            raise InvalidArgumentError(
                f"offsets are {len(numbers)}; for {len(caches)} caches they must be {len(caches) + 1}"
            )
        handles = (ctypes.c_void_p * len(caches))(*(cache._handle.value for cache in caches))
        operands = _abi.KVOperands(
            query=_abi.pointer(_abi.tensor(query)),
            output=_abi.pointer(_abi.tensor(output)),
            log_sum_exp=None if lse is None else _abi.pointer(_abi.tensor(lse)),
            caches=handles,
            cache_count=len(caches),
            offsets=(ctypes.c_int64 * len(numbers))(*numbers),
            mask=tensor_pointer(mask),
            alibi_slopes=tensor_pointer(alibi_slopes),
            sinks=tensor_pointer(sinks),
        )
        left, right = sides
        with _locked(caches):
            _abi.check(
                _abi.library.intfa_kv_cache_run(
                    self._handle,
                    operands,
                    _abi.options(left=left, right=right, scale=scale, softcap=softcap),
                )
            )


class KVCache:
    """The keys and values of one sequence, quantised once, as they come.

    ::

        cache = KVCache(kv_heads=2, head_dim=64, capacity=4096)
        cache.append(k, v)               # [Hkv, tokens, D], any number of tokens
        o = cache.attention(q)           # [Hq, tokens, D]: the queries are the last tokens

    What a token is stored as depends on the tokens before it only: one prefill, chunks and token by
    token give the same bits (4-bit precisions: for chunks that end at positions 64 + 128 n).

    Calls on one cache wait for each other; a fork may be used in another thread meanwhile.

    Args:
        kv_heads: Hkv; of a pool of its own.
        head_dim: D; likewise.
        capacity: tokens that there is room for; likewise.
        pool: a pool to share with other sequences, in place of the other arguments.
        **options: ``value_dim``, ``page_length``, ``precision``, ``threads``, as of :class:`KVPool`.

    Raises:
        AttentionError: as :class:`KVPool` does.
        TypeError: an unknown argument, or sizes beside a pool.
    """

    def __init__(
        self,
        kv_heads: Optional[int] = None,
        head_dim: Optional[int] = None,
        capacity: Optional[int] = None,
        *,
        pool: Optional[KVPool] = None,
        **options: Any,
    ) -> None:
        sizes = (kv_heads, head_dim, capacity)
        if pool is None:
            if None in sizes:
                raise TypeError("KVCache needs kv_heads, head_dim and capacity, or a pool")
            pool = KVPool(kv_heads, head_dim, capacity, **options)  # type: ignore[arg-type]
        elif options or sizes != (None, None, None):
            raise TypeError("KVCache takes sizes and options, or a pool that has them, not both")
        handle = ctypes.c_void_p()
        _abi.check(_abi.library.intfa_kv_cache_create(pool._handle, handle))
        self._adopt(pool, handle)

    def _adopt(self, pool: KVPool, handle: ctypes.c_void_p) -> None:
        self.pool = pool
        self._handle = handle
        self._lock = threading.RLock()
        weakref.finalize(self, _abi.library.intfa_kv_cache_destroy, handle)

    def __len__(self) -> int:
        """Tokens in the cache."""
        count = ctypes.c_int64()
        with self._lock:
            _abi.check(_abi.library.intfa_kv_cache_count(self._handle, count))
        return count.value

    def append(self, k: Any, v: Any) -> None:
        """Appends n tokens: k ``[Hkv, n, D]``, v ``[Hkv, n, Dv]``.

        Raises:
            OutOfPagesError: the pool is full.
            AttentionError: shapes, types or values; after any error the cache is as it was.
        """
        key, value = operand(k, "k"), operand(v, "v")
        with self._lock:
            _abi.check(
                _abi.library.intfa_kv_cache_append(
                    self._handle, _abi.tensor(key), _abi.tensor(value)
                )
            )

    def truncate(self, count: int) -> None:
        """Forgets all but the first ``count`` tokens.

        Raises:
            InvalidArgumentError: there are fewer.
        """
        with self._lock:
            _abi.check(_abi.library.intfa_kv_cache_truncate(self._handle, count))

    def fork(self) -> KVCache:
        """Another sequence with the same tokens, which shares their memory."""
        handle = ctypes.c_void_p()
        with self._lock:
            _abi.check(_abi.library.intfa_kv_cache_fork(self._handle, handle))
        fork = KVCache.__new__(KVCache)
        fork._adopt(self.pool, handle)
        return fork

    def attention(
        self,
        q: Any,
        *,
        scale: Optional[float] = None,
        is_causal: bool = True,
        window: Optional[Window] = None,
        softcap: Optional[float] = None,
        attn_mask: Optional[Any] = None,
        alibi_slopes: Optional[Any] = None,
        sinks: Optional[Any] = None,
        return_lse: bool = False,
    ) -> Any:
        """Attention of the last tokens, whose keys and values are in the cache already.

        **Shapes.** q ``[Hq, n, D]``, Hq a multiple of Hkv; the result is ``[Hq, n, Dv]`` in the type
        of q, the log-sum-exp ``[Hq, n]``. Arguments as of :meth:`KVPool.attention`.

        **Accuracy.** Bounds of :func:`attention`, but 1.3 % mean and 1.6 % worst for ``int8``: means
        and units come from the first 64 tokens.

        Raises:
            AttentionError: what is wrong is in the class and in the message.
        """
        tokens = q.shape[1] if len(getattr(q, "shape", ())) == 3 else 0
        return self.pool.attention(
            q,
            [self],
            [0, tokens],
            scale=scale,
            is_causal=is_causal,
            window=window,
            softcap=softcap,
            attn_mask=attn_mask,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            return_lse=return_lse,
        )


@contextlib.contextmanager
def _locked(caches: Iterable[KVCache]) -> Iterator[None]:
    """Holds the locks of all caches, taken in one order so that two calls cannot wait for each other."""
    with contextlib.ExitStack() as held:
        for cache in sorted(set(caches), key=id):
            held.enter_context(cache._lock)
        yield

"""A cache for Transformers that keeps keys and values as codes."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    get_layer_types_and_kwargs,
)

from ._cache import KVCache, KVPool
from ._cache_run import run
from ._errors import InvalidArgumentError, UnsupportedError
from ._tensors import operand
from ._transformers_mask import Pattern


class CachedStates(torch.Tensor):
    """New keys or values on their way from :meth:`IntFlashLayer.update` to an attention of ours.

    Only there are they put into the cache, because only there it is known which of them are padding.
    Any other use is refused: the tokens before them exist as codes only.
    """

    layer: IntFlashLayer

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function == torch.Tensor.shape.__get__:  # type: ignore[attr-defined]
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        raise UnsupportedError(
            "IntFlashCache keeps keys and values as codes, which only attn_implementation='int_flash' "
            "or 'int_flash:...' reads; set it, or use another cache"
        )

    def plain(self) -> torch.Tensor:
        """The states as an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)


class IntFlashLayer(CacheLayerMixin):
    """The sequences of a batch in one layer, each a :class:`~int_flash_attention.KVCache`.

    Padding is not stored. Sliding layers store every token and see those in their window.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(
        self,
        max_length: int,
        precision: str = "int8",
        threads: Optional[int] = None,
        sliding_window: Optional[int] = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.precision = precision
        self.threads = threads
        self.is_sliding = sliding_window is not None
        self.reset()

    def reset(self) -> None:
        """Forgets all tokens and the sizes."""
        self.pool: Optional[KVPool] = None
        self.rows: List[KVCache] = []
        self.is_initialized = False
        self._length = 0
        self._kept: Optional[torch.Tensor] = None  # [B, length]; None where all are
        self._pending: Optional[Tuple[CachedStates, CachedStates]] = None

    @property
    def batch_size(self) -> int:
        """Sequences in the batch."""
        return len(self.rows) if self.is_initialized else -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Reserves memory for the sizes of the first states."""
        batch, heads, _, width = key_states.shape
        pages = -(-self.max_length // 64)
        self.pool = KVPool(
            heads,
            width,
            pages * 64 * max(batch, 1),
            value_dim=value_states.shape[-1],
            precision=self.precision,
            threads=self.threads,
        )
        self.rows = [KVCache(pool=self.pool) for _ in range(batch)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Takes new states; what it returns is for an attention of ours, which stores them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._pending is not None:
            raise UnsupportedError(
                "tokens were put into an IntFlashCache whose attention never ran; reset() it"
            )
        if key_states.shape[0] != len(self.rows):
            raise InvalidArgumentError(
                f"key_states are {key_states.shape[0]} sequences, but the cache has {len(self.rows)}"
            )
        states = []
        for tensor in (key_states, value_states):
            part = tensor.detach().as_subclass(CachedStates)
            part.layer = self
            states.append(part)
        self._pending = (states[0], states[1])
        self._length += key_states.shape[-2]
        return self._pending

    def get_seq_length(self) -> int:
        """Tokens per sequence, padding included."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> Tuple[int, int]:
        """Keys that the next attention sees, and the position of the first."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens per sequence that there is room for."""
        return self.max_length

    # MARK: Attention

    def attend(
        self,
        query: torch.Tensor,
        pattern: Optional[Pattern],
        *,
        scale: Optional[float],
        softcap: Optional[float],
    ) -> torch.Tensor:
        """Stores what is pending and attends to all: query [B, Hq, n, D], result [B, Hq, n, Dv].

        The result is laid out as [B, n, Hq, Dv]. Rows of padding are zero.
        """
        batch, heads, count, _ = query.shape
        if pattern is None:
            pattern = Pattern(None, 0, self._length - count, None)
        if pattern.first + count != self._length or batch != len(self.rows):
            raise UnsupportedError(
                f"queries {count} at position {pattern.first}, {batch} sequences: IntFlashCache takes "
                f"the last of its {self._length} tokens, {len(self.rows)} sequences"
            )
        kept = self._store(pattern)
        assert self.pool is not None
        output = query.new_zeros(batch, count, heads, self.pool.value_dim)
        sides = (pattern.left, pattern.right)
        if count == 1:
            used = [b for b in range(batch) if kept is None or bool(kept[b, -1])]
            if not used:
                return output.transpose(1, 2)
            some = len(used) < batch
            packed = (query[used] if some else query)[:, :, 0].transpose(0, 1)
            result = output[used] if some else output
            run(
                self.pool,
                operand(packed, "query"),
                [self.rows[b] for b in used],
                range(len(used) + 1),
                operand(result[:, 0].transpose(0, 1), "output"),
                scale=scale,
                sides=sides,
                softcap=softcap,
            )
            if some:
                output[used] = result
            return output.transpose(1, 2)
        for b in range(batch):
            chosen = slice(0, count) if kept is None else _chosen(kept[b, -count:])
            rows, result = query[b][:, chosen], output[b][chosen]
            if rows.shape[1] == 0:
                continue
            run(
                self.pool,
                operand(rows, "query"),
                [self.rows[b]],
                [0, rows.shape[1]],
                operand(result.transpose(0, 1), "output"),
                scale=scale,
                sides=sides,
                softcap=softcap,
            )
            if not isinstance(chosen, slice):
                output[b][chosen] = result
        return output.transpose(1, 2)

    def _store(self, pattern: Pattern) -> Optional[torch.Tensor]:
        """Appends what is pending, without padding; returns which tokens are kept, None for all."""
        kept = None if pattern.padding is None else pattern.padding[:, : self._length]
        pending = 0 if self._pending is None else self._pending[0].shape[-2]
        before = self._length - pending
        known = self._kept
        if known is not None or kept is not None:
            shape = (len(self.rows), self._length)
            known = torch.ones(shape[0], before, dtype=torch.bool) if known is None else known
            now = torch.ones(shape, dtype=torch.bool) if kept is None else kept.expand(shape)
            if not torch.equal(known[:, :before], now[:, :before]):
                raise UnsupportedError(
                    "the attention mask says something else about tokens that are in the "
                    "IntFlashCache already; padding is not stored and cannot come back"
                )
            kept = now
            windowed = pattern.left is not None or pattern.right not in (0, None)
            if windowed and bool((now[:, 1:] < now[:, :-1]).any()):
                raise UnsupportedError(
                    "padding after tokens, with a sliding window: IntFlashCache does not store padding, "
                    "so distances across it would be wrong; pad on the left"
                )
        if self._pending is not None:
            keys, values = (states.plain() for states in self._pending)
            for b, row in enumerate(self.rows):
                chosen = slice(0, pending) if kept is None else _chosen(kept[b, before:])
                row.append(keys[b][:, chosen], values[b][:, chosen])
        self._pending = None
        self._kept = None if kept is None else kept.clone()
        return kept

    # MARK: Sequences

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens; their number is given negative, as Transformers does."""
        removed = -tokens_to_remove
        if removed < 0:
            raise InvalidArgumentError(
                f"tokens_to_remove is {tokens_to_remove}; it must be 0 or negative"
            )
        if removed == 0 or not self.is_initialized:
            return
        removed = min(removed, self._length)
        for b, row in enumerate(self.rows):
            gone = removed if self._kept is None else int(self._kept[b, -removed:].sum())
            row.truncate(len(row) - gone)
        self._length -= removed
        if self._kept is not None:
            self._kept = self._kept[:, : self._length]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these sequences, in this order; one may occur several times."""
        if not self.is_initialized:
            return
        chosen = torch.arange(len(self.rows))[indices].tolist()
        taken, rows = set(), []
        for b in chosen:
            rows.append(self.rows[b].fork() if b in taken else self.rows[b])
            taken.add(b)
        self.rows = rows
        if self._kept is not None:
            self._kept = self._kept[chosen]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Continues these beams; sequences that occur several times share their memory."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sequence."""
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def offload(self) -> None:
        """Nothing: the codes are in main memory."""

    def prefetch(self) -> None:
        """Nothing: the codes are in main memory."""


class IntFlashCache(Cache):
    """A cache for ``generate`` and for models' ``cache`` argument that keeps keys and values as codes.

    ::

        register()
        model.set_attn_implementation("int_flash")
        model.generate(**inputs, cache=IntFlashCache(model.config))

    Tokens are quantised once, when they come; decoding reads codes. The model's attention must be one
    of ours; its precision does not matter, that of the cache does. Full and sliding layers, padding,
    beam search and rolling back work; masks with other patterns are refused. Padding is not stored,
    so it has no influence on the statistics of the codes.

    Args:
        config: the model's configuration.
        precision: ``int8``, ``int4``, ``int4KeyValue``, ``bfloat16`` or ``float32``.
        max_length: tokens per sequence that there is room for; None is the model's
            ``max_position_embeddings``. Memory is taken as it fills.
        threads: how many threads may compute; None is PyTorch's number.

    Raises:
        UnsupportedError: a layer of the model is no attention with keys and values per token.
    """

    def __init__(
        self,
        config: Any,
        *,
        precision: str = "int8",
        max_length: Optional[int] = None,
        threads: Optional[int] = None,
    ) -> None:
        text = config.get_text_config(decoder=True)
        length = text.max_position_embeddings if max_length is None else max_length
        threads = torch.get_num_threads() if threads is None else threads
        layers: List[Any] = []
        for kind, options in zip(*get_layer_types_and_kwargs(text)):
            if kind == "dummy":
                layers.append(DummyLayer())
            elif kind in ("full_attention", "sliding_attention"):
                window = options.get("sliding_window")
                layers.append(IntFlashLayer(length, precision, threads, window))
            else:
                raise UnsupportedError(
                    f"the model has a layer of type {kind}; IntFlashCache takes full_attention and "
                    "sliding_attention"
                )
        super().__init__(layers=layers)

    @property
    def bytes_used(self) -> int:
        """Bytes of codes and scales of the tokens in the cache."""
        total = 0.0
        for layer in self.layers:
            if isinstance(layer, IntFlashLayer) and layer.pool is not None:
                tokens = sum(len(row) for row in layer.rows)
                total += tokens * layer.pool.kv_heads * layer.pool.bytes_per_token
        return round(total)


def _chosen(kept: torch.Tensor) -> Any:
    """The kept places as a slice where they are at the end, else as indices."""
    count = int(kept.sum())
    if bool(kept[kept.shape[0] - count :].all()):
        return slice(kept.shape[0] - count, kept.shape[0])
    return kept.nonzero()[:, 0]

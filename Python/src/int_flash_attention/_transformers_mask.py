"""Masks of Transformers as patterns, so that no mask of queries × keys is made where a rule says it all."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

import torch
from transformers import masking_utils
from transformers.utils.import_utils import is_tracing


class Pattern(NamedTuple):
    """Which keys a query sees: a window around its own position, without padding."""

    left: Optional[int]
    """Keys before its own position; None is all."""
    right: Optional[int]
    """Keys after its own position; None is all, 0 is causal."""
    first: int
    """Position of the first query, counted from the first key."""
    padding: Optional[torch.Tensor]
    """[B, Nk], true for tokens that are no padding; None where all are."""

    def visible(self, queries: int, keys: int, device: torch.device) -> torch.Tensor:
        """The pattern without padding as a boolean mask [queries, keys]."""
        distance = torch.arange(keys, device=device) - (
            torch.arange(queries, device=device)[:, None] + self.first
        )
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
        if self.left is not None:
            seen &= distance >= -self.left
        if self.right is not None:
            seen &= distance <= self.right
        return seen


_CHEAP = {
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dim,
    torch.Tensor.size,
}


class PatternMask(torch.Tensor):
    """A boolean mask [B, 1, Nq, Nk] that is a pattern until an operation needs its elements.

    A model may hand it to an attention function of ours untouched, which reads ``pattern``; anything
    else that it does with it happens to the elements, so the meaning is never lost.
    """

    pattern: Pattern

    @staticmethod
    def make(pattern: Pattern, batch: int, queries: int, keys: int, device: Any) -> PatternMask:
        """A mask of this shape that takes no memory."""
        elements = torch.ones((), dtype=torch.bool, device=device).expand(batch, 1, queries, keys)
        mask = elements.as_subclass(PatternMask)
        mask.pattern = pattern
        return mask

    def elements(self) -> torch.Tensor:
        """The mask as a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            batch, _, queries, keys = self.shape
            seen = self.pattern.visible(queries, keys, self.device)[None, None]
            if self.pattern.padding is not None:
                seen = seen & self.pattern.padding[:, None, None, :]
            return seen.expand(batch, 1, queries, keys)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _CHEAP:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        plain = torch.utils._pytree.tree_map(
            lambda x: x.elements() if isinstance(x, PatternMask) else x, (args, kwargs or {})
        )
        return function(*plain[0], **plain[1])


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Optional[torch.Tensor] = None,
    device: Any = "cpu",
    **options: Any,
) -> Optional[torch.Tensor]:
    """What Transformers calls to make a mask for an attention of ours.

    Returns:
        None for plain causal attention whose last query stands at the last key; a
        :class:`PatternMask` for causal, sliding and bidirectional attention with or without padding;
        otherwise, and where a graph is traced, a boolean mask [B, 1, Nq, Nk].
    """
    sides = _sides(mask_function)
    plain = isinstance(q_offset, int) and sides == (None, 0) and attention_mask is None
    if plain and q_offset - kv_offset + q_length == kv_length:
        return None
    traced = is_tracing(attention_mask) or is_tracing(q_offset if _is_tensor(q_offset) else None)
    if sides is not None and not traced:
        left, right = sides
        first = int(q_offset) - kv_offset
        padding = _padding(attention_mask, kv_length, kv_offset, first + q_length, right)
        if left is not None and left >= first + q_length - 1:
            left = None  # no query is that far from the first key
        if (left, right, padding) == (None, 0, None) and first + q_length == kv_length:
            return None
        pattern = Pattern(left, right, first, padding)
        return PatternMask.make(pattern, batch_size, q_length, kv_length, device)
    options.update(allow_is_causal_skip=False)
    return masking_utils.sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        device=device,
        **options,
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _padding(
    attention_mask: Optional[torch.Tensor],
    kv_length: int,
    kv_offset: int,
    end: int,
    right: Optional[int],
) -> Optional[torch.Tensor]:
    """Padding of the keys [B, Nk]; None where no key that a query can see is padding."""
    prepared = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if prepared is None:
        return None
    padding = prepared[:, kv_offset : kv_offset + kv_length].to(torch.bool)
    reachable = padding[:, : end + right] if right is not None else padding
    return None if bool(reachable.all()) else padding


def _sides(function: Callable[..., Any]) -> Optional[tuple[Optional[int], Optional[int]]]:
    """How far a mask function of Transformers sees before and after; None where it is another rule.

    Sliding windows are closures; they are known by what made them. What is not known takes the way of
    a boolean mask, which is always right.
    """
    if function is masking_utils.causal_mask_function:
        return None, 0
    if function is masking_utils.bidirectional_mask_function:
        return None, None
    if getattr(function, "__qualname__", "") != "and_masks.<locals>.and_mask":
        return None
    parts = _closed_over(function).get("mask_functions", ())
    if len(parts) != 2 or getattr(parts[0], "__module__", "") != masking_utils.__name__:
        return None
    window = _closed_over(parts[0]).get("sliding_window")
    if not isinstance(window, int):
        return None
    maker = parts[0].__qualname__.split(".")[0]
    if maker == "sliding_window_overlay" and parts[1] is masking_utils.causal_mask_function:
        return window - 1, 0
    if (
        maker == "sliding_window_bidirectional_overlay"
        and parts[1] is masking_utils.bidirectional_mask_function
    ):
        return window, window
    return None


def _closed_over(function: Callable[..., Any]) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = getattr(function, "__closure__", None) or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells)}

"""Hugging Face Transformers: ``attn_implementation="int_flash"``, and a cache of codes.

::

    from int_flash_attention.transformers import IntFlashCache, register

    register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="int_flash")
    model.generate(**inputs)                                          # Transformers' own cache
    model.generate(**inputs, cache=IntFlashCache(model.config))       # keys and values as codes
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, Optional, Tuple

import torch

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.utils import generic

    from ._transformers_cache import CachedStates, IntFlashCache, IntFlashLayer
    from ._transformers_mask import Pattern, PatternMask, mask
except ImportError as error:
    raise ImportError(
        "int_flash_attention.transformers needs Transformers 5.24 or a later 5: "
        "pip install 'int-flash-attention[transformers]'"
    ) from error

from ._attention import precisions
from ._errors import UnsupportedError
from .torch import refuse_gradients

__all__ = ["IntFlashCache", "IntFlashLayer", "attention_forward", "register"]

NAME = "int_flash"


def register() -> Tuple[str, ...]:
    """Adds ``int_flash`` (``int8``) and ``int_flash:PRECISION`` to Transformers' attention interface.

    Transformers takes every name with "flash" in it for a form of the package flash-attn, and would
    look for one on the network. So its ``is_flash_attention_requested`` is wrapped to say no for these
    names; nothing else is changed. Calling this again is harmless.

    Returns:
        The names.
    """
    names = (NAME, *(f"{NAME}:{precision}" for precision in precisions()))
    _exempt(generic)
    for name in names:
        precision = name.partition(":")[2] or "int8"
        AttentionInterface.register(name, functools.partial(attention_forward, precision=precision))
        AttentionMaskInterface.register(name, mask)
    return names


def _exempt(module: Any) -> None:
    """Wraps ``is_flash_attention_requested``, here and where it has been imported to."""
    original: Callable[..., bool] = module.is_flash_attention_requested
    if getattr(original, "_int_flash", False):
        return

    def is_flash_attention_requested(
        config: Any = None,
        requested_attention_implementation: Optional[str] = None,
        version: Any = None,
    ) -> bool:
        name = requested_attention_implementation
        if name is None and config is not None:
            name = config._attn_implementation
        if name is not None and (name == NAME or name.startswith(f"{NAME}:")):
            return False
        return original(config, requested_attention_implementation, version)

    is_flash_attention_requested._int_flash = True  # type: ignore[attr-defined]
    for name, holder in list(sys.modules.items()):
        if name.partition(".")[0] != "transformers":
            continue
        members = getattr(holder, "__dict__", {})
        if members.get("is_flash_attention_requested") is original:
            members["is_flash_attention_requested"] = is_flash_attention_requested


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    position_bias: Optional[torch.Tensor] = None,
    s_aux: Optional[torch.Tensor] = None,
    *,
    precision: str = "int8",
    **_: Any,
) -> Tuple[torch.Tensor, None]:
    """An attention function as Transformers calls it.

    **Shapes.** query ``[B, Hq, Nq, D]``, key ``[B, Hkv, Nk, D]``, value ``[B, Hkv, Nk, Dv]``; the
    result is ``[B, Nq, Hq, Dv]``, and no weights. Without a mask attention is causal where the module
    is, and the last query stands at the last key.

    Raises:
        GradientError: gradients are recorded.
        UnsupportedError: dropout, or a mask that a cache of codes cannot have.
        AttentionError: anything else; the class says which kind.
    """
    if dropout != 0.0:
        raise UnsupportedError(f"dropout is {dropout}; attention without dropout is computed, 0")
    if isinstance(key, CachedStates):
        return _attend_to_codes(
            key.layer, query, attention_mask, scaling, softcap, position_bias, s_aux
        ), None
    refuse_gradients(query=query, key=key, value=value)
    left: Optional[int] = None
    right: Optional[int] = None
    if attention_mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        right = 0 if causal else None
    elif isinstance(attention_mask, PatternMask):
        left, right, key, value, attention_mask = _apply(attention_mask, query.shape[2], key, value)
    if position_bias is not None:
        attention_mask = _add_bias(position_bias, attention_mask)
    output = torch.ops.int_flash_attention.attention(
        query,
        key,
        value,
        attention_mask,
        s_aux,
        left,
        right,
        False,
        scaling,
        softcap,
        precision,
    )
    return output.transpose(1, 2).contiguous(), None


def _apply(
    mask: PatternMask, queries: int, key: torch.Tensor, value: torch.Tensor
) -> Tuple[Optional[int], Optional[int], torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """A pattern as a window of the library's, which has the last query at the last key, and a mask."""
    pattern = mask.pattern
    end = pattern.first + queries  # where the last query stands, and one more
    keys = key.shape[2]
    padding = pattern.padding
    if (pattern.left, pattern.right) != (None, None) and end != keys:
        if pattern.right != 0 or not 0 < end <= keys:
            return None, None, key, value, mask.elements()
        # Keys after the last query, such as the free places of a static cache: nobody sees them.
        key, value = key[:, :, :end], value[:, :, :end]
        padding = None if padding is None else padding[:, :end]
    if padding is not None:
        padding = padding[:, None, None, :]
    return pattern.left, pattern.right, key, value, padding


def _add_bias(bias: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -torch.inf)
    return bias + mask


def _attend_to_codes(
    layer: IntFlashLayer,
    query: torch.Tensor,
    mask: Optional[torch.Tensor],
    scale: Optional[float],
    softcap: Optional[float],
    position_bias: Optional[torch.Tensor],
    sinks: Optional[torch.Tensor],
) -> torch.Tensor:
    refuse_gradients(query=query)
    pattern: Optional[Pattern] = None
    if isinstance(mask, PatternMask):
        pattern = mask.pattern
    elif mask is not None or position_bias is not None or sinks is not None:
        raise UnsupportedError(
            "IntFlashCache takes causal, sliding and bidirectional attention with padding masks; this "
            "call has another mask, a bias or attention sinks"
        )
    output = layer.attend(query, pattern, scale=scale, softcap=softcap)
    return output.transpose(1, 2).contiguous()

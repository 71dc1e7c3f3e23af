"""PyTorch: ``scaled_dot_product_attention`` with PyTorch's signature, an operator, a patch.

The operator ``int_flash_attention::attention`` has a fake implementation, so ``torch.compile`` and
``torch.export`` keep it as one node. It is forward only: tensors that require gradients are refused
while gradients are recorded.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Optional

import torch
from torch import Tensor

from . import _attention
from ._errors import (
    AttentionError,
    GradientError,
    InvalidArgumentError,
    ShapeMismatchError,
    UnsupportedError,
)
from ._gpu import gpu_of, refuse
from ._tensors import MASKS, operand

__all__ = ["patch", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
    *,
    softcap: Optional[float] = None,
    precision: str = "int8",
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, computed by int-flash-attention.

    **Shapes.** query ``[..., Hq, L, E]``, key ``[..., H, S, E]``, value ``[..., H, S, Ev]``; result
    ``[..., Hq, L, Ev]`` in the type of the query, laid out in memory as ``[..., L, Hq, Ev]``, as
    PyTorch's own does on CPUs. Leading dimensions broadcast. float32, float16 or bfloat16, on the CPU,
    or on a GPU with what :func:`int_flash_attention.attention` computes there, in the current stream.
    Any strides with unit stride in the last dimension are read where they lie; others are copied, with
    a ``CopyWarning``.

    **Masks.** As PyTorch has them. A boolean ``attn_mask`` is true where a key takes part; others are
    added to the logits; both broadcast to ``[..., Hq, L, S]``. ``is_causal`` lets row i see keys
    0 … i: PyTorch aligns at the *first* query and key, unlike :func:`int_flash_attention.attention`,
    which aligns at the last. Both together are refused, as in PyTorch. A row that sees no key is zero.

    **Accuracy.** That of ``precision``: ``"float32"`` is within 1e-5 of PyTorch, ``"int8"`` within
    1.3 % relative L1 of exact attention on activations of language models.

    Args:
        query: queries.
        key: keys.
        value: values.
        attn_mask: boolean, or added to the logits.
        dropout_p: must be 0.
        is_causal: whether row i sees keys 0 … i only.
        scale: multiplies the logits; None is ``1/sqrt(E)``.
        enable_gqa: whether Hq may be a multiple of H, several query heads sharing a key/value head.
        softcap: caps logits at this value, before the mask; not in PyTorch.
        precision: name of the recipe; not in PyTorch.

    Raises:
        GradientError: an operand requires gradients and they are recorded.
        UnsupportedError: ``dropout_p`` is not 0.
        AttentionError: anything else that cannot be computed; the class says which kind.
    """
    if dropout_p != 0.0:
        raise UnsupportedError(
            f"dropout_p is {dropout_p}; attention without dropout is computed, 0"
        )
    if is_causal and attn_mask is not None:
        raise InvalidArgumentError(
            "attn_mask and is_causal are both given; PyTorch takes one of them"
        )
    refuse_gradients(query=query, key=key, value=value, attn_mask=attn_mask)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.layout != torch.strided:
            raise InvalidArgumentError(f"{name} has layout {tensor.layout}; it must be strided")
        if tensor.dim() < 2:
            raise ShapeMismatchError(
                f"{name} has shape {tuple(tensor.shape)}; it must have at least two dimensions"
            )
    rank = max(4, query.dim(), key.dim(), value.dim())
    leading = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    query4, key4, value4 = (_four_dimensions(x, leading, rank) for x in (query, key, value))
    if not enable_gqa and query4.shape[1] != key4.shape[1]:
        if key4.shape[1] == 1:
            key4 = key4.expand(-1, query4.shape[1], -1, -1)
        elif query4.shape[1] == 1:
            query4 = query4.expand(-1, key4.shape[1], -1, -1)
        else:
            raise ShapeMismatchError(
                f"query has {query4.shape[1]} heads and key {key4.shape[1]}; set enable_gqa if query "
                "heads shall share key/value heads"
            )
    if value4.shape[1] == 1 and key4.shape[1] != 1:
        value4 = value4.expand(-1, key4.shape[1], -1, -1)
    mask4 = None if attn_mask is None else _mask(attn_mask, leading, rank)
    output = torch.ops.int_flash_attention.attention(
        query4,
        key4,
        value4,
        mask4,
        None,
        None,
        0 if is_causal else None,
        is_causal,
        scale,
        softcap,
        precision,
    )
    shape = output.shape
    if rank > 4 or not leading:
        lost = max(len(query.shape), len(key.shape), len(value.shape))
        output = output.reshape(*leading, *shape[1:]) if lost > 2 else output[0, 0]
    return output


def _four_dimensions(tensor: Tensor, leading: torch.Size, rank: int) -> Tensor:
    """[..., H, N, D] as [B, H, N, D]."""
    while tensor.dim() < 3:
        tensor = tensor.unsqueeze(0)
    tensor = tensor.expand(*leading, *tensor.shape[-3:])
    if rank > 4:
        return tensor.flatten(0, -4)
    return tensor if leading else tensor.unsqueeze(0)


def _mask(mask: Tensor, leading: torch.Size, rank: int) -> Tensor:
    """A mask as at most [B, H, L, S]; dimensions that are missing or 1 stay so where that works."""
    if mask.dim() > rank:
        raise ShapeMismatchError(
            f"attn_mask has shape {tuple(mask.shape)}, more dimensions than query, key and value"
        )
    if rank > 4 and mask.dim() > 3:
        return mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4)
    return mask


def refuse_gradients(**tensors: Optional[Tensor]) -> None:
    """Raises where a tensor requires gradients and they are recorded.

    Raises:
        GradientError: naming the tensor.
    """
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise GradientError(
                f"{name} requires gradients, but attention here has no backward pass; call it under "
                "torch.no_grad() or torch.inference_mode(), or detach() the tensor"
            )


# MARK: The operator

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, SymInt? left, "
    "SymInt? right, bool at_first, float? scale, float? softcap, str precision) -> Tensor"
)


def _new_output(query: Tensor, value: Tensor) -> Tensor:
    batch, heads, length = query.shape[:3]
    return query.new_empty((batch, length, heads, value.shape[3])).transpose(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional[Tensor],
    sinks: Optional[Tensor],
    left: Optional[int],
    right: Optional[int],
    at_first: bool,
    scale: Optional[float],
    softcap: Optional[float],
    precision: str,
) -> Tensor:
    """Attention of [B, Hq, L, E] to [B, H, S, E]; ``at_first`` aligns masks at the first query and key."""
    queries, keys = query.shape[2], key.shape[2]
    if at_first and right is not None:
        # The library has the last query at the last key. More queries: the window moves by as many as
        # there are more. More keys: those that even the last query does not see are left out.
        right += max(queries - keys, 0)
        last = min(queries + right, keys)
        key, value, right = key[:, :, :last], value[:, :, :last], right - max(last - queries, 0)
        if mask is not None and mask.dim() and mask.shape[-1] > 1:
            mask = mask[..., :last]
    output = _new_output(query, value)
    q, k = operand(query, "query", on_gpu=True), operand(key, "key", on_gpu=True)
    v = operand(value, "value", on_gpu=True)
    gpu = gpu_of(query, query=q, key=k, value=v)
    if gpu is not None:
        refuse(attn_mask=mask, sinks=sinks)
    _attention.run(
        q,
        k,
        v,
        operand(output, "output", on_gpu=True),
        gpu=gpu,
        mask=None if mask is None else operand(mask, "attn_mask", types=MASKS, unit_stride=False),
        sinks=None if sinks is None else operand(sinks.float(), "sinks", unit_stride=False),
        left=left,
        right=right,
        scale=scale,
        softcap=softcap,
        precision=precision,
        threads=torch.get_num_threads(),
    )
    return output


_operator = torch.library.custom_op(
    "int_flash_attention::attention",
    _attend,
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=_SCHEMA,
)


@_operator.register_fake
def _attend_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional[Tensor],
    sinks: Optional[Tensor],
    left: Optional[int],
    right: Optional[int],
    at_first: bool,
    scale: Optional[float],
    softcap: Optional[float],
    precision: str,
) -> Tensor:
    return _new_output(query, value)


def _refuse_backward(context: Any, gradient: Tensor) -> Any:
    raise GradientError("attention here has no backward pass")


_operator.register_autograd(_refuse_backward)


# MARK: The patch


@contextlib.contextmanager
def patch(precision: str = "int8", *, fallback: bool = False) -> Iterator[None]:
    """Makes ``torch.nn.functional.scaled_dot_product_attention`` ours while the context lasts.

    For code that one cannot change and that looks the function up when it calls it. The patch is
    process-wide: other threads see it too. Not reached are fused paths that never call the function,
    such as that of ``torch.nn.TransformerEncoderLayer`` in evaluation mode.

    Args:
        precision: name of the recipe.
        fallback: whether calls that are refused here (gradients, dropout, other devices and types,
            masks on a GPU, values that are not finite) go to PyTorch's own function instead of
            raising.
    """
    functional = torch.nn.functional
    original = functional.scaled_dot_product_attention
    _attention.require_precision(precision)

    def patched(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Optional[Tensor] = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: Optional[float] = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        try:
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale,
                enable_gqa,
                precision=precision,
            )
        except (AttentionError, NotImplementedError):
            if not fallback:
                raise
        return original(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    functional.scaled_dot_product_attention = patched
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original

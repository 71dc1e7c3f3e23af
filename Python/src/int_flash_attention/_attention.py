"""One call of attention, and putting partial results together."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Literal, Optional, Sequence, Tuple, TypeVar, overload

from . import _abi
from ._blocks import VisibleBlocks, block_struct
from ._errors import InvalidArgumentError, ShapeMismatchError
from ._gpu import GPU, enqueue, gpu_of, refuse
from ._tensors import MASKS, Operand, empty, operand

Window = Tuple[Optional[int], Optional[int]]
#: A NumPy array, a PyTorch tensor or a CuPy array.
Array = TypeVar("Array")


@overload
def attention(
    q: Array,
    k: Any,
    v: Any,
    *,
    scale: Optional[float] = ...,
    is_causal: bool = ...,
    window: Optional[Window] = ...,
    softcap: Optional[float] = ...,
    attn_mask: Optional[Any] = ...,
    enable_gqa: bool = ...,
    precision: str = ...,
    return_lse: Literal[False] = ...,
    alibi_slopes: Optional[Any] = ...,
    sinks: Optional[Any] = ...,
    blocks: Optional[VisibleBlocks] = ...,
    threads: Optional[int] = ...,
) -> Array: ...


@overload
def attention(
    q: Array,
    k: Any,
    v: Any,
    *,
    scale: Optional[float] = ...,
    is_causal: bool = ...,
    window: Optional[Window] = ...,
    softcap: Optional[float] = ...,
    attn_mask: Optional[Any] = ...,
    enable_gqa: bool = ...,
    precision: str = ...,
    return_lse: Literal[True],
    alibi_slopes: Optional[Any] = ...,
    sinks: Optional[Any] = ...,
    blocks: Optional[VisibleBlocks] = ...,
    threads: Optional[int] = ...,
) -> Tuple[Array, Array]: ...


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: Optional[float] = None,
    is_causal: bool = False,
    window: Optional[Window] = None,
    softcap: Optional[float] = None,
    attn_mask: Optional[Any] = None,
    enable_gqa: bool = True,
    precision: str = "int8",
    return_lse: bool = False,
    alibi_slopes: Optional[Any] = None,
    sinks: Optional[Any] = None,
    blocks: Optional[VisibleBlocks] = None,
    threads: Optional[int] = None,
) -> Any:
    """Scaled dot-product attention, softmax(scale · q kᵀ) v, with quantised operands.

    **Shapes.** q ``[B, Hq, Nq, D]``, k ``[B, Hkv, Nk, D]``, v ``[B, Hkv, Nk, Dv]``, or all three
    without B; D and Dv up to 256. The result is ``[B, Hq, Nq, Dv]`` (or without B) in the type of q.

    **Types.** NumPy arrays or PyTorch tensors on the CPU, float32, float16 or bfloat16 (in NumPy that
    of ``ml_dtypes``). They are read where they lie, with any strides, also negative ones, as long as
    neighbours in the last dimension are side by side; otherwise they are copied, with a
    :class:`CopyWarning`. The result is of the kind that q is. The GIL is released, and any number of
    threads may call at once.

    **GPUs.** PyTorch tensors on CUDA devices and CuPy arrays; k and v may be anything with
    ``__cuda_array_interface__``. The call is put into the current stream and returns; nothing waits. It
    takes ``int8``, ``int8Paper``, ``bfloat16`` and ``float16``, ``scale``, ``is_causal`` and ``window``.
    NaN and infinity are not refused there: the result then means nothing. Never run on a real GPU.

    **Accuracy.** That of the precision, as relative L1 error against exact attention on activations
    of language models: ``int8`` at most 1.3 %, ``int8QueryKey`` 0.9 %, ``int4`` 6.5 %, ``bfloat16``
    0.8 %, ``float16`` 0.1 %, ``float32`` 0.001 %.

    **Edge cases.** A row that sees no key is zero and has log-sum-exp −∞. Sizes may be 0. NaN and
    infinity in q, k and v are refused.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: multiplies the logits; None is 1/√D.
        is_causal: whether keys after a query's own are hidden. The last query stands at the last key,
            also where Nq and Nk differ; PyTorch's alignment is in
            :func:`int_flash_attention.torch.scaled_dot_product_attention`.
        window: how many keys before and after its own a query sees, both included; None in either
            place is unlimited.
        softcap: caps logits at this value: x becomes softcap · tanh(x / softcap).
        attn_mask: broadcasts to ``[B, Hq, Nq, Nk]``. Boolean: true where a key is seen. Floats are
            added to the logits; −∞ hides a key.
        enable_gqa: whether Hq may be a multiple of Hkv, several query heads sharing a key/value head.
        precision: the recipe, one of :func:`info`'s ``precisions``.
        return_lse: whether to return the log-sum-exp of the logits too.
        alibi_slopes: ``[Hq]`` or ``[B, Hq]``: slope · distance is subtracted from the logits.
        sinks: ``[Hq]`` or ``[B, Hq]``: the logit of a token without value.
        blocks: block-sparse attention, beside the mask: a key is seen where both let it. As many query
            blocks as Nq has.
        threads: how many threads may compute; None is one per physical core.

    Returns:
        The result, or with ``return_lse`` a pair of it and the log-sum-exp, float32 ``[B, Hq, Nq]``.

    Raises:
        AttentionError: what is wrong is in the class (see there) and in the message.
    """
    left, right = window_sides(is_causal, window)
    query = operand(q, "q", on_gpu=True)
    key, value = operand(k, "k", on_gpu=True), operand(v, "v", on_gpu=True)
    for name, part in (("q", query), ("k", key), ("v", value)):
        if len(part.shape) not in (3, 4) or len(part.shape) != len(query.shape):
            raise ShapeMismatchError(
                f"{name} has shape {part.shape}; q, k and v must have three dimensions each, "
                "[heads, tokens, dimension], or four, [batch, heads, tokens, dimension]"
            )
    if not enable_gqa and query.shape[-3] != key.shape[-3]:
        raise ShapeMismatchError(
            f"q has {query.shape[-3]} heads and k {key.shape[-3]}, but enable_gqa is false"
        )
    gpu = gpu_of(q, q=query, k=key, v=value)
    if gpu is not None:
        refuse(
            attn_mask=attn_mask,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            blocks=blocks,
            threads=threads,
        )
    output = empty((*query.shape[:-1], value.shape[-1]), query.element_type, q)
    lse = empty(query.shape[:-1], "float32", q) if return_lse else None
    run(
        query,
        key,
        value,
        operand(output, "output", on_gpu=True),
        gpu=gpu,
        lse=None if lse is None else operand(lse, "log_sum_exp", on_gpu=True),
        mask=optional(attn_mask, "attn_mask", MASKS),
        alibi_slopes=optional(alibi_slopes, "alibi_slopes"),
        sinks=optional(sinks, "sinks"),
        left=left,
        right=right,
        scale=scale,
        softcap=softcap,
        blocks=blocks,
        precision=precision,
        threads=threads,
    )
    return output if lse is None else (output, lse)


def merge(outputs: Sequence[Array], lses: Sequence[Array]) -> Tuple[Array, Array]:
    """Attention over all keys from attention over parts of them.

    The parts are weighted by their softmax denominators, as if all keys had been in one call: a prefix
    that is shared and computed once, caches, other machines, other precisions or libraries. Attention
    sinks belong in exactly one part.

    **Shapes.** Each output ``[B, H, Nq, Dv]`` with log-sum-exp ``[B, H, Nq]``, float32, or both
    without B. **Accuracy.** Computed in double precision, rounded once.

    Args:
        outputs: at least one, in key order.
        lses: as many; −∞ for a row that saw no key.

    Returns:
        The output, in the type of the first part, and its log-sum-exp.

    Raises:
        AttentionError: shapes or types that do not fit, or a log-sum-exp that is NaN or +∞.
    """
    if not outputs or len(outputs) != len(lses):
        raise ShapeMismatchError(
            f"outputs are {len(outputs)} and lses {len(lses)}; they must be as many, at least one"
        )
    parts = [operand(output, f"outputs[{i}]") for i, output in enumerate(outputs)]
    sums = [operand(lse, f"lses[{i}]", types=("float32",)) for i, lse in enumerate(lses)]
    output = empty(parts[0].shape, parts[0].element_type, outputs[0])
    lse = empty(parts[0].shape[:-1], "float32", outputs[0])
    array = ctypes.POINTER(_abi.Tensor) * len(parts)
    _abi.check(
        _abi.library.intfa_merge(
            array(*(_abi.pointer(_abi.tensor(part)) for part in parts)),
            array(*(_abi.pointer(_abi.tensor(part)) for part in sums)),
            len(parts),
            _abi.tensor(operand(output, "output")),
            _abi.tensor(operand(lse, "log_sum_exp")),
        )
    )
    return output, lse


def run(
    query: Operand,
    key: Operand,
    value: Operand,
    output: Operand,
    *,
    gpu: Optional[GPU] = None,
    lse: Optional[Operand] = None,
    mask: Optional[Operand] = None,
    alibi_slopes: Optional[Operand] = None,
    sinks: Optional[Operand] = None,
    left: Optional[int] = None,
    right: Optional[int] = None,
    scale: Optional[float] = None,
    softcap: Optional[float] = None,
    blocks: Optional[VisibleBlocks] = None,
    precision: str = "int8",
    threads: Optional[int] = None,
) -> None:
    """Calls the library. Masks are aligned at the last query and the last key."""
    if gpu is not None:
        enqueue(
            gpu,
            query,
            key,
            value,
            output,
            lse=lse,
            left=left,
            right=right,
            scale=scale,
            softcap=softcap,
            precision=name_bytes(precision),
        )
        return
    # Names, not only values: the structs must live until the call is over.
    operands = _abi.Operands(
        query=_abi.pointer(_abi.tensor(query)),
        key=_abi.pointer(_abi.tensor(key)),
        value=_abi.pointer(_abi.tensor(value)),
        output=_abi.pointer(_abi.tensor(output)),
        log_sum_exp=tensor_pointer(lse),
        mask=tensor_pointer(mask),
        alibi_slopes=tensor_pointer(alibi_slopes),
        sinks=tensor_pointer(sinks),
    )
    _abi.check(
        _abi.library.intfa_attention(
            operands,
            name_bytes(precision),
            _abi.options(
                left=left,
                right=right,
                scale=scale,
                softcap=softcap,
                blocks=block_struct(blocks),
            ),
            _abi.backend(threads),
        )
    )


def optional(value: Any, name: str, types: Sequence[str] = ("float32",)) -> Optional[Operand]:
    """An operand of which every layout is taken; None stays None."""
    return (
        None
        if value is None
        else operand(value, name, types=types, unit_stride=False, stacklevel=5)
    )


def window_sides(is_causal: bool, window: Optional[Window]) -> Window:
    """How far a query sees before and after its own key; None is unlimited.

    Raises:
        InvalidArgumentError: a window that is no pair of counts, or that contradicts ``is_causal``.
    """
    left, right = None, None
    if window is not None:
        try:
            left, right = window
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"window is {window!r}; it must be a pair (keys before, keys after), None for unlimited"
            ) from None
    if is_causal:
        if right not in (None, 0):
            raise InvalidArgumentError(
                f"window is {window!r}, but is_causal hides the keys after a query's own"
            )
        right = 0
    return left, right


def name_bytes(precision: str) -> bytes:
    """The name of a recipe as the library takes it."""
    if not isinstance(precision, str):
        raise InvalidArgumentError(f"precision is {precision!r}; it must be a name, such as 'int8'")
    return precision.encode()


@functools.cache
def precisions() -> Tuple[str, ...]:
    """The names of all recipes."""
    information = _abi.Information()
    _abi.check(_abi.library.intfa_get_information(information))
    return tuple(information.precisions.decode().split(","))


def require_precision(precision: str) -> str:
    """The name of a recipe, if it is one.

    Raises:
        InvalidArgumentError: it is not.
    """
    if precision not in precisions():
        raise InvalidArgumentError(
            f"precision is {precision!r}; it must be one of {', '.join(precisions())}"
        )
    return precision


def tensor_pointer(part: Optional[Operand]) -> Any:
    return None if part is None else _abi.pointer(_abi.tensor(part))

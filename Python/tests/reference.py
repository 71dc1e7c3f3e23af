"""Attention in double precision, three plain steps, and the bounds of the precisions."""

from __future__ import annotations

import numpy

# Relative L1 bounds of `Precision.gate` in Sources/IntFlashAttention/Quantization/AccuracyGate.swift, on
# normal data up to 1024 keys.
GATES = {
    "int8": 0.014,
    "int8Paper": 0.03,
    "int8QueryKey": 0.01,
    "int8QueryKeyPaper": 0.01,
    "int4": 0.1,
    "int4KeyValue": 0.135,
    "float8": 0.065,
    "bfloat16": 0.005,
    "float16": 0.0004,
    "float32": 1e-5,
}


def attention(
    q, k, v, *, scale=None, left=None, right=None, softcap=None, mask=None, slopes=None, sinks=None
):
    """[B, Hq, Nq, D] attends to [B, Hkv, Nk, D]; returns output and log-sum-exp in float64."""
    q, k, v = (numpy.asarray(x, numpy.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = numpy.einsum("bhid,bhjd->bhij", q, k) * scale
    if softcap is not None:
        logits = softcap * numpy.tanh(logits / softcap)
    position = numpy.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    distance = numpy.arange(k.shape[2])[None] - position
    seen = numpy.ones(distance.shape, bool)
    if left is not None:
        seen &= distance >= -left
    if right is not None:
        seen &= distance <= right
    if slopes is not None:
        logits -= numpy.asarray(slopes, numpy.float64)[..., None, None] * abs(distance)
    if mask is not None and mask.dtype == bool:
        seen = seen & mask
    elif mask is not None:
        logits += mask
    logits = numpy.where(seen, logits, -numpy.inf)
    largest = logits.max(-1, keepdims=True, initial=-numpy.inf)
    if sinks is not None:
        sinks = numpy.broadcast_to(numpy.asarray(sinks, numpy.float64), q.shape[:2])[
            ..., None, None
        ]
        largest = numpy.where(numpy.isneginf(largest), largest, numpy.maximum(largest, sinks))
    shift = numpy.where(numpy.isneginf(largest), 0, largest)
    weights = numpy.exp(logits - shift)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = numpy.where(total > 0, total + numpy.exp(sinks - shift), total)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        output = numpy.where(total > 0, numpy.einsum("bhij,bhjd->bhid", weights, v) / total, 0)
        lse = (shift + numpy.log(total))[..., 0]
    return output, lse


def error(found, expected):
    """Relative L1."""
    found, expected = numpy.asarray(found, numpy.float64), numpy.asarray(expected, numpy.float64)
    return abs(found - expected).sum() / max(abs(expected).sum(), 1e-30)


def normal(seed, *shapes, dtype="float32"):
    """Normal arrays that are float16 numbers, so that every type holds the same."""
    generator = numpy.random.default_rng(seed)
    return [generator.normal(size=shape).astype("float16").astype(dtype) for shape in shapes]

#!/usr/bin/env python3
"""Executable specification of every precision of int-flash-attention (NumPy only).

    python spec.py FILE.safetensors ...            every recipe against attention in float64
    python spec.py --synthetic normal --n 1024     the same on random data (normal, uniform or rand01)
    python spec.py --report FILE.safetensors ...   the tables of README.md beside this file
    python spec.py --selftest                      checks of this file itself

    o, lse = attention(q, k, v, recipe="int8", scale=0.125, mask="causal", return_lse=True)
    q [Hq, Nq, d], k [Hkv, Nk, d], v [Hkv, Nk, dv]; query head h reads key/value head h // (Hq // Hkv).

Masks: "full"; "causal"; "sliding:L,R", where row i sees keys i + off - L ... i + off + R. off = Nk - Nq aligns the
last row with the last key, and causal is sliding with R = 0 and no left end. A row that sees no key yields zeros and a
log-sum-exp of -inf. Means, scales and groups are over all rows and keys of a head, seen or not.

Where the order of a float32 sum decides about codes (means, inner products with means), it is the one written here.
The product adds tiles in spans that it merges afterwards, which changes nothing but the last bits of the result.

Integer matrix products are carried in float32, which is exact while every partial sum stays below 2**24;
int_matmul() asserts that bound and --selftest compares it with true integer arithmetic.
"""
import argparse
import json
import struct
import sys
import time
from dataclasses import dataclass

import numpy as np

LOG2E = 1.4426950408889634
NEG = np.float32(-1e30)          # start value of the running maximum; finite, so that NEG - NEG is 0 and not NaN
SMALLEST = np.float32(2.0**-100)  # smallest maximum a scale is derived from: an all-zero row gets codes 0
STEPS = 64                       # unit of the scores of the integer recipes: 2^(1/64)
V_FLOOR = 0.125                  # smallest scale of a token of V, as a fraction of the mean scale of its head
V_LIMIT = 4                      # a token of V that is larger than this many means is an outlier
OUTLIER_TILE = 64                # keys per tile of a head whose V has outliers

# ------------------------------------------------------------------------------------------------ recipes
# q, k, v    number formats, see quantise() and quantise_v()
# rotate_qk  multiply Q and K by the orthonormal Hadamard matrix;  rotate_v: V too, and the output back
# mean_k     subtract the mean of K over the keys, channel by channel.  It shifts whole rows of scores, which only the
#            log-sum-exp and the softcap can see; both add it again
# mean_q     0: no;  -1: subtract one mean of Q per head;  n: one mean per n query rows.  The part taken out returns
#            as an additive bias per key, mean . k_j, computed with K before quantisation
# p          255 / 127: P as an integer 0..p;  otherwise P in that format (float8 carries 256 P)
# power      "table": 2^x in steps of 1/64 by table and shift;  "real": exp2 in float32
# max        "run": P is relative to the running row maximum, rounded up to a whole number where P is float32 or
#            bfloat16;  "tile": relative to the maximum of the current tile
# l          the row sum.  "codes": of the rounded P;  "exact": of P before rounding;  "auto": "exact" for the heads whose
#            V has outliers, "codes" for the others
# first, tile  keys in the first tile and in every other one
# last       "fine": in the tile that a row's mask ends in P keeps the sixteen bits of the table; not under "full"
# original   the arithmetic of the published forms (prepare_original)
_BEST = dict(rotate_qk=True, rotate_v=True, mean_q=-1, p=255, power="table", max="tile", l="auto", first=64, tile=128,
             last="fine")
_FIRST = dict(rotate_qk=True, rotate_v=True, mean_q=-1, p=255, max="tile", l="codes", original=True)
RECIPES = {
    "float32":           dict(q="float32", k="float32", v="float32", p="float32"),
    "float16":           dict(q="float16", k="float16", v="float16", p="float16"),
    "bfloat16":          dict(q="bfloat16", k="bfloat16", v="bfloat16", p="bfloat16"),
    "float8":            dict(q="float8", k="float8", v="float8", p="float8", first=128, tile=128),
    "int8QueryKeyPaper": dict(q="int8", k="int8", v="float16", p="float16"),
    "int8QueryKey":      dict(q="int8", k="int8", v="bfloat16", rotate_qk=True, mean_k=True, mean_q=-1, p="bfloat16"),
    "int8Paper":         dict(q="int8", k="int8", v="int8_head", p=127),
    "int8":              dict(q="int8", k="int8", v="int8_unit", mean_k=True, **_BEST),
    "int4":              dict(q="int8", k="int4_block", v="int8_unit", **_BEST),
    "int4KeyValue":      dict(q="int8", k="int4_block", v="int4_unit", **_BEST),
    "int4QueryKey":      dict(q="int4", k="int4", v="int8_token", mean_k=True, **{**_FIRST, "mean_q": 64, "original": False}),
    # Published forms, for comparison only: tiles of 64, real V scales, exp2, codes in the row sum.
    "int8Minimal":           dict(q="int8", k="int8", v="int8_token", p=127, max="tile", l="codes", original=True),
    "int8_original":         dict(q="int8", k="int8", v="int8_token", mean_k=True, **_FIRST),
    "int4_original":         dict(q="int8", k="int4_block", v="int8_token", **_FIRST),
    "int4KeyValue_original": dict(q="int8", k="int4_block", v="int4_token", **_FIRST),
}
DEFAULTS = dict(rotate_qk=False, rotate_v=False, mean_k=False, mean_q=0, power="real", max="run", l="exact", first=64,
                tile=64, last="", original=False, v_limit=V_LIMIT)
PRODUCT = [name for name in RECIPES if not RECIPES[name].get("original")]
ORIGINAL = {"int8": "int8_original", "int4": "int4_original", "int4KeyValue": "int4KeyValue_original"}


# ------------------------------------------------------------------------------------------------ number formats
def round_float16(x):
    return x.astype(np.float16).astype(np.float32)


def round_bfloat16(x):
    """Nearest bfloat16, ties to even, returned as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def round_float8(x):
    """Nearest e4m3 (1-4-3, bias 7, largest 448, saturating, ties to even), returned as float32."""
    x = np.clip(np.asarray(x, np.float32), -448.0, 448.0)
    _, e = np.frexp(x)
    step = np.ldexp(np.float32(1), np.maximum(e - 1, -6) - 3)
    return (np.rint(x / step) * step).astype(np.float32)


ROUND = {"float32": lambda x: x, "float16": round_float16, "bfloat16": round_bfloat16, "float8": round_float8}


def hadamard(d):
    """Orthonormal Hadamard matrix; for d that is no power of two, equal diagonal blocks of the largest one dividing d."""
    p = d & -d
    h = np.ones((1, 1), np.float32)
    while len(h) < p:
        h = np.block([[h, h], [h, -h]])
    return (np.kron(np.eye(d // p, dtype=np.float32), h) / np.sqrt(np.float32(p))).astype(np.float32)


def rotate(x):
    """x @ hadamard(d) * sqrt(p), p the size of its blocks, as log2(p) rounds of sums and differences.

    The missing factor 1/sqrt(p) is made up where a float32 factor is applied anyway (1/p for a product of two)."""
    d = x.shape[-1]
    p, x, stride = d & -d, np.array(x, np.float32), 1
    while stride < p:
        pairs = x.reshape(*x.shape[:-1], d // (2 * stride), 2, stride)
        x = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(x.shape)
        stride *= 2
    return x


def sum_rows(x):
    """Sum over axis 1: 256 in order, then these sums in order, in float32."""
    parts = [np.add.accumulate(x[:, a:a + 256], 1, np.float32)[:, -1] for a in range(0, x.shape[1], 256)]
    return np.add.accumulate(np.stack(parts), 0)[-1]


def mean_rows(x):
    return sum_rows(x) / np.float32(x.shape[1])


def exp2(x):
    """2^x rounded from float64, so that no rounding of P hangs on a machine's float32 function."""
    return np.exp2(x.astype(np.float64)).astype(np.float32)


def dot(a, b):
    """Inner products over the last axis in float32: sixteen partial sums, then halves onto halves."""
    x = np.asarray(a * b, np.float32)
    x = np.concatenate([x, np.zeros((*x.shape[:-1], -x.shape[-1] % 16), np.float32)], -1)
    lanes = np.zeros((*x.shape[:-1], 16), np.float32)
    for c in range(0, x.shape[-1], 16):
        lanes = lanes + x[..., c:c + 16]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def regroup_int4(x8, axis, group):
    """int8 codes -> 4-bit codes with an integer step and offset per group -> the int8 codes they stand for.
    axis 1: groups of `group` tokens per channel (the last may be short);  axis 2: groups of channels of one token."""
    out = np.empty_like(x8)
    for a in range(0, x8.shape[axis], group):
        sl = (slice(None),) * axis + (slice(a, a + group),)
        g = x8[sl]
        lo, hi = g.min(axis, keepdims=True), g.max(axis, keepdims=True)
        step = np.maximum(np.ceil((hi - lo) / 15), 1)
        code = np.clip(np.rint((g - lo) / step), 0, 15)          # stored: 4 bits; step and lo: one byte each
        out[sl] = np.clip(code * step + lo, -127, 127)
    return out


def largest(x, axes):
    return np.maximum(np.abs(x).max(axes, keepdims=True), SMALLEST)


def quantise_rows_int4(x):
    """Symmetric int4 per token, -8..7, with the clipping factor of least squared error per row."""
    s0 = largest(x, 2)[..., 0] / np.float32(7)
    best = None
    for c in np.float32([1, .95, .9, .85, .8, .75, .7]):
        s = s0 * c
        code = np.clip(np.rint(x / s[..., None]), -8, 7)
        err = ((code * s[..., None] - x) ** 2).sum(-1)
        if best is None:
            best = [code, s, err]
        else:
            t = err < best[2]
            best = [np.where(t[..., None], code, best[0]), np.where(t, s, best[1]), np.where(t, err, best[2])]
    return best[0], best[1]


def int8_codes(x, multiplier):
    return np.clip(np.rint(x * multiplier), -127, 127)


def quantise(x, fmt):
    """Rows of Q or K -> codes [H, N, d], scale [H, N]."""
    if fmt in ("float32", "float16", "bfloat16"):
        return ROUND[fmt](x), np.ones(x.shape[:2], np.float32)
    if fmt == "float8":                                          # one scale per head
        m = largest(x, (1, 2))
        return round_float8(x * (448 / m)), np.broadcast_to((m / 448)[..., 0], x.shape[:2])
    if fmt in ("int8", "int4_block"):                            # one scale per token
        m = largest(x, 2)
        code = int8_codes(x, 127 / m)
        return (regroup_int4(code, 1, 32) if fmt == "int4_block" else code), (m / 127)[..., 0]
    if fmt == "int4":
        return quantise_rows_int4(x)
    raise ValueError(fmt)


def masked_mean(a, keep):
    return (sum_rows(np.where(keep, a, np.float32(0))) / keep.sum(1).astype(np.float32))[:, None]


def quantise_v(x, fmt, limit=V_LIMIT):
    """V -> codes, n [H, N] (the weight of a token in the row sum), factor [H] (of the output), integer [H].

    int8_unit: the scale of a token is unit / n_j, and n_j = 127 is the floor, an eighth of the mean scale. As long as
    no token exceeds `limit` means, n_j is an integer, and the row sum over codes is one integer inner product, in which
    the rounding errors of P cancel those of P V. A larger token takes all codes of its tile, and the mass of its
    neighbours would be missing from that sum: then n_j is real, the row sum is taken before P is rounded, the tiles are
    short (fewer neighbours), and the mean leaves out the outliers."""
    shape = x.shape[:2]
    if fmt in ("float32", "float16", "bfloat16"):
        return ROUND[fmt](x), np.ones(shape, np.float32), np.ones(len(x), np.float32), np.zeros(len(x), bool)
    if fmt in ("float8", "int8_head"):
        levels = 448 if fmt == "float8" else 127
        m = largest(x, (1, 2))
        code = round_float8(x * (448 / m)) if fmt == "float8" else int8_codes(x, 127 / m)
        return code, np.ones(shape, np.float32), (m / levels)[:, 0, 0], np.zeros(len(x), bool)
    if fmt == "int8_token":                                      # the published form: a real scale with the same floor
        s = (largest(x, 2) / 127)[..., 0]
        s = np.maximum(s, masked_mean(s, np.ones(shape, bool)) * np.float32(V_FLOOR))
        return int8_codes(x, (1 / s)[..., None]), 1 / s, np.ones(len(x), np.float32), np.zeros(len(x), bool)
    if fmt in ("int8_unit", "int4_unit"):
        a = largest(x, 2)[..., 0]
        mean = masked_mean(a, np.ones(shape, bool))
        integer = a.max(1) <= np.float32(limit) * mean[:, 0]
        mean = masked_mean(a, a <= np.float32(max(limit, 2)) * mean)         # the same where there are no outliers
        unit = mean * np.float32(V_FLOOR)
        n = np.float32(127) * unit / a
        whole = integer[:, None] & (fmt == "int8_unit")    # an integer n would move the codes that 4-bit groups are cut from
        n = np.where(whole, np.clip(np.floor(n), 1, 127), np.minimum(n, 127)).astype(np.float32)
        code = int8_codes(x, (n / unit)[..., None])
        return (regroup_int4(code, 2, 16) if fmt == "int4_unit" else code), n, unit[:, 0], integer
    raise ValueError(fmt)


# ------------------------------------------------------------------------------------------------ operands
@dataclass
class Operands:
    """What the loop over the tiles reads. Scores are in units of 2^(1/steps)."""
    steps: int
    unit: np.float32         # what a product of rows of scale 1 is worth: softmax scale, log2(e), steps, rotation
    query: np.ndarray        # [Hq, Nq, d]
    query_scale: np.ndarray  # [Hq, Nq]
    key: np.ndarray          # [Hk, Nk, d]
    key_scale: np.ndarray    # [Hk, Nk]
    bias: np.ndarray         # [Hq, blocks of query rows, Nk]  of the mean of Q
    shift: np.ndarray        # [Hq, Nq]  what centring K took from every score of the row, in natural units
    value: np.ndarray        # [Hk, Nk, dv]
    fold: np.ndarray         # [Hk, Nk]  the scale of V as an addition to the score
    weight: np.ndarray       # [Hk, Nk]  what takes it out of the row sum again
    codes: np.ndarray        # [Hk]      whether the row sum is over rounded P
    tile: np.ndarray         # [Hk]      keys per tile after the first
    factor: np.ndarray       # [Hk]      of the output


def row_blocks(nq, mean_q):
    block = nq if mean_q <= 0 else mean_q
    return [(a, min(nq, a + block)) for a in range(0, nq, block)]


def prepare(q, k, v, r, scale):
    d, dv, group = q.shape[2], v.shape[2], len(q) // len(k)
    steps = STEPS if r["power"] == "table" else 1
    shift = np.zeros(q.shape[:2], np.float32)
    if r["mean_k"]:
        mean = mean_rows(k)
        shift = np.float32(scale) * dot(q, np.repeat(mean, group, 0)[:, None])
        k = k - mean[:, None]
    blocks = row_blocks(q.shape[1], r["mean_q"])
    means = np.zeros((len(q), len(blocks), d), np.float32)
    if r["mean_q"]:
        q = q.copy()
        for b, (a, e) in enumerate(blocks):
            means[:, b] = mean_rows(q[:, a:e])
            q[:, a:e] -= means[:, b, None]
    if r["rotate_qk"]:
        q, k, means = rotate(q), rotate(k), rotate(means)
    unit = np.float32(scale) * np.float32(LOG2E) * np.float32(steps) / np.float32(d & -d if r["rotate_qk"] else 1)
    bias = np.zeros((len(q), len(blocks), k.shape[1]), np.float32)
    if r["mean_q"]:
        for b in range(len(blocks)):
            bias[:, b] = unit * dot(np.repeat(k, group, 0), means[:, b, None])
    query, query_scale = quantise(q, r["q"])
    key, key_scale = quantise(k, r["k"])
    value, n, factor, integer = quantise_v(rotate(v) if r["rotate_v"] else v, r["v"], r["v_limit"])
    if r["rotate_v"]:
        factor = factor / np.float32(dv & -dv)
    codes, tile = np.full(len(k), r["l"] == "codes"), np.full(len(k), r["tile"])
    if r["l"] == "auto":
        codes, tile = integer, np.where(integer, tile, np.minimum(tile, OUTLIER_TILE))
    fold = -np.float32(steps) * np.log2(n.astype(np.float64)).astype(np.float32)
    return Operands(steps, unit, query, query_scale, key, key_scale, bias, shift, value, fold, n, codes, tile, factor)


def prepare_original(q, k, v, r, scale):
    d, dv, group = q.shape[2], v.shape[2], len(q) // len(k)
    tiny = np.float32(1e-10)
    sc = np.float32(scale * LOG2E)
    shift = np.zeros(q.shape[:2], np.float32)
    if r["mean_k"]:
        mean = k.mean(1, keepdims=True)
        shift = np.float32(scale) * (q * np.repeat(mean, group, 0)).sum(-1)
        k = k - mean
    if r["rotate_qk"]:
        q, k = q @ hadamard(d), k @ hadamard(d)
    bias = np.zeros((len(q), 1, k.shape[1]), np.float32)
    if r["mean_q"]:
        mean = q.mean(1)
        q = q - mean[:, None]
        bias[:, 0] = sc * np.einsum("hnd,hd->hn", np.repeat(k, group, 0), mean)

    def rows(x):
        s = np.maximum(np.abs(x).max(-1), tiny) / np.float32(127)
        return np.clip(np.rint(x / s[..., None]), -127, 127), s

    query, query_scale = rows(q)
    key, key_scale = rows(k)
    if r["k"] == "int4_block":
        key = regroup_int4(key, 1, 32)
    if r["rotate_v"]:
        v = v @ hadamard(dv)
    s = np.maximum(np.abs(v).max(-1), tiny) / np.float32(127)
    s = np.maximum(s, np.float32(V_FLOOR) * s.mean(1, keepdims=True))
    value = np.clip(np.rint(v / s[..., None]), -127, 127)
    if r["v"] == "int4_token":
        value = regroup_int4(value, 2, 16)
    return Operands(1, np.float32(1), query, query_scale, key, key_scale * sc, bias, shift, value, np.log2(s), 1 / s,
                    np.full(len(k), r["l"] == "codes"), np.full(len(k), r["tile"]), np.ones(len(k), np.float32))


# ------------------------------------------------------------------------------------------------ attention
_TABLE = np.rint(255 * 256 * 2.0 ** (-np.arange(64) / 64)).astype(np.uint32)           # fits in 16 bits
_REAL_TABLE = (255 * 2.0 ** (-np.arange(64) / 64)).astype(np.float32)


def table_powers(distance, fine):
    """255 * 2^(-distance/64) for whole distances: rounded to 0..255, in the fine rows down to 1/256; and unrounded."""
    steps = np.minimum(np.rint(distance), 2047).astype(np.int32)
    bits = _TABLE[steps & 63] >> (steps >> 6)
    codes = np.where(fine[:, None], bits.astype(np.float32) / np.float32(256), (bits + 128 >> 8).astype(np.float32))
    return codes, np.ldexp(_REAL_TABLE[steps & 63], -(steps >> 6))


def int_matmul(a, b, bound_a, bound_b):
    """Product of integer matrices held in float32, exact because no partial sum can reach 2**24."""
    assert bound_a * bound_b * a.shape[-1] < 2 ** 24, "use real int32 for this size"
    return a @ b


def tiles(n, first, tile):
    ends = [min(n, first)] + list(range(first + tile, n + tile, tile)) if n > first else [n]
    return [(a, min(n, e)) for a, e in zip([0] + ends, ends)]


def visible(mask, rows, keys, offset):
    """Which of the keys [a, e) the rows [a, e) see: booleans [rows, keys]."""
    i, j = np.arange(*rows)[:, None] + offset, np.arange(*keys)[None]
    if mask == "full":
        return np.ones((i.size, j.size), bool)
    if mask == "causal":
        return j <= i
    left, right = (int(x) for x in mask.removeprefix("sliding:").split(","))
    return (j >= i - left) & (j <= i + right)


def mask_ends(mask, rows, offset):
    """Where the mask of each row ends, or -1 where it does not move with the row."""
    right = 0 if mask == "causal" else -1 if mask == "full" else int(mask.removeprefix("sliding:").split(",")[1])
    return np.full(rows[1] - rows[0], -1) if right < 0 else np.arange(*rows) + offset + right + 1


def attention(q, k, v, /, recipe="int8", scale=None, mask="full", softcap=None, return_lse=False, out=np.float32, **changes):
    """The recipe's result [Hq, Nq, dv], and with return_lse the natural log-sum-exp of the logits [Hq, Nq].
    Further keywords change the recipe: attention(..., "int8", l="exact", tile=64)."""
    r = {**DEFAULTS, **RECIPES[recipe], **changes}
    (hq, nq, d), (hk, nk, _), dv = q.shape, k.shape, v.shape[2]
    scale = d ** -0.5 if scale is None else scale
    q, k, v = (np.asarray(x).astype(np.float32) for x in (q, k, v))
    x = (prepare_original if r["original"] else prepare)(q, k, v, r, scale)
    ints = r["q"].startswith("int")
    levels = np.float32(r["p"] if isinstance(r["p"], int) else 256 if r["p"] == "float8" else 1)

    o = np.zeros((hq, nq, dv), np.float32)
    lse = np.full((hq, nq), -np.inf)
    for h in range(hq):
        g = h // (hq // hk)
        for block, (begin, end) in enumerate(row_blocks(nq, r["mean_q"])):
            bias = x.bias[h, block] if softcap else x.bias[h, block] + x.fold[g]
            for i0 in range(begin, end, 256):
                i1 = min(end, i0 + 256)
                m = np.full(i1 - i0, NEG)
                l = np.zeros(i1 - i0, np.float32)
                acc = np.zeros((i1 - i0, dv), np.float32)
                ends = mask_ends(mask if r["last"] == "fine" else "full", (i0, i1), nk - nq)
                for j0, j1 in tiles(nk, r["first"], x.tile[g]):
                    seen = visible(mask, (i0, i1), (j0, j1), nk - nq)
                    if not seen.any():
                        continue
                    a, b = x.query[h, i0:i1], x.key[g, j0:j1].T
                    s = int_matmul(a, b, 127, 127) if ints else (a.astype(np.float64) @ b).astype(np.float32)
                    row, key = x.query_scale[h, i0:i1, None] * x.unit, x.key_scale[g, None, j0:j1]
                    s = (s * (row * key) if r["original"] else s * key * row) + bias[j0:j1]
                    if softcap:
                        cap = np.float32(softcap * LOG2E * x.steps)
                        shift = x.shift[h, i0:i1, None] * np.float32(LOG2E * x.steps)
                        s = cap * np.tanh(((s + shift) / cap).astype(np.float64)).astype(np.float32) + x.fold[g, j0:j1]
                    s = np.where(seen, s, np.float32(-np.inf))
                    t = np.maximum(s.max(1), NEG)                # NEG where the tile is wholly masked for a row
                    if r["max"] == "run" and r["p"] in ("float32", "bfloat16"):
                        t = np.ceil(t)                           # P's bits then do not depend on when the maximum moved
                    m_new = np.maximum(m, t)
                    ref = t if r["max"] == "tile" else m_new
                    alpha, beta = np.exp2((m - m_new) / x.steps), np.exp2((ref - m_new) / x.steps)
                    if r["power"] == "table":
                        stop = r["first"] if j0 == 0 else j0 + x.tile[g]
                        fine = (ends > j0) & (ends <= stop)
                        pc, p = table_powers(ref[:, None] - s, fine)         # the largest is exactly 255
                        p = p * seen
                    else:
                        p = (np.exp2 if r["original"] else exp2)(s - ref[:, None]) * levels
                        pc = np.floor(p + np.float32(0.5)) if isinstance(r["p"], int) else ROUND[r["p"]](p)
                    vt = x.value[g, j0:j1]
                    if isinstance(r["p"], int):
                        whole = np.floor(pc)                                 # P is a byte and, where it is fine, a rest
                        pv = int_matmul(whole, vt, r["p"], 127) + int_matmul(256 * (pc - whole), vt, 255, 127) / 256
                    else:
                        pv = pc @ vt
                    w = pc if x.codes[g] else p
                    l = l * alpha + beta * (w @ x.weight[g, j0:j1])
                    acc = acc * alpha[:, None] + beta[:, None] * pv
                    m = m_new
                some = l > 0
                o[h, i0:i1] = np.where(some[:, None], acc * x.factor[g] / np.where(some, l, 1)[:, None], 0)
                log = np.log(2) * (m.astype(np.float64) / x.steps + np.log2(np.where(some, l, 1) / np.float64(levels)))
                lse[h, i0:i1] = np.where(some, log + (0 if softcap else x.shift[h, i0:i1]), -np.inf)
    if r["rotate_v"]:
        o = o @ hadamard(dv) if r["original"] else rotate(o)
    o = o.astype(out)
    return (o, lse.astype(np.float32)) if return_lse else o


def reference(q, k, v, scale=None, mask="full", softcap=None, return_lse=False):
    """The same attention in float64, from the stored inputs."""
    (hq, nq, d), (hk, nk, _) = q.shape, k.shape
    scale = d ** -0.5 if scale is None else scale
    o, lse = np.zeros((hq, nq, v.shape[2])), np.zeros((hq, nq))
    for h in range(hq):
        g = h // (hq // hk)
        for i0 in range(0, nq, 512):
            i1 = min(nq, i0 + 512)
            s = q[h, i0:i1].astype(np.float64) @ k[g].astype(np.float64).T * scale
            s = softcap * np.tanh(s / softcap) if softcap else s
            s[~visible(mask, (i0, i1), (0, nk), nk - nq)] = -np.inf
            m = s.max(1, keepdims=True)
            m = np.where(np.isfinite(m), m, 0)
            p = np.exp(s - m)
            z = p.sum(1, keepdims=True)
            o[h, i0:i1] = p @ v[g].astype(np.float64) / np.where(z > 0, z, 1)
            lse[h, i0:i1] = np.where(z > 0, np.log(np.where(z > 0, z, 1)) + m, -np.inf)[:, 0]
    return (o, lse) if return_lse else o


# ------------------------------------------------------------------------------------------------ metrics
def rel_l1(a, b):
    """sum|a - b| / sum|b|: the gate metric.  NaN or infinity anywhere in a makes it NaN or infinite: never below a bound."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).sum() / np.abs(b).sum())


def cosine(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def rmse(a, b):
    return float(np.sqrt(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)))


def mre(a, b):
    """mean of |a - b| / (|b| + 1e-5), element by element: dominated by the outputs that happen to lie near zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.mean(np.abs(a - b) / (np.abs(b) + 1e-5)))


# ------------------------------------------------------------------------------------------------ files
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}


def load_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    size, = struct.unpack("<Q", raw[:8])
    head, body = json.loads(raw[8:8 + size]), raw[8 + size:]
    meta = head.pop("__metadata__", {})
    tensors = {n: np.frombuffer(body[slice(*t["data_offsets"])], _TYPES[t["dtype"]]) for n, t in head.items()}
    return {n: t.reshape(head[n]["shape"]) for n, t in tensors.items()}, meta


def load_problem(path):
    """-> q, k, v, dict(scale, mask, softcap)"""
    t, meta = load_safetensors(path)
    mask = meta.get("mask") or ("causal" if meta.get("causal", "1") == "1" else "full")
    softcap = float(meta["softcap"]) if "softcap" in meta else None
    return t["q"], t["k"], t["v"], dict(scale=float(meta.get("scale", t["q"].shape[2] ** -0.5)), mask=mask, softcap=softcap)


def synthetic(kind, n, heads=1, dim=64, seed=0):
    rng = np.random.default_rng(seed)
    draw = {"normal": rng.standard_normal, "uniform": lambda s: rng.random(s) - 0.5, "rand01": rng.random}[kind]
    return [draw((heads, n, dim)).astype(np.float16) for _ in range(3)]


# ------------------------------------------------------------------------------------------------ report
def percent(*errors):
    return " | ".join(f"{100 * e:.3f}" for e in errors)


def compare(title, q, k, v, options):
    exact = reference(q, k, v, **options)
    cells = []
    for name, original in ORIGINAL.items():
        a, b = attention(q, k, v, name, **options), attention(q, k, v, original, **options)
        cells += [rel_l1(a, exact), rel_l1(b, exact), rel_l1(a, b)]
    print(f"| {title} | {percent(*cells)} |", flush=True)


def robustness_cases(q, k, v):
    """The inputs that break careless recipes: (title, q, k, v)."""
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    n = k.shape[1]

    def with_value(token, factor, rows=n):
        w = v[:, :rows].copy()
        w[:, token] *= factor
        return q[:, :rows], k[:, :rows], w

    yield "unchanged", q, k, v
    yield "V[0] = 0", *with_value(0, 0)
    yield "V[0] × 10", *with_value(0, 10)
    yield "V = 1", q, k, np.ones_like(v)
    for rows in (n, 600):
        token = min(500, rows - 100)
        for factor in (50, 200, 500, 2000):
            if rows <= n:
                yield f"N = {rows}, V[{token}] × {factor}", *with_value(token, factor, rows)
    channel = k.copy()
    channel[..., 5] += 60
    yield "K channel 5 + 60", q, channel, v
    yield "Q × 0", q * 0, k, v
    yield "Q, K × 2", q * 2, k * 2, v
    rows = min(777, n - 23)
    yield f"N = {rows}", q[:, :rows], k[:, :rows], v[:, :rows]


def report(files):
    print("relL1 in % against float64, and between product and original.\n")
    names = " | ".join(f"{n} | original | distance" for n in ORIGINAL)
    print(f"| input | {names} |\n|---|{'---|' * 3 * len(ORIGINAL)}")
    for path in files:
        q, k, v, options = load_problem(path)
        compare(path.split("/")[-1], q, k, v, options)
    for kind in ("normal", "uniform"):
        for n in (1024, 4096):
            q, k, v = synthetic(kind, n)
            compare(f"{kind}, N = {n}", q[:, :1024], k, v, dict(scale=0.125))
    names = ("int8", "int8_original", "int4", "int4_original")
    for path in files:
        q, k, v, options = load_problem(path)
        print(f"\n{path.split('/')[-1]}, causal then full, relL1 in %; int8's row sum per key/value head.\n")
        print(f"| case | row sum | {' | '.join(names)} | {' | '.join('full ' + n for n in names)} |\n|---|---|{'---|' * 8}")
        for title, a, b, c in robustness_cases(q, k, v):
            r = {**DEFAULTS, **RECIPES["int8"]}
            codes = prepare(a, b, c, r, options["scale"]).codes
            cells = []
            for mask in ("causal", "full"):
                exact = reference(a, b, c, options["scale"], mask)
                cells += [rel_l1(attention(a, b, c, n, options["scale"], mask), exact) for n in names]
            print(f"| {title} | {', '.join('codes' if x else 'exact' for x in codes)} | {percent(*cells)} |", flush=True)


def row(name, o, ref, t):
    print(f"{name:21s} relL1 {100 * rel_l1(o, ref):7.3f}%  cos {cosine(o, ref):.6f}  rmse {rmse(o, ref):.2e}"
          f"  mre {100 * mre(o, ref):7.2f}%  {t:5.1f}s", flush=True)


# ------------------------------------------------------------------------------------------------ checks of this file
# Largest relL1 on normal data, and largest error of the log-sum-exp.
BOUNDS = {"float32": (2e-6, 2e-5), "float16": (.0005, 2e-5), "bfloat16": (.008, .02), "float8": (.09, .15),
          "int8QueryKeyPaper": (.015, .05), "int8QueryKey": (.015, .04), "int8Paper": (.03, .05), "int8": (.02, .05),
          "int4": (.16, .6), "int4KeyValue": (.2, .6), "int4QueryKey": (.2, .7), "int8Minimal": (.025, .06),
          "int8_original": (.02, .05), "int4_original": (.16, .6), "int4KeyValue_original": (.2, .6)}


def check(what, recipe, q, k, v, slack=1.0, **options):
    """Runs the recipe, holds result and log-sum-exp against float64, and returns both."""
    o, lse = attention(q, k, v, recipe, return_lse=True, **options)
    exact, exact_lse = reference(q, k, v, return_lse=True, **options)
    assert o.shape == exact.shape and np.isfinite(o).all(), (what, recipe)
    empty = np.isinf(exact_lse)
    assert (np.isneginf(lse) == empty).all() and (o[empty] == 0).all(), (what, recipe, "rows that see nothing")
    bound, bound_lse = BOUNDS[recipe]
    e, e_lse = rel_l1(o, exact), np.abs(lse[~empty] - exact_lse[~empty]).max()
    assert e < slack * bound, (what, recipe, options, "result", e)
    assert e_lse < slack * bound_lse, (what, recipe, options, "log-sum-exp", e_lse)
    return o, lse


def selftest():
    rng = np.random.default_rng(1)

    def normal(h, n, d):
        return rng.standard_normal((h, n, d)).astype(np.float16)

    # ---- the pieces
    a, b = rng.integers(-127, 128, (256, 64)), rng.integers(-127, 128, (64, 64))
    assert (int_matmul(a.astype(np.float32), b.astype(np.float32), 127, 127) == a @ b).all(), "integer product"
    x = np.concatenate([np.arange(-8, 448, 0.03), 2.0 ** np.arange(-11, 9)]).astype(np.float32)
    for rounded in ROUND.values():
        assert (rounded(rounded(x)) == rounded(x)).all()
    assert len(np.unique(np.abs(round_float8(x)))) <= 127
    assert (round_bfloat16(np.float32([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8])) == np.float32([1, 1 + 2**-6, -1])).all()
    for d in (1, 8, 20, 32, 96):
        x = rng.standard_normal((3, 5, d)).astype(np.float32)
        assert np.abs(hadamard(d) @ hadamard(d).T - np.eye(d)).max() < 1e-5
        assert np.abs(rotate(x) - x @ hadamard(d) * np.sqrt(d & -d)).max() < 1e-5, "rotation"
        assert np.abs(rotate(rotate(x)) / (d & -d) - x).max() < 1e-5, "the rotation is its own inverse"
        assert np.abs(dot(x, x[:, :1]) - (x * x[:, :1]).sum(-1)).max() < 1e-4, "inner product"
    assert list(tiles(300, 64, 128)) == [(0, 64), (64, 192), (192, 300)] and list(tiles(64, 64, 128)) == [(0, 64)]
    assert list(tiles(1, 64, 128)) == [(0, 1)] and list(tiles(65, 64, 128)) == [(0, 64), (64, 65)]
    (codes, fine), (powers, _) = table_powers(np.tile(np.arange(2100), (2, 1)), np.array([False, True]))
    assert codes[0] == 255 and codes[64] == 128 and codes[64 * 9] == 0 and codes[-1] == 0 and powers[0] == 255
    assert np.abs(codes - powers).max() <= 0.51 and np.abs(fine - powers).max() <= 1.51 / 256, "table"
    assert (mask_ends("causal", (2, 4), 3) == [6, 7]).all() and (mask_ends("full", (0, 2), 0) == -1).all()
    assert (mask_ends("sliding:9,2", (0, 2), 5) == [8, 9]).all()
    assert np.abs(powers[:2048] / (255 * 2.0 ** (-np.arange(2048) / 64)) - 1).max() < 1e-6, "table"
    full, causal = visible("full", (0, 4), (0, 6), 2), visible("causal", (0, 4), (0, 6), 2)
    assert full.all() and (causal == np.tri(4, 6, 2, bool)).all()
    assert (visible("sliding:1,0", (0, 3), (0, 3), 0) == np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)).all()
    assert (visible("sliding:99,0", (0, 4), (0, 6), 2) == causal).all()

    # ---- every recipe: shared heads, masks, offsets, softcap
    q, k, v = normal(6, 333, 64), normal(2, 333, 64), normal(2, 333, 64)
    for name in RECIPES:
        for mask in ("full", "causal", "sliding:100,7", "sliding:40,0"):
            o, lse = check("masks", name, q, k, v, 1 if mask in ("full", "causal") else 1.3, mask=mask)
            wide, wide_lse = attention(q, np.repeat(k, 3, 0), np.repeat(v, 3, 0), name, mask=mask, return_lse=True)
            assert np.array_equal(o, wide) and np.array_equal(lse, wide_lse), (name, "shared key/value heads")
        assert np.array_equal(attention(q, k, v, name, mask="sliding:999,0"), attention(q, k, v, name, mask="causal"))
        check("last rows", name, q[:, 300:], k, v, 1.5, mask="causal")
        check("more rows than keys", name, q, k[:, :100], v[:, :100], 1.5, mask="causal")       # 233 rows see nothing
        check("softcap", name, q, k, v, 1.2, mask="causal", softcap=1.5)
        shifted = (k.astype(np.float32) + 3).astype(np.float16)
        check("softcap and a mean of K", name, q, shifted, v, 2, mask="causal", softcap=3.0)
        check("scale", name, q, k, v, 2, scale=0.25)
        zero = np.zeros_like(k)
        assert (attention(q, k, zero, name) == 0).all() and np.isfinite(attention(q, zero, v, name)).all()
        assert np.isfinite(attention(q * 0, k, v, name)).all()

    # ---- lengths and sizes
    for name in PRODUCT:
        for n in (1, 2, 63, 64, 65, 191, 192, 193, 300):
            check("length", name, normal(2, n, 64), normal(1, n, 64), normal(1, n, 64), 2, mask="causal")
            check("one row", name, normal(2, 1, 64), normal(1, n, 64), normal(1, n, 64), 4)
        for d, dv in ((8, 8), (20, 20), (32, 48), (64, 32), (96, 96), (64, 7), (1, 1), (256, 256)):
            check("size", name, normal(3, 150, d), normal(1, 150, d), normal(1, 150, dv), 3, mask="causal")

    # ---- the log-sum-exp is that of the logits before any centring
    for name in ("int8", "int8QueryKey", "int4QueryKey", "int8_original"):
        far = (k.astype(np.float32) + 4).astype(np.float16)
        _, lse = attention(q, far, v, name, mask="causal", return_lse=True)
        _, exact = reference(q, far, v, mask="causal", return_lse=True)
        assert np.abs(lse - exact).max() < 1.5 * BOUNDS[name][1], (name, "log-sum-exp", np.abs(lse - exact).max())

    # ---- the row sum
    one = np.ones_like(v)
    for name in ("int8", "int4", "int4KeyValue"):
        for shape in ((2, 333, 64), (2, 333, 20), (2, 333, 96), (2, 1, 64), (2, 65, 32)):
            for mask in ("full", "causal"):
                o = attention(q[:, :shape[1]], k[:, :shape[1]], np.ones(shape, np.float32), name, mask=mask)
                bound = 1e-2 if name == "int4KeyValue" else 1e-6          # 127 is no multiple of the step that 4 bits need for it
                assert np.abs(o - 1).max() < bound, (name, shape, "constant V", np.abs(o - 1).max())
    assert rel_l1(attention(q, k, one * np.float32(0.3), "int8"), 0.3 * np.ones((6, 333, 64))) < 1e-3
    _, n, _, integer = quantise_v(rotate(v.astype(np.float32)), "int8_unit")
    assert integer.all() and (n == np.floor(n)).all() and n.min() >= 1 and n.max() <= 127
    for factor in (2, 10, 50, 200, 500, 2000):
        w = v.astype(np.float32)
        w[1, 130] *= factor
        x = prepare(*(y.astype(np.float32) for y in (q, k, w)), {**DEFAULTS, **RECIPES["int8"]}, 0.125)
        assert x.codes[0] and x.codes[1] == (factor == 2) and x.weight.max() <= 127 and x.weight.min() > 0
        assert list(x.tile) == [128, 128 if x.codes[1] else 64]
        if not x.codes[1]:
            others = np.delete(np.abs(rotate(w[1])).max(1), 130)
            assert abs(x.factor[1] * 64 / others.mean() * 8 - 1) < 1e-5, "the unit leaves out the outlier"
        for mask in ("full", "causal"):
            check(f"V[130] * {factor}", "int8", q, k, w, mask=mask)
        check("rows that see nothing", "int8", q, k[:, :200], w[:, :200], 1.5, mask="causal")
        old, new = attention(q, k, v, "int8"), attention(q, k, w, "int8")
        assert np.array_equal(old[:3], new[:3]), "another key/value head has its own row sum"

    # ---- near the published forms
    for n, limit in (("int8", .015), ("int4", .02)):
        for mask in ("full", "causal"):
            e = rel_l1(attention(q, k, v, n, mask=mask), attention(q, k, v, ORIGINAL[n], mask=mask))
            assert e < limit, (n, mask, "distance", e)
    print("selftest passed:", len(RECIPES), "recipes")


def main():
    ap = argparse.ArgumentParser(description="Executable specification of the recipes; see README.md.")
    ap.add_argument("files", nargs="*", help="safetensors with q, k, v and the metadata scale, mask or causal, softcap")
    ap.add_argument("--recipe", default="all", help="comma separated, or all")
    ap.add_argument("--synthetic", choices=("normal", "uniform", "rand01"))
    ap.add_argument("--n", type=int, default=1024)
    ap.add_argument("--heads", type=int, default=1)
    ap.add_argument("--dim", type=int, default=64)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--mask", help="full, causal or sliding:L,R (default: the file's own, or full)")
    ap.add_argument("--softcap", type=float, help="(default: the file's own, or none)")
    ap.add_argument("--l", choices=("codes", "exact", "auto"), help="row sum (default: the recipe's own)")
    ap.add_argument("--tile", type=int, help="keys per tile after the first (default: the recipe's own)")
    ap.add_argument("--report", action="store_true", help="print the tables of README.md for the files")
    ap.add_argument("--selftest", action="store_true")
    a = ap.parse_args()
    if a.selftest:
        return selftest()
    if a.report:
        return report(a.files)
    names = list(RECIPES) if a.recipe == "all" else a.recipe.split(",")
    sets = [(f, *load_problem(f)) for f in a.files]
    if a.synthetic:
        tensors = synthetic(a.synthetic, a.n, a.heads, a.dim, a.seed)
        sets.append((f"{a.synthetic} N={a.n}", *tensors, dict(scale=a.dim ** -0.5, mask="full")))
    if not sets:
        ap.print_help()
    changes = {n: x for n, x in (("l", a.l), ("tile", a.tile)) if x}
    total = {n: [] for n in names}
    for title, q, k, v, options in sets:
        options.update({n: x for n, x in (("mask", a.mask), ("softcap", a.softcap)) if x})
        exact = reference(q, k, v, **options)
        print(f"== {title}  q{list(q.shape)} k{list(k.shape)} v{list(v.shape)} {options}")
        for n in names:
            t = time.time()
            o = attention(q, k, v, n, **options, **changes)
            row(n, o, exact, time.time() - t)
            total[n].append((rel_l1(o, exact), cosine(o, exact)))
    if len(sets) > 1:
        print("== mean and worst over the sets")
        for n in names:
            e, c = zip(*total[n])
            print(f"{n:21s} relL1 mean {100 * np.mean(e):7.3f}%  worst {100 * max(e):7.3f}%   cos worst {min(c):.6f}")


if __name__ == "__main__":
    sys.exit(main())

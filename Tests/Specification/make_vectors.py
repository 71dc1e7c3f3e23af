#!/usr/bin/env python3
"""Writes the test vectors of the recipes: small problems, their results by spec.py, and the INT8 codes.

    python make_vectors.py              writes the files
    python make_vectors.py --check      computes them again and compares: codes equal, floats within 1e-6
    python make_vectors.py --cut CAPTURE OUT --group 1 --tokens 512
                                        cuts one key/value head and its query heads out of captured activations

Tensors of a file; letters as in spec.py:
    q, k, v            F16
    exact, o.<recipe>  F32 [Hq, rows, dv]  attention in float64, and by each recipe, of the query rows in metadata `rows`
    exact_lse, lse.int8  F32 [Hq, Nq]      natural log-sum-exp of the logits, -inf where a row sees nothing
    q8, k8, v8         I8                  codes of int8; q8 [Hq, rows, d] of the rows in metadata `rows`
    sq, sk             F32 [H, N]          their scales, for rows rotated without normalisation: rotate(row) = scale * code
    n, unit            F32 [Hk, Nk], [Hk]  rotate(v_j) = unit / n_j * code
Metadata: scale, mask, softcap (where there is one), rows, row_sum (of int8, per key/value head).
"""
import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np

import spec

FOLDER = Path(__file__).resolve().parent.parent / "IntFlashAttentionTests" / "Vectors"
_NAMES = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", np.dtype("i1"): "I8"}


# ------------------------------------------------------------------------------------------------ files
def safetensors(tensors, meta):
    """The bytes of a file: wide types first, then by name, so that every tensor is aligned to its type."""
    names = sorted(tensors, key=lambda n: (-tensors[n].itemsize, n))
    header, offset = {"__metadata__": {n: meta[n] for n in sorted(meta)}}, 0
    for n in names:
        t = tensors[n]
        header[n] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(np.ascontiguousarray(tensors[n]).tobytes() for n in names)


# ------------------------------------------------------------------------------------------------ problems
def normal(seed, *shape):
    """Near-normal float16 numbers from integer arithmetic alone: the sum of twelve uniforms, splitmix64."""
    count = int(np.prod(shape))
    x = np.arange(1, 12 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 40)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    x = (x ^ x >> np.uint64(31)) >> np.uint64(40)
    total = x.reshape(12, count).sum(0).astype(np.float64) / 2**24 - 6
    return total.reshape(shape).astype(np.float16).astype(np.float32)


def half(x):
    return x.astype(np.float16)


def problems():
    """name -> q, k, v, options, rows"""
    q, k, v = normal(1, 4, 200, 64), normal(2, 2, 200, 64), normal(3, 2, 200, 64)
    k[..., 5] += 8                                     # a channel that all keys share
    q[..., 9] += 3                                     # the first key attracts every query, and its value is small
    k[:, 0, 9] = 14
    v[:, 0] *= 0.05
    yield "outliers", q, k, v, dict(scale=0.125, mask="causal"), (0, 64, 130, 199)

    q, k, v = normal(4, 3, 37, 32), normal(5, 1, 211, 32), normal(6, 1, 211, 48)
    yield "offset", q, k, v, dict(scale=32 ** -0.5, mask="causal"), (0, 17, 18, 36)

    q, k, v = normal(7, 2, 70, 20), normal(8, 1, 70, 20), normal(9, 1, 70, 20)
    yield "ragged", q, k, v, dict(scale=20 ** -0.5, mask="full"), (0, 35, 63, 64, 69)

    q, k, v = normal(10, 1, 150, 64), normal(11, 1, 150, 64), normal(12, 1, 150, 64)
    v[0, 100] *= 2000
    yield "row_sum", q, k, v, dict(scale=0.125, mask="full"), (0, 40, 99, 100, 149)

    q, k, v = normal(13, 2, 130, 16), normal(14, 1, 130, 16), normal(15, 1, 130, 16)
    k[..., 3] += 4
    q[..., 3] += 0.5
    yield "sliding_softcap", q, k, v, dict(scale=0.25, mask="sliding:40,0", softcap=5.0), (0, 1, 40, 63, 64, 104, 129)


def vectors():
    """file name -> tensors, metadata"""
    for name, q, k, v, options, rows in problems():
        q, k, v = half(q), half(k), half(v)
        pick = list(rows)
        exact, exact_lse = spec.reference(q, k, v, return_lse=True, **options)
        tensors = {"q": q, "k": k, "v": v, "exact": exact[:, pick], "exact_lse": exact_lse}
        for recipe in spec.PRODUCT:
            o, lse = spec.attention(q, k, v, recipe, return_lse=True, **options)
            tensors["o." + recipe] = o[:, pick]
            if recipe == "int8":
                tensors["lse.int8"] = lse
        r = {**spec.DEFAULTS, **spec.RECIPES["int8"]}
        x = spec.prepare(*(t.astype(np.float32) for t in (q, k, v)), r, options["scale"])
        tensors |= {"sq": x.query_scale, "sk": x.key_scale, "n": x.weight, "unit": x.factor * (v.shape[2] & -v.shape[2])}
        tensors = {n: t if t.dtype == np.float16 else t.astype(np.float32) for n, t in tensors.items()}
        tensors |= {"q8": x.query[:, pick].astype(np.int8), "k8": x.key.astype(np.int8), "v8": x.value.astype(np.int8)}
        meta = {n: str(t) for n, t in options.items()} | {
            "rows": ",".join(map(str, rows)), "row_sum": ",".join("codes" if c else "exact" for c in x.codes)}
        yield f"recipes_{name}.safetensors", tensors, meta


def check(path, tensors, meta):
    found, found_meta = spec.load_safetensors(path)
    assert found_meta == meta, (path.name, found_meta, meta)
    assert found.keys() == tensors.keys(), (path.name, found.keys() ^ tensors.keys())
    for n, t in tensors.items():
        f = found[n]
        assert f.dtype == t.dtype and f.shape == t.shape, (path.name, n)
        if t.dtype != np.float32:
            assert np.array_equal(f, t), (path.name, n, "differs")
        else:
            inf = np.isinf(t)
            assert np.array_equal(f[inf], t[inf]), (path.name, n, "differs")
            error = np.abs(f[~inf] - t[~inf]) / np.maximum(1, np.abs(t[~inf]))
            assert error.max(initial=0) <= 1e-6, (path.name, n, error.max())
    print("same:", path.name)


def cut(source, target, group, tokens):
    """One key/value head (all of them where group is None) and its query heads, the first `tokens` tokens, as F16."""
    t, meta = spec.load_safetensors(source)
    size, count = len(t["q"]) // len(t["k"]), 1
    if group is None:
        group, count = 0, len(t["k"])
    heads = json.loads(meta["q_heads"])[group * size:(group + count) * size]
    kv_heads = json.loads(meta["kv_heads"])[group:group + count]
    tensors = {"q": t["q"][group * size:(group + count) * size, :tokens], "k": t["k"][group:group + count, :tokens],
               "v": t["v"][group:group + count, :tokens]}
    assert all(x.dtype == np.float16 for x in tensors.values())
    Path(target).write_bytes(safetensors(tensors, {
        "scale": meta["scale"], "causal": meta["causal"], "mask": "causal" if meta["causal"] == "1" else "full",
        "layer": meta["layer"], "heads": f"query {', '.join(map(str, heads))}; key/value {', '.join(map(str, kv_heads))}",
        "source": "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), Q4_1 weights decoded to float32, run in float32; "
                  "queries and keys after the rotary embedding",
        "text": "The Jargon File 4.4.7 (public domain)"}))


def main():
    ap = argparse.ArgumentParser(description="Test vectors of the recipes; see README.md.")
    ap.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    ap.add_argument("--cut", nargs=2, metavar=("CAPTURE", "OUT"), help="cut a capture of activations")
    ap.add_argument("--group", type=int, help="which key/value head of the capture (default: all)")
    ap.add_argument("--tokens", type=int, default=512)
    a = ap.parse_args()
    if a.cut:
        return cut(*a.cut, a.group, a.tokens)
    total = 0
    for name, tensors, meta in vectors():
        if a.check:
            check(FOLDER / name, tensors, meta)
        else:
            data = safetensors(tensors, meta)
            (FOLDER / name).write_bytes(data)
            total += len(data)
            print(f"{len(data):8d}  {name}")
    if not a.check:
        print(f"{total:8d}  together")


if __name__ == "__main__":
    sys.exit(main())

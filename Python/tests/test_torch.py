"""`int_flash_attention.torch` against PyTorch, and PyTorch tensors in the plain functions."""

from __future__ import annotations

import concurrent.futures
import inspect
import warnings

import numpy
import pytest
import torch
import torch.nn.functional as F
from reference import GATES

import int_flash_attention as intfa
from int_flash_attention import torch as ours

SHAPES = ((2, 6, 70, 64), (2, 6, 193, 64), (2, 6, 193, 32))


def normal(seed, *shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).half().to(dtype) for shape in shapes]


def error(found, expected):
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().sum() / expected.abs().sum().clamp_min(1e-30))


def same(found, expected, bound=1e-5):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= bound


# MARK: Parity


def test_signature_begins_with_that_of_pytorch():
    names = list(inspect.signature(ours.scaled_dot_product_attention).parameters)
    assert names[:8] == [
        "query",
        "key",
        "value",
        "attn_mask",
        "dropout_p",
        "is_causal",
        "scale",
        "enable_gqa",
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        SHAPES,
        ((70, 64), (193, 64), (193, 32)),
        ((6, 70, 64), (6, 193, 64), (6, 193, 64)),
        ((2, 3, 4, 70, 64), (2, 3, 4, 193, 64), (2, 3, 4, 193, 64)),
        ((2, 4, 70, 64), (1, 4, 193, 64), (2, 1, 193, 64)),
        ((4, 70, 64), (3, 4, 193, 64), (3, 4, 193, 64)),
        ((2, 4, 1, 7), (2, 4, 1, 7), (2, 4, 1, 5)),
        ((2, 4, 33, 80), (2, 4, 33, 80), (2, 4, 33, 256)),
    ],
    ids=str,
)
def test_shapes(shapes):
    q, k, v = normal(1, *shapes)
    same(
        ours.scaled_dot_product_attention(q, k, v, precision="float32"),
        F.scaled_dot_product_attention(q, k, v),
    )


@pytest.mark.parametrize(("length", "keys"), [(70, 193), (193, 70), (64, 64), (1, 9), (9, 1)])
def test_causal_is_aligned_at_the_first_key(length, keys):
    q, k, v = normal(2, (2, 4, length, 32), (2, 4, keys, 32), (2, 4, keys, 32))
    found = ours.scaled_dot_product_attention(q, k, v, is_causal=True, precision="float32")
    same(found, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    if length == 70:
        aligned_at_the_last = intfa.attention(q, k, v, is_causal=True, precision="float32")
        assert error(aligned_at_the_last, found) > 0.1


@pytest.mark.parametrize(
    "shape",
    [(1, 193), (70, 1), (70, 193), (6, 70, 193), (1, 1, 1, 193), (2, 1, 70, 193), (2, 6, 70, 193)],
    ids=str,
)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks(shape, kind):
    q, k, v = normal(3, *SHAPES)
    generator = torch.Generator().manual_seed(3)
    mask = torch.randn(shape, generator=generator)
    if kind == torch.bool:
        mask = mask > -1
    else:
        mask[..., :5] = -torch.inf if shape[-1] > 5 else 0
    found = ours.scaled_dot_product_attention(q, k, v, mask, precision="float32")
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    same(found, expected.nan_to_num(0.0))


def test_masks_of_more_dimensions():
    shapes = ((2, 3, 4, 17, 32), (2, 3, 4, 29, 32), (2, 3, 4, 29, 32))
    q, k, v = normal(4, *shapes)
    for shape in ((17, 29), (4, 17, 29), (3, 1, 17, 29), (2, 1, 4, 1, 29)):
        mask = normal(5, shape)[0] > -1
        found = ours.scaled_dot_product_attention(q, k, v, mask, precision="float32")
        same(found, F.scaled_dot_product_attention(q, k, v, mask).nan_to_num(0.0))


def test_rows_that_a_mask_hides_are_zero():
    q, k, v = normal(6, *SHAPES)
    mask = torch.ones(70, 193, dtype=torch.bool)
    mask[5] = False
    assert (ours.scaled_dot_product_attention(q, k, v, mask)[:, :, 5] == 0).all()


def test_shared_heads():
    q, k, v = normal(7, (2, 6, 70, 64), (2, 2, 193, 64), (2, 2, 193, 64))
    found = ours.scaled_dot_product_attention(q, k, v, enable_gqa=True, precision="float32")
    same(found, F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    with pytest.raises(intfa.ShapeMismatchError, match="enable_gqa"):
        ours.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_scale(scale):
    q, k, v = normal(8, *SHAPES)
    found = ours.scaled_dot_product_attention(q, k, v, scale=scale, precision="float32")
    same(found, F.scaled_dot_product_attention(q, k, v, scale=scale))


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("causal", [False, True])
def test_bounds(precision, causal):
    q, k, v = normal(9, *SHAPES)
    found = ours.scaled_dot_product_attention(q, k, v, is_causal=causal, precision=precision)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
    # Below the diagonal a row may have one key, and no average over many softens what is rounded.
    assert error(found, expected) <= GATES[precision] * (1.5 if causal else 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types(dtype):
    q, k, v = normal(10, *SHAPES, dtype=dtype)
    found = ours.scaled_dot_product_attention(q, k, v, precision="float32")
    assert found.dtype == dtype
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(found, expected) <= (4e-3 if dtype == torch.bfloat16 else 1e-3)
    assert intfa.attention(q, k, v, precision="float32").dtype == dtype


@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_sizes_of_zero(empty):
    batch, queries, keys = (0 if empty == name else 4 for name in ("batch", "queries", "keys"))
    q, k = torch.ones(batch, 2, queries, 16), torch.ones(batch, 2, keys, 16)
    found = ours.scaled_dot_product_attention(q, k, k)
    assert found.shape == q.shape
    assert (found == 0).all() or keys


def test_layout_of_the_output():
    q, k, v = normal(11, *SHAPES)
    assert ours.scaled_dot_product_attention(q, k, v).transpose(1, 2).is_contiguous()


def test_layouts_are_read_where_they_lie():
    q, k, v = normal(12, *SHAPES)
    expected = ours.scaled_dot_product_attention(q, k, v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(ours.scaled_dot_product_attention(*views), expected)
        views = [torch.cat([x, x], 3)[..., : x.shape[3]] for x in (q, k, v)]
        assert torch.equal(ours.scaled_dot_product_attention(*views), expected)
    with pytest.warns(intfa.CopyWarning, match="key"):
        copied = ours.scaled_dot_product_attention(q, k.mT.contiguous().mT, v)
    assert torch.equal(copied, expected)


def test_plain_functions_take_tensors():
    q, k, v = normal(13, *SHAPES)
    output, lse = intfa.attention(q, k, v, is_causal=True, return_lse=True)
    arrays = [x.numpy() for x in (q, k, v)]
    expected, sums = intfa.attention(*arrays, is_causal=True, return_lse=True)
    assert isinstance(output, torch.Tensor)
    assert isinstance(lse, torch.Tensor)
    assert numpy.array_equal(output.numpy(), expected)
    assert numpy.array_equal(lse.numpy(), sums)
    merged, _ = intfa.merge([output], [lse])
    assert torch.equal(merged, output)
    cache = intfa.KVCache(6, 64, 256, value_dim=32)
    cache.append(k[0].bfloat16(), v[0].bfloat16())
    assert cache.attention(q[0].bfloat16()).dtype == torch.bfloat16


# MARK: Refusals


def test_dropout():
    q, k, v = normal(14, *SHAPES)
    with pytest.raises(intfa.UnsupportedError, match="dropout_p"):
        ours.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


def test_mask_and_causal():
    q, k, v = normal(15, *SHAPES)
    with pytest.raises(intfa.InvalidArgumentError, match="is_causal"):
        ours.scaled_dot_product_attention(
            q, k, v, torch.ones(70, 193, dtype=torch.bool), is_causal=True
        )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients(which):
    operands = normal(16, *SHAPES)
    operands[which].requires_grad_()
    for function in (ours.scaled_dot_product_attention, intfa.attention):
        with pytest.raises(intfa.GradientError, match="no backward pass"):
            function(*operands)
        with torch.no_grad():
            function(*operands)
        with torch.inference_mode():
            function(*operands)


def test_gradients_through_the_operator():
    q, k, v = normal(17, *SHAPES)
    q.requires_grad_()
    with pytest.raises(RuntimeError, match=r"no backward pass|requires gradients"):
        torch.ops.int_flash_attention.attention(
            q, k, v, None, None, None, None, False, None, None, "int8"
        ).sum().backward()


@pytest.mark.parametrize("change", ["meta", "sparse", "float64", "int8", "vector"])
def test_wrong_tensors(change):
    q, k, v = normal(18, *SHAPES)
    q = {
        "meta": lambda: q.to("meta"),
        "sparse": lambda: q.to_sparse(),
        "float64": lambda: q.double(),
        "int8": lambda: q.to(torch.int8),
        "vector": lambda: q[0, 0, 0],
    }[change]()
    with pytest.raises((intfa.AttentionError, NotImplementedError)):
        intfa.attention(q, k, v)
    if change != "meta":
        with pytest.raises((intfa.AttentionError, NotImplementedError)):
            ours.scaled_dot_product_attention(q, k, v)


def test_message_about_devices():
    q, k, v = (x.to("meta") for x in normal(19, *SHAPES))
    with pytest.raises(intfa.InvalidArgumentError, match="must be on the CPU"):
        intfa.attention(q, k, v)


# MARK: Tracing


def test_the_operator_is_sound():
    q, k, v = normal(20, *SHAPES)
    mask = torch.ones(70, 193, dtype=torch.bool)
    for arguments in (
        (q, k, v, None, None, None, None, False, None, None, "int8"),
        (q, k, v, mask, None, None, 0, True, 0.1, 5.0, "float32"),
    ):
        torch.library.opcheck(
            torch.ops.int_flash_attention.attention.default,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def model(q, k, v, mask=None):
    out = ours.scaled_dot_product_attention(q * 2, k, v, mask, is_causal=mask is None)
    return out.relu().sum(-1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (70, 33):
        q, k, v = normal(21, (2, 6, length, 64), (2, 6, 193, 64), (2, 6, 193, 32))
        with torch.no_grad():
            same(compiled(q, k, v), model(q, k, v), 0)
            mask = torch.rand(length, 193) > 0.3
            same(compiled(q, k, v, mask), model(q, k, v, mask), 0)


def test_compile_with_inductor():
    compiled = torch.compile(model, fullgraph=True)
    q, k, v = normal(22, *SHAPES)
    with torch.no_grad():
        same(compiled(q, k, v), model(q, k, v), 1e-4)


def test_export():
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return model(q, k, v)

    q, k, v = normal(23, *SHAPES)
    length = torch.export.Dim("length", min=2, max=512)
    with torch.no_grad():
        program = torch.export.export(
            Module(), (q, k, v), dynamic_shapes={"q": {2: length}, "k": None, "v": None}
        )
        other = normal(24, (2, 6, 41, 64))[0]
        same(program.module()(other, k, v), model(other, k, v), 0)
    assert "int_flash_attention.attention" in str(program.graph)


# MARK: Patch and threads


def test_patch():
    q, k, v = normal(25, *SHAPES)
    original = F.scaled_dot_product_attention
    exact = original(q, k, v)
    with ours.patch():
        assert F.scaled_dot_product_attention is not original
        found = F.scaled_dot_product_attention(q, k, v)
        with pytest.raises(intfa.UnsupportedError):
            F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        with ours.patch("float32"):
            same(F.scaled_dot_product_attention(q, k, v), exact)
        assert torch.equal(F.scaled_dot_product_attention(q, k, v), found)
    assert F.scaled_dot_product_attention is original
    assert 1e-4 < error(found, exact) <= GATES["int8"]
    with pytest.raises(intfa.InvalidArgumentError), ours.patch("int7"):
        pass


def test_patch_reaches_modules():
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(64, 4, batch_first=True).train()
    x = torch.randn(2, 50, 64)
    with torch.no_grad():
        exact = layer(x, x, x, need_weights=False)[0]
        with ours.patch("float32"):
            same(layer(x, x, x, need_weights=False)[0], exact, 1e-5)
        with ours.patch("int8"):
            assert 0 < error(layer(x, x, x, need_weights=False)[0], exact) < 0.05


def test_patch_with_fallback():
    q, k, v = normal(26, *SHAPES)
    q.requires_grad_()
    with ours.patch(fallback=True):
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert q.grad is not None


def test_threads_at_once():
    inputs = [normal(seed, *SHAPES) for seed in range(6)]
    alone = [ours.scaled_dot_product_attention(*x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for i, output in enumerate(
            pool.map(lambda i: ours.scaled_dot_product_attention(*inputs[i % 6]), range(48))
        ):
            assert torch.equal(output, alone[i % 6])

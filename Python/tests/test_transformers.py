"""`int_flash_attention.transformers` on small random models, against Transformers' own attention."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from transformers import masking_utils
from transformers.utils import generic

import int_flash_attention as intfa
from int_flash_attention import _transformers_mask
from int_flash_attention.transformers import IntFlashCache, register

NAMES = register()

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def build(kind, implementation="int_flash:float32", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    architecture = getattr(transformers, f"{kind}ForCausalLM")
    model = architecture(config).eval()
    for parameter in model.parameters():  # attention that is far from uniform
        parameter.data *= 3 if parameter.dim() > 1 else 1
    model.set_attn_implementation(implementation)
    return model


def tokens(batch, length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 96, (batch, length), generator=generator)


def left_padding(batch, length, pads):
    mask = torch.ones(batch, length, dtype=torch.long)
    for row, pad in zip(mask, pads):
        row[:pad] = 0
    return mask


def logits(model, ids, **options):
    with torch.no_grad():
        return model(ids, **options).logits


def close(found, expected, bound=2e-4):
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= bound * scale


MODELS = [
    ("Llama", {}, "sdpa"),
    ("Qwen2", {}, "sdpa"),
    ("Mistral", {"sliding_window": 24}, "sdpa"),
    (
        "Gemma2",
        {"sliding_window": 24, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
        "eager",
    ),
    ("Gemma3", {"sliding_window": 24}, "sdpa"),
    ("GptOss", {"sliding_window": 24, "num_local_experts": 2, "num_experts_per_tok": 1}, "eager"),
]
IDS = [name for name, _, _ in MODELS]


def build_model(kind, options, implementation):
    if kind != "Gemma3":
        return build(kind, implementation, **options)
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**{**SIZES, **options})
    model = transformers.Gemma3ForCausalLM(config).eval()
    model.set_attn_implementation(implementation)
    return model


# MARK: Registration


def test_names():
    assert NAMES[0] == "int_flash"
    assert "int_flash:int4" in NAMES
    assert all(name in transformers.AttentionInterface() for name in NAMES)
    original = generic.is_flash_attention_requested
    assert register() == NAMES
    assert generic.is_flash_attention_requested is original


def test_flash_attention_is_still_recognised():
    ask = generic.is_flash_attention_requested
    assert ask(requested_attention_implementation="flash_attention_2")
    assert ask(requested_attention_implementation="flash_attention_3", version=3)
    assert not ask(requested_attention_implementation="sdpa")
    for name in NAMES:
        assert not ask(requested_attention_implementation=name)
        assert not ask(transformers.LlamaConfig(attn_implementation=name))


def test_from_the_configuration():
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, attn_implementation="int_flash")
    )
    assert model.config._attn_implementation == "int_flash"
    with pytest.raises(ValueError, match="int_flash:int7"):
        build("Llama", "int_flash:int7")


# MARK: Whole models


@pytest.mark.parametrize(("kind", "options", "own"), MODELS, ids=IDS)
def test_prefill(kind, options, own):
    model, other = build_model(kind, options, "int_flash:float32"), build_model(kind, options, own)
    ids = tokens(2, 70)
    close(logits(model, ids), logits(other, ids))


@pytest.mark.parametrize(("kind", "options", "own"), MODELS, ids=IDS)
def test_prefill_with_padding(kind, options, own):
    model, other = build_model(kind, options, "int_flash:float32"), build_model(kind, options, own)
    ids = tokens(3, 70)
    mask = left_padding(3, 70, (0, 9, 40))
    found, expected = (logits(m, ids, attention_mask=mask) for m in (model, other))
    for row, pad in enumerate((0, 9, 40)):
        close(found[row, pad:], expected[row, pad:])
    right = mask.flip(1)
    found, expected = (logits(m, ids, attention_mask=right) for m in (model, other))
    for row, pad in enumerate((0, 9, 40)):
        close(found[row, : 70 - pad], expected[row, : 70 - pad])


@pytest.mark.parametrize(("kind", "options", "own"), MODELS, ids=IDS)
@pytest.mark.parametrize("cache", ["dynamic", "static", "codes"])
@pytest.mark.parametrize("pads", [None, (0, 9, 40)], ids=["full", "padded"])
def test_generation(kind, options, own, cache, pads):
    if cache == "codes" and kind == "GptOss":
        pytest.skip("caches of codes take no attention sinks")
    model, other = build_model(kind, options, "int_flash:float32"), build_model(kind, options, own)
    ids = tokens(3, 50)
    mask = torch.ones_like(ids) if pads is None else left_padding(3, 50, pads)
    common = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False}
    with torch.no_grad():
        expected = other.generate(ids, **common)
        if cache == "static":
            found = model.generate(
                ids, cache_implementation="static", disable_compile=True, **common
            )
        elif cache == "codes":
            codes = IntFlashCache(model.config, precision="float32")
            found = model.generate(ids, cache=codes, **common)
        else:
            found = model.generate(ids, **common)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["int8", "int8QueryKey", "int4", "bfloat16"])
def test_precisions_differ_and_stay_near(precision):
    model = build("Llama", f"int_flash:{precision}")
    exact = logits(build("Llama", "sdpa"), tokens(2, 200))
    found = logits(model, tokens(2, 200))
    assert not torch.equal(found, exact)
    close(found, exact, 0.3)


def test_bfloat16_models():
    model, other = build("Llama").bfloat16(), build("Llama", "sdpa")
    ids = tokens(2, 70)
    close(logits(model, ids).float(), logits(other, ids), 0.1)


def test_chunked_prefill():
    model, other = build("Llama"), build("Llama", "sdpa")
    ids = tokens(2, 90)
    expected = logits(other, ids)
    for cache in (
        transformers.DynamicCache(config=model.config),
        IntFlashCache(model.config, precision="float32"),
    ):
        parts = [logits(model, ids[:, a:b], cache=cache) for a, b in ((0, 40), (40, 41), (41, 90))]
        close(torch.cat(parts, 1), expected)


def test_encoder_with_padding():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
    )
    model = transformers.BertModel(config).eval()
    ids, mask = tokens(3, 40), left_padding(3, 40, (0, 5, 20)).flip(1)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(ids, attention_mask=mask).last_hidden_state
        model.set_attn_implementation("int_flash:float32")
        found = model(ids, attention_mask=mask).last_hidden_state
        for row in range(3):
            close(found[row][mask[row] == 1], expected[row][mask[row] == 1])
        model.set_attn_implementation("sdpa")
        expected = model(ids).last_hidden_state
        model.set_attn_implementation("int_flash:float32")
        close(model(ids).last_hidden_state, expected)


def test_masks_of_four_dimensions():
    model, other = build("Llama"), build("Llama", "sdpa")
    ids = tokens(2, 40)
    mask = (torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0)) > 0.3).tril()
    mask |= torch.eye(40, dtype=torch.bool)
    close(logits(model, ids, attention_mask=mask), logits(other, ids, attention_mask=mask))
    added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    close(logits(model, ids, attention_mask=added), logits(other, ids, attention_mask=added))


def test_packed_sequences():
    model, other = build("Llama"), build("Llama", "sdpa")
    ids = tokens(1, 60)
    positions = torch.cat([torch.arange(20), torch.arange(40)])[None]
    found, expected = (
        logits(m, ids, position_ids=positions, use_cache=False) for m in (model, other)
    )
    close(found, expected)


def test_compile():
    model = build("Llama", "int_flash:float32")
    ids = tokens(2, 40)
    expected = logits(model, ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(ids, use_cache=False).logits, expected)
        mask = left_padding(2, 40, (0, 9))
        close(
            compiled(ids, attention_mask=mask, use_cache=False).logits[1, 9:],
            logits(model, ids, attention_mask=mask)[1, 9:],
        )


def test_compiled_generation():
    model, other = build("Llama"), build("Llama", "sdpa")
    ids, mask = tokens(2, 20), left_padding(2, 20, (0, 5))
    common = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        found = model.generate(
            ids,
            cache_implementation="static",
            compile_config=transformers.CompileConfig(
                backend="aot_eager", fullgraph=True, mode=None
            ),
            **common,
        )
        assert torch.equal(found, other.generate(ids, **common))


def test_gradients():
    model = build("Llama")
    with pytest.raises(intfa.GradientError, match="no backward pass"):
        model(tokens(1, 8))


def test_dropout():
    model = build("Llama", attention_dropout=0.1).train()
    with pytest.raises(intfa.UnsupportedError, match="dropout"), torch.no_grad():
        model(tokens(1, 8))


# MARK: Masks as patterns

FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "sliding": masking_utils.sliding_window_causal_mask_function(6),
    "both": masking_utils.sliding_window_bidirectional_mask_function(4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("offsets", [(0, 0), (8, 0), (8, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("pads", [None, (0, 2), (2, 5)], ids=str)
def test_patterns_are_the_masks(name, offsets, pads):
    q_offset, kv_offset = offsets
    for q_length, extra in itertools.product((1, 5), (0, 4)):
        kv_length = q_offset - kv_offset + q_length + extra
        attention_mask = None
        if pads is not None:
            attention_mask = left_padding(2, kv_offset + kv_length, pads).bool()
        arguments = {
            "batch_size": 2,
            "q_length": q_length,
            "kv_length": kv_length,
            "q_offset": q_offset,
            "kv_offset": kv_offset,
            "mask_function": FUNCTIONS[name],
            "attention_mask": attention_mask,
        }
        found = _transformers_mask.mask(**arguments)
        expected = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
        if found is None:
            rule = _transformers_mask.Pattern(None, 0, kv_length - q_length, None)
            assert torch.equal(
                rule.visible(q_length, kv_length, "cpu").expand(expected.shape), expected
            )
            assert extra == 0
        else:
            assert isinstance(found, _transformers_mask.PatternMask)
            assert found.shape == expected.shape
            assert torch.equal(found.elements(), expected)
            assert torch.equal(found[:, :, -1], expected[:, :, -1])
            assert type(found & found) is torch.Tensor
            assert torch.equal(torch.where(found, 0.0, -1.0), torch.where(expected, 0.0, -1.0))


def test_other_rules_become_masks():
    rule = masking_utils.and_masks(
        masking_utils.causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0
    )
    found = _transformers_mask.mask(1, 6, 6, mask_function=rule)
    assert type(found) is torch.Tensor
    assert torch.equal(
        found, masking_utils.sdpa_mask(1, 6, 6, mask_function=rule, allow_is_causal_skip=False)
    )
    chunks = masking_utils.chunked_causal_mask_function(3, torch.zeros(1, dtype=torch.int))
    assert type(_transformers_mask.mask(1, 6, 6, mask_function=chunks)) is torch.Tensor


# MARK: The cache of codes


def test_cache_is_small_and_decodes():
    model = build("Llama", "int_flash", head_dim=64)
    cache = IntFlashCache(model.config)
    ids = tokens(2, 200)
    with torch.no_grad():
        model.generate(ids, cache=cache, max_new_tokens=5, do_sample=False)
    assert cache.get_seq_length() == 204
    floats = 2 * 204 * 2 * 64 * 2 * 4 * 3
    assert 0 < cache.bytes_used < floats / 3
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.bytes_used == 0
    with torch.no_grad():
        model.generate(ids, cache=cache, max_new_tokens=5, do_sample=False)
    assert cache.get_seq_length() == 204


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_cache_stays_near(precision):
    model, other = build("Llama", "int_flash"), build("Llama", "sdpa")
    ids = tokens(2, 200)
    cache = IntFlashCache(model.config, precision=precision)
    parts = [logits(model, ids[:, :150], cache=cache)]
    parts += [logits(model, ids[:, i : i + 1], cache=cache) for i in range(150, 200)]
    close(torch.cat(parts, 1), logits(other, ids), 0.3)


def test_padding_leaves_no_trace_in_the_cache():
    model = build("Llama", "int_flash")
    ids = tokens(2, 120)
    alone = IntFlashCache(model.config)
    expected = logits(model, ids[1:, 30:], cache=alone)
    together = IntFlashCache(model.config)
    mask = left_padding(2, 120, (0, 30))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = logits(model, ids, cache=together, attention_mask=mask, position_ids=positions)
    close(found[1, 30:], expected[0], 1e-4)
    assert [len(row) for row in together.layers[0].rows] == [120, 90]


def test_beams():
    model, other = build("Llama"), build("Llama", "sdpa")
    ids = tokens(2, 30)
    common = {"num_beams": 4, "max_new_tokens": 20, "do_sample": False, "early_stopping": True}
    with torch.no_grad():
        cache = IntFlashCache(model.config, precision="float32")
        found = model.generate(ids, cache=cache, **common)
        assert torch.equal(found, other.generate(ids, **common))


def test_crop_and_repeat():
    model = build("Llama")
    ids = tokens(2, 60)
    cache = IntFlashCache(model.config, precision="float32")
    logits(model, ids[:, :50], cache=cache)
    cache.crop(-20)
    assert cache.get_seq_length() == 30
    found = logits(model, ids[:, 30:], cache=cache)
    close(found, logits(model, ids)[:, 30:])
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert cache.batch_size == 2
    step = logits(model, ids[[1, 0], :1], cache=cache)
    whole = torch.cat([ids[[1, 0]], ids[[1, 0], :1]], 1)
    close(step[:, -1], logits(model, whole)[:, -1])


def test_assisted_generation():
    model, other = build("Llama"), build("Llama", "sdpa")
    ids = tokens(1, 40)
    with torch.no_grad():
        expected = other.generate(ids, max_new_tokens=20, do_sample=False)
        cache = IntFlashCache(model.config, precision="float32")
        found = model.generate(
            ids, cache=cache, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=3
        )
    assert torch.equal(found, expected)


def test_cache_refusals():
    model = build("Llama", "sdpa")
    with pytest.raises(intfa.UnsupportedError, match="int_flash"):
        logits(model, tokens(1, 8), cache=IntFlashCache(model.config))
    model.set_attn_implementation("int_flash")
    cache = IntFlashCache(model.config)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    with pytest.raises(intfa.UnsupportedError, match="another mask"):
        logits(model, tokens(1, 8), cache=cache, attention_mask=mask)
    with pytest.raises(intfa.UnsupportedError, match="reset"):
        logits(model, tokens(1, 8), cache=cache)
    cache.reset()
    with pytest.raises(intfa.OutOfPagesError):
        logits(model, tokens(1, 80), cache=IntFlashCache(model.config, max_length=64))
    with pytest.raises(intfa.UnsupportedError, match="no key/value cache"):
        logits(model, tokens(1, 8), cache=IntFlashCache(model.config, precision="int8Paper"))
    with pytest.raises(TypeError):
        IntFlashCache(model.config, bits=4)
    logits(model, tokens(1, 8), cache=cache, attention_mask=left_padding(1, 8, (2,)))
    with pytest.raises(intfa.UnsupportedError, match="already"):
        logits(model, tokens(1, 1), cache=cache, attention_mask=torch.ones(1, 9, dtype=torch.long))

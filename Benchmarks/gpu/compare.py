#!/usr/bin/env python3
"""Times PyTorch's attention in the shapes that cuda-check has timed and writes one table of both.

usage: compare.py SPEED.json REPORT.md [--require-torch]

Without PyTorch, or without a GPU that it can use, the table has no columns for it.
"""
import argparse
import datetime
import json
import statistics
import subprocess
import sys

PEAK = 1979  # TOPS: dense INT8 of an H100 or H200 (SXM), as NVIDIA states it


def operations(row):
    return 4 * row["heads"] * row["length"] ** 2 * row["headDimension"] * (0.5 if row["causal"] else 1)


def tops(row, seconds):
    return operations(row) / seconds / 1e12


def torch_versions(torch):
    return "PyTorch {}, CUDA {}, cuDNN {}".format(
        torch.__version__, torch.version.cuda, torch.backends.cudnn.version())


def time_torch(torch, backend, dtype, row, seconds=0.4, calls=10):
    """The median of calls after three that warm up, between events; None where it cannot be."""
    from torch.nn.attention import sdpa_kernel

    shape = (1, row["heads"], row["length"], row["headDimension"])
    sets = 4 if row["heads"] * row["length"] * row["headDimension"] < 1 << 26 else 1
    try:
        inputs = [[torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3)]
                  for _ in range(sets)]
        times, spent, index = [], 0.0, 0
        with sdpa_kernel(backend), torch.no_grad():
            while len(times) < calls or (spent < seconds and len(times) < 200):
                q, k, v = inputs[index % sets]
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=row["causal"])
                end.record()
                end.synchronize()
                index += 1
                if index > 3:
                    times.append(begin.elapsed_time(end) / 1000)
                    spent += times[-1]
        return statistics.median(times)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "No available kernel" not in str(error):
            print("{} {} {}: {}".format(backend, dtype, shape, error), file=sys.stderr)
        return None
    finally:
        inputs = None
        torch.cuda.empty_cache()


def peers():
    """(name, how to time it) of what PyTorch has here; None and why where there is no PyTorch."""
    try:
        import torch
        from torch.nn.attention import SDPBackend
    except ImportError as error:
        return None, "no PyTorch: {}".format(error)
    if not torch.cuda.is_available():
        return None, "PyTorch {} has no GPU".format(torch.__version__)
    found = []
    for backend, name in ((SDPBackend.FLASH_ATTENTION, "FlashAttention-2"),
                          (SDPBackend.CUDNN_ATTENTION, "cuDNN")):
        for dtype, type_name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
            found.append(("{} {}".format(name, type_name),
                          lambda row, b=backend, d=dtype: time_torch(torch, b, d, row)))
    return found, torch_versions(torch)


def graphics_driver():
    try:
        return subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "no nvidia-smi"


def cell(row, seconds):
    return "" if seconds is None else "{:.3f} ({:.0f})".format(seconds * 1e3, tops(row, seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speed")
    parser.add_argument("report")
    parser.add_argument("--require-torch", action="store_true")
    arguments = parser.parse_args()
    with open(arguments.speed, encoding="utf-8") as file:
        measured = json.load(file)
    found, versions = peers()
    if found is None:
        print(versions, file=sys.stderr)
        if arguments.require_torch:
            return 69
        found = []
    rows = {}
    for row in measured["rows"]:
        key = (row["headDimension"], row["length"], row["causal"])
        rows.setdefault(key, {})[row["implementation"]] = row
    machine = measured["machine"]
    heading = ["D", "N", "mask", "int8", "int8, loop", "of {} TOPS".format(PEAK), "bfloat16",
               "bfloat16, loop"] + [name for name, _ in found] + ["int8 over the best 16-bit"]
    lines = [
        "{}, {}: compute capability {}, {} multiprocessors, driver for CUDA {} ({}), NVRTC {}; {}.".format(
            datetime.date.today().isoformat(), machine["device"], machine["computeCapability"],
            machine["multiprocessors"], machine["driverCUDA"], graphics_driver(), machine["nvrtc"],
            versions),
        "",
        "Milliseconds (TOPS) of a call with {} heads, bfloat16 in and out; medians.".format(
            measured["rows"][0]["heads"]),
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
    ]
    for (dimension, length, causal), each in rows.items():
        ours, baseline = each["int8"], each["bfloat16"]
        times = [time(ours) for _, time in found]
        best = min([t for t in times if t is not None] + [baseline["seconds"]])
        lines.append("| " + " | ".join(
            [str(dimension), str(length), "causal" if causal else "full",
             cell(ours, ours["seconds"]), cell(ours, ours["loopSeconds"]),
             "{:.0f} %".format(100 * tops(ours, ours["loopSeconds"]) / PEAK),
             cell(ours, baseline["seconds"]), cell(ours, baseline["loopSeconds"])]
            + [cell(ours, t) for t in times]
            + ["{:.2f}".format(best / ours["seconds"])]) + " |")
        print(lines[-1], flush=True)
    with open(arguments.report, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

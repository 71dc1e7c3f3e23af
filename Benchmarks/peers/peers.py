#!/usr/bin/env python3
"""Attention of this package and of other libraries, alternating, on the same processors.

Writes a Markdown table of times, ratios and errors; README.md beside this file explains it.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHORTEST = 0.0002  # seconds between two looks at the clock, as in `intfa bench`
REFERENCE_ROWS = 128  # query rows in all that are compared with float64


def arguments():
    def numbers(text):
        return [int(part) for part in text.split(",")]

    def names(text):
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=numbers, default=[1, 16, 64, 128, 256, 1024, 4096])
    parser.add_argument("--head-dims", type=numbers, default=[64, 128])
    parser.add_argument("--masks", type=names, default=["full", "causal"])
    parser.add_argument("--input-types", type=names, default=["float32", "bfloat16"])
    parser.add_argument("--precisions", type=names, default=["int8", "bfloat16", "float32"])
    parser.add_argument("--isa", help="instruction set of intfa; its best unless given")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpus", type=numbers, help="processors to run on; the last ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="per round and implementation")
    parser.add_argument("--skip", type=names, default=[], help="peers to leave out")
    parser.add_argument("--intfa", default=str(ROOT / ".build/release/intfa"))
    parser.add_argument("--output", help="Markdown file to write, besides standard output")
    return parser.parse_args()


OPTIONS = arguments()
# Before any library is loaded: threads that it starts inherit the processors and the limits.
CPUS = OPTIONS.cpus or sorted(os.sched_getaffinity(0))[-OPTIONS.threads :]
os.sched_setaffinity(0, CPUS)
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)

import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402


class Problem:
    """Queries, keys and values [1, heads, length, dimension], and some exact results."""

    def __init__(self, length, dimension, causal, input_type):
        self.length, self.dimension, self.causal = length, dimension, causal
        self.input_type = input_type
        random = np.random.default_rng(1)
        shape = (1, OPTIONS.heads, length, dimension)
        query, key, value = (random.standard_normal(shape, dtype=np.float32) for _ in range(3))
        # The distribution of `intfa bench`: outlier channels of the keys, and a sink at token 0.
        query[..., 1::4] += 1
        key[..., 3::16] += 8
        key[:, :, 0, 1::4] += 4
        value[:, :, 0] *= 0.05
        rounded = [x.astype(np.float16).astype(np.float32) for x in (query, key, value)]
        if input_type == "bfloat16":
            rounded = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in rounded]
        self.operands = rounded

    def exact(self):
        """Attention of the last rows of every head in float64."""
        query, key, value = (x[0].astype(np.float64) for x in self.operands)
        self.rows = min(max(REFERENCE_ROWS // OPTIONS.heads, 1), self.length)
        scores = query[:, -self.rows :] @ key.transpose(0, 2, 1) * self.dimension**-0.5
        if self.causal:
            last = np.arange(self.length - self.rows, self.length)
            scores[:, np.arange(self.length) > last[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ value

    def error(self, output, exact):
        """Relative L1 of an output [heads, length, dimension]."""
        part = output[:, -self.rows :].astype(np.float64)
        return float(np.abs(part - exact).sum() / np.abs(exact).sum())


# Peers. `make(problem)` gives a call to time and a function that reads its output as
# [heads, length, dimension]; None where the peer has no such case. The call keeps alive what it
# uses from C.


class PyTorch:
    def __init__(self, precision):
        import torch

        torch.set_num_threads(OPTIONS.threads)
        self.torch, self.precision = torch, precision
        self.name = f"PyTorch {precision}"

    def make(self, problem):
        torch = self.torch
        given, wanted = (getattr(torch, t) for t in (problem.input_type, self.precision))
        if problem.input_type == "bfloat16" and given != wanted:
            return None
        operands = [torch.from_numpy(x).to(given) for x in problem.operands]
        attend = torch.nn.functional.scaled_dot_product_attention
        result = None

        @torch.inference_mode()
        def run():
            nonlocal result
            converted = [x.to(wanted) for x in operands]
            result = attend(*converted, is_causal=problem.causal).to(given)

        return run, lambda: result[0].float().numpy()


class OpenVINO:
    executed = {}  # what the compiled models say that they compute in

    def __init__(self, precision):
        import openvino
        import openvino.opset13

        self.openvino, self.precision = openvino, precision
        self.name = f"OpenVINO {precision}"
        self.core = openvino.Core()

    def make(self, problem):
        if problem.input_type == "bfloat16" and self.precision != "bfloat16":
            return None
        ops, types = self.openvino.opset13, self.openvino.Type
        given = types.bf16 if problem.input_type == "bfloat16" else types.f32
        shape = list(problem.operands[0].shape)
        parameters = [ops.parameter(shape, given) for _ in range(3)]
        attention = ops.scaled_dot_product_attention(*parameters, causal=problem.causal)
        model = self.openvino.Model([ops.result(attention)], parameters)
        compiled = self.core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": OPTIONS.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,  # the affinity of the process holds
                "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            },
        )
        for node in compiled.get_runtime_model().get_ops():
            information = node.get_rt_info()
            layer = information["layerType"].astype(str)
            if layer in ("Subgraph", "ScaledDotProductAttention"):
                executed = self.executed.setdefault(self.name, set())
                executed.add(f"{layer} in {information['runtimePrecision'].astype(str)}")
        request = compiled.create_infer_request()
        for index, operand in enumerate(problem.operands):
            tensor = self.openvino.Tensor(given, shape)
            if given == types.bf16:
                bits = operand.astype(ml_dtypes.bfloat16).view(np.uint16)
                tensor.data.view(np.uint16)[:] = bits
            else:
                tensor.data[:] = operand
            request.set_input_tensor(index, tensor)

        def read():
            data = request.get_output_tensor(0).data
            if given == types.bf16:
                data = data.view(np.uint16).view(ml_dtypes.bfloat16)
            return data[0].astype(np.float32)

        return request.infer, read


class ONNXRuntime:
    """`MultiHeadAttention` of Microsoft, [tokens, heads · D], or `Attention` of ONNX."""

    def __init__(self, operator):
        import onnx
        import onnxruntime

        self.onnx, self.runtime, self.operator = onnx, onnxruntime, operator
        self.name = f"ONNX Runtime {operator} float32"

    def make(self, problem):
        if problem.input_type != "float32":
            return None
        helper, operands = self.onnx.helper, problem.operands
        is_standard = self.operator == "Attention"
        if is_standard:
            node = helper.make_node("Attention", "qkv", "o", is_causal=int(problem.causal))
        else:
            node = helper.make_node(
                self.operator,
                "qkv",
                "o",
                domain="com.microsoft",
                num_heads=OPTIONS.heads,
                unidirectional=int(problem.causal),
            )
            operands = [
                np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(1, problem.length, -1)
                for x in operands
            ]
        shape = operands[0].shape
        infos = [
            helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, shape)
            for name in "qkvo"
        ]
        model = helper.make_model(
            helper.make_graph([node], "attention", infos[:3], infos[3:]),
            opset_imports=[
                helper.make_opsetid("", 23),
                helper.make_opsetid("com.microsoft", 1),
            ],
            ir_version=10,
        )
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = OPTIONS.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        values = [self.runtime.OrtValue.ortvalue_from_numpy(x) for x in operands]
        for name, value in zip("qkv", values):
            binding.bind_ortvalue_input(name, value)
        result = self.runtime.OrtValue.ortvalue_from_numpy(np.empty(shape, np.float32))
        binding.bind_ortvalue_output("o", result)

        def read():
            output = result.numpy()
            if is_standard:
                return output[0]
            return output.reshape(problem.length, OPTIONS.heads, -1).transpose(1, 0, 2)

        return lambda _keep=values: session.run_with_iobinding(binding), read


class LlamaCpp:
    """`ggml_flash_attn_ext` with keys and values converted in the same graph."""

    TYPES = {"float16": 1, "q8_0": 8}
    FLOAT32, FLOAT16 = 0, 1

    def __init__(self, precision):
        import ctypes
        import importlib.util

        specification = importlib.util.find_spec("llama_cpp")
        if specification is None:
            raise ImportError("llama-cpp-python is not installed")
        folder = pathlib.Path(specification.origin).parent / "lib"
        base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        c, pointer, count = ctypes, ctypes.c_void_p, ctypes.c_int64

        class Parameters(c.Structure):
            _fields_ = [("size", c.c_size_t), ("buffer", pointer), ("no_alloc", c.c_bool)]

        class Plan(c.Structure):
            # Longer than ggml's own, of which only the beginning is used here.
            _fields_ = [
                ("work_size", c.c_size_t),
                ("work_data", pointer),
                ("thread_count", c.c_int),
                ("others", pointer * 8),
            ]

        for library, name, result, parameters in [
            (base, "ggml_init", pointer, [Parameters]),
            (base, "ggml_free", None, [pointer]),
            (base, "ggml_new_tensor_4d", pointer, [pointer, c.c_int] + [count] * 4),
            (base, "ggml_cast", pointer, [pointer, pointer, c.c_int]),
            (base, "ggml_flash_attn_ext", pointer, [pointer] * 5 + [c.c_float] * 3),
            (base, "ggml_new_graph", pointer, [pointer]),
            (base, "ggml_build_forward_expand", None, [pointer, pointer]),
            (base, "ggml_get_data", pointer, [pointer]),
            (cpu, "ggml_cpu_init", None, []),
            (cpu, "ggml_graph_plan", Plan, [pointer, c.c_int, pointer]),
            (cpu, "ggml_graph_compute", c.c_int, [pointer, c.POINTER(Plan)]),
        ]:
            function = getattr(library, name)
            function.restype, function.argtypes = result, parameters
        cpu.ggml_cpu_init()
        self.ctypes, self.base, self.cpu, self.Parameters = ctypes, base, cpu, Parameters
        self.precision, self.name = precision, f"llama.cpp {precision} K/V"
        self.context = None

    def make(self, problem):
        if problem.input_type != "float32":
            return None
        ctypes, base = self.ctypes, self.base
        length, dimension, heads = problem.length, problem.dimension, OPTIONS.heads
        size = 6 * problem.operands[0].nbytes + 2 * length * length + (4 << 20)
        if self.context:
            base.ggml_free(self.context)
        context = self.context = base.ggml_init(self.Parameters(size, None, False))

        def tensor(array, kind, *shape):
            result = base.ggml_new_tensor_4d(context, kind, *shape)
            ctypes.memmove(base.ggml_get_data(result), array.ctypes.data, array.nbytes)
            return result

        query, key, value = (
            tensor(x, self.FLOAT32, dimension, length, heads, 1) for x in problem.operands
        )
        mask = None
        if problem.causal:
            visible = np.where(np.tri(length, dtype=bool), 0, -np.inf).astype(np.float16)
            mask = tensor(visible, self.FLOAT16, length, length, 1, 1)
        key, value = (base.ggml_cast(context, x, self.TYPES[self.precision]) for x in (key, value))
        output = base.ggml_flash_attn_ext(
            context, query, key, value, mask, dimension**-0.5, 0, 0
        )
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, output)
        plan = self.cpu.ggml_graph_plan(graph, OPTIONS.threads, None)
        work = np.empty(plan.work_size + 64, np.uint8)
        plan.work_data = work.ctypes.data
        reference = ctypes.byref(plan)

        def run(_keep=work):
            status = self.cpu.ggml_graph_compute(graph, reference)
            if status != 0:
                raise RuntimeError(f"ggml_graph_compute gives {status}")

        def read():
            floats = ctypes.c_float * (length * heads * dimension)
            data = np.ctypeslib.as_array(floats.from_address(base.ggml_get_data(output)))
            return data.reshape(length, heads, dimension).transpose(1, 0, 2)

        return run, read


def peers():
    """The peers that are installed; says why the others are not there."""
    makers = [
        ("PyTorch", PyTorch, ["float32", "bfloat16", "float16"]),
        ("OpenVINO", OpenVINO, ["float32", "bfloat16"]),
        ("ONNX Runtime", ONNXRuntime, ["MultiHeadAttention", "Attention"]),
        ("llama.cpp", LlamaCpp, ["float16", "q8_0"]),
    ]
    found = []
    for name, maker, variants in makers:
        if name in OPTIONS.skip:
            continue
        try:
            found += [maker(variant) for variant in variants]
        except (ImportError, OSError) as reason:
            print(f"{name} is absent: {reason}", file=sys.stderr)
    return found


# Measurement


def time_calls(run, seconds):
    """Seconds per call, again and again; short calls are timed together."""
    start = time.perf_counter()
    run()
    count = max(round(SHORTEST / max(time.perf_counter() - start, 1e-7)), 1)
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(count):
            run()
        times.append((time.perf_counter() - start) / count)
    return times


def run_intfa(problem):
    """The rows of `intfa bench`."""
    command = [OPTIONS.intfa, "bench", "--format", "json", "--quiet"]
    command += ["--lengths", str(problem.length), "--head-dims", str(problem.dimension)]
    command += ["--query-heads", str(OPTIONS.heads), "--kv-heads", str(OPTIONS.heads)]
    command += ["--precisions", ",".join(OPTIONS.precisions), "--threads", str(OPTIONS.threads)]
    command += ["--input-type", problem.input_type, "--repeat-seconds", str(OPTIONS.seconds)]
    command += ["--causal"] if problem.causal else []
    command += ["--isa", OPTIONS.isa] if OPTIONS.isa else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(problem, peers):
    """Rows of one problem by implementation: seconds, median, error, and ours more."""
    calls, rows, exact = {}, {}, problem.exact()
    for peer in peers:
        made = peer.make(problem)
        if made is None:
            continue
        run, read = made
        run()
        calls[peer.name] = run
        rows[peer.name] = {"times": [], "error": problem.error(read(), exact)}
    ours = {}
    for _ in range(OPTIONS.rounds):
        for row in run_intfa(problem):
            ours.setdefault(row["precision"], []).append(row)
        for name, run in calls.items():
            rows[name]["times"] += time_calls(run, OPTIONS.seconds)
    result = {}
    for precision, found in ours.items():
        best = min(found, key=lambda row: row["seconds"])
        result[precision] = {
            "seconds": best["seconds"],
            "median": statistics.median(row["secondsMedian"] for row in found),
            "error": best["relativeL1"],
            "row": best,
        }
    for name, row in rows.items():
        result[name] = {
            "seconds": min(row["times"]),
            "median": statistics.median(row["times"]),
            "error": row["error"],
        }
    return result


# Report


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def versions():
    found = []
    for package in ("torch", "openvino", "onnxruntime", "llama-cpp-python", "numpy"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    return ", ".join(found)


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def milliseconds(seconds):
    digits = 4 if seconds < 1e-4 else 3 if seconds < 1e-2 else 2 if seconds < 0.1 else 1
    return f"{seconds * 1e3:.{digits}f}"


def percent(error):
    return "<0.001 %" if error < 1e-5 else f"{error * 100:.3f} %"


def group_text(title, results):
    """Tables of the problems that differ in length only: results by length, then by name."""
    lengths = list(results)
    names = list(results[lengths[0]])
    ours = [name for name in names if "row" in results[lengths[0]][name]]
    others = [name for name in names if name not in ours]
    heads = [f"N = {length}" for length in lengths]

    def label(name):
        return f"`{name}`" if name in ours else name

    times, ratios, shares = [], [], []
    for name in names:
        found = [results[length][name] for length in lengths]
        cells = [f"{milliseconds(x['seconds'])} ({milliseconds(x['median'])})" for x in found]
        times.append([label(name), *cells, percent(max(x["error"] for x in found))])
    for own in ours:
        # The float precisions are compared with the same format elsewhere, int8 with everything.
        for other in others + [name for name in ours if name != own and own == "int8"]:
            if own != "int8" and own not in other:
                continue
            ratio = [
                results[length][other]["seconds"] / results[length][own]["seconds"]
                for length in lengths
            ]
            ratios.append([f"`{own}` over {label(other)}", *(f"{x:.2f}" for x in ratio)])
        row = [results[length][own]["row"] for length in lengths]
        if all(x["fractionOfPeak"] is not None for x in row):
            whole = [f"{x['fractionOfPeak'] * 100:.1f} %" for x in row]
            loop = [f"{x['tileLoopFractionOfPeak'] * 100:.1f} %" for x in row]
            shares += [[f"`{own}`, whole call", *whole], [f"`{own}`, tile loop", *loop]]
    parts = [
        f"### {title}",
        "Shortest time of a call (median), ms, and the largest relative L1 error:",
        table(["", *heads, "error"], times),
        "How many times faster (shortest times):",
        table(["", *heads], ratios),
    ]
    if shares:
        parts += ["Share of the instruction peak:", table(["", *heads], shares)]
    return "\n\n".join(parts)


def report(results, seconds):
    rows = [x["row"] for group in results.values() for y in group.values()
            for x in y.values() if "row" in x]
    command = shlex.join(["Benchmarks/peers/peers.py", *sys.argv[1:]])
    executed = "; ".join(
        f"{name}: {', '.join(sorted(kinds))}" for name, kinds in sorted(OpenVINO.executed.items())
    )
    threads = f"{OPTIONS.threads} thread{'s' if OPTIONS.threads > 1 else ''}"
    head = f"""# Measurements against other libraries

Times, ratios and errors of this package and of other attention on the same processor, in one run.

## Overview

- Date: {datetime.date.today()}. Processor: {processor()}; {threads}, bound to \
{"one processor" if len(CPUS) == 1 else f"{len(CPUS)} processors"}.
- intfa {rows[0]["isa"]} kernels; {versions()}; Python {sys.version.split()[0]}.
- Command: `{command}`; it took {seconds / 60:.1f} minutes.
- Batch 1, {OPTIONS.heads} query heads on as many key/value heads, as many queries as keys. Every \
implementation takes input of the named type and gives its output in float32 or that type; \
conversion, quantisation and packing are inside the times.
- {OPTIONS.rounds} rounds; in each, all implementations take turns for {OPTIONS.seconds} s, at \
least one call. Calls of less than 0.2 ms are timed together. Peers are called from Python, this package \
from Swift: some microseconds of a peer's shortest times are its binding's.
- Errors are relative L1 against float64 on the last {REFERENCE_ROWS} query rows of all heads \
together, on data of one distribution (normal, outlier channels in the keys, an attention sink).
- What OpenVINO's compiled models report: {executed or "not run"}."""
    parts = [head]
    for (input_type, mask, dimension), group in results.items():
        parts.append(group_text(f"From {input_type}, {mask}, D = {dimension}", group))
    return "\n\n".join(parts) + "\n"


def main():
    start = time.monotonic()
    found = peers()
    results = {}
    for input_type in OPTIONS.input_types:
        for mask in OPTIONS.masks:
            for dimension in OPTIONS.head_dims:
                group = results[input_type, mask, dimension] = {}
                for length in OPTIONS.lengths:
                    print(f"{input_type} {mask} D={dimension} N={length}", file=sys.stderr)
                    problem = Problem(length, dimension, mask == "causal", input_type)
                    group[length] = measure(problem, found)
    text = report(results, time.monotonic() - start)
    print(text)
    if OPTIONS.output:
        pathlib.Path(OPTIONS.output).write_text(text)


if __name__ == "__main__":
    main()

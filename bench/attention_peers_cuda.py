"""The GPU half of attention_peers.py: PyTorch's attention (and FlashAttention-3, where it is installed) on the shapes of
onepass bench attention --device cuda, timed as that program times: CUDA graphs, inputs that the L2 cache does not hold, medians.
"""

import json
import math
import statistics
import subprocess
import sys
import time
import warnings

import attention_anchors
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

try:
    import flash_attn_interface
except ImportError:
    flash_attn_interface = None

GRAPH_SECONDS = 2e-3
MAX_RUNS = 2048


def onepass(args) -> dict:
    command = [args.onepass.resolve(), "bench", "attention", "--device", "cuda", "--dtype", args.dtype, "--json"]
    command += ["--workload", args.workload, "--kernel", args.kernel, "--seconds", args.seconds]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip() or f"{args.onepass}: exit status {done.returncode}")
    return json.loads(done.stdout)


def graph_of(calls: list, runs: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(runs):
            calls[i % len(calls)]()
    return graph


def graph_seconds(graph: torch.cuda.CUDAGraph, budget: float) -> float:
    begin = time.perf_counter()
    while True:
        graph.replay()
        torch.cuda.synchronize()
        if time.perf_counter() - begin >= budget / 4:
            break
    times, begin = [], time.perf_counter()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    while len(times) < 3 or time.perf_counter() - begin < budget:
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e-3)
    return statistics.median(times)


def seconds_each(calls: list, budget: float) -> float:
    """Of one call, in a graph of many that go round `calls`."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    first = graph_seconds(graph_of(calls, len(calls)), 0.01)
    rounds = max(1, min(math.ceil(GRAPH_SECONDS / first), math.ceil(MAX_RUNS / len(calls))))
    runs = rounds * len(calls)
    return graph_seconds(graph_of(calls, runs), budget) / runs


class Inputs:
    """As many copies of q, k and v as the program makes, [batch, length, heads, head_dim]; K and V contiguous."""

    def __init__(self, shape: dict, dtype: torch.dtype):
        def rows(length: int, heads: int, dim: int) -> torch.Tensor:
            return torch.randn((shape["batch"], length, heads, dim), device="cuda", dtype=dtype)

        self.copies = []
        for _ in range(shape["copies"]):
            q = rows(shape["seqlen_q"], shape["num_heads"], shape["head_dim"])
            k = rows(shape["seqlen_k"], shape["num_heads_kv"], shape["head_dim"])
            v = rows(shape["seqlen_k"], shape["num_heads_kv"], shape["head_dim_v"])
            self.copies.append((q, k, v))


def sdpa_calls(shape: dict, inputs: Inputs, backend: SDPBackend) -> list:
    square = shape["seqlen_q"] == shape["seqlen_k"]
    options = {"enable_gqa": shape["num_heads"] != shape["num_heads_kv"]}
    if shape["causal"] and square:
        options["is_causal"] = True
    elif shape["causal"] and shape["seqlen_q"] > 1:
        if backend == SDPBackend.CUDNN_ATTENTION:
            raise ValueError("PyTorch gives cuDNN this mask as numbers in memory")
        options["attn_mask"] = causal_lower_right(shape["seqlen_q"], shape["seqlen_k"])

    def call(q, k, v):
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)

    return [lambda tensors=tensors: call(*tensors) for tensors in inputs.copies]


def fa3_calls(shape: dict, inputs: Inputs) -> list:
    """FlashAttention-3 on the same layout: paged where the shape is."""
    calls, page_size = [], shape["page_size"]
    lengths = torch.full((shape["batch"],), shape["seqlen_k"], device="cuda", dtype=torch.int32)
    for q, k, v in inputs.copies:
        options = {"cache_seqlens": lengths, "causal": shape["causal"]}
        if page_size > 0:
            pages = -(-shape["seqlen_k"] // page_size)
            table = torch.randperm(shape["batch"] * pages, device="cuda").to(torch.int32).view(shape["batch"], pages)
            options["page_table"] = table
            k = k.view(shape["batch"] * pages, page_size, *k.shape[2:])
            v = v.view(shape["batch"] * pages, page_size, *v.shape[2:])
        calls.append(lambda q=q, k=k, v=v, o=options: flash_attn_interface.flash_attn_with_kvcache(q, k, v, **o))
    return calls


def peer_microseconds(shape: dict, dtype: torch.dtype, seconds: float) -> dict:
    """Name -> microseconds, of the peers that take the shape."""
    inputs, found = Inputs(shape, dtype), {}
    peers = {
        "cuDNN": lambda: sdpa_calls(shape, inputs, SDPBackend.CUDNN_ATTENTION),
        "FA2": lambda: sdpa_calls(shape, inputs, SDPBackend.FLASH_ATTENTION),
    }
    if flash_attn_interface is not None:
        peers["FA3"] = lambda: fa3_calls(shape, inputs)
    for name, calls in peers.items():
        try:
            with torch.no_grad():
                found[name] = seconds_each(calls(), seconds) * 1e6
        except (RuntimeError, ValueError) as error:
            if "CUDA error" in str(error):
                raise
            torch.cuda.synchronize()
    return found


def measure_gemm(dtype: torch.dtype) -> float:
    """TFLOP/s of a large product of matrices: the arithmetic that the GPU sustains."""
    n = 8192
    a, b = (torch.randn((n, n), device="cuda", dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds_each([lambda: a @ b], 0.2) * 1e-12


def rate(shape: dict, microseconds: float) -> float:
    """TFLOP/s, for decoding GB/s of K and V."""
    if shape["workload"] == "decode":
        return shape["kv_bytes"] / microseconds * 1e-3
    return shape["flop"] / microseconds * 1e-6


def main(args) -> None:
    if not torch.cuda.is_available():
        sys.exit("bench/attention_peers.py: --device cuda: PyTorch finds no GPU")
    warnings.filterwarnings("ignore", message=".*", category=UserWarning)  # why a backend does not take a shape
    dtype = getattr(torch, args.dtype)
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(onepass(args))
        theirs.append([peer_microseconds(shape, dtype, args.seconds) for shape in ours[0]["shapes"]])
        torch.cuda.empty_cache()
    report = {**ours[0], "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "shapes": []}
    report["gemm_tflop_per_s"] = measure_gemm(dtype)
    report["copy_gb_per_s"] = statistics.median(o["copy_gb_per_s"] for o in ours)
    for i, shape in enumerate(ours[0]["shapes"]):
        shape["us"] = statistics.median(o["shapes"][i]["us"] for o in ours)
        shape["peers_us"] = {
            name: statistics.median(t[i][name] for t in theirs)
            for name in theirs[0][i]
            if all(name in t[i] for t in theirs)
        }
        report["shapes"].append(shape)
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)


def print_report(report: dict) -> None:
    print(
        f"{report['device']}, {report['dtype']}, torch {report['torch']}, cuDNN {report['cudnn']}; a copy reads and writes "
        f"{report['copy_gb_per_s']:.0f} GB/s, a GEMM of 8192 makes {report['gemm_tflop_per_s']:.0f} TFLOP/s. "
        "TFLOP/s, decode: GB/s of K and V; FA3*: as measured earlier on an H100"
    )
    peers = [name for name in ("cuDNN", "FA2", "FA3") if any(name in s["peers_us"] for s in report["shapes"])]
    print(
        f"{'':36} {'kernel':16} {'onepass':>8}"
        + "".join(f" {p:>8} {'ratio':>6}" for p in [*peers, "FA3*"])
        + "  target"
    )
    for shape in report["shapes"]:
        us = shape["us"]
        line = f"{shape['name']:36} {shape['kernel']:16} {rate(shape, us):8.0f}"
        for peer in peers:
            theirs = shape["peers_us"].get(peer)
            line += f" {rate(shape, theirs):8.0f} {theirs / us:5.2f}x" if theirs else " " * 16
        anchor = attention_anchors.FA3.get(shape["name"])
        line += f" {anchor:8.0f} {rate(shape, us) / anchor:5.2f}x" if anchor else " " * 16
        goal = attention_anchors.target(shape["name"], report["copy_gb_per_s"])
        if goal:
            line += f"  {goal:.0f} {'reached' if rate(shape, us) >= goal else 'missed'}"
        print(line)

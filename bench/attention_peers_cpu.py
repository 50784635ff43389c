"""The CPU side of attention_peers.py: onepass beside torch's scaled_dot_product_attention, in turns."""

import argparse
import statistics
import time

import attention_program
import torch
from torch.nn.functional import scaled_dot_product_attention

COLD_BYTES = 256 << 20


def onepass(args: argparse.Namespace) -> dict:
    options = ["--device", "cpu", "--dtype", args.dtype, "--threads", args.threads, "--seconds", args.seconds]
    return attention_program.report(args.onepass, *options)


def milliseconds(call, seconds: float) -> float:
    """Median time of call(i), i = 0, 1, ..."""
    times, begin, i = [], time.perf_counter(), 0
    while len(times) < 5 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call(i)
        if i > 0:
            times.append(time.perf_counter() - start)
        i += 1
    return statistics.median(times) * 1e3


def sdpa_ms(shape: dict, dtype: torch.dtype, seconds: float, kv_heads: int) -> float:
    batch, heads, dim, q_len, k_len = (shape[k] for k in ("batch", "num_heads", "head_dim", "seqlen_q", "seqlen_k"))
    bytes_each = 2 * batch * kv_heads * k_len * dim * dtype.itemsize
    copies = max(1, min(64, COLD_BYTES // bytes_each + 1))
    q = torch.rand((batch, heads, q_len, dim)).to(dtype)
    kv = [[torch.rand((batch, kv_heads, k_len, dim)).to(dtype) for _ in range(2)] for _ in range(copies)]
    options = {"enable_gqa": kv_heads != heads, "is_causal": q_len == k_len, "scale": 0.1}
    if 1 < q_len < k_len:  # is_causal is aligned to the top left
        options["attn_mask"] = torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len)
    with torch.no_grad():
        return milliseconds(lambda i: scaled_dot_product_attention(q, *kv[i % copies], **options), seconds)


def torch_ms(shape: dict, dtype: torch.dtype, seconds: float) -> float:
    return min(sdpa_ms(shape, dtype, seconds, heads) for heads in {shape["num_heads_kv"], shape["num_heads"]})


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    ours = [onepass(args)]
    shapes = ours[0]["shapes"]
    theirs = [[torch_ms(shape, getattr(torch, args.dtype), args.seconds) for shape in shapes]]
    for _ in range(args.rounds - 1):
        ours.append(onepass(args))
        theirs.append([torch_ms(shape, getattr(torch, args.dtype), args.seconds) for shape in shapes])

    def median(values) -> float:
        return statistics.median(values)

    print(
        f"{args.threads} threads, {ours[0]['isa']}, {args.dtype}, torch {torch.__version__}; machine: "
        f"{median(o['dram_read_gb_per_s'] for o in ours):.1f} GB/s DRAM read, "
        f"{median(o['fp32_fma_gflop_per_s'] for o in ours):.0f} GFLOP/s fp32, "
        f"{median(o['bf16_dot_gflop_per_s'] for o in ours):.0f} GFLOP/s bf16 dot"
    )
    print(f"{'causal, caches cold':24} {'ms':>9} {'of peak':>8} {'of read':>8} {'torch ms':>9} {'ratio':>7}")
    for i, shape in enumerate(shapes):
        runs = [o["shapes"][i] for o in ours]
        ms, peer = median(r["ms"] for r in runs), median(t[i] for t in theirs)
        of_peak, of_read = median(r["of_peak"] for r in runs), median(r["of_read"] for r in runs)
        print(f"{shape['name']:24} {ms:9.3f} {of_peak:8.1%} {of_read:8.1%} {peer:9.3f} {peer / ms:6.2f}x")

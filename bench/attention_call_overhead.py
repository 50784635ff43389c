#!/usr/bin/env python3
"""How long a call of onepass.flash_attn_interface keeps the processor, beside torch's scaled_dot_product_attention.

    bench/attention_call_overhead.py [--calls N]

Needs a GPU, torch and the package of python/. The work is small enough for the GPU to keep up: what is measured is the call.
"""

import statistics
import sys
import time

from attention_peers import Parser, number

try:
    import torch
    from onepass.flash_attn_interface import (
        flash_attn_combine,
        flash_attn_func,
        flash_attn_varlen_func,
        flash_attn_with_kvcache,
        get_scheduler_metadata,
    )
except ImportError:
    torch = None


def microseconds(call, calls: int) -> float:
    """The median of 11 rounds."""
    for _ in range(10):
        call()
    rounds = []
    for _ in range(11):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - begin) / calls * 1e6)
    return statistics.median(rounds)


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=number(int, 1, 1000000), default=100, help="in each of 11 rounds")
    calls = parser.parse_args().calls
    if torch is None:
        sys.exit(
            "attention_call_overhead.py: torch, onepass: expected them to be installed (pip install torch ./python), found one missing"
        )
    if not torch.cuda.is_available():
        sys.exit("attention_call_overhead.py: GPU: expected one that PyTorch can use, found none")
    device, dtype, batch, heads, heads_kv, dim, page = "cuda", torch.bfloat16, 2, 8, 2, 128, 64

    def randn(*shape):
        return torch.randn(shape, device=device, dtype=dtype)

    q, k, v = randn(batch, 1, heads, dim), randn(8, page, heads_kv, dim), randn(8, page, heads_kv, dim)
    new_k, new_v = randn(batch, 1, heads_kv, dim), randn(batch, 1, heads_kv, dim)
    table = torch.arange(8, device=device, dtype=torch.int32).view(2, 4)
    lengths = torch.full((batch,), 100, device=device, dtype=torch.int32)
    cu = torch.tensor([0, 16, 32], device=device, dtype=torch.int32)
    prompt = randn(32, heads, dim), randn(32, heads_kv, dim), randn(32, heads_kv, dim)
    square = randn(batch, 16, heads, dim), randn(batch, 16, heads_kv, dim), randn(batch, 16, heads_kv, dim)
    cache = {"cache_seqlens": lengths, "page_table": table}
    metadata = get_scheduler_metadata(batch, 1, 256, heads, heads_kv, dim, lengths, page_size=page)
    partial = torch.randn((2, 1, 4, heads, dim), device=device), torch.randn((2, 1, heads, 4), device=device).mT
    first = [t.transpose(1, 2) for t in square]

    def sdpa():
        torch.nn.functional.scaled_dot_product_attention(*first, enable_gqa=True)

    table_of_calls = {
        "flash_attn_with_kvcache, pages": lambda: flash_attn_with_kvcache(q, k, v, **cache),
        "the same with scheduler_metadata": lambda: flash_attn_with_kvcache(
            q, k, v, scheduler_metadata=metadata, **cache
        ),
        "the same with softmax_lse": lambda: flash_attn_with_kvcache(q, k, v, return_softmax_lse=True, **cache),
        "the same with k and v to append": lambda: flash_attn_with_kvcache(q, k, v, new_k, new_v, **cache),
        "flash_attn_func": lambda: flash_attn_func(*square, causal=True),
        "flash_attn_varlen_func": lambda: flash_attn_varlen_func(*prompt, cu, cu, 16, 16, causal=True),
        "flash_attn_combine": lambda: flash_attn_combine(*partial),
        "torch's scaled_dot_product_attention": sdpa,
    }
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: microseconds a call")
    for name, call in table_of_calls.items():
        print(f"{name:40} {microseconds(call, calls):6.1f}")


if __name__ == "__main__":
    main()

"""CUDA graphs: what was captured serves other lengths; nothing waits for the GPU."""

import torch
from onepass.flash_attn_interface import (
    flash_attn_combine,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
)
from reference import check
from test_attention_kvcache import NOWHERE, Cache

BF16 = torch.bfloat16


def warmed_up(call) -> torch.cuda.CUDAGraph:
    """As PyTorch asks: a run on a side stream, then the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    return captured(call)


def captured(call) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def test_decode_with_other_lengths(gpu):
    lengths = [[1, 500, 64], [333, 2, 0], [512, 512, 512], [65, 129, 1]]
    cache = Cache(gpu, [512] * 3, 512, page_size=16)
    q = torch.randn((3, 1, 8, 128), device=gpu).to(BF16)
    results = {}

    def call():
        results["out"], results["lse"], *_ = flash_attn_with_kvcache(
            q, cache.k, cache.v, cache_seqlens=cache.seqlens, page_table=cache.table, return_softmax_lse=True
        )

    for capture in (captured, warmed_up):
        graph = capture(call)
        for step in lengths:
            cache.seqlens.copy_(torch.tensor(step, dtype=torch.int32))
            cache.table.copy_(cache.places)
            for b, n in enumerate(step):
                cache.table[b, -(-n // 16) :] = NOWHERE
            # Calls between replays must not disturb what the graph keeps.
            flash_attn_with_kvcache(q, cache.k, cache.v, cache_seqlens=cache.seqlens, page_table=cache.table)
            results["out"].fill_(float("nan"))
            graph.replay()
            for b, n in enumerate(step):
                check(results["out"][b], results["lse"][b], q[b], *(t[:n] for t in cache.keys[b]))


def test_append_step_by_step(gpu):
    """A captured step that appends its token, replayed as the cache grows."""
    cache = Cache(gpu, [5, 63], 80, page_size=16)
    cache.table.copy_(cache.places)
    q, k, v = (torch.empty((2, 1, n, 128), device=gpu, dtype=BF16) for n in (8, 2, 2))
    results = {}

    def call():
        results["out"] = flash_attn_with_kvcache(
            q, cache.k, cache.v, k, v, cache_seqlens=cache.seqlens, page_table=cache.table, causal=True
        )

    graph = captured(call)
    for _ in range(6):
        for t in (q, k, v):
            t.normal_()
        graph.replay()
        for b in range(2):
            cache.keys[b] = [torch.cat((held, new[b])) for held, new in zip(cache.keys[b], (k, v), strict=True)]
            check(results["out"][b], None, q[b], *cache.keys[b], causal=True)
        cache.seqlens.add_(1)


def test_layers_with_one_plan(gpu):
    cache = Cache(gpu, [100, 300, 7], 320, page_size=64)
    q = torch.randn((4, 3, 1, 8, 128), device=gpu).to(BF16)
    metadata = get_scheduler_metadata(3, 1, 320, 8, 2, 128, cache.seqlens, page_size=64)
    results = []

    def call():
        results[:] = [
            flash_attn_with_kvcache(layer, cache.k, cache.v, scheduler_metadata=metadata, **cache.options())
            for layer in q
        ]

    call()  # plans outside of the graph, which must plan again
    graph = captured(call)
    for lengths in ([100, 300, 7], [99, 1, 0]):
        cache.seqlens.copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        for layer, out in zip(q, results, strict=True):
            for b, n in enumerate(lengths):
                check(out[b], None, layer[b], *(t[:n] for t in cache.keys[b]))


def test_ragged_prefill(gpu):
    cu_q = torch.tensor([0, 100, 130, 130, 256], dtype=torch.int32, device=gpu)
    q, k, v = (torch.randn((256, n, 128), device=gpu).to(BF16) for n in (8, 2, 2))
    results = {}

    def call():
        results["out"] = flash_attn_varlen_func(q, k, v, cu_q, cu_q, 200, 200, causal=True)

    graph = warmed_up(call)
    for boundaries in ([0, 100, 130, 130, 256], [0, 1, 2, 200, 250], [0, 0, 0, 0, 64]):
        cu_q.copy_(torch.tensor(boundaries, dtype=torch.int32))
        graph.replay()
        for begin, end in zip(boundaries, boundaries[1:], strict=False):
            rows = slice(begin, end)
            check(results["out"][rows], None, q[rows], k[rows], v[rows], causal=True)


def test_no_waiting_and_no_memory_of_its_own(gpu):
    cache = Cache(gpu, [100, 300, 7], 320, page_size=64)
    cache.table.copy_(cache.places)
    q, k, v = (torch.randn((3, 1, n, 128), device=gpu).to(BF16) for n in (8, 2, 2))

    def call():
        return flash_attn_with_kvcache(q, cache.k, cache.v, k, v, causal=True, **cache.options())

    call()
    torch.cuda.synchronize()
    free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert free - torch.cuda.mem_get_info()[0] == torch.cuda.memory_reserved() - reserved


def test_streams(gpu):
    """Two streams at once, each with scratch of its own."""
    cache = Cache(gpu, [500, 300, 7], 512, page_size=64)
    q = torch.randn((2, 3, 1, 8, 128), device=gpu).to(BF16)
    streams, results = [torch.cuda.Stream() for _ in range(2)], [[], []]
    torch.cuda.synchronize()
    for _ in range(20):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(flash_attn_with_kvcache(q[i], cache.k, cache.v, **cache.options()))
    torch.cuda.synchronize()
    for i in range(2):
        for out in results[i]:
            for b in range(3):
                check(out[b], None, q[i][b], *cache.keys[b])


def test_compiled(gpu):
    """torch.compile breaks its graph around a call and runs it as it is."""
    q, k, v = (torch.randn((2, 40, n, 128), device=gpu).to(BF16) for n in (8, 2, 2))

    @torch.compile(backend="eager")
    def halves(q, k, v):
        parts = [flash_attn_func(q * 1, k[:, s], v[:, s], return_attn_probs=True) for s in (slice(16), slice(16, 40))]
        out = torch.stack([p[0].float() for p in parts])
        return flash_attn_combine(out, torch.stack([p[1] for p in parts]).transpose(2, 3), out_dtype=BF16)

    out, lse = halves(q, k, v)
    for b in range(2):
        check(out[b], lse[b].T, q[b], k[b], v[b])

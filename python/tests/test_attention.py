"""flash_attn_func, flash_attn_varlen_func and flash_attn_combine against attention in float64."""

import pytest
import torch
from onepass.flash_attn_interface import flash_attn_combine, flash_attn_func, flash_attn_varlen_func
from reference import attention, check

BF16, FP16 = torch.bfloat16, torch.float16

CASES = [
    # dtype, batch, seqlen_q, seqlen_k, heads, heads_kv, head_dim, head_dim_v, options
    (BF16, 2, 128, 128, 4, 4, 128, 128, {}),
    (FP16, 2, 113, 203, 6, 2, 64, 64, {"causal": True}),
    (BF16, 1, 1, 339, 8, 1, 128, 128, {"causal": True}),
    (BF16, 3, 7, 5, 4, 2, 128, 128, {"causal": True}),
    (BF16, 2, 64, 300, 8, 2, 256, 256, {"causal": True, "num_splits": 0}),
    (FP16, 2, 33, 257, 5, 1, 192, 128, {"causal": True}),
    (BF16, 2, 100, 100, 4, 4, 128, 128, {"window_size": (30, 10)}),
    (BF16, 2, 100, 150, 4, 2, 64, 64, {"window_size": [20, -1], "causal": True}),
    (BF16, 1, 60, 100, 2, 2, 64, 64, {"window_size": (-1, 1 << 32)}),  # what 32 bits would make (-1, 0)
    (BF16, 1, 60, 100, 2, 2, 64, 64, {"window_size": (1 << 32, -1)}),
    (FP16, 1, 90, 140, 4, 2, 128, 128, {"attention_chunk": 32, "causal": True}),
    (BF16, 2, 65, 129, 4, 2, 128, 128, {"softcap": 15.0}),
    (BF16, 2, 17, 129, 4, 2, 80, 80, {"softmax_scale": 0.3}),
    (FP16, 2, 17, 70, 4, 2, 96, 96, {"num_splits": 3}),
    (BF16, 1, 20, 40, 2, 2, 32, 32, {"causal": True}),
    (FP16, 2, 3, 700, 14, 2, 128, 128, {"causal": True, "num_splits": 0}),
]


def options_of(options: dict) -> dict:
    names = {"causal": "causal", "attention_chunk": "chunk", "softcap": "softcap", "softmax_scale": "scale"}
    found = {ours: options[theirs] for theirs, ours in names.items() if theirs in options}
    return {**found, "window": tuple(options.get("window_size", (-1, -1)))}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[2]}x{c[3]}-{c[4]}/{c[5]}-d{c[6]}-{sorted(c[8])}")
@pytest.mark.parametrize("layout", ["contiguous", "heads_first", "packed"])
def test_batches(device, case, layout):
    dtype, batch, sq, sk, heads, heads_kv, dim, dim_v, options = case

    def make(length, heads, dim):
        if layout == "heads_first":
            return (
                torch.randn((batch, heads, length, dim), device=device, dtype=torch.float32).to(dtype).transpose(1, 2)
            )
        if layout == "packed":
            wide = torch.randn((batch, length, 2 * heads, dim), device=device, dtype=torch.float32).to(dtype)
            return wide[:, :, heads:]
        return torch.randn((batch, length, heads, dim), device=device, dtype=torch.float32).to(dtype)

    q, k, v = make(sq, heads, dim), make(sk, heads_kv, dim), make(sk, heads_kv, dim_v)
    out, lse = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert out.shape == (batch, sq, heads, dim_v) and out.dtype == dtype and out.is_contiguous()
    assert lse.shape == (batch, heads, sq) and lse.dtype == torch.float32 and lse.is_contiguous()
    for b in range(batch):
        check(out[b], lse[b], q[b], k[b], v[b], **options_of(options))
    alone = flash_attn_func(q, k, v, **options)
    assert isinstance(alone, torch.Tensor)
    assert torch.equal(alone, out)


def test_expanded_keys(device):
    """One sequence of keys for a whole batch, by a stride of 0."""
    q = torch.randn((3, 4, 4, 64), device=device).to(BF16)
    k, v = (torch.randn((1, 50, 4, 64), device=device).to(BF16).expand(3, -1, -1, -1) for _ in range(2))
    out = flash_attn_func(q, k, v, causal=True)
    for b in range(3):
        check(out[b], None, q[b], k[b], v[b], causal=True)


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_nothing(device, shape):
    batch, sq, sk = shape
    q = torch.randn((batch, sq, 4, 64), device=device).to(BF16)
    k, v = (torch.randn((batch, sk, 2, 64), device=device).to(BF16) for _ in range(2))
    out, lse = flash_attn_func(q, k, v, return_attn_probs=True)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full((batch, 4, sq), float("-inf"), device=device))


def boundaries(lengths, device):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("used", ["all", "seqused_k", "seqused_q", "both"])
def test_sequences_one_after_the_other(device, causal, dim, used):
    lengths_q, lengths_k = [5, 0, 64, 1, 130], [5, 9, 100, 0, 131]
    q = torch.randn((sum(lengths_q), 4, dim), device=device).to(BF16)
    k, v = (torch.randn((sum(lengths_k), 2, dim), device=device).to(BF16) for _ in range(2))
    cu_q, cu_k = boundaries(lengths_q, device), boundaries(lengths_k, device)
    options, used_q, used_k = {}, lengths_q, lengths_k
    if used in ("seqused_k", "both"):
        used_k = [3, 0, 77, 0, 131]
        options["seqused_k"] = torch.tensor(used_k, dtype=torch.int32, device=device)
        # What is not used may hold anything.
        for b, n in enumerate(used_k):
            k[cu_k[b] + n : cu_k[b + 1]] = v[cu_k[b] + n : cu_k[b + 1]] = float("nan")
    if used in ("seqused_q", "both"):
        used_q = [2, 0, 64, 0, 65]
        options["seqused_q"] = torch.tensor(used_q, dtype=torch.int32, device=device)
    out, lse = flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max(lengths_q), max(lengths_k), causal=causal, return_attn_probs=True, **options
    )
    assert out.shape == (sum(lengths_q), 4, dim) and lse.shape == (4, sum(lengths_q))
    for b in range(len(lengths_q)):
        rows = slice(cu_q[b], cu_q[b] + used_q[b])
        keys = slice(cu_k[b], cu_k[b] + used_k[b])
        check(out[rows], lse[:, rows], q[rows], k[keys], v[keys], causal=causal)
        rest = slice(cu_q[b] + used_q[b], cu_q[b + 1])
        assert torch.equal(out[rest], torch.zeros_like(out[rest]))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [None, BF16, FP16])
@pytest.mark.parametrize("dim", [128, 66])
def test_combine(device, batch, dtype, dim):
    parts, seqlen, heads = 4, 5, 6
    q = torch.randn((seqlen, heads, dim), device=device).double()
    out = torch.empty((parts, batch, seqlen, heads, dim), device=device)
    lse = torch.empty((parts, batch, heads, seqlen), device=device).transpose(2, 3)
    whole = []
    for b in range(batch):
        k, v = (torch.randn((40, heads, dim), device=device).double() for _ in range(2))
        for part in range(parts):
            keys = slice(0, 0) if part == 2 else slice(10 * part, 10 * part + 10)
            piece, logs = attention(q, k[keys], v[keys])
            out[part, b], lse[part, b] = piece.float(), logs.T.float()
        out[2, b] = float("nan")  # of an empty part nothing is read
        kept = [i for i in range(40) if not 20 <= i < 30]
        whole.append(attention(q, k[kept], v[kept]))
    merged, merged_lse = flash_attn_combine(out, lse, out_dtype=dtype)
    assert merged.dtype == (dtype or torch.float32) and merged.shape == (batch, seqlen, heads, dim)
    assert merged_lse.shape == (batch, seqlen, heads) and merged_lse.stride(1) == 1
    tolerance = {None: 1e-5, FP16: 2e-3, BF16: 1.6e-2}[dtype]
    for b in range(batch):
        assert torch.allclose(merged[b].double(), whole[b][0], atol=tolerance, rtol=tolerance)
        assert torch.allclose(merged_lse[b].T.double(), whole[b][1], atol=1e-5)
    given = torch.empty_like(merged)
    assert flash_attn_combine(out, lse, out=given, out_dtype=dtype)[0] is given
    assert torch.equal(given, merged)


def test_prefix_and_suffix(device):
    """Attention over all keys from two calls and a combine."""
    q = torch.randn((2, 9, 4, 128), device=device).to(BF16)
    k, v = (torch.randn((2, 70, 2, 128), device=device).to(BF16) for _ in range(2))
    parts = [flash_attn_func(q, k[:, s], v[:, s], return_attn_probs=True) for s in (slice(0, 30), slice(30, 70))]
    out, lse = flash_attn_combine(
        torch.stack([p[0].float() for p in parts]), torch.stack([p[1] for p in parts]).transpose(2, 3), out_dtype=BF16
    )
    for b in range(2):
        check(out[b], lse[b].T, q[b], k[b], v[b])

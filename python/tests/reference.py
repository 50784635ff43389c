"""Attention in float64, one request at a time, and the straightforward low-precision computation that bounds the error."""

import torch


def visible(sq: int, sk: int, causal, window, chunk, device) -> torch.Tensor:
    """[sq, sk], bottom right: query i stands at key sk - sq + i."""
    p = torch.arange(sq, device=device)[:, None] + sk - sq
    j = torch.arange(sk, device=device)[None, :]
    mask = torch.ones((sq, sk), dtype=torch.bool, device=device)
    if causal:
        mask &= j <= p
    if window[0] >= 0:
        mask &= j >= p - window[0]
    if window[1] >= 0 and not causal:
        mask &= j <= p + window[1]
    if chunk > 0:
        mask &= torch.div(j, chunk, rounding_mode="floor") == torch.div(p, chunk, rounding_mode="floor")
    return mask


def attention(q, k, v, scale=None, causal=False, window=(-1, -1), chunk=0, softcap=0.0, dtype=torch.float64):
    """q [sq, h, d], k [sk, hk, d], v [sk, hk, dv] -> out [sq, h, dv], lse [h, sq]; products in `dtype`."""
    sq, heads, dim = q.shape
    sk, group = k.shape[0], heads // k.shape[1]
    if sk == 0:
        return (
            torch.zeros((sq, heads, v.shape[-1]), dtype=torch.float64, device=q.device),
            torch.full((heads, sq), float("-inf"), dtype=torch.float64, device=q.device),
        )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = dim**-0.5 if scale is None else scale
    k, v = (t.to(dtype).repeat_interleave(group, dim=1).transpose(0, 1) for t in (k, v))
    scores = (q.to(dtype).transpose(0, 1) @ k.transpose(1, 2)).to(wide) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(sq, sk, causal, window, chunk, q.device), float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).nan_to_num(0.0)
    return (weights.to(dtype) @ v).transpose(0, 1).to(torch.float64), lse.to(torch.float64)


def check(out, lse, q, k, v, **options) -> None:
    """out [sq, h, dv] and lse [h, sq] (or None): at most twice the error of the straightforward computation."""
    exact, exact_lse = attention(q.double(), k.double(), v.double(), **options)
    plain, _ = attention(q, k, v, dtype=q.dtype if q.is_cuda else torch.float32, **options)
    allowed = 2 * (plain - exact).abs().max().item() if exact.numel() else 0.0
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[q.dtype]
    allowed += rounding * max(1e-2, exact.abs().max().item() if exact.numel() else 0.0)
    assert torch.isfinite(out).all(), "out is not finite"
    error = (out.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= allowed, f"out: error {error:.3g}, allowed {allowed:.3g}"
    if lse is not None:
        unseen = torch.isinf(exact_lse)
        assert torch.equal(torch.isneginf(lse), unseen), "lse: -inf elsewhere than where no key is seen"
        assert torch.allclose(lse[~unseen].double(), exact_lse[~unseen], atol=2e-3, rtol=1e-4), "lse"


def rotate(x, cos, sin, interleaved: bool):
    """x [n, h, d], cos and sin [n, rotary_dim / 2]."""
    half = cos.shape[-1]
    x, cos, sin = x.double(), cos.double()[:, None], sin.double()[:, None]
    result = x.clone()
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result

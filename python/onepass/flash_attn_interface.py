"""FlashAttention-3's functions (its flash_attn_interface) on the kernels of onepass: the same names, arguments, layouts,
defaults and results, for inference. What is not supported raises an error that names the argument.

    q, k, v, out: float16 or bfloat16 CUDA tensors, [batch, length, heads, head_dim], or [total, heads, head_dim] with cu_seqlens
    softmax_lse:  float32, [batch, heads, length], or [heads, total] with cu_seqlens_q

A row that sees no key gives out = 0 and softmax_lse = -inf. Everything is queued on torch's current stream and can be
captured into a CUDA graph; lengths are read on the GPU alone. pack_gqa and sm_margin are hints that need no heed here: they change no
result. deterministic is about the backward pass; results are the same in every call.
"""

import ctypes

import torch

from onepass import _device, _library
from onepass._attention import CACHE_NAMES, PLAIN_NAMES, attend
from onepass._checks import (
    DTYPES,
    INT_MAX,
    expect_device,
    expect_int,
    expect_like,
    expect_pair,
    expect_tensor,
    expect_window,
    refuse,
    refuse_gradients,
)
from onepass._compile import uncompiled
from onepass._plan import Plan

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


_NONE = (None,) * 13


def _refuse_unsupported(qv, q_descale, k_descale, v_descale) -> None:
    refuse("qv", qv, "a second query tensor, of MLA, is not supported")
    for name, descale in (("q_descale", q_descale), ("k_descale", k_descale), ("v_descale", v_descale)):
        refuse(name, descale, "scales belong to float8 tensors, which are not supported")


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """Attention of q [batch, seqlen_q, heads, head_dim] over k and v [batch, seqlen_k, heads_kv, head_dim(_v)], the mask
    aligned to the bottom right. Returns out, or (out, softmax_lse) with return_attn_probs."""
    if qv is not None or q_descale is not None or k_descale is not None or v_descale is not None:
        _refuse_unsupported(qv, q_descale, k_descale, v_descale)
    if type(window_size) is not tuple:
        window_size = expect_pair(window_size)
    options = (PLAIN_NAMES, softmax_scale, causal, window_size, attention_chunk, softcap, num_splits, None)
    out, lse = attend((q, k, v, *_NONE), (*options, return_attn_probs, False))
    return (out, lse) if return_attn_probs else out


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """The same over sequences that lie one after the other: q [total_q, heads, head_dim], sequence b in its rows
    cu_seqlens_q[b] to cu_seqlens_q[b + 1], k and v likewise. Of these, seqused_q and seqused_k [batch] say how many count;
    query rows that do not give 0. Returns out, or (out, softmax_lse [heads, total_q]) with return_attn_probs."""
    if qv is not None or q_descale is not None or k_descale is not None or v_descale is not None:
        _refuse_unsupported(qv, q_descale, k_descale, v_descale)
    if type(window_size) is not tuple:
        window_size = expect_pair(window_size)
    options = (
        PLAIN_NAMES,
        softmax_scale,
        causal,
        window_size,
        attention_chunk,
        softcap,
        num_splits,
        max_seqlen_q,
    )
    tensors = (q, k, v, seqused_k, None, cu_seqlens_q, cu_seqlens_k, None, None, None, seqused_q)
    out, lse = attend((*tensors, None, None, None, None, None), (*options, return_attn_probs, False))
    return (out, lse) if return_attn_probs else out


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    page_table=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    max_seqlen_q=None,
    rotary_seqlens=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
):
    """Attention over a KV cache: [entries, capacity, heads_kv, head_dim], or pages [num_pages, page_size, heads_kv, head_dim]
    with page_table [batch, pages]. cache_seqlens (a number or [batch]) says how many keys each sequence has.

    k and v are appended to the cache first, at cache_seqlens, and rotated with rotary_cos and rotary_sin on the way, like the
    queries; what would go past the capacity is dropped. cache_batch_idx chooses entries (or rows of the page table),
    cache_leftpad hides keys at the front. Returns out, or with return_softmax_lse (out, softmax_lse, and two empty tensors where
    FlashAttention-3 has its partial results)."""
    if qv is not None or q_descale is not None or k_descale is not None or v_descale is not None:
        _refuse_unsupported(qv, q_descale, k_descale, v_descale)
    if type(window_size) is not tuple:
        window_size = expect_pair(window_size)
    options = (
        CACHE_NAMES,
        softmax_scale,
        causal,
        window_size,
        attention_chunk,
        softcap,
        num_splits,
        max_seqlen_q,
    )
    tensors = (q, k_cache, v_cache, cache_seqlens, page_table, cu_seqlens_q, None, k, v, cu_seqlens_k_new, None)
    placed = (cache_batch_idx, cache_leftpad, rotary_cos, rotary_sin, rotary_seqlens)
    out, lse = attend((*tensors, *placed), (*options, return_softmax_lse, rotary_interleaved), scheduler_metadata)
    if not return_softmax_lse:
        return out
    return out, lse, *_device.nothing(lse.device)


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """Attention over all keys from attention over parts of them: out_partial float32 [parts, batch, seqlen, heads, head_dim],
    lse_partial float32 [parts, batch, seqlen, heads] with stride 1 along seqlen. Returns out [batch, seqlen, heads, head_dim]
    and softmax_lse [batch, seqlen, heads], which has stride 1 along seqlen."""
    expect_tensor("out_partial", out_partial, (5,))
    expect_device("out_partial", out_partial)
    device = out_partial.device
    expect_like("out_partial", out_partial, (5,), torch.float32, device)
    expect_like("lse_partial", lse_partial, (4,), torch.float32, device)
    parts, batch, seqlen, heads, head_dim = out_partial.shape
    if lse_partial.shape != out_partial.shape[:-1]:
        raise ValueError(f"lse_partial: expected shape {list(out_partial.shape[:-1])}, found {list(lse_partial.shape)}")
    if torch.is_grad_enabled():
        refuse_gradients(("out_partial", "lse_partial"), (out_partial, lse_partial))
    dtype = torch.float32 if out_dtype is None else out_dtype
    if dtype not in DTYPES:
        raise ValueError(f"out_dtype: expected torch.float32, torch.float16 or torch.bfloat16, found {dtype}")
    if out is not None:
        expect_like("out", out, (4,), dtype, device)
        if out.shape != out_partial.shape[1:]:
            raise ValueError(f"out: expected shape {list(out_partial.shape[1:])}, found {list(out.shape)}")
    lse = torch.empty((batch, heads, seqlen), dtype=torch.float32, device=device)
    result = out if out is not None else torch.empty(out_partial.shape[1:], dtype=dtype, device=device)
    if result.numel() > 0 and parts > 0:
        _merge(out_partial, lse_partial, result, lse)
    elif parts == 0:
        result.zero_()
        lse.fill_(float("-inf"))
    return result, lse.transpose(1, 2)


@uncompiled
def _merge(out_partial, lse_partial, out, lse) -> None:
    """By onepass_attention_merge, for which a batch's rows are rows like any other."""
    parts, batch, seqlen, heads, head_dim = out_partial.shape
    out_partial = out_partial.contiguous()
    if head_dim % 4 != 0:
        out_partial = torch.nn.functional.pad(out_partial, (0, -head_dim % 4))
    padded = out_partial.shape[-1]
    target = out
    if padded != head_dim or not out.is_contiguous():
        target = torch.empty((batch, seqlen, heads, padded), dtype=out.dtype, device=out.device)
    lse_partial = lse_partial.permute(0, 3, 1, 2).contiguous()  # no copy for a batch of one
    rows = batch * seqlen
    merged_lse = lse if batch == 1 else torch.empty((heads, rows), dtype=torch.float32, device=lse.device)

    stack = _library.PartStack()
    stack.out, stack.lse = out_partial.data_ptr(), lse_partial.data_ptr()
    stack.head_stride, stack.row_stride, stack.part_stride = padded, heads * padded, rows * heads * padded
    stack.lse_head_stride, stack.lse_part_stride = rows, heads * rows
    stack.count, stack.dtype = parts, _library.FLOAT32
    params = _library.MergeParams()
    params.stacks, params.num_stacks = ctypes.pointer(stack), 1
    params.out, params.out_dtype = target.data_ptr(), DTYPES[out.dtype]
    params.out_head_stride, params.out_row_stride = padded, heads * padded
    params.softmax_lse, params.lse_head_stride = merged_lse.data_ptr(), rows
    params.rows, params.num_heads, params.head_dim_v = rows, heads, padded
    index = out.device.index
    with torch.cuda.device(index):
        stream = _device.raw_stream(index)
        _device.native().attention_merge(_device.gpu(index).handle, ctypes.byref(params), stream)
        if target is not out:
            out.copy_(target[..., :head_dim])
        if merged_lse is not lse:
            lse.copy_(merged_lse.view(heads, batch, seqlen).transpose(0, 1))


@uncompiled
def get_scheduler_metadata(
    batch_size,
    max_seqlen_q,
    max_seqlen_k,
    num_heads_q,
    num_heads_kv,
    headdim,
    cache_seqlens,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    cache_leftpad=None,
    page_size=None,
    max_seqlen_k_new=0,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    has_softcap=False,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """An int32 tensor for flash_attn_with_kvcache's scheduler_metadata: the calls that are given it (the layers of one step, of
    the same shapes and lengths) plan once, in the first of them. Ask for a new one when lengths change."""
    if qkv_dtype not in (torch.float16, torch.bfloat16):
        raise NotImplementedError(f"qkv_dtype: expected torch.float16 or torch.bfloat16, found {qkv_dtype}")
    expect_tensor("cache_seqlens", cache_seqlens, (1,))
    expect_device("cache_seqlens", cache_seqlens)
    batch_size, max_seqlen_q = expect_int("batch_size", batch_size), expect_int("max_seqlen_q", max_seqlen_q)
    if batch_size * max_seqlen_q > INT_MAX:
        raise ValueError(f"max_seqlen_q: expected fewer than 2^31 queries, found {batch_size} x {max_seqlen_q}")
    max_seqlen_k = expect_int("max_seqlen_k", max_seqlen_k)
    num_heads_q, num_heads_kv = expect_int("num_heads_q", num_heads_q, 1), expect_int("num_heads_kv", num_heads_kv, 1)
    headdim = expect_int("headdim", headdim, 1)
    headdim_v = headdim if headdim_v is None else expect_int("headdim_v", headdim_v, 1)
    if page_size is not None:
        page_size = expect_int("page_size", page_size, 1)
    params = _library.AttentionParams()
    params.batch, params.max_seqlen_q, params.total_q = batch_size, max_seqlen_q, batch_size * max_seqlen_q
    params.num_heads, params.num_heads_kv = num_heads_q, num_heads_kv
    params.head_dim, params.head_dim_v = headdim, headdim_v
    params.q_dtype = params.kv_dtype = params.out_dtype = DTYPES[qkv_dtype]
    params.causal, params.attention_chunk = int(bool(causal)), expect_int("attention_chunk", attention_chunk)
    params.num_splits = max(0, expect_int("num_splits", num_splits, -INT_MAX))
    params.window_left, params.window_right = expect_window(window_size)
    params.softcap = 1.0 if has_softcap else 0.0
    expected = {
        name: getattr(params, name)
        for name in ("batch", "num_heads", "num_heads_kv", "head_dim", "head_dim_v", "q_dtype", "causal")
        + ("window_left", "window_right", "attention_chunk")
    }

    # Memory as contiguous tensors would need it; other strides may choose another kernel, and then get other memory.
    params.q_head_stride, params.q_row_stride = headdim, num_heads_q * headdim
    params.k_head_stride, params.k_row_stride = headdim, num_heads_kv * headdim
    params.v_head_stride, params.v_row_stride = headdim_v, num_heads_kv * headdim_v
    params.out_head_stride, params.out_row_stride = headdim_v, num_heads_q * headdim_v
    params.q = params.k = params.v = params.out = params.cu_seqlens_q = params.cache_seqlens = 256
    params.total_kv_rows = max(1, batch_size * max_seqlen_k)
    if page_size is None:
        params.cu_seqlens_k = 256
    else:
        params.page_table, params.page_size = 256, page_size
        params.page_table_stride = -(-max_seqlen_k // page_size)
        params.k_page_stride, params.v_page_stride = params.k_row_stride * page_size, params.v_row_stride * page_size
    gpu, library = _device.gpu(cache_seqlens.device.index), _device.native()
    kernel, size = ctypes.c_void_p(), ctypes.c_int64()
    library.attention_choose(gpu.handle, ctypes.byref(params), b"auto", ctypes.byref(kernel))
    library.attention_scratch_bytes(gpu.handle, kernel, ctypes.byref(params), ctypes.byref(size))
    metadata = torch.zeros(-(-size.value // 4), dtype=torch.int32, device=cache_seqlens.device)
    metadata.onepass_plan = Plan(expected, kernel.value, metadata.view(torch.uint8))
    return metadata
